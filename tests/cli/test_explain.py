"""`diptych explain`: one picture, a table of captions, what it writes, how it goes on, what it refuses."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diptych as package
from diptych.comparison.explanation_pages import AGAINST, FOR, coloured, overlay
from diptych.comparison.explanations import LINES, explain
from diptych.core.preprocess import Preprocess
from diptych.data.scenes import Scenes
from diptych.errors import DiptychError
from diptych.methods.explain.parts.explainer import WordScore, WordScores
from diptych.report import Report, Words
from diptych.report.html import render

Run = Callable[..., Any]  # the fixture `diptych`: words -> exit code, stdout, stderr
MICRO = ("--model", "micro")


@pytest.fixture
def scenes(tmp_path: Path) -> list[Any]:
    """Six pictures, s0.png ..., and captions.csv: the true caption, then a false one of each."""
    records = [record for record in Scenes(count=30, seed=9) if record.foils][:6]
    lines = ["image,caption"]
    for i, record in enumerate(records):
        record.image().save(tmp_path / f"s{i}.png")
        colours = [foil for foil in record.foils if foil.kind == "colour"] or record.foils
        lines += [f's{i}.png,"{text}"' for text in (record.text(), colours[0].text)]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    return records


def test_a_picture_and_a_text(diptych: Run, scenes: list[Any], tmp_path: Path):
    text = scenes[0].text()
    done = diptych("explain", "s0.png", text, *MICRO)
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0] == "s0.png" and lines[1].split() == text.replace(",", " ,").split()
    assert all(f"  {word}" in done.out for word in text.split())
    assert "CLIPScore" in done.out and "F-CLIPScore" in done.out
    assert not list(tmp_path.glob("*.html"))

    found = json.loads(diptych("explain", "s0.png", text, "a blue star", *MICRO, "--json").out)
    assert [row["text"] for row in found["rows"]] == [text, "a blue star"]
    assert [word["word"] for word in found["rows"][1]["words"]] == ["a", "blue", "star"]
    assert found["measure"] == "F-CLIPScore" and found["settings"]["layers"] == 3
    again = explain(tmp_path / "s0.png", "a blue star", model="micro").explained[0].scores
    assert again and [word.score for word in again.words] == [word["score"] for word in found["rows"][1]["words"]]
    assert package.explain is explain


def test_maps_are_drawn(diptych: Run, scenes: list[Any], tmp_path: Path):
    text = scenes[1].text()
    word = next(word for word in text.split() if len(word) > 3)
    done = diptych("explain", "s1.png", text, *MICRO, "--out", "seen", "--word", word)
    assert done.code == 0, done
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        "01-text.png", "01-word.png", "report.html", "results.json",
    ]  # fmt: skip
    with Image.open(tmp_path / "seen" / "01-text.png") as drawn:
        assert drawn.size == (448, 448)
    page = (tmp_path / "seen" / "report.html").read_text("utf-8")
    assert page.count('<span class="') == len(text.split()) and f"&quot;{word}&quot; alone" in page
    wrong = diptych("explain", "s1.png", text, *MICRO, "--out", "other", "--word", "zebra")
    assert wrong.code == 2 and "zebra" in wrong.err and word in wrong.err


def test_a_table_has_the_worst_first_and_sets_the_broken_aside(diptych: Run, scenes: list[Any], tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with (tmp_path / "captions.csv").open("a") as file:
        file.write("\nbroken.png,a red star\ns0.png,\nmissing.png,a blue star")
    done = diptych("explain", "captions.csv", *MICRO, "--out", "run", "--top", "3", "--rank", "measure")
    assert done.code == 0, done
    assert "3 could not be read" in done.err and "the worst 3 are shown" in done.out
    table = list(csv.DictReader(io.StringIO((tmp_path / "run" / "captions.csv").read_text())))
    assert len(table) == 14 and [int(row["rank"]) for row in table] == list(range(1, 15))
    scores = [float(row["F-CLIPScore"]) for row in table if not row["error"]]
    assert len(scores) == 12 and scores == sorted(scores)
    assert {row["text"] for row in table[-2:]} == {"a red star", "a blue star"} and all(r["error"] for r in table[-2:])
    by_clip = json.loads(diptych("explain", "captions.csv", *MICRO, "--json").out)["rows"]
    assert [row["cosine"] for row in by_clip[:12]] == sorted(row["cosine"] for row in by_clip[:12])
    false = {row["text"] for row in table[:4]} - {record.text() for record in scenes}
    assert len(false) >= 3, "the false captions come first"
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Set aside" in page and "data:image/jpeg" in page and page.count("captions.csv row 13") == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["set_aside"] == [{"id": "captions.csv row 14", "reason": "no text"}]


def test_a_stopped_table_goes_on_where_it_was(
    diptych: Run, scenes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import diptych.comparison.explanations as running

    whole = diptych("explain", "captions.csv", *MICRO, "--out", "whole", "--json")
    real, calls = running.explained, [0]

    def stop(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(running, "explained", stop)
    done = diptych("explain", "captions.csv", *MICRO, "--out", "run")
    assert done.code == 130 and "continues where it was" in done.err
    lines = tmp_path / "run" / LINES
    assert len(lines.read_text().splitlines()) == 4
    with lines.open("a") as file:
        file.write('[{"id": "cut off in the mid')
    calls[0] = 100
    again = diptych("explain", "captions.csv", *MICRO, "--out", "run", "--json")
    assert calls[0] == 100 + 12 - 4 and again.out == whole.out
    other = diptych("explain", "captions.csv", *MICRO, "--out", "run", "--set", "clip4dm.layers=1")
    assert other.code == 2 and "another run" in other.err


def test_calibration_on_pairs_that_match(diptych: Run, scenes: list[Any], tmp_path: Path):
    rows = [f's{i}.png,"{record.text()}"' for i, record in enumerate(scenes)]
    (tmp_path / "true.csv").write_text("\n".join(["image,caption", *rows]))
    strict = ("--set", "clip4dm.eps=-1e-6")
    loud = json.loads(diptych("explain", "true.csv", *MICRO, *strict, "--json").out)
    quiet = json.loads(diptych("explain", "true.csv", *MICRO, "--calibrate", "true.csv", "--json").out)
    assert sum(bool(row["flagged"]) for row in loud["rows"]) == 6 and not any(row["flagged"] for row in quiet["rows"])
    assert loud["settings"]["eps"] == -1e-6 > quiet["settings"]["eps"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png", "a dog"], "no such file or folder"),
        (["s0.png"], "say its text too"),
        (["s0.png", ""], "the text is empty"),
        (["broken.png", "a dog"], "no pair could be read"),
        (["other.csv"], "no column of texts"),
        (["captions.csv", "--word", "dog"], "it needs a TEXT"),
        (["s0.png", "a dog", "--method", "clip4d"], 'did you mean "clip4dm"'),
        (["s0.png", "a dog", "--set", "clip4dm.layer=2"], 'did you mean "layers"'),
        (["s0.png", "a dog", "--set", "clip4dm.layers=two"], "a whole number"),
        (["s0.png", "a dog", "--set", "layers=2"], "--set takes SYSTEM.FIELD=VALUE"),
        (["s0.png", "a dog", "--out", "s0.png"], "is a file"),
        (["captions.csv", "--out", "."], "is not a run of diptych"),
        (["s0.png", "a dog", "--image", "picture"], "for tables"),
        (["s0.png", "a dog", "--calibrate", "nowhere.csv"], "no such folder, table or shard"),
    ],
)
def test_bad_input_is_one_message(diptych: Run, scenes: list[Any], tmp_path: Path, words: list[str], message: str):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "other.csv").write_text("image,label\ns0.png,dog\n")
    before = sorted(tmp_path.iterdir())
    done = diptych("explain", *words, *MICRO)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err, done
    assert sorted(tmp_path.iterdir()) == before, "nothing is left behind"


def test_a_text_that_is_cut_is_said_to_be(diptych: Run, scenes: list[Any], tmp_path: Path):
    long = "a red star " * 40
    one = diptych("explain", "s0.png", long, *MICRO)
    assert one.code == 0 and "longer than micro reads; not read: " in one.err and "not read  star" in one.out
    (tmp_path / "long.csv").write_text(f"image,caption\ns0.png,{long}\ns1.png,a red star\n")
    many = diptych("explain", "long.csv", *MICRO, "--out", "run")
    assert many.code == 0 and "1 of them are longer than micro reads" in many.err
    assert "longer than the model reads" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_model_without_text_attention_is_refused_with_the_reason(diptych: Run, scenes: list[Any]):
    done = diptych("explain", "s0.png", "a red star")  # the fake that stands for mini
    assert done.code == 2 and "has none to be read" in done.err and "micro" in done.err


def test_strange_words_do_no_harm(scenes: list[Any], tmp_path: Path):
    text = "<script>alert(1)</script> \u202ered\x1b[31m **star** [bold]"
    found = explain(tmp_path / "s0.png", text, model="micro", out=tmp_path / "out")
    scores = found.explained[0].scores
    assert scores and "\x1b" not in coloured(scores).plain and "\u202e" not in coloured(scores).plain
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<script>alert" not in page and "\u202e" not in page


def test_colours_say_for_and_against():
    words = (WordScore("a", 0, 1, 0.1), WordScore("red", 2, 5, -0.2, True), WordScore("dog", 6, 9, None))
    line = coloured(WordScores("a red dog", words, 0.3, -0.1, ("red",)))
    assert line.plain == "a red dog" and [str(span.style) for span in line.spans] == [
        "blue",
        "bold red underline",
        "dim",
    ]
    page = render(Report("r", [Words([("a", 0.5, False), ("red", -1.0, True), ("dog", None, False)])]))
    assert '<span class="for" style="--share: 50%">a</span>' in page
    assert '<span class="against wrong" style="--share: 100%">red</span> <span class="unread">dog</span>' in page


def test_the_map_lies_where_the_model_looks():
    """A wide picture, cropped by the model: for on the crop's left, against on its right, and grey at 0."""
    import torch

    look = Preprocess(32, (0.5,) * 3, (0.25,) * 3)
    drawn = overlay(Image.new("RGB", (128, 64), "white"), torch.tensor([[1.0, 0.0, -1.0]]).expand(3, 3), look, 32)
    pixels = np.asarray(Image.open(io.BytesIO(drawn)))
    assert pixels.shape == (32, 32, 3)
    left, middle, right = pixels[16, 0], pixels[16, 16], pixels[16, 31]
    near = {name: np.array([int(name[i : i + 2], 16) for i in (1, 3, 5)]) for name in (FOR, AGAINST)}
    assert np.abs(left - (0.75 * near[FOR] + 0.25 * 255)).max() < 8
    assert np.abs(right - (0.75 * near[AGAINST] + 0.25 * 255)).max() < 8
    assert middle.min() > 240


def test_pairs_with_texts_of_their_own_take_no_other():
    with pytest.raises(DiptychError, match="texts of their own"):
        explain(Scenes(count=2).pairs(), "a dog", model="micro")
    made = explain(Scenes(count=2).pairs(), model="micro")
    assert len(made.explained) == 2 and made.report is None
