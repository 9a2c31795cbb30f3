"""The comparison end to end on a CLIP of a few numbers, with a known answer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import COLOURS, colour_clip, colour_folder

import diptych
from diptych.comparison import cell as cell_module
from diptych.comparison.folder import RunFolder
from diptych.engine import store as store_module
from diptych.errors import DiptychError

METHODS = ["zero_shot", "knn", "linear_probe"]


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return diptych.task(colour_folder(tmp_path / "colours", each=15))


def run(task, out, **options):
    options = {"methods": METHODS, "shots": (1, 4), "seeds": 2, **options}
    return diptych.compare(colour_clip(), task, out=out, **options)


def test_rows_report_and_winner(task, tmp_path):
    best = run(task, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["rows"]) == len(METHODS) * 2 * 2
    for row in results["rows"]:
        assert 0 <= row["accuracy"] <= 1
        for name in ("macro_recall", "ece", "encode_seconds", "fit_seconds", "ms_per_image", "peak_mb", "trainable"):
            assert row[name] >= 0, name
        assert (row["validation"] is None) == (row["shots"] == 1 and row["method"] != "zero_shot")
        assert (row["new_class_after"] is None) == (row["method"] != "zero_shot")
    assert results["provenance"]["versions"]["python"]
    assert results["provenance"]["data"]["hash"] == task.data_hash
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert best.winner.classes == tuple(sorted(COLOURS))
    zero_shot = [r["accuracy"] for r in results["rows"] if r["method"] == "zero_shot"]
    assert min(zero_shot) > 0.6  # colours are what this CLIP knows
    assert len(set(zero_shot)) == 1


def test_any_setting_can_be_a_grid(task, tmp_path):
    options = {"methods": ["tip_adapter"], "settings": {"tip_adapter.views": "0,2"}}
    rows = run(task, tmp_path / "run", shots=(4,), **options).rows
    assert all("skipped" not in row and row["config"]["views"] in (0, 2) for row in rows)


def test_every_seed_and_shot_meets_the_same_test_pictures(task):
    draws = [{r.id for r in task.draw(k, seed)} for k in (1, 4, None) for seed in (0, 1, 2)]
    test = {r.id for r in task.test}
    assert all(not drawn & test for drawn in draws)


def test_a_method_is_never_handed_a_test_picture(task, tmp_path, monkeypatch):
    """Whatever `select` gets to see, through the support or its source, is not in the test split."""
    seen = set()
    real = cell_module.select

    def spy(adapter, clip, support):
        seen.update(support.records.ids)
        seen.update(support.unlabelled.ids)
        assert not hasattr(support, "test")
        return real(adapter, clip, support)

    monkeypatch.setattr(cell_module, "select", spy)
    run(task, tmp_path / "run")
    assert seen
    assert not seen & set(task.test.ids)


def test_scrambled_test_labels_change_no_choice(task, tmp_path, monkeypatch):
    first = run(task, tmp_path / "first")
    real = type(task).labels

    def scrambled(self, records):
        labels = real(self, records)
        return [(v + 1) % len(self.classes) for v in labels] if records is self.test else labels

    monkeypatch.setattr(type(task), "labels", scrambled)
    second = run(task, tmp_path / "second")
    assert second.summary.winner.method == first.summary.winner.method
    for a, b in zip(first.rows, second.rows, strict=True):
        assert (a["config"], a["validation"], a["temperature"]) == (b["config"], b["validation"], b["temperature"])


def test_again_fits_and_encodes_nothing(task, tmp_path, monkeypatch):
    first = run(task, tmp_path / "run")
    monkeypatch.setattr(cell_module, "select", None)
    monkeypatch.setattr(store_module.FeatureStore, "fill", None)
    again = run(task, tmp_path / "run")
    assert again.rows == first.rows
    assert again.winner.system == first.winner.system


def test_another_run_is_refused_and_named(task, tmp_path):
    run(task, tmp_path / "run")
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    with pytest.raises(DiptychError, match="shots"):
        run(task, tmp_path / "run", shots=(1,))
    with pytest.raises(DiptychError, match="methods"):
        run(task, tmp_path / "run", settings={"knn.k": "1"})
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(DiptychError, match="not a run"):
        run(task, tmp_path / "other")


def test_what_the_model_cannot_have_is_a_row_with_the_reason(task, tmp_path):
    best = run(task, tmp_path / "run", methods=["zero_shot", "maple"])
    skipped = [r for r in best.rows if r["method"] == "maple"]
    assert len(skipped) == 4
    assert all("transformer" in r["skipped"] for r in skipped)
    assert "transformer" in (tmp_path / "run" / "report.html").read_text()


def test_over_the_budget_is_a_row_and_can_be_continued(task, tmp_path):
    with pytest.raises(DiptychError, match="over the budget"):
        run(task, tmp_path / "run", budget=1e-9)
    best = run(task, tmp_path / "run")
    assert not any("skipped" in r for r in best.rows)


def test_probabilities_are_calibrated_and_kept(task, tmp_path):
    run(task, tmp_path / "run")
    found = np.load(tmp_path / "run" / "cells" / "zero_shot-4-0.npz")["probabilities"]
    assert found.shape == (len(task.test), len(COLOURS))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_a_cell_is_finished_only_when_it_is_whole(tmp_path):
    folder = RunFolder(tmp_path / "run", {"format": 1})
    folder.open()
    folder.finish("a-1-0", {"method": "a"}, np.zeros((2, 2)))
    assert folder.finished("a-1-0") == {"method": "a"}
    (folder.cells / "a-1-0.npz").write_bytes(b"torn")
    assert folder.finished("a-1-0") is None
    assert folder.finished("b-1-0") is None


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from fakes import colour_clip
import diptych
from diptych.comparison import cell
from diptych.engine.isolate import hold_to_one_thread
hold_to_one_thread()
real = cell.select
def slow(*args):
    time.sleep({delay})
    return real(*args)
cell.select = slow
task = diptych.task({photos!r})
diptych.compare(colour_clip(), task, methods={methods!r}, shots=(1, 4), seeds=2, out={out!r}, isolate=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_killed_and_started_again_it_redoes_no_finished_cell(task, tmp_path):
    def start(out: Path, delay: float) -> subprocess.Popen:
        code = SCRIPT.format(
            tests=str(Path(__file__).parents[1]),
            photos=str(tmp_path / "colours"),
            methods=METHODS,
            out=str(out),
            delay=delay,
        )
        return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, 0.4)
    deadline = time.time() + 120
    while len(list(killed.glob("cells/[!.]*.json"))) < 4 and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in killed.glob("cells/[!.]*.json")}
    assert 4 <= len(done) < 12
    assert start(killed, 0.0).wait() == 0
    assert start(whole, 0.0).wait() == 0
    assert all(p.stat().st_mtime_ns == at for p, at in done.items())

    def figures(out: Path):
        rows = json.loads((out / "results.json").read_text())["rows"]
        return [(r["method"], r["shots"], r["seed"], r["accuracy"], r["validation"], r["ece"]) for r in rows]

    assert figures(killed) == figures(whole)
