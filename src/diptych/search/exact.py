"""Exact search in memory: one matrix product a query, which below some millions of rows no index beats at full recall.

Rows are added at the end of spare room and removed by a mark, so that neither copies the matrix. Each change gives a
new `Exact` that shares it; one that is in use stays as it is, so searches need no lock.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import DiptychError
from diptych.search.columns import compute

if TYPE_CHECKING:
    import pyarrow as pa

SPARE = 0.25  # of the rows there are, room for more; memory that is not written to costs nothing
CHUNKS = 64  # pieces of the table of rows, beyond which they are joined


class Exact:
    """vectors [N, D] float32, unit rows; rows: their other columns, an Arrow table in the same order."""

    def __init__(self, room: np.ndarray, count: int, rows: "pa.Table", alive: np.ndarray | None = None) -> None:
        self.room, self.count, self.rows, self.alive = room, count, rows, alive  # alive: bool [N]; None: all of them
        self.pieces = rows.to_batches()
        self.starts = np.cumsum([0, *(piece.num_rows for piece in self.pieces)])

    @classmethod
    def empty(cls, dim: int, rows: "pa.Table", expected: int = 0) -> "Exact":
        return cls(np.empty((room_for(expected), dim), np.float32), 0, rows.slice(0, 0))

    @property
    def matrix(self) -> np.ndarray:
        return self.room[: self.count]

    def cells(self, places: np.ndarray) -> list[dict[str, Any]]:
        """The rows at these positions. (`Table.take` joins all pieces of a table first.)"""
        import pyarrow as pa

        found: dict[int, dict[str, Any]] = {}
        where = np.searchsorted(self.starts, places, side="right") - 1
        for piece in np.unique(where).tolist():
            some = places[where == piece]
            taken = self.pieces[piece].take(pa.array(some - self.starts[piece])).to_pylist()
            found |= dict(zip(some.tolist(), taken, strict=True))
        return [found[place] for place in places.tolist()]

    def __len__(self) -> int:
        return self.count if self.alive is None else int(self.alive.sum())

    @property
    def living(self) -> "pa.Table":
        """`rows` without those that are gone."""
        import pyarrow as pa

        return self.rows if self.alive is None else self.rows.filter(pa.array(self.alive))

    def added(self, vectors: np.ndarray, rows: "pa.Table") -> "Exact":
        """With more rows. Only the newest may be added to: two that share the room would write to one place."""
        import pyarrow as pa

        room, count = self.room, self.count + len(vectors)
        if count > len(room):
            room = np.empty((room_for(count), room.shape[1]), np.float32)
            room[: self.count] = self.matrix
        room[self.count : count] = vectors
        table = pa.concat_tables([self.rows, rows.select(self.rows.column_names)])
        if table.num_columns and table.column(0).num_chunks > CHUNKS:
            table = table.combine_chunks()
        alive = None if self.alive is None else np.append(self.alive, np.ones(len(vectors), bool))
        return Exact(room, count, table, alive)

    def without(self, ids: Collection[str]) -> "Exact":
        """The rows of these ids marked as gone; the place is given back once half are."""
        gone = self.positions(ids)
        if not len(gone):
            return self
        alive = np.ones(self.count, bool) if self.alive is None else self.alive.copy()
        alive[gone] = False
        if alive.sum() * 2 >= self.count:
            return Exact(self.room, self.count, self.rows, alive)
        import pyarrow as pa

        kept = self.matrix[alive]
        room = np.empty((room_for(len(kept)), self.room.shape[1]), np.float32)
        room[: len(kept)] = kept
        return Exact(room, len(kept), self.rows.filter(pa.array(alive)))

    def positions(self, ids: Collection[str]) -> np.ndarray:
        """Where the rows of these ids lie, in the order of the matrix; unknown ids are passed over."""
        import pyarrow as pa

        pc = compute()
        wanted = pa.array(list(ids), pa.string())
        found = pc.is_in(self.rows["id"], value_set=wanted)
        found = found.to_numpy(zero_copy_only=False).astype(bool)
        return np.flatnonzero(found if self.alive is None else found & self.alive)

    def top(self, query: np.ndarray, k: int, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """query [D], mask bool [N] of the rows that may be found -> (positions [<= k], cosines), the best first."""
        if self.alive is not None:
            mask = self.alive if mask is None else mask & self.alive
        if mask is None:
            places, scores = None, self.matrix @ query
        elif (passed := np.flatnonzero(mask)).size * 8 < self.count:  # few: their rows alone
            places, scores = passed, self.matrix[passed] @ query
        else:
            places, scores = passed, (self.matrix @ query)[passed]
        best = first(scores, k)
        return best if places is None else places[best], scores[best]


def first(scores: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k largest, the largest first; of equal ones the earlier."""
    k = min(k, len(scores))
    if k == 0:
        return np.empty(0, np.int64)
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        some = np.concatenate([above, equal[: k - len(above)]])
    else:
        some = np.arange(len(scores))
    return some[np.lexsort((some, -scores[some]))]


def vectors_of(batch: Any) -> np.ndarray:
    """[N, D] of an Arrow batch or table."""
    column = batch["vector"]
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def unit(query: np.ndarray, dim: int) -> np.ndarray:
    query = np.asarray(query, np.float32)
    length = float(np.linalg.norm(query))
    if query.shape != (dim,) or not np.isfinite(length) or length == 0:
        raise DiptychError(f"a query is one vector of {dim} numbers, not all 0; not {query.shape}")
    return query / np.float32(length)


def room_for(rows: int) -> int:
    return rows + max(1024, int(rows * SPARE))


def fused(*rankings: list[str], constant: int = 60) -> dict[str, float]:
    """Reciprocal rank fusion: id -> the sum over rankings of 1 / (constant + rank), the best first.

    Cormack, Clarke and Büttcher, Reciprocal Rank Fusion outperforms Condorcet, SIGIR 2009; rank counts from 1.
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, identifier in enumerate(ranking, 1):
            scores[identifier] = scores.get(identifier, 0.0) + 1 / (constant + rank)
    return dict(sorted(scores.items(), key=lambda one: -one[1]))
