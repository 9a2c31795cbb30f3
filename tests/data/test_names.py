"""From folder names to words."""

from pathlib import Path

import pytest

from diptych.data.names import class_words, is_meaningless, plain_words, read_templates
from diptych.errors import DiptychError


@pytest.mark.parametrize(
    "name",
    [
        "n01440764",
        "class_3",
        "0",
        "12",
        "007",
        "cat7x9f",
        "c1",
        "label-4",
        "3f9a2c41",
        "id_17",
        "a1b2c3",
        "Class 10",
        "1.5",
    ],
)
def test_meaningless(name: str) -> None:
    assert is_meaningless(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "cat",
            "golden_retriever",
            "boeing 737",
            "mp3 player",
            "🐱",
            "猫",
            "größe",
            "F-16",
            "facade",
            "T-shirt",
        ),
        *("vitamin b12", "iphone 12", "1990s car", "a", "4x4", "3d printer", "class of 1990"),
    ],
)
def test_meaningful(name: str) -> None:
    assert not is_meaningless(name)


def test_words() -> None:
    assert plain_words("golden_retriever") == "golden retriever"
    assert plain_words("__") == "__"
    assert class_words(["and/or", "tabby_cat"]) == (("and/or", "tabby cat"), ())
    words, (warning,) = class_words(["n01440764", "tabby_cat"])
    assert words == ("n01440764", "tabby cat")
    assert "1 of 2 class names" in warning
    assert "--names" in warning


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.csv", "folder,words\nn01,a tench\nn02,goldfish\n"),
        ("n.csv", "n02;goldfish\nn01;a tench\n"),
        ("n.tsv", "n01\ta tench\n\nn02\tgoldfish\n"),
        ("n.json", '{"n01": "a tench", "n02": "goldfish"}'),
    ],
)
def test_names_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert class_words(["n01", "n02"], tmp_path / name) == (("a tench", "goldfish"), ())


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("n.csv", "n01,a\nn2,b\n", r'line 2: there is no class "n2"; did you mean "n02"'),
        ("n.csv", "n01,a\n", "has no words for n02"),
        ("n.csv", "n01,a\nn02,\n", 'line 2: no words for "n02"'),
        ("n.csv", "n01,a\nn01,b\nn02,c\n", '"n01" is named twice'),
        ("n.csv", "n01,a,b\n", "line 1: 3 cells"),
        ("n.csv", "n01,a\nn02,a\n", "the same words to n01, n02"),
        ("n.json", '{"n01": ["a"]}', "should be one object"),
        ("n.json", "{", "not JSON"),
    ],
)
def test_bad_names_files(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DiptychError, match=match):
        class_words(["n01", "n02"], tmp_path / name)


def test_missing_names_file(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="no such file"):
        class_words(["a"], tmp_path / "none.csv")


def test_templates(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a photo of a {}.\n\na scan of {}\n", encoding="utf-8")
    assert read_templates(tmp_path / "t.txt") == ("a photo of a {}.", "a scan of {}")
    assert read_templates("a {}") == ("a {}",)
    assert read_templates(["a {}", "b {}"]) == ("a {}", "b {}")
    for bad, match in (([], "no template"), (["a photo"], "hold {} once"), (["{} {}"], "once")):
        with pytest.raises(DiptychError, match=match):
            read_templates(bad)
