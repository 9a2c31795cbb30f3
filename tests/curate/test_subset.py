"""subset: by a condition, by words, by queries; the same rows however the work is cut."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from scored_world import HERE, drawn, embedded, rows

from diptych.cli.main import main
from diptych.core.classifier import Base
from diptych.core.micro import micro
from diptych.curation.run import curate
from diptych.errors import DiptychError
from diptych.methods.curate.parts.choose import Near, Nearest, Where, Words
from diptych.methods.curate.parts.embed import Embed
from diptych.methods.curate.parts.join import hash_of
from diptych.methods.curate.parts.pipeline import Pipeline, Place, configure
from diptych.methods.curate.parts.vectors import maker_of
from diptych.methods.curate.subset import Subset
from diptych.methods.discover import find


@dataclass(frozen=True)
class NoSettings:
    """Of a pipeline of these tests."""


def run(settings: dict[str, str], batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The stages one after the other, as the executor runs them."""
    steps = configure(Subset, settings).stages(batches[0].schema.names)
    pieces = [[batch] for batch in batches]
    for step in steps:
        counted, places = {}, [Place(number, 0) for number in range(len(pieces))]
        if step.counts:
            parts = [step.count(batch, place) for (batch,), place in zip(pieces, places, strict=True)]
            counted = step.finish(step.merge(parts))
        verdicts = [step.select(batch, place, counted) for (batch,), place in zip(pieces, places, strict=True)]
        pieces = [[v.batch.filter(pa.array(v.keep))] for v in verdicts]
    return [batch for (batch,) in pieces]


def keys(batches: list[pa.RecordBatch]) -> list[str]:
    return [key for batch in batches for key in batch.column("key").to_pylist()]


def world(folder: Path) -> tuple[Path, dict[str, str]]:
    """For the contract of the family."""
    (folder / "input").mkdir()
    for n in range(3):
        rows = pa.Table.from_batches([table().slice(60 * n, 60)])
        parquet.write_table(rows, folder / "input" / f"{n}.parquet", row_group_size=25)
    return folder / "input", {"where": "width > 300"}


def table(count: int = 200) -> pa.RecordBatch:
    rng = np.random.default_rng(2)
    punsafe = rng.random(count)
    return pa.record_batch(
        {
            "key": [str(i) for i in range(count)],
            "text": [f"a {('Dog', 'hotdog', 'cat', 'polar bear')[i % 4]} number {i}" for i in range(count)],
            "url": [f"http://a.example/{i}" for i in range(count)],
            "width": pa.array(rng.integers(100, 2000, count), pa.int32()),
            "punsafe": pa.array(punsafe, pa.float32(), mask=punsafe > 0.9),
            "clean": punsafe < 0.3,
        }
    )


def test_by_a_condition_as_numpy_would():
    batch = table()
    width, punsafe = batch.column("width").to_numpy(), batch.column("punsafe").to_numpy(zero_copy_only=False)
    for where, expected in {
        "width >= 1024 and punsafe < 0.5": (width >= 1024) & (punsafe < 0.5),  # an empty cell is not below
        "width < 300 or clean = true": (width < 300) | batch.column("clean").to_numpy(zero_copy_only=False),
        "not (punsafe >= 0.25)": punsafe < 0.25,
        "text like '%cat%' and punsafe is not null": (np.arange(200) % 4 == 2) & ~np.isnan(punsafe),
    }.items():
        assert (
            keys(run({"where": where}, [batch.slice(0, 77), batch.slice(77)]))
            == np.flatnonzero(expected).astype(str).tolist()
        ), where
    verdict = Where("width >= 1024").select(batch, HERE, {})
    assert set(verdict.why) == {"", "condition not true"} and verdict.batch.equals(batch)
    with pytest.raises(DiptychError, match='no column "wdith"; did you mean "width"'):
        run({"where": "wdith > 3"}, [batch])


def test_by_whole_words():
    found = run({"words": "dog, polar BEAR"}, [table()])
    assert keys(found) == [str(i) for i in range(200) if i % 4 in (0, 3)]
    verdict = Words(["dog", "o"]).select(table(), HERE, {})
    assert verdict.tallies == {"dog": 50, "o": 0}  # a hotdog is none
    assert Words(["(a|b", "1."]).select(table(), HERE, {}).keep.sum() == 0  # words, not patterns
    (section,) = Words(["dog"]).sections({}, {"dog": 50})
    assert section.rows == [["dog", "50"]]


