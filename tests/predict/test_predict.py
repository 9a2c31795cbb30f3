"""Predict: what is read, what is answered, what is refused, and what comes out as JSON, CSV and a table."""

import csv
import io
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import COLOURS, colour_clip, colour_folder
from PIL import Image

from diptych.comparison import predict as module
from diptych.comparison.predict import Prediction, find_pictures, predict, table, to_csv, to_json
from diptych.core.classifier import Base, Classifier
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, TowerEdits
from diptych.core.heads import TextRows
from diptych.core.text import class_rows
from diptych.data.pictures import open_picture
from diptych.errors import DiptychError

CLASSES = tuple(COLOURS)


@pytest.fixture
def clip() -> CLIP:
    return colour_clip()


@pytest.fixture
def classifier(clip: CLIP) -> Classifier:
    return colours(clip)


def colours(clip: CLIP) -> Classifier:
    from diptych.core.text import TextRecipe

    rows = class_rows(clip, CLASSES, TextRecipe())
    return Classifier("zero_shot", {}, CLASSES, CLASSES, TextRows(rows, 20.0), Base.of(clip))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return colour_folder(tmp_path / "photos", each=3, noise=10)


def test_the_answer_is_the_classifiers(clip: CLIP, classifier: Classifier, photos: Path) -> None:
    found = predict(classifier, photos, clip=clip, batch=5, top=2)
    assert [p.path.parent.name for p in found] == [c for c in sorted(CLASSES) for _ in range(3)]
    assert all(p.label == p.path.parent.name for p in found)
    pixels = torch.stack([clip.preprocess(open_picture(p.path)) for p in found])
    expected = classifier.probabilities(clip.encode_image(pixels))
    for prediction, row in zip(found, expected, strict=True):
        assert len(prediction.top) == 2 and prediction.top[0] == (prediction.label, prediction.probability)
        for name, value in prediction.top:
            assert value == pytest.approx(float(row[CLASSES.index(name)]), abs=1e-6)
        assert prediction.top[1][1] == pytest.approx(float(row.topk(2).values[1]), abs=1e-6)


def test_one_picture_and_many_agree(clip: CLIP, classifier: Classifier, photos: Path) -> None:
    many = predict(classifier, photos, clip=clip, batch=32)
    for whole in many:
        (alone,) = predict(classifier, whole.path, clip=clip)
        assert alone.label == whole.label and alone.probability == pytest.approx(whole.probability, abs=1e-6)
    assert [p.label for p in predict(classifier, photos, clip=clip, batch=1)] == [p.label for p in many]


def test_edits_of_the_picture_tower_count(clip: CLIP, classifier: Classifier, photos: Path) -> None:
    turned = torch.ones(12)
    turned[:4] = -1  # the red channel upside down
    edited = replace(classifier, edits=Edits({"image": TowerEdits(weights={"scale": turned})}))
    red = next(photos.glob("red/*"))
    assert predict(classifier, red, clip=clip)[0].label == "red"
    assert predict(edited, red, clip=clip)[0].label != "red"


def test_edits_follow_the_model_to_its_device(clip: CLIP, classifier: Classifier) -> None:
    edited = replace(classifier, edits=Edits({"image": TowerEdits(weights={"scale": torch.ones(12)})}))
    assert clip.fingerprint  # before the weights are gone
    moved = edited.clip(clip.to("meta"))
    assert moved.encode_image(torch.zeros(2, 3, 16, 16)).device.type == "meta"


def test_none_of_these(clip: CLIP, classifier: Classifier, photos: Path) -> None:
    red = next(photos.glob("red/*"))
    strict = replace(classifier, threshold=1.0)
    (unknown,) = predict(strict, red, clip=clip)
    assert unknown.label is None and unknown.top[0][0] == "red" and unknown.probability == unknown.top[0][1]
    assert predict(strict, red, clip=clip, threshold=0)[0].label == "red"
    assert predict(classifier, red, clip=clip, threshold=1)[0].label is None


def test_from_a_file_and_the_model_it_names(
    clip: CLIP, classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str = "mini", device: str | None = None) -> CLIP:
        asked.append(name)
        if name == "nowhere":
            raise DiptychError("no model there")
        return colour_clip()

    monkeypatch.setattr("diptych.core.load.load", load)
    path = classifier.save(tmp_path / "winner.safetensors")
    assert predict(path, photos)[0].label == "blue"
    assert predict(str(path), str(photos), model="other place")[0].label == "blue"
    assert asked == ["colours", "other place"]
    lost = replace(classifier, base=replace(classifier.base, source="nowhere"))
    with pytest.raises(DiptychError, match=r'needs the model "colours".*no model there.*--model'):
        predict(lost, photos)
    with pytest.raises(DiptychError, match=r"^no model there"):
        predict(lost, photos, model="nowhere")


def test_another_base_model_is_refused_by_both_names(classifier: Classifier, photos: Path) -> None:
    other = colour_clip("other")
    with torch.no_grad():
        other.image.get_parameter("scale").mul_(2)
    with pytest.raises(DiptychError, match=r'"colours".*opened with "other".*use --model colours'):
        predict(classifier, photos, clip=other)
    other.name = other.source = "colours"
    with pytest.raises(DiptychError, match="has changed since"):
        predict(classifier, photos, clip=other)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "missing", "other"])
def test_a_damaged_classifier(clip: CLIP, classifier: Classifier, photos: Path, tmp_path: Path, damage: str) -> None:
    path = classifier.save(tmp_path / "winner.safetensors")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "text":
        path.write_text("not a classifier")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    else:
        from safetensors.torch import save_file

        save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(DiptychError, match=r"winner\.safetensors"):
        predict(path, photos, clip=clip)


