"""What a segmenter is worth on pictures with segments: mIoU, panoptic quality, average precision, and how it looks."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diptych.data.pictures import thumbnail_jpeg
from diptych.data.segments import SegmentRecords, Segments
from diptych.errors import DiptychError
from diptych.methods.dense.parts.segmenter import Segmentation, Segmenter
from diptych.metrics.segmentation import MaskPrecision, PanopticScores, SemanticScores, mean_of
from diptych.report import Cell, Column, Facts, Gallery, Picture, Report, Section, Table

Progress = Callable[[int, int], None]
SIDE = 240  # pixels of one view in the gallery
SHARE = 0.6  # of the class's colour over the picture


@dataclass
class Evaluation:
    """Sums over pictures; `merge` adds what was counted on others. names: K classes; things [K]: which are counted."""

    names: tuple[str, ...]
    things: tuple[bool, ...]
    gallery: list[Picture] = field(default_factory=list)
    pictures: int = 0

    def __post_init__(self) -> None:
        count = len(self.names)
        self.semantic, self.panoptic, self.precision = (
            SemanticScores(count),
            PanopticScores(count),
            MaskPrecision(count),
        )

    def add(self, guess: Segmentation, truth: Segments) -> None:
        """One picture: guess and truth of the same size, of the same names."""
        ids, segments = guess.panoptic()
        self.semantic.add(guess.semantic().cpu(), torch.from_numpy(truth.semantic()))
        self.panoptic.add(ids.cpu(), [segment.label for segment in segments], *true_segments(truth))
        counted = [i for i, label in enumerate(truth.labels) if self.things[label]]
        masks, labels, scores = (part.cpu() for part in guess.instances())
        said = scores > 0  # pairs of mask and class that have no chance fill up the list
        self.precision.add(
            masks[said], labels[said], scores[said],
            torch.from_numpy(truth.masks[counted]), [truth.labels[i] for i in counted],
            torch.from_numpy(truth.crowds), truth.crowd_labels,
        )  # fmt: skip
        self.pictures += 1

    def merge(self, other: "Evaluation") -> None:
        if (self.names, self.things) != (other.names, other.things):
            raise DiptychError("figures of unlike classes cannot be added up")
        for name in ("semantic", "panoptic", "precision"):
            getattr(self, name).merge(getattr(other, name))
        self.gallery += other.gallery
        self.pictures += other.pictures

    def figures(self) -> dict[str, float]:
        """Means over the classes that occur, 0 to 1; NaN where none does. AP is of things alone."""
        thing = torch.tensor(self.things)
        pq = self.panoptic.pq
        return {
            "mIoU": self.semantic.miou,
            "accuracy": self.semantic.accuracy,
            "PQ": mean_of(pq),
            "SQ": mean_of(self.panoptic.sq),
            "RQ": mean_of(self.panoptic.rq),
            "PQ things": mean_of(pq[thing]),
            "PQ stuff": mean_of(pq[~thing]),
            "AP": self.precision.ap,
            "AP50": self.precision.ap50,
        }

    def report(self, title: str, provenance: dict[str, Any] | None = None) -> Report:
        """The figures, a table of classes, and pictures beside truth and guess."""
        whole = {name: value for name, value in self.figures().items() if value == value}
        facts = [(name, percent(value), "") for name, value in whole.items() if name in ("mIoU", "PQ", "AP")]
        columns = [Column("class", number=False), Column("kind", number=False, drop=1), Column("IoU")]
        columns += [Column("PQ"), Column("SQ", drop=2), Column("RQ", drop=2), Column("AP")]
        scores = self.panoptic
        values = torch.stack([self.semantic.iou, scores.pq, scores.sq, scores.rq, self.precision.precision.mean(0)])
        rows = [
            [name, "thing" if thing else "stuff", *(cell(value) for value in values[:, k].tolist())]
            for k, (name, thing) in enumerate(zip(self.names, self.things, strict=True))
        ]
        seen = [row for row, iou, pq in zip(rows, *values[:2].tolist(), strict=True) if iou == iou or pq == pq]
        left = len(rows) - len(seen)
        note = f"{left} classes that occur neither in the pictures nor in the guesses are left out." if left else ""
        sections: list[Section] = [Facts(facts), Table(columns, seen, title="Classes", note=note)]
        if self.gallery:
            sections.append(Gallery(self.gallery, title="Pictures", note="The picture, the truth, the guess."))
        about = {"figures": whole} | (provenance or {})
        return Report(title, sections, about, f"{self.pictures} pictures, {len(self.names)} classes")


def evaluate(
    segmenter: Segmenter, records: SegmentRecords, *, shown: int = 8, progress: Progress | None = None
) -> Evaluation:
    """Segment every picture by the records' names and judge it. shown: pictures kept for the gallery."""
    found = Evaluation(tuple(name.partition("|")[0] for name in records.names), records.things)
    counted = [name for name, thing in zip(records.names, records.things, strict=True) if thing]
    for number, record in enumerate(records):
        image, truth = record.picture(), record.segments()
        guess = segmenter.segment(image, records.names, counted)
        found.add(guess, truth)
        if number < shown:
            found.gallery.append(beside(record.id, image, truth, guess, found.names))
        if progress is not None:
            progress(number + 1, len(records))
    return found


def true_segments(truth: Segments) -> tuple[Tensor, list[int], list[int]]:
    """Segment numbers from 1 on [H, W], crowds behind the others, their classes, and which are crowds."""
    ids, count = truth.owners() + 1, len(truth.labels)
    for number, crowd in enumerate(truth.crowds, count + 1):
        ids[crowd & (ids == 0)] = number
    labels = [*truth.labels, *truth.crowd_labels]
    return torch.from_numpy(ids), labels, list(range(count, len(labels)))


# -- to look at --------------------------------------------------------------------------------------------------------


def paint(image: Image.Image, labels: NDArray[np.int64]) -> Image.Image:
    """The picture under the colours of its classes; labels [H, W], -1 for none."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    inks = np.array([colour(k) for k in range(int(labels.max(initial=-1)) + 1)] + [(0, 0, 0)], np.float32)
    share = np.where(labels >= 0, SHARE, 0.0)[..., None].astype(np.float32)
    return Image.fromarray((pixels * (1 - share) + inks[labels] * share).round().astype(np.uint8))


@cache
def colour(number: int) -> tuple[float, float, float]:
    """A colour of its own for each class: hues by the golden ratio, in three depths."""
    r, g, b = colorsys.hsv_to_rgb(
        number * 0.618034 % 1, (0.9, 0.55, 0.75)[number % 3], (0.95, 0.9, 0.6)[number // 3 % 3]
    )
    return 255 * r, 255 * g, 255 * b


def beside(id: str, image: Image.Image, truth: Segments, guess: Segmentation, names: tuple[str, ...]) -> Picture:
    """Picture, truth and guess in one strip, with the names in it."""
    right, said = truth.semantic(), guess.semantic().cpu().numpy()
    views = [image, paint(image, right), paint(image, said)]
    for view in views:
        view.thumbnail((SIDE, SIDE))
    width, height = views[0].size
    strip = Image.new("RGB", (3 * width, height))
    for i, view in enumerate(views):
        strip.paste(view, (i * width, 0))
    true, told = (", ".join(names[k] for k in np.unique(labels[labels >= 0])) for labels in (right, said))
    return Picture(thumbnail_jpeg(strip, 3 * SIDE), id, true, told)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def cell(value: float) -> Cell:
    return Cell("", None) if value != value else Cell(percent(value), value)