@pytest.fixture(scope="module")
def pictures() -> pa.RecordBatch:
    return Embed("micro", half=False).select(rows(drawn(150, 4)), HERE, {}).batch


def cosines(batch: pa.RecordBatch, queries: list[str]) -> np.ndarray:
    clip = micro()
    texts = [clip.encode_text([query])[0].double().numpy() for query in queries]
    x = np.array(batch.column("embedding").to_pylist())
    return np.stack([x @ text / np.linalg.norm(text) for text in texts], 1)


def test_by_the_nearest_to_each_query_however_the_work_is_cut(pictures):
    queries = ["a red circle", "a blue star", "a heart"]
    wanted = cosines(pictures, queries)
    expected = np.zeros(wanted.shape, bool)
    for q in range(3):
        expected[np.argsort(-wanted[:, q], kind="stable")[:10], q] = True
    settings = {"queries": ",".join(queries), "top": "10"}
    whole = run(settings, [pictures])
    cut = run(settings, [pictures.slice(0, 1), pictures.slice(1, 0), pictures.slice(1, 99), pictures.slice(100)])
    names = pictures.column("key").to_pylist()
    assert keys(whole) == keys(cut) == [names[i] for i in np.flatnonzero(expected.any(1))]
    best = [queries[i] for i in np.where(expected, wanted, -9).argmax(1)[expected.any(1)]]
    assert whole[0].column("query").to_pylist() == best
    found = whole[0].column("query_similarity").to_numpy()
    np.testing.assert_allclose(found, np.where(expected, wanted, -9).max(1)[expected.any(1)], atol=1e-5)
    shapes = [scene.scene.things[0].shape for scene in drawn(150, 4)]
    hearts = [shapes[names.index(key)] for key, query in zip(keys(whole), best, strict=True) if query == "a heart"]
    assert hearts.count("heart") >= 0.8 * len(hearts)


def test_by_how_near_they_are(pictures):
    wanted = cosines(pictures, ["a red circle", "a heart"])
    settings = {"queries": "a red circle,a heart", "least": "0.45"}
    expected = (wanted >= 0.45).any(1)
    assert 5 < expected.sum() < 100
    names = np.array(pictures.column("key").to_pylist())
    assert keys(run(settings, [pictures])) == names[expected].tolist()
    few = run(settings | {"top": "3"}, [pictures])
    assert keys(few) == keys(run({"queries": settings["queries"], "top": "3"}, [pictures]))
    assert keys(run(settings | {"least": "0.999", "top": "3"}, [pictures])) == []


def test_equal_ones_are_taken_in_their_order():
    maker = Base("micro", "micro", "")
    same = embedded(np.ones((6, 256), np.float32), maker)
    stage = Nearest(["a circle"], 4)
    parts = {Place(1, 2): same.slice(0, 3), Place(0, 0): same.slice(3, 2), Place(1, 0): same.slice(5, 1)}
    counts = stage.merge([stage.count(batch, place) for place, batch in parts.items()])
    kept = {place: stage.select(batch, place, counts).keep.tolist() for place, batch in parts.items()}
    assert kept == {Place(1, 2): [True, False, False], Place(0, 0): [True, True], Place(1, 0): [True]}


def test_how_near_a_row_is_does_not_depend_on_the_others():
    row = np.random.default_rng(0).normal(size=256).astype(np.float32)
    stage = Nearest(["a circle", "a heart"], 4)
    batches = [embedded(np.tile(row, (n, 1)), Base("micro", "micro", "")) for n in (1, 2, 3, 8, 33, 512)]
    assert len({cosines.tobytes() for batch in batches for cosines in stage.cosines(batch)}) == 1


def test_rows_without_an_embedding_are_near_nothing():
    batch = embedded(np.ones((3, 256), np.float32), Base("micro", "micro", ""), np.array([True, False, True]))
    assert Near(["a circle"]).select(batch, HERE, {}).keep.tolist() == [True, False, True]
    stage = Nearest(["a circle"], 3)
    assert stage.select(batch, HERE, stage.count(batch, HERE)).keep.tolist() == [True, False, True]


