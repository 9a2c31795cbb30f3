import base64
import json
import math
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import made_up
import numpy as np
import pytest

from diptych.comparison.pages import comparison_report, results_json, write_json, write_report
from diptych.comparison.summary import Summary
from diptych.report.html import render


class Page(HTMLParser):
    """What a browser would make of it: tags with attributes, ids, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def everyday() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return render(comparison_report(made_up.everyday()))


@pytest.fixture(scope="module")
def extreme() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is no business of the user
        return render(comparison_report(made_up.extreme()))


def test_has_every_section(everyday: str) -> None:
    titles = re.findall("<h2>(.*?)</h2>", everyday)
    assert titles == [
        "Verdict", "All methods", "Accuracy against shots and cost", "What was lost", "What the winner confuses",
        "How far its probabilities can be trusted", "Worst mistakes",
        "Recall of each class", "The pictures", "Provenance",
    ]  # fmt: skip
    assert everyday.count("<svg") == 7
    assert "better than zero-shot" in everyday
    assert "cannot be told apart" in everyday
    assert "maple: deep prompts need a transformer" in everyday


def test_opens_offline(everyday: str, extreme: str) -> None:
    for text in (everyday, extreme):
        page = Page(text)
        links = [a[k] or "" for _, a in page.tags for k in ("src", "href", "xlink:href", "action", "data") if k in a]
        assert all(link.startswith(("data:image/", "#")) for link in links)
        assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", text)
        assert not re.search(r"url\((?!#)", text)
        assert "@import" not in text
        assert "default-src 'none'" in text


def test_names_are_text_and_never_markup(extreme: str) -> None:
    page = Page(extreme)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert not any(tag in ("i", "iframe", "object", "link") for tag, _ in page.tags)
    text = "".join(page.words)
    for name in (
        "<script>alert('x')</script>",
        "🐈 cat",
        "犬",
        "كلب",
        "$\\frac{1}{2}$",
        'a "quoted" & <b>bold</b> name',
    ):
        assert name in text
    assert not set("\x00\x1b\u202e") & set(extreme)


def test_every_picture_has_words(everyday: str, extreme: str) -> None:
    for text in (everyday, extreme):
        for tag, attributes in Page(text).tags:
            if tag == "img":
                assert attributes["alt"]
            if tag == "svg":
                assert attributes["aria-label"]


def test_ids_are_unique(everyday: str) -> None:
    ids = [a["id"] for _, a in Page(everyday).tags if a.get("id")]
    assert len(ids) == len(set(ids))


def test_thumbnails_have_no_exif(everyday: str) -> None:
    assert b"SecretCamera" in made_up.thumbnail(1, 1)
    pictures = [base64.b64decode(m) for m in re.findall("data:image/jpeg;base64,([^\"']+)", everyday)]
    assert len(pictures) == 24
    for picture in pictures:
        assert b"Exif" not in picture
        assert b"Secret" not in picture


def test_worst_mistakes_are_wrong_and_surest_first() -> None:
    summary = made_up.extreme()
    report = comparison_report(summary)
    gallery = next(s for s in report.sections if s.title == "Worst mistakes")
    items = gallery.items  # type: ignore[union-attr]
    assert len(items) == 24
    assert all(item.truth != item.guess for item in items)
    assert [i.score for i in items] == sorted((i.score for i in items), reverse=True)


def test_a_thumbnail_that_is_gone_does_not_cost_the_report() -> None:
    def gone(index: int) -> bytes:
        raise FileNotFoundError(index)

    assert "picture not readable any more" in render(comparison_report(replace(made_up.everyday(), thumbnail=gone)))


def bare(summary: Summary) -> Summary:
    return replace(summary, probabilities={}, thumbnail=None, set_aside=[], duplicates=[])


def one_shot(summary: Summary) -> Summary:
    rows = [
        {**r, "validation": None, "fit_seconds": 0.0, "encode_seconds": 0.0} for r in summary.rows if r["shots"] == 1
    ]
    assert summary.winner
    return replace(summary, rows=rows, winner=replace(summary.winner, shots=1))


def perfect(summary: Summary) -> Summary:
    right = np.eye(7, dtype=np.float32)[summary.truth]
    return replace(summary, probabilities=dict.fromkeys(summary.probabilities, right))


def nothing(summary: Summary) -> Summary:
    rows = [{"method": "maple", "shots": 1, "seed": 0, "skipped": "no transformer"}]
    return replace(summary, rows=rows, probabilities={}, winner=None)


@pytest.mark.parametrize("change", [bare, one_shot, perfect, nothing])
def test_whatever_is_missing(change, tmp_path: Path) -> None:
    summary = change(made_up.everyday())
    assert "NaN" not in write_json(summary, tmp_path / "r.json").read_text("utf-8")
    text = "".join(Page(write_report(tmp_path / "r.html", summary).read_text("utf-8")).words)
    assert "nan" not in text.split("</style>")[-1].replace("naïve", "").lower().split()


def strict(text: str) -> dict:
    def refuse(word: str) -> float:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    summary = made_up.extreme()
    rows = [
        {**row, "ms_per_image": math.nan, "peak_mb": np.float32(12.5), "trainable": np.int64(3)} for row in summary.rows
    ]
    data = strict(write_json(replace(summary, rows=rows), tmp_path / "results.json").read_text("utf-8"))
    assert set(data) == {"rows", "summary", "winner", "data", "provenance"}
    assert data["rows"][0]["ms_per_image"] is None
    assert data["rows"][0]["trainable"] == 3
    assert len(data["rows"]) == len(rows)
    assert data["data"]["classes"] == summary.class_names  # a half surrogate comes back as it went
    assert data["winner"]["accuracy"]["low"] < data["winner"]["accuracy"]["mean"] < data["winner"]["accuracy"]["high"]
    assert data["winner"]["versus_zero_shot"]["mean"] > 0


def test_json_of_a_comparison(tmp_path: Path) -> None:
    data = results_json(made_up.everyday())
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    zero = next(s for s in data["summary"] if s["method"] == "zero_shot" and s["shots"] == 16)
    assert zero["versus_zero_shot"] is None
    assert [r["skipped"] for r in data["rows"] if r["method"] == "maple"]


def test_the_same_summary_gives_the_same_bytes(everyday: str) -> None:
    assert render(comparison_report(made_up.everyday())) == everyday
