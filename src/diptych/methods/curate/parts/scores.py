"""Scores of pictures by heads on their embeddings, and cuts on them."""

from typing import ClassVar

import pyarrow as pa

from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict


class Score(Stage):
    """Adds a column by a head over `embedding` and removes rows beyond a cut. See the four below.

    head: a published head (`nsfw_vit_b_32.npz`, `sa_0_4_vit_l_14_linear.pth`, `violence_detection_vit_b_32.npy`); a
    classifier of `diptych compare` (`winner.safetensors`, or `winner.safetensors:unsafe` to name the class); or
    "prompts", the built-in zero-shot prompts. cut: rows at the wrong side of it are removed; None removes none.
    model: of the embeddings, where the column does not say.
    """

    column: ClassVar[str]
    cut_at: ClassVar[float | None]

    def __init__(self, head: str, cut: float | None = None, model: str = "") -> None:
        self.head, self.cut, self.model = head, cut, model

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        raise NotImplementedError


class Unsafe(Score):
    """`punsafe`; above the cut (0.5) is removed."""


class Watermark(Score):
    """`pwatermark`; above the cut (0.8) is removed."""


class Toxic(Score):
    """`toxicity`; above the cut (0.5) is removed."""


class Aesthetic(Score):
    """`aesthetic`, 0 to 10; below the cut is removed. No cut by default."""
