"""Embeddings as columns against a plain loop; the CLIP filter by value and by share; the screen."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from scored_world import HERE, drawn, embedded, rows

from diptych.core.classifier import Base
from diptych.core.micro import micro
from diptych.data.scenes import SceneSpec
from diptych.errors import DiptychError
from diptych.methods.curate.parts.clip_filter import FINE, ClipFilter, ClipShare, Screen, threshold_of
from diptych.methods.curate.parts.embed import Embed, reason_of
from diptych.methods.curate.parts.vectors import maker_of, opened, vectors_of
from diptych.metrics.ood import auroc
from diptych.report.sections import Plot, Table

MAKER = Base("micro", "micro", "")


@pytest.fixture(scope="module")
def scenes():
    return drawn(80, 5)


@pytest.fixture(scope="module")
def matched(scenes):
    return Embed("micro", half=False, batch=16).select(rows(scenes), HERE, {}).batch


def test_embeddings_are_those_of_a_plain_loop(scenes, matched):
    clip = micro()
    pictures, texts = vectors_of(matched), vectors_of(matched, "text_embedding")
    for i in (0, 7, 79):
        image = Image.open(io.BytesIO(matched.column("picture")[i].as_py())).convert("RGB")
        one = clip.encode_image(clip.preprocess(image)[None])[0].double().numpy()
        word = clip.encode_text([scenes[i].text("short")])[0].double().numpy()
        np.testing.assert_allclose(pictures[i], one / np.linalg.norm(one), atol=2e-6)
        np.testing.assert_allclose(texts[i], word / np.linalg.norm(word), atol=2e-6)
        cosine = one @ word / np.linalg.norm(one) / np.linalg.norm(word)
        assert matched.column("similarity")[i].as_py() == pytest.approx(cosine, abs=2e-6)


def test_columns_say_which_model_made_them_and_keep_saying_it_in_parquet(matched, tmp_path):
    parquet.write_table(pa.Table.from_batches([matched]), tmp_path / "rows.parquet")
    back = parquet.read_table(tmp_path / "rows.parquet")
    for column in ("embedding", "text_embedding"):
        assert maker_of(back.schema, column) == Base.of(micro())
    assert back.schema.field("embedding").type == pa.list_(pa.float32(), 256)
    with pytest.raises(DiptychError, match='made by "micro", not by "mini"'):
        maker_of(back.schema, model="mini")
    bare = pa.schema([pa.field("embedding", pa.list_(pa.float32(), 4))])
    assert maker_of(bare, model="ViT-L-14:openai").name == "ViT-L-14:openai"
    with pytest.raises(DiptychError, match="not known; name it"):
        maker_of(bare)
    with pytest.raises(DiptychError, match="is now another model"):
        opened(Base("micro", "micro", "0123456789abcdef"))


def test_a_picture_that_cannot_be_read_takes_its_row_with_it_and_no_other(scenes):
    good = rows(scenes[:6])
    data = good.column("picture").to_pylist()
    data[1], data[3] = b"no picture", data[3][:200]
    Image.new("1", (18_000, 20_000)).save(bomb := io.BytesIO(), "PNG")
    data[4] = bomb.getvalue()
    texts = good.column("text").to_pylist()
    texts[5] = "  "
    broken = pa.record_batch({"key": good.column("key"), "text": texts, "picture": pa.array(data, pa.binary())})
    whole = Embed("micro", half=False).select(good, HERE, {})
    verdict = Embed("micro", half=False, batch=2).select(broken, HERE, {})
    assert verdict.keep.tolist() == [True, False, True, False, False, False]
    assert verdict.why == [
        "", "not a picture of a known kind, or corrupt from its first bytes", "", "truncated",
        "more pixels than the limit of 178 million", "no text",
    ]  # fmt: skip
    assert verdict.batch.column("embedding").null_count == verdict.batch.column("similarity").null_count == 4
    for column in ("embedding", "text_embedding"):
        a, b = vectors_of(verdict.batch, column), vectors_of(whole.batch, column)
        np.testing.assert_allclose(a[[0, 2]], b[[0, 2]], atol=1e-6)
        assert np.isnan(a[[1, 3, 4, 5]]).all()


def test_float16_columns_differ_by_rounding_alone(scenes, matched):
    half = Embed("micro").select(rows(scenes), HERE, {}).batch
    assert half.schema.field("embedding").type == pa.list_(pa.float16(), 256)
    cosine = (vectors_of(half) * vectors_of(matched)).sum(1)
    assert cosine.min() > 1 - 1e-6
    np.testing.assert_allclose(half.column("similarity").to_numpy(), matched.column("similarity").to_numpy(), atol=2e-6)


def test_equal_texts_are_encoded_once(scenes, monkeypatch):
    clip, seen = micro(), []
    encode = clip.tokenize
    monkeypatch.setattr("diptych.methods.curate.parts.embed.model_of", lambda name, device: clip)
    monkeypatch.setattr(clip, "tokenize", lambda texts, *a, **k: seen.extend(texts) or encode(texts, *a, **k))
    Embed("watched").select(rows(scenes[:9], text=lambda scene: f"a {scene.index % 2}"), HERE, {})
    assert sorted(seen) == ["a 0", "a 1"]


def test_a_batch_without_rows():
    batch = rows([])
    assert len(Embed("micro").select(batch, HERE, {}).keep) == 0


def test_reasons_are_few():
    assert reason_of("12000 x 9000 pixels, more than the limit of 178 million") == "more than the limit of 178 million"
    assert reason_of("corrupt (unknown marker at byte 17)") == "corrupt"


def test_similarity_tells_texts_that_belong_from_those_of_other_pictures(scenes, matched):
    texts = [scene.text("short") for scene in scenes]
    others = iter(texts[1:] + texts[:1])
    wrong = Embed("micro", half=False).select(rows(scenes, text=lambda _: next(others)), HERE, {}).batch
    right, other = (batch.column("similarity").to_numpy() for batch in (matched, wrong))
    assert auroc(right, other) > 0.95
    both = pa.Table.from_batches([matched, wrong]).combine_chunks().to_batches()[0]
    stage = ClipShare(0.5)
    verdict = stage.select(both, HERE, stage.merge([stage.count(matched, HERE), stage.count(wrong, HERE)]))
    assert verdict.keep[:80].mean() > 0.9 and verdict.keep[80:].mean() < 0.1


def similar(values, languages=None) -> pa.RecordBatch:
    columns = {"key": [str(i) for i in range(len(values))], "similarity": pa.array(values, pa.float32())}
    return pa.record_batch(columns | ({} if languages is None else {"language": languages}))


def test_each_language_has_its_threshold():
    values = [0.27, 0.28, 0.27, 0.255, 0.26, 0.27, None]
    batch = similar(values, ["en", "en", "de", "fr", "nolang", None, "en"])
    verdict = ClipFilter().select(batch, HERE, {})
    assert verdict.keep.tolist() == [False, True, True, False, True, True, False]
    assert verdict.why == [
        "similarity too low (en)", "", "", "similarity too low (other)", "", "", "no similarity",
    ]  # fmt: skip
    table, plot = ClipFilter().sections({}, verdict.tallies)
    assert isinstance(table, Table) and isinstance(plot, Plot)
    assert ["en", "3", "33.3%", "0.280"] in table.rows and ["fr", "1", "0.0%", "0.260"] in table.rows
    assert ["nolang", "2", "100.0%", "0.260"] in table.rows
    assert ClipFilter(0.1).select(similar([0.05, 0.2]), HERE, {}).keep.tolist() == [False, True]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.37, 1.0])
def test_a_share_is_kept_to_within_a_bin(keep):
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0.1, 0.08, 3000), rng.normal(0.3, 0.05, 1000)]).astype(np.float32)
    stage = ClipShare(keep)
    parts = np.split(values, [17, 17, 900, 2500])
    counts = stage.merge([stage.count(similar(part), HERE) for part in parts])
    (threshold, exact) = threshold_of(counts["en"], keep), np.sort(values)[::-1][max(round(keep * 4000) - 1, 0)]
    kept = np.concatenate([stage.select(similar(part), HERE, counts).keep for part in parts])
    assert (kept == (values >= threshold)).all()
    assert 0 <= exact - threshold <= 1 / FINE or keep == 0
    in_bin = ((values >= threshold) & (values < threshold + 1 / FINE)).sum()
    assert keep * 4000 <= kept.sum() <= keep * 4000 + in_bin


def test_counts_add_up_in_any_grouping():
    rng = np.random.default_rng(0)
    stage = ClipShare(0.3)
    batches = [similar(rng.uniform(-1, 1, n), rng.choice(["en", "de", "nolang"], n)) for n in (5, 0, 40, 7)]
    counts = [stage.count(one, HERE) for one in batches]
    left = stage.merge([stage.merge(counts[:3]), counts[3]])
    right = stage.merge([counts[0], stage.merge(counts[1:])])
    assert all((left[name] == right[name]).all() for name in ("en", "other", "nolang"))
    assert sum(int(one.sum()) for one in left.values()) == 52


def test_the_extremes_have_bins():
    stage = ClipShare(1.0)
    batch = similar([1.0, -1.0, 1.0000001])
    assert stage.select(batch, HERE, stage.count(batch, HERE)).keep.all()
    (table,) = stage.sections({}, {})  # where no row came so far
    assert table.rows == []


def test_the_screen_drops_what_is_nearest_to_a_forbidden_prompt():
    scenes = drawn(200, 9, SceneSpec(counts=(1,), sizes=("large",)))
    batch = Embed("micro").select(rows(scenes), HERE, {}).batch
    things = [scene.scene.things[0] for scene in scenes]
    bad = np.array([thing.shape == "star" for thing in things])
    names = sorted({(thing.colour, thing.shape) for thing in things})
    prompts = {star: [f"a {c} {s}" for c, s in names if (s == "star") == star] for star in (True, False)}
    screen = Screen(prompts[True], prompts[False])
    verdict = screen.select(batch, HERE, {})
    dropped = ~verdict.keep
    assert dropped[bad].mean() > 0.7 and dropped[~bad].mean() < 0.05
    words = micro().encode_text([*prompts[True], *prompts[False]]).double().numpy()
    nearest = (vectors_of(batch) @ (words / np.linalg.norm(words, axis=1, keepdims=True)).T).argmax(1)
    np.testing.assert_array_equal(dropped, nearest < len(prompts[True]))
    assert {verdict.why[i] for i in np.flatnonzero(dropped)} == {"forbidden category"}


def test_embeddings_that_are_none_are_refused():
    with pytest.raises(DiptychError, match="holds int64; lists of numbers"):
        vectors_of(pa.record_batch({"embedding": [1, 2]}))
    with pytest.raises(DiptychError, match="not all of one length"):
        vectors_of(pa.record_batch({"embedding": [[1.0, 2.0], [1.0]]}))
    with pytest.raises(DiptychError, match='no column "embeding"; did you mean "embedding"'):
        vectors_of(pa.record_batch({"embedding": [[1.0]]}), "embeding")


def test_vectors_come_back_as_unit_rows_of_a_slice():
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    valid = np.array([True, True, False, True, True, True])
    batch = embedded(vectors, MAKER, valid).slice(1, 4)
    found = vectors_of(batch)
    expected = vectors[1:5] / np.linalg.norm(vectors[1:5], axis=1, keepdims=True)
    np.testing.assert_allclose(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-6)
    assert np.isnan(found[1]).all()
