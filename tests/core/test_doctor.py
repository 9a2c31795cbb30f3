"""The doctor says that right models agree with their library, and names the part that is wrong in others."""

from pathlib import Path

import pytest
import torch
from test_load import MODEL_CFG, huggingface_folder, open_clip_folder

import diptych
from diptych.core.doctor import compare, doctor, library_of, made_up_pictures
from diptych.core.doctor_mini import form
from diptych.core.load import load
from diptych.core.mini import Constants, closed_form
from diptych.core.preprocess import Preprocess
from diptych.core.save import save
from diptych.errors import DiptychError

PARTS = ["preprocessing", "tokens", "picture embeddings", "text embeddings", "temperature"]


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_open_clip_agrees(tmp_path: Path, resize: str) -> None:
    folder = tmp_path / "tiny"
    look = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": resize}
    open_clip_folder(folder, MODEL_CFG | {"quick_gelu": True}, look)
    report = doctor(str(folder))
    assert [row.part for row in report.rows] == PARTS
    assert report.ok, str(report)
    assert "open_clip 3" in report.library
    assert set(report.speeds) == {"pictures", "texts"}
    assert "agrees" in str(report)
    assert report.to_dict()["rows"][0]["part"] == "preprocessing"


def test_our_layout_agrees(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "tiny")
    save(load(str(tmp_path / "tiny"), "cpu"), tmp_path / "ours", layout="diptych")
    assert doctor(str(tmp_path / "ours")).ok


def test_huggingface_agrees(tmp_path: Path) -> None:
    huggingface_folder(tmp_path)
    report = doctor(str(tmp_path))
    assert report.ok, str(report)
    assert "transformers" in report.library


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "tiny")
    clip = load(str(tmp_path / "tiny"), "cpu")
    library = library_of(clip)
    with torch.no_grad():
        clip.log_scale += 0.01
        clip.image.get_parameter("visual.proj")[0, 0] += 0.01
        clip.text.get_parameter("ln_final.bias")[0] += 0.01
    clip.preprocess = Preprocess(32, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), "bilinear")
    clip.tokenizer.end_id = 7  # type: ignore[attr-defined]
    report = compare(clip, library)
    assert not report.ok
    assert [row.part for row in report.rows if not row.ok] == [p for p in PARTS if p != "tokens"]
    assert "DIFFERS" in str(report)
    clip.tokenizer.clean = "canonicalize"  # type: ignore[attr-defined]
    tokens = compare(clip, library).rows[1]
    assert not tokens.ok
    assert tokens.difference > 5


def test_the_form_of_mini_is_that_of_its_card() -> None:
    """Two ways to compute the closed form."""
    torch.manual_seed(0)
    constants = Constants(detail=4)
    classes = torch.nn.functional.normalize(torch.randn(40, 6), dim=1)
    weight = torch.randn(40, 12)
    ours = closed_form(weight, classes, constants)
    theirs = form(classes.double(), weight.double(), constants)
    for name, expected in zip(("centre", "rows", "map", "detail"), theirs, strict=True):
        torch.testing.assert_close(getattr(ours, name), expected.float(), rtol=0, atol=1e-5)


def test_names_and_pictures() -> None:
    assert diptych.doctor is doctor
    assert diptych.doctor is doctor  # a module of the verb's name would take its place after the first use
    sizes = {p.size for p in made_up_pictures()}
    assert any(w != h for w, h in sizes)
    with pytest.raises(DiptychError, match="mini"):
        doctor("minni")
