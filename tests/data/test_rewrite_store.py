"""The store of rewrites: its forms, work that is stopped, killed or fails, what is asked of a server, other makers'."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diptych.data import rewrite_store
from diptych.data.rewrite_store import (
    make_rewrites,
    read_aligned,
    read_captions,
    read_rewrites,
    read_rows,
    rewrite,
    styles_of,
)
from diptych.errors import DiptychError

from .stand_in import Answer, StandIn, completion, serving
from .test_language_model import small_model

CAPTIONS = ["red dog", "cat", "blue car"]
STYLES = ("plain", "short")


class Turned:
    """A rewriter that turns captions round; breaks when told to."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.asked: list[tuple[str, str]] = []
        self.breaks_at = breaks_at

    def __call__(self, caption: str, style: str) -> str:
        if len(self.asked) == self.breaks_at:
            raise DiptychError("gone")
        self.asked.append((caption, style))
        return " ".join(reversed(caption.split()))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_answers_are_kept_and_work_is_taken_up_again(tmp_path: Path, suffix: str):
    store = tmp_path / "deep" / f"rewrites{suffix}"
    with pytest.raises(DiptychError, match="gone"):
        rewrite(CAPTIONS, Turned(3), store, styles=STYLES)
    log = rewrite_store.log_of(store)
    with log.open("a") as file:
        file.write('{"text": "cat", "sty')  # the power went
    again = Turned()
    made = rewrite(CAPTIONS, again, store, styles=STYLES, by="turner")
    assert again.asked == [("cat", "short"), ("blue car", "plain"), ("blue car", "short")]
    assert made["blue car"] == {"plain": "car blue", "short": "car blue"} and made["cat"]["short"] == "cat"
    assert read_rewrites(store) == made
    assert [(row.refused, row.answer, row.by) for row in read_rows(store) if row.text == "cat"] == [
        ("empty", "cat", ""), ("empty", "cat", "turner"),
    ]  # fmt: skip
    assert [p.name for p in store.parent.iterdir()] == [store.name]
    nothing = Turned(0)
    assert rewrite(CAPTIONS, nothing, store, styles=STYLES) == made and not nothing.asked
    more = Turned()
    rewrite([*CAPTIONS, "green hat"], more, store, styles=STYLES)
    assert more.asked == [("green hat", "plain"), ("green hat", "short")]
    assert read_rewrites(store) == {**made, "green hat": {"plain": "hat green", "short": "hat green"}}


def test_what_is_under_way_when_one_fails_is_kept(tmp_path: Path):
    """Three answers are waited for; the second fails at once, the others come later and are not lost."""
    together = threading.Barrier(3)

    def rewriter(caption: str, style: str) -> str:
        together.wait(10)
        if caption == "cat":
            raise DiptychError("gone")
        time.sleep(0.2)
        return f"{caption}, once more"

    with pytest.raises(DiptychError, match="gone"):
        rewrite(CAPTIONS * 5, rewriter, tmp_path / "store.jsonl", styles=("plain",), workers=3)
    assert set(read_rewrites(tmp_path / "store.jsonl")) == {"red dog", "blue car"}


