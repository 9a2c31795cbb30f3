"""mixing: exact shares, draws nested in the count, the same however the work is cut; what is missing is said."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diptych.curation.run import curate
from diptych.data.mixture import achievable, largest_remainder, mixture_of, name_of, parse_mixture
from diptych.errors import DiptychError
from diptych.methods.curate.mixing import BEYOND, LEFT_OUT, Config, Mixing
from diptych.methods.curate.parts.pipeline import Counts, Place, configure
from diptych.report import Table

ROWS = {"photos": 700, "sketches": 400, "scans": 90}
KEYS = [(f"{i:04d}", name) for name, count in ROWS.items() for i in range(count)]  # the same keys in every source


def world(folder: Path) -> tuple[str, dict[str, str]]:
    """For the contract of the family."""
    for name, count in ROWS.items():
        for piece in range(2):
            own = [f"{i:04d}" for i in range(piece, count, 2)]
            (folder / name).mkdir(exist_ok=True)
            columns = {"key": own, "text": [f"{name} {key}" for key in own]}
            parquet.write_table(pa.table(columns), folder / name / f"{piece}.parquet")
    return ",".join(f"{name}={folder / name}" for name in ROWS), {
        "weights": "photos=2,sketches=1,scans=1",
        "count": "200",
    }


def batches(rows: Sequence[tuple[str, str]], size: int) -> list[tuple[pa.RecordBatch, Place]]:
    """Pieces of 500 rows, cut into batches of `size`."""
    found = []
    for piece, first in enumerate(range(0, len(rows), 500)):
        own = rows[first : first + 500]
        for start in range(0, len(own), size):
            keys, sources = zip(*own[start : start + size], strict=True)
            found.append((pa.RecordBatch.from_pydict({"key": keys, "source": sources}), Place(piece, start)))
    return found


def draw(config: Config, seed: int = 0, rows: Sequence[tuple[str, str]] = KEYS, size: int = 64):
    """-> (rows kept, counts, reasons)."""
    (stage,) = Mixing(config).stages(["key", "source"], seed)
    cut = batches(rows, size)
    counts: Counts = stage.merge([stage.count(batch, place) for batch, place in cut])
    counts = stage.finish(stage.merge([counts]))
    kept, why = [], Counter()
    for batch, place in reversed(cut):
        verdict = stage.select(batch, place, counts)
        assert [bool(reason) for reason in verdict.why] == (~verdict.keep).tolist()
        why.update(reason for reason in verdict.why if reason)
        seen = zip(batch["key"].to_pylist(), batch["source"].to_pylist(), verdict.keep, strict=True)
        kept += [(key, source) for key, source, keep in seen if keep]
    assert len(set(kept)) == len(kept) or len(set(KEYS)) != len(KEYS)
    return set(kept), counts, why, stage


def shares(kept) -> dict[str, int]:
    return dict(Counter(source for _, source in kept))


@pytest.mark.parametrize("count", [1, 7, 100, 333, 360])
@pytest.mark.parametrize(
    "weights", ["photos=0.5,sketches=0.5", "photos=3,sketches=1", "photos=.6,sketches=.3,scans=.1"]
)
def test_a_mixture_has_exactly_its_shares(count: int, weights: str) -> None:
    kept, *_ = draw(Config(weights, count))
    wanted = {name: share * count for name, share in parse_mixture(weights, "").items()}
    assert len(kept) == count
    for name, exact in wanted.items():
        got = shares(kept).get(name, 0)
        assert abs(got - exact) < 1
        if exact % 1 < 0.4 and len(wanted) == 2:
            assert got == round(exact)


def test_a_smaller_draw_lies_within_a_larger_one_and_another_seed_draws_others() -> None:
    sets = [draw(Config("photos=0.75,sketches=0.25", n))[0] for n in (8, 40, 41, 42, 43, 200, 500)]
    assert all(small < large for small, large in itertools.pairwise(sets))
    three = [draw(Config("photos=.5,sketches=.4,scans=.1", n))[0] for n in (10, 50, 300, 900)]
    assert all(small < large for small, large in itertools.pairwise(three))
    other, *_ = draw(Config("photos=0.75,sketches=0.25", 200), seed=1)
    assert len(other & sets[5]) < 120, "about a third of them are the same by chance"


def test_the_draw_is_even_over_the_whole_source_and_differs_between_sources() -> None:
    rows = [(f"{i:05d}", name) for name in ("a", "b") for i in range(4000)]
    kept, *_ = draw(Config("", 4000), rows=rows, size=500)
    places = np.array([int(key) for key, source in kept if source == "a"])
    tenths = np.histogram(places, 10, (0, 4000))[0]
    assert len(places) == 2000 and abs(tenths - 200).max() < 50, "no topic or year is drawn more often"
    both = len({key for key, source in kept if source == "a"} & {key for key, source in kept if source == "b"})
    assert abs(both - 1000) < 100, "a key in two sources is drawn in each by itself"


def test_how_the_work_is_cut_and_in_which_order_it_is_merged_changes_nothing() -> None:
    config = Config("photos=1,sketches=2", 300)
    whole, *_ = draw(config, size=500)
    assert draw(config, size=1)[0] == whole
    (stage,) = Mixing(config).stages(["key", "source"], 0)
    parts = [stage.count(batch, place) for batch, place in batches(KEYS, 90)]
    halves = stage.merge([stage.merge(parts[5:][::-1]), stage.merge(parts[:5])])
    once = stage.finish(stage.merge(parts))
    for name, column in stage.finish(halves).items():
        assert column.tolist() == once[name].tolist()


def test_counts_forget_what_cannot_be_drawn() -> None:
    (stage,) = Mixing(Config("", 10)).stages(["key", "source"], 0)
    counts = stage.merge([stage.count(batch, place) for batch, place in batches(KEYS, 500)])
    assert len(counts["chance"]) == 30 and counts["seen"].tolist() == [700, 90, 400]
    assert all(column.dtype != object for column in counts.values()), "kept without pickling"


def test_a_key_that_comes_twice_is_counted_twice_and_the_count_is_still_exact() -> None:
    rows = [("same", "a")] * 50 + [(str(i), "b") for i in range(50)]
    (stage,) = Mixing(Config("a=0.3,b=0.7", 40)).stages(["key", "source"], 0)
    cut = batches(rows, 7)
    counts = stage.finish(stage.merge([stage.count(b, p) for b, p in cut]))
    kept = [source for b, p in cut for source, k in zip(b["source"].to_pylist(), stage.select(b, p, counts).keep) if k]  # noqa: B905
    assert Counter(kept) == {"a": 12, "b": 28}


def test_all_at_their_shares_and_all_of_each() -> None:
    kept, counts, *_ = draw(Config("photos=0.5,sketches=0.5"))
    assert shares(kept) == {"photos": 400, "sketches": 400}, "as many as the smaller one gives"
    kept, *_ = draw(Config(total="all"))
    assert shares(kept) == ROWS
    kept, counts, _, stage = draw(Config(total="all", count=200))
    assert shares(kept) == {"photos": 200, "sketches": 200, "scans": 90}, "the total grows with each source"
    assert "the set grows" in stage.sections(counts, {})[0].note


def test_a_shortage_is_said_or_refused_with_the_size_that_there_is() -> None:
    kept, counts, why, stage = draw(Config("photos=0.5,scans=0.5", 400))
    assert shares(kept) == {"photos": 200, "scans": 90}
    (table,) = stage.sections(counts, {})
    assert isinstance(table, Table)
    cells = [[getattr(cell, "text", cell) for cell in row] for row in table.rows]
    assert ["scans", "0.5", "90", "200", "90", "0.3103"] in cells and cells[-1][-2] == "290"
    assert "Too few rows in scans" in table.note
    assert why == {BEYOND: 500, LEFT_OUT: 400}
    with pytest.raises(DiptychError, match=r"needs 200 rows of scans, which has 90: .* give 180 rows in all"):
        draw(Config("photos=0.5,scans=0.5", 400, short="refuse"))
    assert len(draw(Config("photos=0.5,scans=0.5", 180, short="refuse"))[0]) == 180


def test_mistakes_are_named() -> None:
    for words, config in {
        'takes NAME=SHARE, such as a=0.75,b=0.25; not "photos"': Config("photos,sketches=1"),
        'names "sketch", of which there is no row; did you mean "sketches"': Config("photos=1,sketch=1", 5),
        "are all 0": Config("photos=0"),
        "twice": Config("a=1,a=2"),
        'not "a=-1"': Config("a=-1"),
        'not "a=inf"': Config("a=inf"),
        'total cannot be "al"; valid: fixed, all': Config(total="al"),
        "has no use for mixing.weights": Config("a=1", total="all"),
        "it is a number of rows": Config(count=-1),
    }.items():
        with pytest.raises(DiptychError, match=words):
            draw(config)
    with pytest.raises(DiptychError, match="give the sources as a=PATH,b=PATH"):
        Mixing().stages(["key", "text"])
    assert configure(Mixing, {"weights": "a=3,b=1", "count": "9"}).config == Config("a=3,b=1", 9)


def test_whole_rows_sum_up() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        share = rng.dirichlet(np.ones(int(rng.integers(1, 7))))
        count = int(rng.integers(0, 1000))
        found = largest_remainder(share, count)
        assert found.sum() == count and abs(found - share * count).max() < 1
        rows = rng.integers(0, 50, len(share))
        most = achievable(share, rows)
        assert (largest_remainder(share, most) <= rows).all()
        assert 0 <= (rows / share).min() - most < len(share), "rounding up costs less than a row of each source"
    assert largest_remainder(np.array([0.1, 0.2, 0.7]), 10).tolist() == [1, 2, 7], (
        "0.1 * 3 and its like do not round up"
    )
    assert name_of({"b": 0.25, "a": 0.75, "c": 0}) == "a=0.75,b=0.25" and name_of({"a": 1.0}) == "a"
    assert parse_mixture("a", "") == {"a": 1.0} and parse_mixture("a=3, b=1", "") == {"a": 0.75, "b": 0.25}


def test_a_run_leaves_exactly_the_mixture_and_says_it(tmp_path: Path) -> None:
    """Through the executor: two tables, in pieces, and what `diptych train` then reads of the folder."""
    for name, count in (("a", 300), ("b", 200)):
        rows = {"key": [str(i) for i in range(count)], "text": [f"{name} {i}" for i in range(count)]}
        parquet.write_table(pa.table(rows), tmp_path / f"{name}.parquet", row_group_size=50)
    source = f"a={tmp_path / 'a.parquet'},b={tmp_path / 'b.parquet'}"
    done = curate(
        "mixing", source, tmp_path / "out", settings={"mixing.weights": "a=3,b=1", "mixing.count": "80"}, seed=2
    )
    left = parquet.read_table(tmp_path / "out" / "00000.parquet")
    assert Counter(left["source"].to_pylist()) == {"a": 60, "b": 20} and done.rows_out == 80
    assert mixture_of(tmp_path / "out") == "a=0.75,b=0.25"
    more = curate(
        "mixing", source, tmp_path / "more", settings={"mixing.weights": "a=3,b=1", "mixing.count": "160"}, seed=2
    )
    texts = set(parquet.read_table(tmp_path / "more" / "00000.parquet")["text"].to_pylist())
    assert more.rows_out == 160 and set(left["text"].to_pylist()) < texts
