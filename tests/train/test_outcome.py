"""What comes out of a run: it says what it can become, and becomes that; the rest has a reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.cli.main import main
from diptych.core.load import load
from diptych.training.card import write_card

SHORT: dict[str, Any] = {"device": "cpu", "batch": 12, "rate": 1e-3, "workers": 0, "steps": 2}


def test_a_run_says_what_its_model_can_become_and_it_does(
    shards: Path, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    words = ["train", "clip", "--data", str(shards), "--model", tiny, "--device", "cpu", "--steps", "2"]
    assert main([*words, "--batch", "12", "--rate", "1e-3", "--out", str(out)]) == 0
    assert "This model can become open_clip, Hugging Face, ONNX, diptych" in capsys.readouterr().out
    card = (out / "model" / "README.md").read_text()
    assert "made with clip" in card and "--to huggingface" in card and "no, for" not in card
    assert "can become" in (out / "report.html").read_text()
    assert main(["export", str(out / "model"), "--to", "huggingface", "--out", str(tmp_path / "hf")]) == 0
    assert "gives the same embeddings" in capsys.readouterr().out
    ours, theirs = load(str(out / "model"), "cpu"), load(str(tmp_path / "hf"), "cpu")
    texts = ["a red circle", "two blue squares"]
    torch.testing.assert_close(theirs.encode_text(texts), ours.encode_text(texts), rtol=0, atol=1e-5)


def test_what_a_model_cannot_become_is_said_too(shards: Path, tmp_path: Path):
    from train_world import CONFIG

    vision = CONFIG["vision_cfg"] | {"no_ln_pre": True}
    (tmp_path / "other.json").write_text(json.dumps(CONFIG | {"vision_cfg": vision}))
    made = diptych.train("clip", shards, model=str(tmp_path / "other.json"), out=tmp_path / "run", **SHORT)
    assert "no norm before the first block" in made.forms["huggingface"] and made.forms["open_clip"] == "yes"
    assert "Hugging Face: no, for it has no norm" in (made.folder / "model" / "README.md").read_text()
    with pytest.raises(diptych.DiptychError, match="cannot become Hugging Face"):
        diptych.export(str(made.folder / "model"), tmp_path / "hf", to="huggingface")
    assert not (tmp_path / "hf").exists()


def test_what_was_trained_beside_it_is_named(tmp_path: Path):
    card = write_card(tmp_path, "symile", {"onnx": "yes"}, ["sound"]).read_text()
    assert "no part of it: sound" in card and "checkpoints" in card
