"""What every recipe must keep: one result for any number of processes and after a kill, a reason for every row that is
gone, refusal before anything is written, and a dry run that leaves nothing.

A recipe's own test file offers `world(tmp_path) -> (input, settings)`: a small input in several pieces.
"""

import importlib

import pyarrow.parquet as parquet
import pytest
from curate_world import contents, killed

from diptych.curation.run import curate
from diptych.errors import DiptychError
from diptych.methods.discover import systems


@pytest.fixture(params=systems("curate"))
def recipe(request, tmp_path):
    """(its name, an input, settings)."""
    return request.param, *importlib.import_module(f"test_{request.param}").world(tmp_path)


def test_one_result_however_it_is_run(recipe, tmp_path):
    name, source, settings = recipe
    done = curate(name, source, tmp_path / "one", settings=settings, seed=3)
    alone = contents(tmp_path / "one")
    assert done.rows_out > 0
    assert alone
    curate(name, source, tmp_path / "two", settings=settings, seed=3, workers=2)
    assert contents(tmp_path / "two") == alone
    assert killed(
        lambda progress: curate(name, source, tmp_path / "k", settings=settings, seed=3, progress=progress), 3
    )
    curate(name, source, tmp_path / "k", settings=settings, seed=3)
    assert contents(tmp_path / "k") == alone

    removed = parquet.read_table(tmp_path / "one" / "removed.parquet").to_pylist()
    assert len(removed) == done.rows_in - done.rows_out == sum(sum(line.why.values()) for line in done.lines)
    assert all(row["key"] and row["stage"] and row["why"] for row in removed)


def test_missing_columns_are_refused_before_anything_is_written(recipe, tmp_path):
    name, _, settings = recipe
    (tmp_path / "bare.csv").write_text("number\n1\n2\n")
    with pytest.raises(DiptychError):
        curate(name, tmp_path / "bare.csv", tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_leaves_nothing(recipe, tmp_path, monkeypatch):
    name, source, settings = recipe
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = sorted(tmp_path.rglob("*"))
    dry = curate(name, source, settings=settings, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    wet = curate(name, source, tmp_path / "out", settings=settings)
    told = [[(line.name, line.rows, line.kept, line.why) for line in run.lines] for run in (dry, wet)]
    assert told[0] == told[1]