def words_of(prompt: str) -> str:
    return prompt.rpartition("\n")[2].removesuffix(" =>")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_and_started_again_nothing_is_lost_or_asked_twice(tmp_path: Path):
    """kill -9 of the command while a server answers: of 80 prompts only those under way are asked again."""
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"a red box number {i}" for i in range(40)))
    store = tmp_path / "store.jsonl"

    def respond(path: str, body: dict[str, Any]) -> Answer:
        return completion(f" here is {words_of(body['prompt'])}")

    words = [sys.executable, "-m", "diptych", "rewrite", str(captions), "--n", "2", "--out", str(store)]
    with serving(StandIn(respond, seconds=0.05)) as server:
        command = [*words, "--with", f"{server.address}/v1"]
        environment = {**os.environ, "DIPTYCH_LLM_KEY": "sk-hush-hush"}
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (store.exists() and store.read_bytes().count(b"\n") >= 20):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.005)
        first.kill()
        first.wait()
        kept = {(row.text, row.style) for row in read_rows(store)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 20 <= len(kept) < 80 and 80 <= len(server.seen) <= 80 + rewrite_store.AT_ONCE
    assert max(Counter(server.prompts).values()) <= 2 and server.most <= rewrite_store.AT_ONCE
    found = read_rewrites(store)
    assert len(found) == 40 and all(set(by_style) == {"plain", "short"} for by_style in found.values())
    assert "kept" in done.stdout
    assert "sk-hush" not in done.stdout + done.stderr + store.read_text()


def test_a_report_counts_why(tmp_path: Path):
    said = {"a cat on a mat": " a mat with a cat on it", "a dog in fog": "a dog in fog", "two red cups": "rain",
            "an old grey boat": " the sea is blue"}  # fmt: skip

    def respond(path: str, body: dict[str, Any]) -> Answer:
        return completion(said[words_of(body["prompt"])])

    seen: list[tuple[int, int]] = []
    with serving(StandIn(respond)) as server:
        options: dict[str, Any] = {"n": 1, "model": "small", "progress": lambda *at: seen.append(at)}
        made = make_rewrites([*said, "a dog in fog"], f"{server.address}/v1", tmp_path / "s.jsonl", **options)
        again = make_rewrites(said, f"{server.address}/v1", tmp_path / "s.jsonl", **options)
    assert made.outcomes == {"kept": 1, "a copy": 1, "empty": 1, "words lost": 1} == again.outcomes
    assert (made.asked, again.asked, made.captions) == (4, 0, 4) and len(server.seen) == 4
    assert seen == [(i, 4) for i in range(1, 5)]
    assert "1 of 4 rewrites of 4 captions kept" in str(made)
    assert {row.by for row in made.rows} == {"small"}
    assert all(body["max_tokens"] == 77 and body["stop"] == ["\n"] for _, body, _ in server.seen)


def test_a_model_on_this_machine_rewrites(tmp_path: Path):
    """Random weights: the plumbing, with as many rows as asked for, the refused ones standing as they were."""
    small_model(tmp_path / "model")
    made = make_rewrites(["a cat has fur", "a cat"], str(tmp_path / "model"), tmp_path / "s.json", n=2)
    assert len(made.rows) == 4 and {row.by for row in made.rows} == {"model"}
    assert all(row.rewrite == row.text for row in made.rows if row.refused)


def test_by_rules_and_more_styles_than_there_are(tmp_path: Path):
    assert styles_of(6) == ("plain", "short", "vivid", "turned", "plain 2", "short 2")
    made = make_rewrites(["a large dog, near a tree"], "rules", tmp_path / "s.jsonl", n=9)
    assert len(made.rows) == 9 == made.outcomes["kept"] and len({row.rewrite for row in made.rows}) > 4
    for by, message in (("nothing", "rewrites nothing"), ("rules", r"ends in \.jsonl, \.json, \.parquet")):
        with pytest.raises(DiptychError, match=message):
            make_rewrites(["a dog"], by, tmp_path / ("s.txt" if by == "rules" else "s.jsonl"))


def test_captions_are_read_as_training_reads_them(tmp_path: Path):
    (tmp_path / "lines.txt").write_text("a  dog \n\na cat\n", "utf-8")
    assert read_captions(tmp_path / "lines.txt") == ["a dog", "a cat"]
    (tmp_path / "table.csv").write_text('file,caption,about\n1.jpg,"a dog, asleep",x\n2.jpg,,y\n3.jpg,a cat,z\n')
    assert read_captions(tmp_path / "table.csv") == ["a dog, asleep", "a cat"]
    assert read_captions(tmp_path / "table.csv", ["about"]) == ["x", "y", "z"]
    assert len(read_captions(Path("scenes:5"))) == 5
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DiptychError, match="holds no captions"):
        read_captions(tmp_path / "empty.txt")


def test_a_broken_store_is_refused_by_line(tmp_path: Path):
    store = tmp_path / "rewrites.jsonl"
    store.write_text(json.dumps({"text": "a", "style": "plain", "rewrite": "b"}) + "\n{}\n")
    with pytest.raises(DiptychError, match=r"rewrites\.jsonl line 2"):
        read_rewrites(store)
    with pytest.raises(DiptychError, match="nowhere"):
        read_rewrites(tmp_path / "nowhere.jsonl")
    for content in ("{", "3", '[{"text": "a"}]', '{"a": [3]}', '[{"text": "a", "style": "b", "rewrite": 3}]'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DiptychError, match=r"bad\.json holds no rewrites"):
            read_rewrites(tmp_path / "bad.json")


def test_stores_of_other_makers(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"a dog": ["one dog", "dog"], "a cat": "one cat", "x": {"s": "y"}}))
    assert read_rewrites(tmp_path / "a.json") == {
        "a dog": {"0": "one dog", "1": "dog"},
        "a cat": {"0": "one cat"},
        "x": {"s": "y"},
    }
    (tmp_path / "b.csv").write_text('caption,rewrites\na dog,"[""one dog"", ""dog""]"\na dog,hound\na cat,one cat\n')
    found = read_rewrites(tmp_path / "b.csv")
    assert {text: sorted(by_style.values()) for text, by_style in found.items()} == {
        "a dog": ["dog", "hound", "one dog"],
        "a cat": ["one cat"],
    }
    (tmp_path / "c.csv").write_text("caption,said\na dog,one dog\n")
    with pytest.raises(DiptychError, match="needs the columns text and rewrite"):
        read_rewrites(tmp_path / "c.csv")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.table({"caption": ["a dog", "a cat"], "rewrites": [["one dog", "dog"], ["one cat"]]})
    parquet.write_table(table, tmp_path / "d.parquet")
    assert sorted(read_rewrites(tmp_path / "d.parquet")["a dog"].values()) == ["dog", "one dog"]


def test_aligned_files_of_others(tmp_path: Path):
    (tmp_path / "raw.txt").write_text("a dog\na cat\n")
    (tmp_path / "llama.txt").write_text("there is a hound\ncat\n")
    assert read_aligned(tmp_path / "raw.txt", [tmp_path / "llama.txt"]) == {
        "a dog": {"llama": "there is a hound"},
        "a cat": {},
    }
    (tmp_path / "short.txt").write_text("there is a dog\n")
    with pytest.raises(DiptychError, match="1 lines"):
        read_aligned(tmp_path / "raw.txt", [tmp_path / "short.txt"])