def test_scores_of_another_file_are_joined_before_the_condition(tmp_path):
    batch = table(20)
    hashes = [hash_of(u, t) for u, t in zip(batch["url"].to_pylist(), batch["text"].to_pylist(), strict=True)]
    file = pa.table({"hash": hashes[::-1], "pwatermark": np.arange(20)[::-1] / 20})
    parquet.write_table(file, tmp_path / "scores.parquet")
    settings = {"scores": str(tmp_path / "scores.parquet"), "where": "pwatermark < 0.25"}
    assert keys(run(settings, [batch.slice(0, 7), batch.slice(7)])) == ["0", "1", "2", "3", "4"]
    parquet.write_table(file.slice(0, 19), tmp_path / "scores2.parquet")
    with pytest.raises(DiptychError, match="1 of 20 rows have no score"):
        run(settings | {"scores": str(tmp_path / "scores2.parquet")}, [batch])


def test_nothing_to_choose_by_is_said():
    assert find("curate", "subset") is Subset
    with pytest.raises(DiptychError, match="say what to keep"):
        configure(Subset, {}).stages(["key"])
    with pytest.raises(DiptychError, match=r"say how many with subset.top"):
        configure(Subset, {"queries": "a dog"}).stages(["key", "embedding"])
    with pytest.raises(DiptychError, match=r"subset has no setting \"were\"; did you mean \"where\""):
        configure(Subset, {"were": "a"})


def test_through_files_the_column_still_says_which_model_made_it(pictures, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    parquet.write_table(pa.Table.from_batches([pictures.drop_columns(["picture"])]), tmp_path / "in" / "a.parquet")
    words = ["--set", "subset.queries=a heart", "--set", "subset.top=5"]
    assert main(["curate", "subset", str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 0
    found = parquet.read_table(tmp_path / "out" / "00000.parquet")
    assert keys(run({"queries": "a heart", "top": "5"}, [pictures])) == found.column("key").to_pylist()
    assert maker_of(found.schema) == Base.of(micro())
    other = embedded(np.ones((3, 256), np.float32), Base("mini", "mini", "0" * 32))
    parquet.write_table(pa.Table.from_batches([other]), tmp_path / "in" / "b.parquet")
    capsys.readouterr()
    assert main(["curate", "subset", str(tmp_path / "in"), str(tmp_path / "out2"), *words]) == 2
    assert '"embedding" was not made alike in all files' in capsys.readouterr().err


def test_shards_give_their_pictures_with_the_vectors_beside_them(pictures, tmp_path):
    class Mine(Pipeline):
        Config = NoSettings

        def stages(self, columns, seed=0):
            return [Embed("micro")]

    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for row in pictures.select(["key", "text", "picture"]).to_pylist()[:60]:
            for end, data in (("jpg", row["picture"]), ("txt", row["text"].encode())):
                member = tarfile.TarInfo(f"{row['key']}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    curate(Mine(), tmp_path / "00000.tar", tmp_path / "all")
    with tarfile.open(tmp_path / "all" / "00000.tar") as tar:
        about = json.loads(next(tar.extractfile(m).read() for m in tar if m.name.endswith(".json")))  # type: ignore[union-attr]
    assert "similarity" in about and "embedding" not in about
    settings = {"subset.queries": "a heart", "subset.top": "4"}
    curate("subset", tmp_path / "all", tmp_path / "few", settings=settings)
    table = parquet.read_table(tmp_path / "few" / "00000.parquet")
    own = "00000-"
    expected = keys(run({"queries": "a heart", "top": "4"}, [pictures.slice(0, 60)]))
    assert [key.removeprefix(own) for key in table.column("key").to_pylist()] == expected
    with tarfile.open(tmp_path / "few" / "00000.tar") as tar:
        assert sum(name.endswith(".jpg") for name in tar.getnames()) == 4
    whole = parquet.read_table(tmp_path / "all" / "00000.parquet")
    rows = [whole.column("key").to_pylist().index(key) for key in table.column("key").to_pylist()]
    assert whole.column("embedding").take(pa.array(rows)).to_pylist() == table.column("embedding").to_pylist()
