"""Rewrites of captions: prompts, what is accepted, rules, the store and its resumption, files of others."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from diptych.data.descriptions import LocalModel
from diptych.data.rewrites import (
    INSTRUCTION,
    STYLES,
    ByModel,
    Rewritten,
    accepted,
    by_model,
    by_rules,
    prompt_for,
    read_aligned,
    read_rewrites,
    recall,
    rewrite,
)
from diptych.errors import DiptychError

THINGS = ("dog", "red car", "small boat", "woman with a hat", "wooden chair", "two cats", "old clock", "green bottle")
WHERE = ("on a beach", "next to a large tree", "under a bridge", "in the street", "near a couch")
CAPTIONS = [f"{opening}{thing} {where}" for opening in ("a photo of a ", "A ", "the ", "") for thing in THINGS
            for where in WHERE]  # fmt: skip


def test_a_prompt_shows_three_examples_and_leaves_the_caption_open():
    lines = prompt_for("a cat =>\nasleep", "plain", random.Random(1)).split("\n")
    assert lines[0] == INSTRUCTION and lines[-1] == "a cat -> asleep =>"
    shown = [tuple(line.split(" => ")) for line in lines[2:-1]]
    assert len(set(shown)) == 3 and set(shown) <= set(STYLES["plain"])
    assert prompt_for("word " * 500, "plain", random.Random(1)).endswith("word word =>")
    assert len(prompt_for("word " * 500, "plain", random.Random(1)).split()) < 200


def test_examples_are_drawn_evenly():
    counts = dict.fromkeys(STYLES["vivid"], 0)
    for seed in range(1200):
        for pair in counts:
            counts[pair] += f"{pair[0]} => " in prompt_for("x", "vivid", random.Random(seed))
    assert all(abs(count - 600) < 4 * (1200 * 0.25) ** 0.5 for count in counts.values())


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (" A cat sleeps.\nanother => one", "A cat sleeps."),
        ('\n"a sleeping cat"', "a sleeping cat"),
        ("=> a sleeping cat", "a sleeping cat"),
        ("", None),
        ("cat", None),
        ("a cat asleep", None),  # as it was
        (STYLES["short"][0][1], None),  # a worked example
        ("a dog => a hound", None),
        (INSTRUCTION, None),
    ],
)
def test_answers_are_judged(answer: str, found: str | None):
    assert accepted(answer, "a cat asleep") == found


def test_rules_keep_what_captions_show():
    """Of 160 captions in four styles: nearly all accepted, words kept, and something changed."""
    made = [(caption, style, by_rules(caption, style)) for caption in CAPTIONS for style in STYLES]
    passed = [accepted(text, caption) is not None for caption, _, text in made]
    recalls = [recall(caption, text) for caption, _, text in made]
    assert sum(passed) / len(passed) > 0.95 and sum(recalls) / len(recalls) > 0.8
    assert all(text == by_rules(caption, style) for caption, style, text in made)
    assert len({by_rules("a dog, on a beach, at dusk", str(i)) for i in range(60)}) > 20


def test_recall_counts_words_that_say_something():
    assert recall("a photo of a brown dog", "the dog is brown") == 1
    assert recall("a brown dog on a beach", "a dog") == pytest.approx(1 / 3)
    assert recall("the", "") == 1


class Parrot:
    """Answers with the caption turned round; breaks when told to."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.asked: list[str] = []
        self.breaks_at = breaks_at

    def complete(self, prompt: str) -> str:
        if len(self.asked) == self.breaks_at:
            raise DiptychError("gone")
        self.asked.append(prompt)
        words = prompt.rpartition("\n")[2].removesuffix(" =>").split()
        return " " + " ".join(reversed(words)) + "\nmore => text"


def test_answers_are_kept_and_work_is_taken_up_again(tmp_path: Path):
    store = tmp_path / "deep" / "rewrites.jsonl"
    with pytest.raises(DiptychError, match="gone"):
        rewrite(["red dog", "cat", "blue car"], ByModel(Parrot(3)), store, styles=("plain", "short"))
    with store.open("a") as file:
        file.write('{"text": "cat", "sty')  # the power went
    assert read_rewrites(store) == {"red dog": {"plain": "dog red", "short": "dog red"}, "cat": {"plain": "cat"}}
    again = Parrot()
    made = rewrite(["red dog", "cat", "blue car"], ByModel(again), store, styles=("plain", "short"))
    assert len(again.asked) == 3
    assert made["blue car"] == {"plain": "car blue", "short": "car blue"} and made["cat"]["short"] == "cat"
    assert read_rewrites(store) == made and len(store.read_text().splitlines()) == 6


def test_prompts_of_a_caption_are_the_same_whatever_came_before():
    one, other = Parrot(), Parrot()
    ByModel(one)("red dog", "plain")
    ByModel(other)("blue car", "plain")
    ByModel(other)("red dog", "plain")
    ByModel(other, seed=1)("red dog", "plain")
    assert one.asked[0] == other.asked[1] != other.asked[2]


def test_models_of_ours_sample_as_published():
    model = by_model(LocalModel(Path("somewhere"))).model
    assert isinstance(model, LocalModel)
    assert (model.temperature, model.top_p, model.length) == (0.9, 0.95, 77)


def test_a_broken_store_is_refused_by_line(tmp_path: Path):
    store = tmp_path / "rewrites.jsonl"
    store.write_text(json.dumps({"text": "a", "style": "plain", "rewrite": "b"}) + "\n{}\n")
    with pytest.raises(DiptychError, match=r"rewrites\.jsonl line 2"):
        read_rewrites(store)
    with pytest.raises(DiptychError, match="nowhere"):
        read_rewrites(tmp_path / "nowhere.jsonl")


def test_aligned_files_of_others(tmp_path: Path):
    (tmp_path / "raw.txt").write_text("a dog\na cat\n")
    (tmp_path / "llama.txt").write_text("there is a dog\ncat\n")
    assert read_aligned(tmp_path / "raw.txt", [tmp_path / "llama.txt"]) == {
        "a dog": {"llama": "there is a dog"},
        "a cat": {},
    }
    (tmp_path / "short.txt").write_text("there is a dog\n")
    with pytest.raises(DiptychError, match="1 lines"):
        read_aligned(tmp_path / "raw.txt", [tmp_path / "short.txt"])


@dataclass(frozen=True)
class Pair:
    id: str
    texts: tuple[str, ...]


class Pairs:
    source = "made up"

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Pair:
        return (Pair("0", ("a dog", "unused")), Pair("1", ("a cat",)))[index]


def test_pairs_get_their_rewrites():
    pairs = Rewritten(Pairs(), {"a dog": {"plain": "one dog", "short": "dog there"}})
    assert [pair.texts for pair in pairs] == [("a dog", "one dog", "dog there"), ("a cat",)]
    assert len(pairs) == 2 and pairs.source == "made up"
