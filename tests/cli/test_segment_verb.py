"""`diptych segment`: what it prints and writes, fits and takes up again, and how it takes what is not right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_world import HUES, SIDE, Boxes, stages_clip
from fakes import colour_clip
from PIL import Image

import diptych as library
from diptych.data.segment_sets import read_segments
from diptych.errors import DiptychError

Run = Callable[..., Any]
LABELS = "red, yellow|gold, blue, green"
FEW = [
    f"fc_clip.{name}"
    for name in (
        f"size={SIDE}", f"longest={SIDE}", "queries=6", "width=16", "heads=4", "layers=1", "inner=16",
        "encoder_layers=1", "encoder_inner=16", "samples=16", "batch=2", "steps=4",
    )
]  # fmt: skip
QUICK = [word for one in FEW for word in ("--set", one)]


@pytest.fixture
def segment(diptych: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """diptych("segment", ...) where mini is a ConvNet of colours."""
    import diptych.core.load as loading

    clips = {"mini": stages_clip("mini"), "colours": colour_clip()}

    def load(name: str = "mini", device: str | None = None):
        return clips[name]

    monkeypatch.setattr(loading, "load", load)
    return lambda *words: diptych("segment", *words)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """The left half red, the right half blue."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = (230, 23, 23), (23, 23, 230)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """A folder as CamVid's: train/, trainannot/, classes.txt, with one picture that is none."""
    folder, records = tmp_path / "boxes", Boxes(HUES, HUES, 6)
    for part in ("train", "trainannot"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join([*HUES, "rest (ignore)"]))
    for i in range(6):
        index = np.full((SIDE, SIDE), len(HUES), np.uint8)
        for name, mask in records[i].drawn()[1]:
            index[mask] = HUES.index(name)
        records[i].picture().save(folder / "train" / f"{i}.png")
        Image.fromarray(index).save(folder / "trainannot" / f"{i}.png")
    return folder


def test_one_picture_is_told_and_drawn(segment: Run, photo: Path, tmp_path: Path):
    done = segment(photo, "--labels", LABELS, "--things", "blue", "--out", "overlay.png")
    assert done.code == 0, done
    share = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in done.out.splitlines() if "%" in line}
    assert set(share) == {"red", "blue"}
    assert all(abs(value - 50) < 8 for value in share.values()), done.out
    assert "counted" in done.out
    overlay = np.asarray(Image.open(tmp_path / "overlay.png").convert("RGB")).astype(int)
    assert overlay.shape[0] >= 48 and overlay.shape[1] > 64, "a legend beside the picture"
    assert abs(overlay[20, 4] - overlay[20, 60]).max() > 60


def test_json_says_the_same_and_the_function_too(segment: Run, photo: Path):
    done = segment(photo, "--labels", LABELS, "--json")
    (said,) = json.loads(done.out)
    (found,) = library.segment(photo, LABELS, clip=stages_clip("mini"))
    assert [(c["name"], c["share"]) for c in said["classes"]] == [(a.name, round(a.share, 6)) for a in found.areas]
    assert sum(c["share"] for c in said["classes"]) == pytest.approx(1, abs=1e-5)
    assert found.labels.shape == (48, 64) and found.names == ("red", "yellow", "blue", "green")
    assert all(0 < c["score"] <= 1 for c in said["classes"]) and said["error"] is None


def test_a_folder_gives_a_folder_that_can_be_read_again(segment: Run, photo: Path, tmp_path: Path):
    more = tmp_path / "more" / "deep"
    more.mkdir(parents=True)
    Image.open(photo).save(more / "photo.png")
    Image.open(photo).rotate(90, expand=True).save(more.parent / "photo.jpg")
    (more / "broken.jpg").write_bytes(b"no")
    done = segment("more", "--labels", LABELS, "--out", "out")
    assert done.code == 0 and "1 of 3 pictures could not be read" in done.err
    said = json.loads((tmp_path / "out" / "segments.json").read_text())
    assert [bool(one["error"]) for one in said] == [True, False, False] or sum(bool(o["error"]) for o in said) == 1
    good = [one for one in said if not one["error"]]
    assert len({one["mask"] for one in good}) == 2
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["red", "yellow", "blue", "green"]
    for one in good:
        mask = Image.open(tmp_path / "out" / one["mask"])
        assert mask.mode == "P" and mask.size == Image.open(one["path"]).size
        share = {c["name"]: c["share"] for c in one["classes"]}
        assert abs(float((np.asarray(mask) == 0).mean()) - share["red"]) < 1e-4
        assert (tmp_path / "out" / one["overlay"]).is_file()
    assert segment("more", "--labels", LABELS, "--out", "out").code == 0, "its own folder may be written again"
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine.txt").write_text("mine")
    done = segment("more", "--labels", LABELS, "--out", "else")
    assert done.code == 2 and "something else" in done.err
    assert (tmp_path / "else" / "mine.txt").read_text() == "mine"


def test_fit_and_segment_with_it(segment: Run, boxes: Path, photo: Path, tmp_path: Path):
    (boxes / "train" / "5.png").write_bytes(b"no")
    done = segment("--fit", boxes, "--out", "seg.safetensors", "--without", "red,rose", *QUICK)
    assert done.code == 0, done
    assert "Next: diptych segment photo.jpg --with seg.safetensors" in done.out
    assert not (tmp_path / "seg.safetensors.partial").exists()
    done = segment(photo, "--with", "seg.safetensors", "--json")
    assert done.code == 0, done
    names = {c["name"] for c in json.loads(done.out)[0]["classes"]}
    assert names <= set(HUES) - {"red", "rose"}, "the names that it was fitted on"
    done = segment(photo, "--with", "seg.safetensors", "--labels", "red, blue", "--set", "fc_clip.beta=1", "--json")
    assert {c["name"] for c in json.loads(done.out)[0]["classes"]} <= {"red", "blue"}
    done = segment(photo, "--with", "seg.safetensors", "--set", "fc_clip.queries=9")
    assert done.code == 2 and "after the fit" in done.err


