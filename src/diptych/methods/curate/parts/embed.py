"""Embeddings of pictures and texts as columns, and which model made them."""

import numpy as np
import pyarrow as pa

from diptych.core.classifier import Base
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict


class Embed(Stage):
    """Adds `embedding` and `text_embedding` (fixed size lists, unit) and `similarity` (their cosine, float32)."""

    name = "embed"
    about = "embeds picture and text; removes pictures that cannot be read"
    needs = ("picture", "text")
    adds = ("embedding", "text_embedding", "similarity")

    def __init__(self, model: str = "mini", *, batch: int = 64, half: bool = True, device: str | None = None) -> None:
        """half: float16 columns. batch: pictures a pass."""
        self.model, self.batch, self.half, self.device = model, batch, half, device

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        raise NotImplementedError


def vectors_of(batch: pa.RecordBatch, column: str = "embedding") -> np.ndarray:
    """A column of vectors as float32 [N, D]; NaN where there is none."""
    raise NotImplementedError


def maker_of(schema: pa.Schema, column: str = "embedding") -> Base | None:
    """The model that a column of embeddings says it was made by."""
    raise NotImplementedError
