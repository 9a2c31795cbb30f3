"""The key of scores, and that a join loses no row silently."""

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from scored_world import HERE

from diptych.errors import DiptychError
from diptych.methods.curate.parts.join import Hashed, JoinScores, hash_of, join_scores

TEXTS = ["a cat", "un café\tau lait", "猫の写真", "", "a cat "]


def metadata(count: int = 40, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    urls = [f"http://a.example/{i}.jpg" for i in range(count)]
    texts = [TEXTS[i] for i in rng.integers(0, len(TEXTS), count)]
    return pa.table({"key": [str(i) for i in range(count)], "url": urls, "text": texts})


def scores_for(table: pa.Table, seed: int = 1) -> pa.Table:
    """In another order, with values that tell which row they belong to."""
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = table.take(pa.array(order))
    return pa.table(
        {"url": shuffled.column("url"), "text": shuffled.column("text"), "punsafe": pa.array(order / len(table))}
    )


def test_the_key_is_laions():
    assert hash_of("http://a/b.jpg", "a cat") == mmh3.hash64("http://a/b.jpga cat")[0]
    assert hash_of(None, "a cat") == mmh3.hash64("a cat")[0]
    assert hash_of("http://a/b.jpg", None) == mmh3.hash64("http://a/b.jpg")[0]
    assert hash_of(None, None) == mmh3.hash64("")[0] == 0
    assert hash_of("http://a/b.jpg ", "\ta cat\n") == hash_of("http://a/b.jpg", "a cat")
    assert hash_of("u", "\ud800") != hash_of("u", "\ud801")  # half surrogates of broken alt texts
    # signed 64 bits, as Arrow and Spark keep it
    assert any(hash_of("u", str(i)) < 0 for i in range(8)) and all(abs(hash_of("u", str(i))) < 2**63 for i in range(99))


def test_all_rows_find_their_own_scores():
    table = metadata()
    joined = join_scores(table, scores_for(table))
    assert joined.rate == 1 and not joined.alone and joined.repeated == 0
    assert joined.table.select(table.schema.names).equals(table)  # the rows and their order are as they were
    np.testing.assert_array_equal(joined.table.column("punsafe").to_numpy(), np.arange(40) / 40)


def test_one_changed_character_breaks_exactly_that_row():
    table = metadata()
    scores = scores_for(table)
    for row in range(len(table)):
        texts = table.column("text").to_pylist()
        texts[row] = texts[row] + "x"
        changed = table.set_column(2, "text", pa.array(texts))
        joined = join_scores(changed, scores, least=0.9)
        assert list(joined.alone) == [row] and joined.rate == 39 / 40
        assert joined.table.column("punsafe").null_count == 1 and joined.table.column("punsafe")[row].as_py() is None
    with pytest.raises(DiptychError, match=r"1 of 40 rows have no score \(97.50% joined, 100.00% asked\): row 39"):
        join_scores(changed, scores)


def pairs_table(url: str, text: str, rows: list[tuple[str | None, str | None]], **others: list[float]) -> pa.Table:
    sides = {url: pa.array([u for u, _ in rows], pa.string()), text: pa.array([t for _, t in rows], pa.string())}
    return pa.table(sides | {name: pa.array(values, pa.float64()) for name, values in others.items()})


def test_random_tables_join_as_a_dictionary_would():
    rng = np.random.default_rng(7)
    words = ["a", "b", " a", "b ", None, "", "c d"]

    def plain(url: str | None, text: str | None) -> str:
        return (url or "").strip() + (text or "").strip()

    for _ in range(60):
        many, other = rng.integers(0, 30, 2)
        rows, side = ([(words[i], words[j]) for i, j in rng.integers(0, len(words), (n, 2))] for n in (many, other))
        values = rng.random(other).tolist()
        known: dict[str, float] = {}
        for pair, score in zip(side, values, strict=True):
            known.setdefault(plain(*pair), score)
        wanted = [known.get(plain(*pair)) for pair in rows]
        joined = join_scores(pairs_table("URL", "TEXT", rows), pairs_table("url", "text", side, score=values), least=0)
        assert joined.table.column("score").to_pylist() == wanted
        assert list(joined.alone) == [i for i, value in enumerate(wanted) if value is None]
        assert joined.repeated == len(side) - len(known)


def test_a_hash_that_is_there_is_taken_as_it_is():
    table = metadata(5)
    pairs = zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True)
    hashed = table.append_column("hash", pa.array([hash_of(*pair) for pair in pairs]))
    scores = pa.table({"hash": hashed.column("hash").to_numpy()[::-1], "pwatermark": [4.0, 3.0, 2.0, 1.0, 0.0]})
    assert join_scores(hashed, scores).table.column("pwatermark").to_pylist() == [0, 1, 2, 3, 4]
    assert join_scores(table, scores).table.column("pwatermark").to_pylist() == [0, 1, 2, 3, 4]
    twice = pa.concat_tables([scores, pa.table({"hash": hashed["hash"].to_numpy(), "pwatermark": [9.0] * 5})])
    again = join_scores(table, twice)  # the first counts
    assert again.repeated == 5 and again.table.column("pwatermark").to_pylist() == [0, 1, 2, 3, 4]
    stage = Hashed().select(table.combine_chunks().to_batches()[0], HERE, {})
    assert stage.keep.all() and stage.batch.column("hash").to_pylist() == hashed.column("hash").to_pylist()