def test_a_stopped_fit_goes_on(segment: Run, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from diptych.methods.dense.parts import fitting

    monkeypatch.setattr(fitting, "EVERY", 0.0)
    real = fitting.put_down

    def once(*given: Any) -> None:
        real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "put_down", once)
    done = segment("--fit", boxes, "--out", "seg.safetensors", *QUICK)
    assert done.code == 130 and "continues where it was" in done.err
    assert (tmp_path / "seg.safetensors.partial").is_file() and not (tmp_path / "seg.safetensors").exists()
    monkeypatch.setattr(fitting, "put_down", real)
    steps: list[int] = []
    library.fit_segmenter(
        boxes, "seg.safetensors", settings=dict(one.partition(".")[2].split("=") for one in FEW),
        progress=lambda done, _: steps.append(done),
    )  # fmt: skip
    assert steps == [2, 3, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png"], "segment needs --labels"),
        (["photo.png", "--labels", "car"], "two labels or more"),
        (["photo.png", "--labels", "car, van, car"], '"car" stands twice'),
        (["photo.png", "--labels", "car, |"], "has a name"),
        (["photo.png", "--labels", "car, sky", "--things", "cars"], 'did you mean "car"'),
        (["photo.png", "--labels", LABELS, "--method", "dense_clap"], 'did you mean "dense_clip"'),
        (["photo.png", "--labels", LABELS, "--method", "fc_clip"], "to be fitted first"),
        (["photo.png", "--labels", LABELS, "--with", "none.safetensors"], "--fit DATA"),
        (["photo.png", "--labels", LABELS, "--with", "photo.png"], "is not a segmenter"),
        (["phot.png", "--labels", LABELS], 'did you mean "photo.png"'),
        (["photo.png", "--labels", "names.txt"], "names.txt"),
        (["photo.png", "--labels", LABELS, "--out", "over.gif"], "an overlay is a .png or .jpg"),
        (["photo.png", "--labels", LABELS, "--without", "a"], "--without is for --fit"),
        (["photo.png", "--labels", LABELS, "--set", "fc_clp.beta=1"], 'did you mean "fc_clip"'),
        (["photo.png", "--labels", LABELS, "--set", "dense_clip.sice=1"], 'did you mean "size"'),
        (["photo.png", "--labels", LABELS, "--model", "colours"], "place"),
        ([], "takes pictures, or --fit DATA, or --test DATA"),
        (["photo.png", "--fit", "boxes"], "takes pictures, or --fit DATA, or --test DATA"),
        (["--fit", "boxes"], "--fit needs --out FILE"),
        (["--fit", "boxes", "--out", "seg"], "one file, such as seg.safetensors"),
        (["--fit", "boxes", "--out", "s.safetensors", "--labels", LABELS], "learns the names of its data"),
        (["--fit", "boxes", "--out", "s.safetensors", "--method", "dense_clip"], "nothing to fit"),
        (["--fit", "boxes", "--out", "s.safetensors", "--without", "rad"], 'did you mean "red"'),
        (["--fit", "boxes", "--out", "s.safetensors", "--set", "fc_clip.steps=many"], "a whole number"),
        (["--fit", "boxes", "--out", "s.safetensors", "--model", "colours"], "no ConvNet"),
        (["--test", "boxes", "--out", "r.txt"], "such as report.html"),
        (["--test", "boxes", "--labels", "a, b"], "takes the names of its data"),
        (["--fit", "none", "--out", "s.safetensors"], "no such file or folder"),
        (["--fit", "photo.png", "--out", "s.safetensors"], "no set of pictures with masks"),
    ],
)
def test_what_is_not_right_is_said(
    segment: Run, photo: Path, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words, message
):
    import diptych.cli.options as options

    monkeypatch.setattr(options, "model", lambda name: None)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = segment(*words)
    assert done.code == 2 and message in done.err, done
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing half-written is left"


def test_judging_prints_figures_and_writes_a_report(segment: Run, boxes: Path, tmp_path: Path):
    """The untrained segmenter knows all the hues, and only they count: what is ignored is not judged."""
    done = segment("--test", boxes, "--out", "report.html")
    assert done.code == 0, done
    miou = float(done.out.split("mIoU ")[1].split()[0])
    assert miou > 40, done.out
    assert f"{miou}" in (tmp_path / "report.html").read_text()
    assert all(name in done.out for name in ("red", "IoU", "PQ"))


def test_labels_from_a_file(segment: Run, photo: Path, tmp_path: Path):
    (tmp_path / "names.txt").write_text("red\n\nblue|azure\n")
    done = segment(photo, "--labels", "names.txt", "--json")
    assert {c["name"] for c in json.loads(done.out)[0]["classes"]} == {"red", "blue"}


def test_sets_are_found_where_users_have_them(boxes: Path, tmp_path: Path):
    assert len(read_segments(boxes)) == 6
    (boxes / "train").rename(boxes / "images")
    (boxes / "trainannot").rename(boxes / "masks")
    assert len(read_segments(boxes)) == 6
    (boxes / "masks").rename(boxes / "other")
    with pytest.raises(DiptychError, match="no folders of pictures and index pictures"):
        read_segments(boxes)
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "train2017").mkdir()
    said: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (coco / "annotations" / "instances_train2017.json").write_text(json.dumps(said))
    assert read_segments(coco).names == ("cat",)
    with pytest.raises(DiptychError, match="holds no pictures with masks"):
        read_segments(tmp_path / "coco" / "train2017")
