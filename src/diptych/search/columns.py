"""The columns of an index: the standard ones, the user's own, and which cells fit them."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import DiptychError

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "pictures"  # of the database
TEXT, WHOLE, REAL, YES_NO = "string", "int64", "double", "bool"
STANDARD = {
    "id": TEXT,  # unique: the path below the folder, the key in a shard, the row of a table
    "path": TEXT,  # where the picture is; see `diptych.search.sources.picture_at`
    "source": TEXT,  # the folder, shards or table it was indexed from
    "width": WHOLE,
    "height": WHOLE,
    "text": TEXT,
    "label": TEXT,  # the class folder
    "language": TEXT,
    "punsafe": REAL,
    "pwatermark": REAL,
    "aesthetic": REAL,
    "similarity": REAL,
    "added": TEXT,  # when it was written last, UTC: 2026-03-01T12:00:00.000000
    "size": WHOLE,  # of the file, bytes
    "mtime": WHOLE,  # of the file, nanoseconds
    "digest": TEXT,  # SHA-256 of the picture's bytes
}
VECTORS = {
    "pictures": "vector",
    "captions": "text_vector",
}  # what a query is compared with -> the column of its vectors
KINDS = {TEXT: "text", WHOLE: "number", REAL: "number", YES_NO: "yes/no"}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
MOST = 200  # columns


def compute() -> Any:
    """`pyarrow.compute`, whose functions a type checker does not see."""
    import pyarrow.compute

    return pyarrow.compute


def arrow_type(kind: str) -> "pa.DataType":
    import pyarrow as pa

    return {TEXT: pa.string(), WHOLE: pa.int64(), REAL: pa.float64(), YES_NO: pa.bool_()}[kind]


def kind_of_cell(cell: Any, name: str) -> str:
    """The kind of a new column that begins with this cell. Raises DiptychError for a name or a cell that none fits."""
    if not NAME.fullmatch(name) or name in VECTORS.values():
        raise DiptychError(f'"{name[:80]}" cannot name a column: letters, numbers and _, a letter first')
    for kind, type_ in ((YES_NO, bool), (WHOLE, int), (REAL, float), (TEXT, str)):
        if isinstance(cell, type_):
            return kind
    raise DiptychError(f'column "{name}": a cell is a text, a number or yes/no, not a {type(cell).__name__}')


def wider(known: str | None, cell: Any, name: str) -> str:
    """The kind that holds what was seen before and this cell too."""
    kind = kind_of_cell(cell, name)
    if known in (None, kind):
        return kind
    return REAL if {known, kind} == {WHOLE, REAL} else TEXT


def cell_of(cell: Any, kind: str) -> Any:
    """What is written of a cell. Raises ValueError or TypeError where it does not fit.

    NaN becomes an empty cell and -0.0 becomes 0.0: engines order these two differently.
    """
    if cell is None:
        return None
    if kind == TEXT:
        return cell if isinstance(cell, str) else str(cell)
    if kind == YES_NO:
        if not isinstance(cell, bool):
            raise TypeError(f"{cell!r} is neither yes nor no")
        return cell
    number = float(cell)
    if math.isnan(number):
        return None
    if kind == REAL:
        return number + 0.0
    if number != int(number):
        raise ValueError(f"{cell!r} is not a whole number")
    return int(cell)


def directed(vectors: np.ndarray, ids: Sequence[str], dim: int) -> np.ndarray:
    """[N, D] float32 of length 1. Raises DiptychError for another shape, and naming the row that has no direction."""
    vectors = np.asarray(vectors, np.float32)
    if vectors.shape != (len(ids), dim):
        raise DiptychError(f"{len(ids)} rows need vectors of {len(ids)} x {dim}, not of {vectors.shape}")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])
        raise DiptychError(f"the vector of {ids[bad]} has no direction")
    return vectors / norms


def vector_cells(vectors: np.ndarray) -> "pa.Array":
    """[N, D] float32 as the cells of a column."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
