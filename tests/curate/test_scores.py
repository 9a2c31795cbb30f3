"""Scores as columns and cuts, and heads trained on a few labels with one command, held out."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scored_world import HERE, drawn, embedded, rows, watermarked
from tiny import MadeUp, support_of

from diptych.core.classifier import Base, Classifier
from diptych.core.heads import Linear
from diptych.core.micro import micro
from diptych.errors import DiptychError
from diptych.methods.adapt.linear_probe import LinearProbe
from diptych.methods.curate.parts.embed import Embed
from diptych.methods.curate.parts.scores import Aesthetic, Toxic, Unsafe, Watermark
from diptych.methods.curate.parts.vectors import vectors_of
from diptych.metrics.ood import auroc
from diptych.report.sections import Plot

MICRO = Base("micro", "micro", "")


def save_head(folder: Path, weight: list[float], base: Base) -> str:
    """The probability of "unsafe" is sigmoid(weight . x)."""
    head = Linear(torch.tensor([[0.0] * len(weight), weight]), torch.zeros(2))
    classes = ("fine", "unsafe")
    return str(Classifier("hand", {}, classes, classes, head, base).save(folder / "hand.safetensors"))


@pytest.fixture
def directions(tmp_path: Path) -> tuple[str, pa.RecordBatch, np.ndarray]:
    """A head that reads one coordinate, rows along it, and the probabilities that belong to them."""
    x = np.array([[-1, 0], [0, 1], [0.6, 0.8], [1, 0], [1, 0]], np.float32)
    valid = np.array([True, True, True, True, False])
    maker = Base("made up", "made up", "f" * 32)
    path = save_head(tmp_path, [4.0, 0.0], maker)
    return path, embedded(x, maker, valid, width=[1, 2, 3, 4, 5]), 1 / (1 + np.exp(-4 * x[:4, 0].astype(np.float64)))


def test_a_score_is_a_column_and_a_cut(directions):
    path, batch, expected = directions
    verdict = Unsafe(path, cut=0.5).select(batch, HERE, {})
    found = verdict.batch.column("punsafe")
    np.testing.assert_allclose(found.to_numpy(zero_copy_only=False)[:4], expected, atol=1e-6)
    assert found[4].as_py() is None and found.type == pa.float32()
    assert verdict.keep.tolist() == [True, True, False, False, False]  # 0.5 itself is not above the cut
    assert verdict.why == ["", "", "unsafe", "unsafe", "no embedding"]
    assert verdict.batch.column("width").equals(batch.column("width"))
    assert verdict.batch.schema.field("embedding").metadata == batch.schema.field("embedding").metadata


def test_without_a_cut_nothing_is_removed_and_the_aesthetic_cut_is_from_below(directions):
    path, batch, _ = directions
    assert Unsafe(path).select(batch, HERE, {}).keep.tolist() == [True, True, True, True, False]
    path = f"{path}:unsafe"
    verdict = Aesthetic(path, cut=0.6).select(batch, HERE, {})
    assert verdict.keep.tolist() == [False, False, True, True, False]
    assert verdict.why[0] == "aesthetic score too low" and Aesthetic(path).adds == ("aesthetic",)
    assert (Unsafe.published, Watermark.published, Toxic.published, Aesthetic.published) == (0.5, 0.8, 0.5, None)


def test_scored_again_a_column_is_replaced(directions):
    path, batch, _ = directions
    once = Unsafe(path).select(batch, HERE, {}).batch
    assert Unsafe(path).select(once, HERE, {}).batch.equals(once)


def test_the_report_draws_the_scores(directions):
    path, batch, _ = directions
    stage = Unsafe(path, cut=0.5)
    tallies = stage.select(batch, HERE, {}).tallies
    assert sum(tallies.values()) == 4 and tallies["punsafe at 0.95"] == 1
    (plot,) = stage.sections({}, tallies)
    assert isinstance(plot, Plot) and "punsafe: 4" in plot.alt
    assert len(plot.figure.axes[0].lines) == 1  # the cut
    assert stage.sections({}, {}) == []


def test_a_stage_travels_to_other_processes(directions):
    path, batch, _ = directions
    stage = Unsafe(path, cut=0.5)
    stage.select(batch, HERE, {})
    again = pickle.loads(pickle.dumps(stage))
    assert again.select(batch, HERE, {}).batch.equals(stage.select(batch, HERE, {}).batch)


def test_a_head_of_another_model_is_refused_with_both_names(directions, tmp_path):
    _, batch, _ = directions
    path = save_head(tmp_path, [1.0, 0.0], Base("mini", "mini", "a" * 32))
    with pytest.raises(DiptychError, match=r'of "mini" \(aaaaaaaaaaaa\), and these were made by "made up" \(ffffff'):
        Unsafe(path).select(batch, HERE, {})


def test_embeddings_that_do_not_say_their_model_need_it_said():
    batch = pa.record_batch({"key": ["a"], "embedding": pa.array([[1.0] * 256], pa.list_(pa.float32(), 256))})
    with pytest.raises(DiptychError, match="not known; name it"):
        Unsafe().select(batch, HERE, {})
    assert Unsafe(model="micro").select(batch, HERE, {}).batch.column("punsafe").null_count == 0


def test_prompts_do_where_there_is_no_head():
    """Zero-shot against a plain loop."""
    batch = Embed("micro", half=False).select(rows(drawn(12, 3)), HERE, {}).batch
    found = Watermark().select(batch, HERE, {}).batch.column("pwatermark").to_pylist()
    clip, task = micro(), Watermark.task
    words = [clip.encode_text([prompt])[0].double() for prompt in (*task.yes, *task.no)]
    for i in (0, 5, 11):
        x = np.array(batch.column("embedding")[i].as_py())
        weights = [np.exp(float(clip.logit_scale) * (x @ (w / w.norm()).numpy())) for w in words]
        assert found[i] == pytest.approx(sum(weights[: len(task.yes)]) / sum(weights), abs=1e-5)


# -- trained on labels -------------------------------------------------------------------------------------------------


def test_a_head_trained_on_labels_finds_watermarks_it_has_not_seen(tmp_path: Path):
    def looks(count: int, seed: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        scenes = drawn(count, seed)
        clean, marked = (rows(scenes, look=look) for look in (lambda image: image, watermarked))
        return Embed("micro").select(clean, HERE, {}).batch, Embed("micro").select(marked, HERE, {}).batch

    pictures = [vectors_of(batch) for batch in looks(150, 1)]
    source = MadeUp(torch.from_numpy(np.concatenate(pictures)))
    classifier = LinearProbe().fit(micro(), support_of(source, [0] * 150 + [1] * 150, ("clean", "watermark")))
    stage = Watermark(str(classifier.save(tmp_path / "winner.safetensors")), cut=0.8)
    held_out = looks(100, 2)  # other scenes
    clean, marked = (stage.select(batch, HERE, {}) for batch in held_out)
    by_head, by_prompts = (
        auroc(*(one.batch.column("pwatermark").to_numpy() for one in pair))
        for pair in ((marked, clean), [Watermark().select(batch, HERE, {}) for batch in reversed(held_out)])
    )
    assert by_head > 0.9 > by_prompts  # micro knows no such word: the labels are what does it
    assert (~marked.keep).mean() > 0.5 and (~clean.keep).mean() < 0.1
