"""Scores of pictures by heads on their embeddings, and cuts on them (LAION-5B, arXiv 2210.08402, section 3.3)."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar

import numpy as np
import pyarrow as pa

from diptych.core.classifier import Base
from diptych.methods.curate.parts import heads, histograms
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.vectors import maker_of, vectors_of, with_column
from diptych.report.sections import Section


@cache
def open_head(head: str, task: heads.Task, maker: Base) -> heads.Head:
    """Once a process."""
    return heads.open_head(head, task, maker)


class Score(Stage):
    """Adds a column by a head over `embedding`, and removes the rows beyond a cut. Its kinds are below.

    head: "prompts", a file that LAION published, or a classifier of `diptych compare`, `winner.safetensors` or
    `winner.safetensors:class` (see `heads`). cut: None removes nothing. model: of the embeddings, where their column
    does not say.
    """

    task: ClassVar[heads.Task]
    reason: ClassVar[str]
    published: ClassVar[float | None] = None  # cut
    least: ClassVar[bool] = False  # whether what lies below the cut is removed, not what lies above
    step: ClassVar[float] = 0.05  # of the histogram
    needs = ("embedding",)

    def __init__(self, head: str = "prompts", cut: float | None = None, model: str = "") -> None:
        self.head, self.cut, self.model = head, cut, model
        self.adds = (self.task.column,)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        head = open_head(self.head, self.task, maker_of(batch.schema, model=self.model))
        values = heads.scores_of(head, vectors_of(batch)).astype(np.float32)
        missing = np.isnan(values)
        batch = with_column(batch, self.task.column, pa.array(values, pa.float32(), mask=missing))
        beyond = np.zeros(len(values), bool)
        if self.cut is not None:
            beyond = (values < np.float32(self.cut)) if self.least else (values > np.float32(self.cut))
        why = [
            "no embedding" if lost else self.reason if bad else "" for lost, bad in zip(missing, beyond, strict=True)
        ]
        return Verdict(batch, ~(missing | beyond), why, histograms.tallied(self.task.column, values, self.step))

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        marks = {} if self.cut is None else {self.task.column: self.cut}
        plot = histograms.plot(tallies, self.step, self.task.column, marks)
        return [plot] if plot else []


class Unsafe(Score):
    """`punsafe`, a probability. LAION removes what lies above 0.5."""

    name, about = "unsafe", "unsafe pictures"
    task, reason, published = heads.UNSAFE, "unsafe", 0.5


class Watermark(Score):
    """`pwatermark`, a probability. LAION removes what lies above 0.8."""

    name, about = "watermark", "pictures with a watermark"
    task, reason, published = heads.WATERMARK, "watermark", 0.8


class Toxic(Score):
    """`toxicity`, a probability; above 0.5 the picture is nearer to inappropriate than to not."""

    name, about = "toxicity", "inappropriate pictures"
    task, reason, published = heads.TOXIC, "inappropriate", 0.5


class Aesthetic(Score):
    """`aesthetic`; by LAION's heads about 0 to 10, by a head of yours or by prompts a probability."""

    name, about = "aesthetic", "pictures below an aesthetic score"
    task, reason, least = heads.AESTHETIC, "aesthetic score too low", True
    step = 0.25
