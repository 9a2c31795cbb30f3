"""The entries that texts name, as a column of rows, whether a row has one text or several."""

import numpy as np
import pyarrow as pa

ENTRIES = "entries"  # the column of numbers of named entries: a list a row; of several texts, a list a text


def texts_of(batch: pa.RecordBatch, column: str) -> tuple[pa.Array, np.ndarray]:
    """(all texts of the rows, the row of each)."""
    texts = batch.column(column)
    if column == "text":
        return texts.cast(pa.string()), np.arange(batch.num_rows)
    lengths = texts.value_lengths().fill_null(0).to_numpy()
    return texts.flatten().cast(pa.string()), np.repeat(np.arange(batch.num_rows), lengths)


def with_texts(
    batch: pa.RecordBatch, column: str, texts: pa.Array, rows: np.ndarray, named: np.ndarray, entries: np.ndarray
) -> pa.RecordBatch:
    """Rows with their entries. named: how many each text has; of several texts those with none are left out."""
    lists = pa.ListArray.from_arrays(offsets(named), pa.array(entries, pa.uint32()))
    if column == "text":
        return set_column(batch, ENTRIES, lists)
    left = named > 0
    starts = offsets(np.bincount(rows[left], minlength=batch.num_rows))
    batch = set_column(batch, column, pa.ListArray.from_arrays(starts, texts.filter(pa.array(left))))
    return set_column(batch, ENTRIES, pa.ListArray.from_arrays(starts, lists.filter(pa.array(left))))


def offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def set_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    return batch.append_column(name, values) if at < 0 else batch.set_column(at, name, values)


def matches_of(batch: pa.RecordBatch, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(entry of each match [M], its text [M], the row of each text [T])."""
    lists = batch.column(ENTRIES)
    rows = np.arange(batch.num_rows)
    if column == "texts":
        rows = np.repeat(rows, lists.value_lengths().to_numpy())
        lists = lists.flatten()
    texts = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())
    return lists.flatten().to_numpy().astype(np.int64), texts, rows


def texts_within(rows: np.ndarray) -> np.ndarray:
    """The number of each text in its row; rows: sorted."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)
