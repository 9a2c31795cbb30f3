"""What each verb prints and where, on a CLIP of a few numbers."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import COLOURS

from diptych.cli import options
from diptych.cli.main import main, verbs
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError

Run = Callable[..., Any]  # the fixture `diptych`: words -> exit code, stdout, stderr
ONE = ("--methods", "zero_shot", "--shots", "1", "--seeds", "1", "--out", "out")
QUICK = ("--methods", "zero_shot,knn", "--shots", "1,2", "--seeds", "2", "--out", "out")


def test_the_overview_names_every_verb_and_fits_a_narrow_terminal(diptych: Run):
    for words in ([], ["--help"], ["-h"], ["help"]):
        done = diptych(*words)
        assert done.code == 0 and not done.err
        assert all(f"\n  {verb} " in done.out for verb in verbs())
    verb_lines = [line for line in done.out.splitlines() if line.startswith("  ") and "diptych" not in line]
    assert max(map(len, verb_lines)) <= 80
    assert diptych("--version").out.startswith("diptych ")
    assert diptych("help", "predict").out == diptych("predict", "--help").out


def test_compare_ends_with_the_winner_in_words_and_the_next_command(diptych: Run, photos: Path, tmp_path: Path):
    done = diptych("compare", photos, *QUICK)
    assert done.code == 0, done
    assert "is the winner" in done.out
    assert done.out.rstrip().endswith("Next: diptych predict out/winner.safetensors photo.jpg")
    for name in ("report.html", "results.json", "winner.safetensors"):
        assert f"out/{name}" in done.out and (tmp_path / "out" / name).is_file()
    assert "About " in done.out.split("method")[0], "how long it will take is said before"


def test_again_computes_nothing_and_says_the_same(
    diptych: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = diptych("compare", photos, *QUICK)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a picture was encoded again")

    monkeypatch.setattr(FeatureStore, "fill", fail)
    again = diptych("compare", photos, *QUICK)
    assert again.code == 0 and "nothing to compute" in again.out
    assert first.out.split("accuracy %")[1] == again.out.split("accuracy %")[1]


def test_json_is_all_that_is_on_stdout(diptych: Run, photos: Path, tmp_path: Path):
    done = diptych("compare", photos, *QUICK, "--json")
    assert done.code == 0, done
    assert done.out == (tmp_path / "out" / "results.json").read_text("utf-8")
    found = json.loads(done.out)
    assert {(row["method"], row["shots"], row["seed"]) for row in found["rows"]} == {
        (method, shots, seed) for method in ("zero_shot", "knn") for shots in (1, 2) for seed in (0, 1)
    }
    assert "About" in done.err


def test_settings_and_templates_reach_the_methods(diptych: Run, photos: Path, tmp_path: Path):
    (tmp_path / "templates.txt").write_text("a {} thing.\n\nsomething {}.\n")
    words = ("--set", "knn.k=2", "--templates", "templates.txt", "--shots", "4", "--seeds", "1", "--out", "out")
    done = diptych("compare", photos, "--methods", "zero_shot,knn", *words, "--json")
    rows = {row["method"]: row for row in json.loads(done.out)["rows"]}
    assert rows["knn"]["config"]["k"] == 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["templates"] == ["a {} thing.", "something {}."]


def test_names_reach_the_text_tower(diptych: Run, photos: Path, tmp_path: Path):
    """Folders with names that say nothing, and a file that says what they are."""
    for i, colour in enumerate(sorted(COLOURS)):
        (photos / colour).rename(photos / f"class_{i}")
    lines = [f"class_{i},{colour}" for i, colour in enumerate(sorted(COLOURS))]
    (tmp_path / "names.csv").write_text("folder,words\n" + "\n".join(lines))
    words = ("--methods", "zero_shot", "--shots", "1", "--seeds", "1", "--json")
    blind = diptych("compare", photos, *words)
    named = diptych("compare", photos, *words, "--names", "names.csv")
    assert "say nothing to a text tower" in blind.err and "say nothing" not in named.err
    accuracy = [json.loads(done.out)["rows"][0]["accuracy"] for done in (blind, named)]
    assert accuracy[1] > accuracy[0] + 0.2


def test_predict_in_three_forms(diptych: Run, photos: Path, tmp_path: Path):
    assert diptych("compare", photos, *ONE).code == 0
    (photos / "red" / "broken.png").write_bytes(b"nothing")
    plain = diptych("predict", "out/winner.safetensors", "photos/red", "--threshold", "0")
    assert plain.code == 0 and "1 of 13 pictures could not be read" in plain.err
    assert "picture in photos/red" in plain.out and "0.png" in plain.out
    found = json.loads(diptych("predict", "out/winner.safetensors", "photos/red", "--json", "--top", "3").out)
    assert len(found) == 13 and all(len(one["top"]) == 3 for one in found if not one["error"])
    table = diptych("predict", "--csv", "out/winner.safetensors", "photos/red", "--top", "2").out
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["path"] for row in rows] == [one["path"] for one in found]
    assert {row["class_1"] for row in rows} - {""} <= set(COLOURS)


def test_options_may_stand_between_pictures(diptych: Run, photos: Path, tmp_path: Path):
    assert diptych("compare", photos, *ONE).code == 0
    pictures = [photos / "red" / "0.png", photos / "blue" / "1.png"]
    done = diptych("predict", "out/winner.safetensors", pictures[0], "--json", "--top", "1", pictures[1])
    assert [one["path"] for one in json.loads(done.out)] == [str(p) for p in pictures]


def test_systems_come_from_their_files(diptych: Run):
    found = {one["name"]: one for one in json.loads(diptych("systems", "--json").out)}
    assert found["zero_shot"]["needs"] == "no labels" and found["knn"]["settings"]["k"]
    table = diptych("systems", "--markdown").out
    assert all(f"`{name}`" in table for name, one in found.items() if one["family"] == "adapt")
    assert "pretrain" in {one["family"] for one in found.values()} and "recipe.rate" in diptych("systems", "siglip").out
    one = diptych("systems", "knn").out
    assert "arXiv" in one and "--set knn.k=1,3,5" in one


def test_export_says_what_a_model_can_become(diptych: Run):
    done = diptych("export", "mini")  # the fake, of which nothing is known
    assert done.code == 0 and done.out.startswith("colours can become nothing else\nnot open_clip: it was not made")
    assert all(f"not {name}: " in done.out for name in ("Hugging Face", "ONNX", "diptych"))


def test_rewrite_says_what_was_kept_and_what_comes_next(diptych: Run, tmp_path: Path):
    (tmp_path / "captions.txt").write_text("a large dog near a tree\ntwo cats on a couch\n")
    done = diptych("rewrite", "captions.txt", "--with", "rules", "--n", "3", "--out", "store.jsonl")
    assert done.code == 0 and "kept" in done.out and "6 rewrites of 2 captions, 6 of them now" in done.out
    assert done.out.rstrip().endswith("--set laclip.rewrites=store.jsonl")
    again = diptych("rewrite", "captions.txt", "--with", "rules", "--n", "3", "--out", "store.jsonl")
    assert again.code == 0 and "of them now" not in again.out
    assert len((tmp_path / "store.jsonl").read_text().splitlines()) == 6


def test_cache(diptych: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    assert diptych("cache").out.split()[:2] == ["0", "bytes"]
    assert diptych("compare", photos, *ONE).code == 0
    assert "embeddings of colours" in diptych("cache", "--size").out
    assert "freed" in diptych("cache", "--clear").out
    assert diptych("cache").out.split()[:2] == ["0", "bytes"]


def test_without_a_folder_it_is_a_small_run(diptych: Run, photos: Path, monkeypatch: pytest.MonkeyPatch):
    """The built-in pictures are stood in for: what is asked of them is what matters here."""
    import diptych.data.task as tasks

    real = tasks.make_task
    monkeypatch.setattr(tasks, "make_task", lambda source, **options: real(source or photos, **options))
    done = diptych("compare", "--methods", "zero_shot", "--json")
    rows = json.loads(done.out)["rows"]
    assert {(row["shots"], row["seed"]) for row in rows} == {(1, 0), (1, 1), (4, 0), (4, 1)}
    assert "small comparison" in done.err and "diptych compare ./photos" in done.err


def test_stopping_says_how_to_go_on(diptych: Run, photos: Path, monkeypatch: pytest.MonkeyPatch):
    import diptych.comparison.run as running

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_cells", stop)
        done = diptych("compare", photos, *ONE)
    assert (done.code, done.err) == (130, "stopped; the same command continues where it was\n")
    assert diptych("compare", photos, *ONE).code == 0


def test_a_bug_is_called_one(diptych: Run, monkeypatch: pytest.MonkeyPatch):
    import diptych.engine.store as store

    def broken() -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(store, "cache_info", broken)
    done = diptych("cache")
    assert done.code == 1 and "bug in diptych: ZeroDivisionError: by nought" in done.err
    assert "DIPTYCH_DEBUG=1" in done.err and "Traceback" not in done.err
    monkeypatch.setenv("DIPTYCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["cache"])


def test_control_c_in_the_middle(photos: Path, tmp_path: Path):
    """The real signal, sent to the whole group as a terminal does: no traceback of parent or child, and 130."""
    program = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
import diptych.core.load
from diptych.cli.main import main
from fakes import ColourTower, colour_clip
real = ColourTower.forward
ColourTower.forward = lambda self, *a, **b: (time.sleep(0.3), real(self, *a, **b))[1]
diptych.core.load.load = lambda name, device: colour_clip()
sys.exit(main(sys.argv[1:]))"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, "compare", str(photos), *QUICK, "--seeds", "50"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.splitlines()[-1].startswith("stopped; the same command"), errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("word", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), ("2 H", 7200)]
)
def test_budgets(word: str, seconds: float):
    assert options.seconds(word) == seconds


def test_shots():
    assert options.shots("16, 1,all,1") == (16, 1, "all")
    with pytest.raises(DiptychError, match="whole numbers from 1"):
        options.shots("1.5")


@pytest.mark.parametrize("name", ["mini", "hf-hub:owner/model", "ViT-B-32:laion2b_s34b_b79k", "ViT-B/32:x", "RN50"])
def test_models_that_may_exist_are_left_to_the_loader(name: str):
    options.model(name)
