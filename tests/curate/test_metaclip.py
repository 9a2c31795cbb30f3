"""metaclip: its matching against a plain loop, how often it keeps against the formula, and the histogram it leaves."""

import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from diptych.curation.run import curate
from diptych.errors import DiptychError
from diptych.methods.curate.metaclip import Balance, Config, Match, draws, kept_chance, probabilities, threshold
from diptych.methods.curate.parts.entries import Matcher, spaced
from diptych.methods.curate.parts.pipeline import Place, chance_of

WORDS = [
    "cat",
    "dog",
    "Dog",
    "concatenate",
    "a",
    "St",
    "Louis",
    "new",
    "york",
    "x.y",
    "cat)",
    "don't",
    "`",
    "é",
    "猫",
    "",
    ",",
]


def world(tmp_path):
    """(input, settings) of a small pool: entries of Zipf's frequency, noise that names none."""
    drawn = np.random.default_rng(0)
    names = [f"thing{n}" for n in range(40)]
    chance = 1 / np.arange(1, 41)
    texts = [
        f"a {names[drawn.choice(40, p=chance / chance.sum())]}, seen" if drawn.random() < 0.6 else f"IMG {n}"
        for n in range(1200)
    ]
    parquet.write_table(pa.table({"caption": texts}), tmp_path / "pool.parquet", row_group_size=300)
    (tmp_path / "entries.txt").write_text("\n".join(names))
    return tmp_path / "pool.parquet", {"metaclip.metadata": str(tmp_path / "entries.txt"), "metaclip.t": "10"}


def test_matching_is_that_of_the_plain_loop():
    drawn = random.Random(0)
    entries = {" ".join(drawn.choice(WORDS) for _ in range(drawn.randint(1, 3))) for _ in range(300)}
    entries = sorted(entry for entry in entries if entry.strip())
    blanks = [" ", " ", ",", ". ", "  ", "", "\t", "! ", ":"]
    texts = [
        "".join(drawn.choice(WORDS) + drawn.choice(blanks) for _ in range(drawn.randint(0, 9))) for _ in range(10_000)
    ]
    rows, found = Matcher(entries).match(pa.array(texts))
    some = [f" {entry} " for entry in entries]
    expected = [(n, e) for n, text in enumerate(map(spaced, texts)) for e, entry in enumerate(some) if entry in text]
    assert list(zip(rows.tolist(), found.tolist(), strict=True)) == expected
    assert len(expected) > 10_000


def test_words_are_whole_and_cases_differ():
    texts = pa.array(["concatenate", "a cat, running", "a Cat", "a cat)", None])
    assert Matcher(["cat"]).match(texts)[0].tolist() == [1]
    assert Matcher(["cat"], case=False).match(texts)[0].tolist() == [1, 2]


def test_a_caption_is_kept_as_often_as_the_formula_says():
    """Over 400 seeds within 3 standard errors; with an entry of the tail, always."""
    counts = np.array([1000, 400, 5], np.uint64)
    lists = [[0], [0, 1], [1], [0, 2]]
    entries = pa.array(lists, pa.list_(pa.uint32()))
    batch = pa.record_batch({"key": list("abcd"), "text": list("abcd"), "entries": entries})
    kept = np.zeros(4)
    seeds = 400
    for seed in range(seeds):
        stage = Balance(Config(t="100"), "text", Match(Config(), "text"), seed)
        kept += stage.select(batch, Place(0, 0), {"count": counts, "t": np.array(100.0)}).keep
    p = [0.1, 1 - 0.9 * 0.75, 0.25, 1.0]
    for rate, expected in zip(kept / seeds, p, strict=True):
        assert abs(rate - expected) <= 3 * math.sqrt(expected * (1 - expected) / seeds) + 1e-12
    chance = probabilities(counts, 100)
    entries, rows = np.array([0, 0, 1, 1, 0, 2]), np.array([0, 1, 1, 2, 3, 3])
    np.testing.assert_allclose(kept_chance(chance[entries], rows, 4), p, atol=1e-12)


