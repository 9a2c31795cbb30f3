"""Columns of embeddings in Arrow: fixed size lists that say which model made them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.core.classifier import Base
from diptych.core.clip import CLIP
from diptych.errors import DiptychError, nearest

MADE_BY = b"diptych.model"  # in the column's own metadata, which Parquet keeps


@cache
def model_of(name: str, device: str | None = None) -> CLIP:
    """A model by name, opened once a process."""
    from diptych.core.load import load

    return load(name, device)


def with_column(batch: pa.RecordBatch, column: str | pa.Field, values: pa.Array) -> pa.RecordBatch:
    """The batch with a column added, or put in the place of one of that name."""
    field: Any = pa.field(column, values.type) if isinstance(column, str) else column
    index = batch.schema.get_field_index(field.name)
    if index < 0:
        return batch.append_column(field, values)
    return batch.set_column(index, field, values)


def vector_column(
    name: str, vectors: np.ndarray, valid: np.ndarray, maker: Base, half: bool = False
) -> tuple[pa.Field, pa.Array]:
    """vectors [N, D], of which those not `valid` (bool [N]) are null."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float16 if half else np.float32).reshape(-1))
    array = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array(~valid))
    return pa.field(name, array.type, metadata={MADE_BY: json.dumps(asdict(maker)).encode()}), array


def vectors_of(batch: pa.RecordBatch, column: str = "embedding") -> np.ndarray:
    """A column of lists as unit vectors, float32 [N, D]; NaN where there is none. Raises DiptychError for others."""
    index = batch.schema.get_field_index(column)
    if index < 0:
        raise DiptychError(f'there is no column "{column}"{nearest(column, batch.schema.names)}')
    array: Any = batch.column(index)
    kinds = pa.types
    listed = kinds.is_fixed_size_list(array.type) or kinds.is_list(array.type) or kinds.is_large_list(array.type)
    if not listed or not kinds.is_floating(array.type.value_type):
        raise DiptychError(f'"{column}" holds {array.type}; lists of numbers, all of one length, are expected')
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    flat = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    width = array.type.list_size if kinds.is_fixed_size_list(array.type) else len(flat) // max(int(valid.sum()), 1)
    if len(flat) != width * valid.sum():
        raise DiptychError(f'the lists of "{column}" are not all of one length')
    out = np.full((len(array), width), np.nan, np.float32)
    rows = flat.reshape(-1, width) if width else flat.reshape(int(valid.sum()), 0)
    out[valid] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return out


def maker_of(schema: pa.Schema, column: str = "embedding", model: str = "") -> Base:
    """The model that a column of embeddings was made by: what the column says, else `model`, the word of the user.

    Raises DiptychError where neither is known, and where they disagree.
    """
    about = (schema.field(column).metadata or {}).get(MADE_BY)
    if about is None:
        if not model:
            raise DiptychError(f'which model made "{column}" is not known; name it, such as model=ViT-L-14:openai')
        return Base(model, model, "")
    try:
        maker = Base(**json.loads(about))
    except (ValueError, TypeError) as error:
        raise DiptychError(f'what "{column}" says of its model cannot be read: {about[:80]!r}') from error
    if model and model not in (maker.name, maker.source):
        raise DiptychError(f'"{column}" was made by "{maker.name}", not by "{model}"')
    return maker


def opened(maker: Base) -> CLIP:
    """The model that made a column. Raises DiptychError where it has changed since."""
    clip = model_of(maker.source)
    if maker.fingerprint and clip.fingerprint != maker.fingerprint:
        raise DiptychError(
            f'the embeddings were made by "{maker.name}" ({maker.fingerprint[:12]}), but "{maker.source}" is now '
            f"another model ({clip.fingerprint[:12]}); embed again"
        )
    return clip


def text_vectors(maker: Base, texts: Sequence[str]) -> np.ndarray:
    """Unit embeddings [len(texts), D] of texts by the model that made a column."""
    rows = opened(maker).encode_text(texts).float().cpu().numpy()
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