def test_what_cannot_be_joined_is_said():
    table = metadata(3)
    with pytest.raises(DiptychError, match="both sides have punsafe"):
        join_scores(table.append_column("punsafe", pa.array([0.1] * 3)), scores_for(table))
    with pytest.raises(DiptychError, match="the scores have no hash, nor url to make it of"):
        join_scores(table, pa.table({"text": ["a"], "punsafe": [0.1]}))
    with pytest.raises(DiptychError, match="no column to join"):
        join_scores(table, table)
    with pytest.raises(DiptychError, match="int64, no null"):
        join_scores(table, pa.table({"hash": ["1"], "punsafe": [0.1]}))
    assert join_scores(table.slice(0, 0), scores_for(table)).rate == 1
    assert len(join_scores(table, scores_for(table).slice(0, 0), least=0).alone) == 3


def test_as_a_stage_it_refuses_a_low_rate_before_anything_is_kept(tmp_path):
    table = metadata(20)
    parquet.write_table(scores_for(table).slice(0, 18), tmp_path / "scores.parquet")
    batches = table.combine_chunks().to_batches(max_chunksize=7)
    stage = JoinScores(str(tmp_path / "scores.parquet"))
    counts = stage.merge([stage.count(batch, HERE) for batch in batches])
    with pytest.raises(DiptychError, match=r"2 of 20 rows have no score in .*90.00% joined, 100.00% asked.; the first"):
        stage.finish(counts)
    lenient = JoinScores(str(tmp_path / "scores.parquet"), least=0.9)
    counts = lenient.finish(counts)
    found = [lenient.select(batch, HERE, counts) for batch in batches]
    expected = join_scores(table, scores_for(table).slice(0, 18), least=0)
    assert pa.Table.from_batches([v.batch for v in found]).equals(expected.table)
    assert sum(v.tallies["without"] for v in found) == 2 and all(v.keep.all() for v in found)
    (section,) = lenient.sections(counts, {"with scores": 18, "without": 2})
    assert all(table.column("key")[row].as_py() in section.body for row in expected.alone)
    with pytest.raises(DiptychError, match="no scores at"):
        JoinScores("nowhere.parquet").count(batches[0], HERE)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DiptychError, match="cannot be read as Parquet"):
        JoinScores(str(tmp_path / "bad.parquet")).count(batches[0], HERE)
