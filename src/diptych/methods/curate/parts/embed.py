"""Embeddings of pictures and texts as columns (LAION-5B, arXiv 2210.08402, section 3: CLIP scores and embeddings)."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diptych.core.classifier import Base
from diptych.core.clip import CLIP
from diptych.data.pictures import BadPicture, decode
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.vectors import model_of, vector_column, with_column

READERS = 2  # threads that decode ahead of the network


class Embed(Stage):
    """Adds `embedding` and `text_embedding` (fixed size lists, unit vectors) and `similarity` (their cosine).

    Each column says in its metadata which model made it. Equal texts of a batch are encoded once. A picture that cannot
    be read takes its row with it, so that rows and embeddings never get out of step.
    """

    name = "embed"
    about = "pictures that cannot be read"
    needs = ("picture", "text")
    adds = ("embedding", "text_embedding", "similarity")

    def __init__(self, model: str = "mini", *, batch: int = 32, half: bool = True, device: str | None = None) -> None:
        """batch: pictures a pass. half: float16 columns, half as large; similarities are of the whole numbers."""
        self.model, self.batch, self.half, self.device = model, batch, half, device

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        clip = model_of(self.model, self.device)
        texts = [(text or "").strip() for text in batch.column("text").to_pylist()]
        why = ["" if text else "no text" for text in texts]
        images = np.zeros((len(texts), clip.embed_dim), np.float32)
        for start, pixels in decoded(batch.column("picture"), clip, self.batch, why):
            good = {start + i: one for i, one in enumerate(pixels) if isinstance(one, Tensor)}
            for i, one in enumerate(pixels):
                if isinstance(one, str):
                    why[start + i] = one
            if good:
                with torch.inference_mode():
                    found = clip.encode_image(torch.stack([*good.values()])).float().cpu().numpy()
                images[[*good]] = found
        keep = np.array([not reason for reason in why], dtype=bool)
        words = np.zeros_like(images)
        if keep.any():
            words[keep] = clip.encode_text([t for t, kept in zip(texts, keep, strict=True) if kept]).float().cpu()
        images, words = unit(images), unit(words)
        maker = Base.of(clip)
        for name, vectors in (("embedding", images), ("text_embedding", words)):
            batch = with_column(batch, *vector_column(name, vectors, keep, maker, self.half))
        cosine = (images * words).sum(1)
        batch = with_column(batch, "similarity", pa.array(cosine, pa.float32(), mask=~keep))
        return Verdict(batch, keep, why)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [N, D] at length one; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def decoded(
    pictures: Any, clip: CLIP, size: int, why: Sequence[str]
) -> Iterator[tuple[int, "list[Tensor | str | None]"]]:
    """(first row, pixels of each or the reason why there are none) of `size` rows at a time, decoded ahead.

    Rows that `why` has a reason for already are None.
    """

    def read(data: bytes | None) -> "Tensor | str":
        try:
            return clip.preprocess(decode(data or b"")[0])
        except BadPicture as error:
            return reason_of(str(error))

    def submit(start: int) -> list[Any]:
        rows = pictures.slice(start, size).to_pylist()
        return [None if why[start + i] else pool.submit(read, data) for i, data in enumerate(rows)]

    with ThreadPoolExecutor(READERS) as pool:
        ahead = submit(0)
        for start in range(0, len(pictures), size):
            now, ahead = ahead, submit(start + size)
            yield start, [None if one is None else one.result() for one in now]


def reason_of(message: str) -> str:
    """One of few reasons, from the message of a picture: without what is particular to it."""
    plain = message.partition(" (")[0]
    return re.sub(r"^\d+ x \d+ pixels, ", "", plain)
