"""Judging a segmenter: fakes whose figures are known, pictures one by one or at once, and the report of it."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.segments import SegmentRecord, SegmentRecords, Segments, scene_segments
from diptych.errors import DiptychError
from diptych.methods.dense.parts.evaluate import evaluate, paint, true_segments
from diptych.methods.dense.parts.segmenter import Segmentation, Segmenter
from diptych.report import write_html
from diptych.report.sections import Gallery, Table


class Knows(Segmenter):
    """Says the truth of each picture in turn, with each label changed by `change`."""

    trains = ()

    def __init__(self, records: SegmentRecords, change: dict[int, int] | None = None) -> None:
        self.truths, self.change = [record.segments() for record in records], change or {}

    def segment(self, image: Image.Image, names: Sequence[str], things: Sequence[str] | None = None) -> Segmentation:
        truth = self.truths.pop(0)
        labels = torch.tensor([self.change.get(label, label) for label in truth.labels])
        scores = torch.nn.functional.one_hot(labels, len(names)).double() * 0.9
        counted = tuple(things is None or name in things for name in names)
        return Segmentation(torch.from_numpy(truth.masks).double(), scores, tuple(names), counted)


def test_who_knows_everything_has_all_of_it() -> None:
    records = scene_segments(Scenes(SceneSpec(counts=(1, 2, 3), copies=(1, 2)), 12, seed=1), by="shape")
    found = evaluate(Knows(records), records, shown=3)
    figures = found.figures()
    assert all(value == pytest.approx(1.0) for value in figures.values()), figures
    assert found.pictures == 12 and len(found.gallery) == 3 and found.gallery[0].truth == found.gallery[0].guess


def test_who_takes_one_class_for_another() -> None:
    spec = SceneSpec(shapes=("circle", "star"), backgrounds=("snow",), counts=(2,))
    records = scene_segments(Scenes(spec, 30, seed=2), by="shape")
    found = evaluate(Knows(records, {0: 1}), records)  # circles are stars to it
    wrong, right = (sum(int((record.segments().semantic() == label).sum()) for record in records) for label in (0, 1))
    assert found.semantic.iou.tolist() == [0.0, pytest.approx(right / (right + wrong)), 1.0]
    stars = int(found.panoptic.matched[1])
    circles = int(found.panoptic.missed[0])
    assert found.panoptic.pq.tolist() == [0.0, pytest.approx(stars / (stars + circles / 2)), 1.0]
    figures = found.figures()
    assert figures["PQ stuff"] == 1.0 and figures["PQ things"] == pytest.approx(found.panoptic.pq[:2].mean().item())
    assert found.precision.precision[:, 0].tolist() == [0.0] * 10 and 0.2 < figures["AP"] < 0.6


def test_parts_add_up_and_unlike_ones_do_not() -> None:
    records = scene_segments(Scenes(SceneSpec(), 6, seed=3), by="shape")
    change = {0: 1, 3: 0}
    whole = evaluate(Knows(records, change), records)
    first, second = (evaluate(Knows(part, change), part) for part in (records[:2], records[2:]))
    first.merge(second)
    assert first.figures() == pytest.approx(whole.figures(), nan_ok=True) and first.pictures == 6
    other = scene_segments(Scenes(SceneSpec(shapes=("star",)), 1), by="shape")
    with pytest.raises(DiptychError, match="unlike classes"):
        first.merge(evaluate(Knows(other), other))


def test_crowds_and_what_is_ignored() -> None:
    masks = np.zeros((1, 4, 6), bool)
    masks[0, :2, :2] = True
    crowd = np.zeros((1, 4, 6), bool)
    crowd[0, :, 4:] = True
    ignored = crowd[0] | (np.arange(4)[:, None] == 3)
    truth = Segments(masks, (0,), ignored, crowd, (0,))
    ids, labels, crowds = true_segments(truth)
    assert ids.tolist() == [[1, 1, 0, 0, 2, 2]] * 2 + [[0, 0, 0, 0, 2, 2]] * 2 and (labels, crowds) == ([0, 0], [1])

    def guess(*where: tuple[slice, slice]) -> Segmenter:
        said = np.zeros((len(where), 4, 6), bool)
        for mask, place in zip(said, where, strict=True):
            mask[place] = True
        made = Segments(said, (0,) * len(said), np.zeros((4, 6), bool))
        return Knows(SegmentRecords((SegmentRecord("a", lambda: image, lambda: made),), names, things))

    image, names, things = Image.new("RGB", (6, 4)), ("cow",), (True,)
    records = SegmentRecords((SegmentRecord("a", lambda: image, lambda: truth),), names, things)
    cow = (slice(0, 2), slice(0, 2))
    clean = evaluate(guess(cow), records).figures()
    herd = evaluate(guess(cow, (slice(0, 4), slice(4, 6))), records).figures()
    for figures in (clean, herd):
        assert (figures["PQ"], figures["AP"]) == pytest.approx((1.0, 1.0)), "a guess in a crowd is no mistake"
    assert clean["mIoU"] == herd["mIoU"] == 1.0 and math.isnan(clean["PQ stuff"])


def test_the_report(tmp_path) -> None:
    records = scene_segments(Scenes(SceneSpec(shapes=("circle", "star"), backgrounds=("snow",)), 4), by="shape")
    report = evaluate(Knows(records), records, shown=2).report("Fake", {"seed": 0})
    table, gallery = (next(s for s in report.sections if isinstance(s, kind)) for kind in (Table, Gallery))
    assert [row[0] for row in table.rows] == ["circle", "star", "snow"] and len(gallery.items) == 2
    assert report.provenance["figures"]["mIoU"] == 1.0
    write_html(report, tmp_path / "report.html")
    assert "circle" in (tmp_path / "report.html").read_text()


def test_paint_leaves_what_has_no_class() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    painted = np.asarray(paint(image, np.array([[-1, 4]])))
    assert painted[0, 0].tolist() == [10, 20, 30] and painted[0, 1].tolist() != [10, 20, 30]
    assert np.array_equal(np.asarray(paint(image, np.array([[-1, -1]]))), np.asarray(image))
