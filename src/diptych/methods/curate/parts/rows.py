"""Rows of captions and pictures: their texts, columns set, and a stage for what is marked as unsafe or tiny."""

from typing import Any

import numpy as np
import pyarrow as pa

from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict

UNSAFE, TINY = "marked as unsafe", "too small a picture"


def captions(batch: pa.RecordBatch) -> list[list[str]]:
    """The texts of each row."""
    if "text" in batch.schema.names:
        return [[text or ""] for text in batch.column("text").to_pylist()]
    return [[text or "" for text in texts or ()] for texts in batch.column("texts").to_pylist()]


def with_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {name: values}
    return pa.RecordBatch.from_pydict(columns)


class Sound(Stage):
    """What is marked as unsafe or tiny, where columns say so."""

    name, about = "sound", "pictures that are marked as unsafe, or tiny"

    def __init__(self, columns: tuple[str, ...], least: int) -> None:
        self.needs, self.least = columns, least

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        def column(name: str) -> list[Any]:
            return batch.column(name).to_pylist() if name in self.needs else [None] * batch.num_rows

        why = []
        for unsafe, tag, *sides in zip(*map(column, ("punsafe", "nsfw", "width", "height")), strict=True):
            known = [side for side in sides if side is not None]
            marked = (unsafe or 0) > 0.5 or str(tag).upper() in ("NSFW", "UNSAFE")
            why.append(UNSAFE if marked else TINY if known and max(known) <= self.least else "")
        return Verdict(batch, np.array([not one for one in why], bool), why)
