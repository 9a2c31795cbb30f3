"""Rewrites of captions: prompts, what is a rewrite and what is none, rules, pairs with them."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from diptych.data.language_model import LocalModel
from diptych.data.rewrites import (
    EXAMPLES,
    INSTRUCTION,
    RECALL,
    STYLES,
    ByModel,
    Rewritten,
    accepted,
    by_model,
    by_rules,
    first_line,
    prompt_for,
    recall,
    refusal,
)

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
        ("a cat asleep => a sleeping cat", "a sleeping cat"),  # a model that talks says the whole line
        ("a dog => a hound", "a dog => a hound"),
        ("", ""),
    ],
)
def test_what_an_answer_says(answer: str, found: str):
    assert first_line(answer, "a cat asleep") == found


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ("A cat sleeps.", ""),
        ("", "empty"),
        ("cat", "empty"),
        ("a cat asleep", "a copy"),
        ("A cat, asleep.", "a copy"),
        ("a cat asleep " + "and more of it " * 5, "too long"),
        (STYLES["short"][0][1], "an echo"),
        (STYLES["short"][0][0], "an echo"),
        ("a cat => sleeping cat", "an echo"),
        (INSTRUCTION.upper(), "an echo"),
        ("a dog runs", "words lost"),
        ("two sheep on a hill", "words lost"),
    ],
)
def test_why_an_answer_is_no_rewrite(found: str, why: str):
    assert refusal(found, "a cat asleep") == why
    assert (accepted(found, "a cat asleep") is None) == bool(why)


def test_what_we_call_a_rewrite_would_pass():
    """The worked examples keep enough words, and are neither long nor copies: all that is held against them is that
    they are the examples."""
    for pairs in STYLES.values():
        for before, after in pairs:
            assert recall(before, after) >= RECALL, (before, after)
            assert after in EXAMPLES and not refusal(f"Look: {after}", before), (before, after)


def test_words_lost_can_be_allowed():
    assert refusal("a hound runs", "a cat asleep", least=0) == ""


def test_rules_keep_what_captions_show():
    """Of 160 captions in four styles: nearly all accepted, words kept, and something changed."""
    made = [(caption, style, by_rules(caption, style)) for caption in CAPTIONS for style in STYLES]
    passed = [accepted(text, caption) is not None for caption, _, text in made]
    recalls = [recall(caption, text) for caption, _, text in made]
    assert sum(passed) / len(passed) > 0.95 and sum(recalls) / len(recalls) > 0.8
    assert all(text == by_rules(caption, style) for caption, style, text in made)
    assert len({by_rules("a dog, on a beach, at dusk", str(i)) for i in range(60)}) > 20


def test_recall_counts_words_that_say_something():
    assert recall("two cats riding on a couch", "on the sofa a pair of cats rides") == 1
    assert recall("a photo of a brown dog", "the dog is brown") == 1
    assert recall("a brown dog on a beach", "a dog") == pytest.approx(1 / 3)
    assert recall("the", "") == 1


class Parrot:
    """Answers with the caption turned round."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def complete(self, prompt: str) -> str:
        self.asked.append(prompt)
        return " ".join(reversed(prompt.rpartition("\n")[2].removesuffix(" =>").split()))


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