def test_draws_are_even_and_independent():
    rows = np.repeat(np.arange(20_000), 2)
    entry, text = np.tile([3, 4], 20_000), np.zeros(40_000, int)
    found = draws(chance_of([str(n) for n in range(20_000)], 0, "balance"), rows, text, entry)
    assert abs(found.mean() - 0.5) < 0.01 and abs(found.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(found[::2], found[1::2])[0, 1]) < 0.03


def test_auto_takes_the_tail_that_was_asked_for():
    counts = np.array([1000, 500, 30, 20, 10, 0])
    t = threshold("auto", counts, 0.03)
    assert counts[counts < t].sum() / counts.sum() >= 0.03 > counts[counts < t - 1].sum() / counts.sum()
    for wrong in ("many", "-1", "nan"):
        with pytest.raises(DiptychError, match="above 0"):
            threshold(wrong, counts, 0.06)


def histogram(out, names):
    texts = parquet.read_table(out / "00000.parquet").column("text").to_pylist()
    return np.bincount(Matcher(names).match(pa.array(texts))[1], minlength=len(names)), len(texts)


def test_the_histogram_is_flatter_and_t_says_how_many_are_left(tmp_path):
    source, settings = world(tmp_path)
    names = (tmp_path / "entries.txt").read_text().split()
    sizes, peaks = [], []
    for t in ("3", "10", "inf"):
        done = curate("metaclip", source, tmp_path / t, settings=settings | {"metaclip.t": t})
        counts, size = histogram(tmp_path / t, names)
        sizes.append(size)
        peaks.append(counts.max() / np.median(counts[counts > 0]))
        assert done.lines[1].why["names no entry"] == done.rows_in - done.lines[1].kept > 400
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    assert peaks[2] >= 5 * peaks[0]
    full, _ = histogram(tmp_path / "inf", names)
    kept, _ = histogram(tmp_path / "10", names)
    assert (kept[full < 10] == full[full < 10]).all() and (full < 10).any()


def test_online_keeps_all_and_weighs_them(tmp_path):
    source, settings = world(tmp_path)
    done = curate("metaclip", source, tmp_path / "out", settings=settings | {"metaclip.online": "true"})
    weights = parquet.read_table(tmp_path / "out" / "00000.parquet").column("weight").to_numpy()
    assert done.rows_out == len(weights) == done.lines[1].kept
    drawn = curate("metaclip", source, tmp_path / "drawn", settings=settings).rows_out
    assert abs(weights.sum() - drawn) < 4 * math.sqrt((weights * (1 - weights)).sum())


def test_of_several_texts_those_drawn_are_kept(tmp_path):
    texts = [["a rare thing", "nothing of it"], ["common", "common and rare"]] + [["common"]] * 300
    parquet.write_table(pa.table({"texts": texts}), tmp_path / "in.parquet")
    (tmp_path / "e.json").write_text('["common", "rare", "common"]')
    settings = {"metadata": str(tmp_path / "e.json"), "t": "3"}
    curate("metaclip", tmp_path / "in.parquet", tmp_path / "out", settings=settings)
    left = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert left[0]["texts"] == ["a rare thing"] and left[0]["entries"] == [[1]]
    assert "common and rare" in left[1]["texts"]
    assert len(left) < 40


def test_it_says_what_is_missing(tmp_path):
    source, _ = world(tmp_path)
    with pytest.raises(DiptychError, match=r"metaclip\.metadata=FILE"):
        curate("metaclip", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_entries_in_the_same_file_are_another_run(tmp_path):
    source, settings = world(tmp_path)
    curate("metaclip", source, tmp_path / "out", settings=settings)
    (tmp_path / "entries.txt").write_text("thing1\n")
    with pytest.raises(DiptychError, match="files differ"):
        curate("metaclip", source, tmp_path / "out", settings=settings)
