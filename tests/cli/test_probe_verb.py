"""`diptych probe`: what it prints and writes, with a CLIP of a few numbers, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import colour_folder

Run = Callable[..., Any]  # the fixture `diptych`: words -> exit code, stdout, stderr
QUICK = ("--set", "robustness.changes=fog", "--set", "robustness.severities=3", "--out", "out")


def test_robustness_prints_tables_and_leaves_a_page(diptych: Run, photos: Path, tmp_path: Path):
    colour_folder(tmp_path / "shifted", each=3, noise=140)
    colour_folder(tmp_path / "others", each=3, noise=10)
    captions = ["image,caption", *(f"photos/{c}/{i}.png,a {c} thing" for c in ("red", "blue") for i in range(3))]
    (tmp_path / "captions.csv").write_text("\n".join(captions))
    (tmp_path / "tags.csv").write_text("model,source\nmini,made up\n")
    words = ("--shifted", "shifted", "--ood", "others", "--captions", "captions.csv", "--tags", "tags.csv")
    done = diptych("probe", "robustness", "mini", photos, *words, *QUICK)
    assert done.code == 0, done
    assert "How far its probabilities can be trusted" in done.out and "inside a language model" in done.out
    assert done.out.rstrip().endswith("out/report.html") and (tmp_path / "out" / "report.html").is_file()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    axes = results["models"]["colours"]
    assert axes["tags"]["source"] == "made up" and "shifted before" in axes["calibration"]["sets"]
    assert axes["modalities"]["retrieval"]["text to image"]["R@1"] > 0
    assert set(axes["ood"]["sets"]) == {"given", "noise"} and axes["ood"]["overlap"] == sorted(axes["ood"]["overlap"])
    again = diptych("probe", "robustness", "mini", photos, *words, *QUICK, "--json")
    assert json.loads(again.out)["models"] == results["models"]


def test_a_classifier_of_compare_is_a_model_and_an_end_of_a_line(diptych: Run, photos: Path, tmp_path: Path):
    compared = ("--methods", "wise_ft", "--shots", "4", "--seeds", "1", "--set", "wise_ft.alpha=1", "--out", "run")
    assert diptych("compare", photos, *compared).code == 0
    quick = ("points=8", "batch=8", "iterations=2", "layer_points=8", "alphas=0,0.5,1", "rhos=0.1", "draws=2")
    words = [word for field in quick for word in ("--set", f"weight_space.{field}")]
    done = diptych("probe", "weight_space", "mini", "run/winner.safetensors", photos, *words, "--out", "line")
    assert done.code == 0, done
    assert "Sharpness" in done.out and "Layers" in done.out
    results = json.loads((tmp_path / "line" / "results.json").read_text())
    assert len(results["path"]["id"]["accuracy"]) == 3 and results["stragglers"]
    done = diptych("probe", "robustness", "mini", "run/winner.safetensors", photos, *QUICK)
    assert done.code == 0 and {"colours", "run"} == set(
        json.loads((tmp_path / "out/results.json").read_text())["models"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("robustnes", "mini", "x"), 'no probe "robustnes"; did you mean "robustness"'),
        (("robustness", "mini"), "give a model, or several, and then the pictures"),
        (("robustness", "./none", "x"), "there is no such file or folder"),
        (("robustness", "mini", "nowhere"), "nowhere"),
        (("robustness", "mini", "photos", "--with", "conflict"), "--with takes ROLE=DATA"),
        (("robustness", "mini", "photos", "--with", "odd=x"), 'no data called "odd"'),
        (("robustness", "mini", "photos", "--set", "bins=3"), "--set takes SYSTEM.FIELD=VALUE"),
        (("robustness", "mini", "photos", "--set", "weight_space.rho=3"), "this is a probe of robustness"),
        (("weight_space", "mini", "photos"), "takes 2 models, not 1"),
        (("robustness", "mini", "photos", "--tags", "none.csv"), "--tags none.csv cannot be read"),
    ],
)
def test_bad_words_are_named(diptych: Run, photos: Path, words: tuple[str, ...], message: str):
    done = diptych("probe", *words)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err, done