def test_bad_pictures_are_told_and_not_fatal(clip: CLIP, classifier: Classifier, photos: Path) -> None:
    (photos / "blue" / "0.png").write_bytes(b"")
    cut = photos / "green" / "1.png"
    cut.write_bytes(cut.read_bytes()[:100])
    notes = photos / "notes.txt"
    notes.write_text("no picture")
    found = predict(classifier, [photos, notes], clip=clip, batch=2)
    bad = {p.path.name: p for p in found if p.error}
    assert len(found) == 13 and len(bad) == 3
    assert bad["0.png"].error == "the file is empty" and "not a picture" in (bad["notes.txt"].error or "")
    assert all(p.label is None and p.top == () for p in bad.values())
    assert all(p.label == p.path.parent.name for p in found if not p.error)
    with pytest.raises(DiptychError, match=r"cannot read the picture: .*notes\.txt"):
        predict(classifier, notes, clip=clip)
    with pytest.raises(DiptychError, match="any of the 2 pictures"):
        predict(classifier, [notes, photos / "blue" / "0.png"], clip=clip)


def test_what_is_found(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(photos / "red" / "deep" / "er" / "x.JPEG")
    (photos / "red" / ".hidden.png").write_bytes(b"")
    (photos / ".git").mkdir()
    (photos / ".git" / "x.png").write_bytes(b"")
    (photos / "red" / "notes.txt").write_text("")
    (photos / "red" / "up").symlink_to(photos)
    found = find_pictures(photos)
    assert len(found) == 13 and photos / "red" / "deep" / "er" / "x.JPEG" in found
    assert found == find_pictures(photos)
    one = photos / "yellow" / "2.png"
    again = find_pictures([one, photos, photos / "red" / ".." / "yellow" / "2.png", str(one)])
    assert again[0] == one and len(again) == 13
    odd = tmp_path / "no suffix"
    odd.write_bytes(one.read_bytes())
    assert find_pictures(odd) == [odd]


def test_paths_that_are_not_there(clip: CLIP, classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"no such file or folder: .*phot0s \(did you mean .*photos"):
        predict(classifier, tmp_path / "phot0s", clip=clip)
    with pytest.raises(DiptychError, match=r"a\.png, .*b\.png"):
        predict(classifier, [tmp_path / "a.png", photos, tmp_path / "b.png"], clip=clip)
    with pytest.raises(DiptychError, match="no pictures given"):
        predict(classifier, [], clip=clip)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiptychError, match=r"no pictures in .*empty"):
        predict(classifier, tmp_path / "empty", clip=clip)
    with pytest.raises(DiptychError, match="threshold"):
        predict(classifier, photos, clip=clip, threshold=50)
    with pytest.raises(DiptychError, match="top"):
        predict(classifier, photos, clip=clip, top=0)


def test_memory_stays_bounded(clip: CLIP, classifier: Classifier, photos: Path, monkeypatch) -> None:
    """Never more than three batches are decoded and not yet judged."""
    one = next(photos.glob("red/*"))
    copies = [photos / f"copy {i}.png" for i in range(60)]
    for copy in copies:
        os.link(one, copy)
    lock, read, most = threading.Lock(), [0], [0]
    seen: list[tuple[int, int]] = []

    def counted(path: Path) -> Image.Image:
        with lock:
            read[0] += 1
        return open_picture(path)

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        most[0] = max(most[0], read[0] - done)

    monkeypatch.setattr(module, "open_picture", counted)
    predict(classifier, copies, clip=clip, batch=4, progress=progress)
    assert seen == [(i + 1, 60) for i in range(60)]
    assert most[0] <= 3 * 4


ODD = [
    Prediction(Path("=cmd|' /C calc'!A0.png"), "+1", 0.75, (("+1", 0.75), ("chat, «été»", 0.25))),
    Prediction(Path("a\nb.png"), None, 0.4, (("@x", 0.4), ("-y", 0.3))),
    Prediction(Path(os.fsdecode(b"\xff.png")), None, 0.0, (), "corrupt"),
]


def test_csv_runs_no_formula() -> None:
    text = to_csv(ODD)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["path", "label", "probability", "error", "class_1", "probability_1", "class_2", "probability_2"]
    assert rows[1] == ["'=cmd|' /C calc'!A0.png", "'+1", "0.750000", "", "'+1", "0.750000", "chat, «été»", "0.250000"]
    assert rows[2][:2] == ["a\nb.png", ""] and rows[2][4] == "'@x" and rows[2][6] == "'-y"
    assert rows[3][1:4] == ["", "", "corrupt"] and rows[3][0].encode("utf-8")
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_json_says_it_all() -> None:
    text = to_json(ODD)
    rows = json.loads(text.encode("utf-8"))
    assert rows[0]["label"] == "+1" and rows[0]["top"][1] == {"class": "chat, «été»", "probability": 0.25}
    assert rows[1]["label"] is None and rows[1]["error"] is None and rows[1]["probability"] == 0.4
    assert rows[2]["error"] == "corrupt" and rows[2]["probability"] is None
    assert "été" in text


def test_table_for_the_terminal() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(ODD))
    text = console.export_text()
    assert "none of these" in text and "75.0%" in text and "@x 40.0%" in text and "corrupt" in text


def test_large_pictures_come_out_in_order(clip: CLIP, classifier: Classifier, tmp_path: Path) -> None:
    """Slow pictures among quick ones do not change places."""
    names = list(COLOURS) * 3
    for i, name in enumerate(names):
        side = 900 if i % 3 == 0 else 8
        pixels = np.full((side, side, 3), COLOURS[name], np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    assert [p.label for p in predict(classifier, tmp_path, clip=clip, batch=3)] == names
