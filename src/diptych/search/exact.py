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


class Room:
    """Unit vectors [N, D] float32, with place for more behind them. there: bool [N], which rows have one, the others
    being 0; None: all have."""

    def __init__(self, store: np.ndarray, count: int, there: np.ndarray | None = None) -> None:
        self.store, self.count, self.there = store, count, there

    @classmethod
    def empty(cls, dim: int, expected: int = 0) -> "Room":
        return cls(np.empty((room_for(expected), dim), np.float32), 0)

    @property
    def matrix(self) -> np.ndarray:
        return self.store[: self.count]

    def added(self, vectors: np.ndarray, there: np.ndarray | None = None) -> "Room":
        store, count = self.store, self.count + len(vectors)
        if count > len(store):
            store = np.empty((room_for(count), store.shape[1]), np.float32)
            store[: self.count] = self.matrix
        store[self.count : count] = vectors
        return Room(store, count, None if self.there is None or there is None else np.append(self.there, there))

    def kept(self, mask: np.ndarray) -> "Room":
        """The rows of a mask alone, in a store of their own."""
        kept = Room.empty(self.store.shape[1], int(mask.sum())).added(self.matrix[mask])
        return Room(kept.store, kept.count, None if self.there is None else self.there[mask])


class Exact:
    """pictures: the rows' vectors; captions: those of their texts, None until they are asked for (`Memory.captions`);
    rows: their other columns, an Arrow table in the same order."""

    def __init__(
        self, pictures: Room, rows: "pa.Table", alive: np.ndarray | None = None, captions: Room | None = None
    ) -> None:
        self.pictures, self.captions, self.count = pictures, captions, pictures.count
        self.rows, self.alive = rows, alive  # alive: bool [N]; None: all of them
        self.pieces = rows.to_batches()
        self.starts = np.cumsum([0, *(piece.num_rows for piece in self.pieces)])

    @classmethod
    def empty(cls, dim: int, rows: "pa.Table", expected: int = 0) -> "Exact":
        return cls(Room.empty(dim, expected), rows.slice(0, 0))

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

    def added(
        self, vectors: np.ndarray, rows: "pa.Table", captions: tuple[np.ndarray, np.ndarray] | None = None
    ) -> "Exact":
        """With more rows; captions: theirs, where these were asked for, [N, D] and bool [N], which are there. Only the
        newest may be added to: two that share the room would write to one place."""
        import pyarrow as pa

        table = pa.concat_tables([self.rows, rows.select(self.rows.column_names)])
        if table.num_columns and table.column(0).num_chunks > CHUNKS:
            table = table.combine_chunks()
        alive = None if self.alive is None else np.append(self.alive, np.ones(len(vectors), bool))
        said = None if self.captions is None or captions is None else self.captions.added(*captions)
        return Exact(self.pictures.added(vectors), table, alive, said)

    def without(self, ids: Collection[str]) -> "Exact":
        """The rows of these ids marked as gone; the place is given back once half are."""
        gone = self.positions(ids)
        if not len(gone):
            return self
        alive = np.ones(self.count, bool) if self.alive is None else self.alive.copy()
        alive[gone] = False
        if alive.sum() * 2 >= self.count:
            return Exact(self.pictures, self.rows, alive, self.captions)
        import pyarrow as pa

        said = None if self.captions is None else self.captions.kept(alive)
        return Exact(self.pictures.kept(alive), self.rows.filter(pa.array(alive)), None, said)

    def positions(self, ids: Collection[str]) -> np.ndarray:
        """Where the rows of these ids lie, in the order of the matrix; unknown ids are passed over."""
        import pyarrow as pa

        pc = compute()
        wanted = pa.array(list(ids), pa.string())
        found = pc.is_in(self.rows["id"], value_set=wanted)
        found = found.to_numpy(zero_copy_only=False).astype(bool)
        return np.flatnonzero(found if self.alive is None else found & self.alive)

    def top(
        self, query: np.ndarray, k: int, mask: np.ndarray | None = None, room: Room | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """query [D], mask bool [N] of the rows that may be found -> (positions [<= k], cosines), the best first. room:
        the vectors to compare with, those of the pictures unless given."""
        room = room or self.pictures
        mask = together(mask, self.alive, room.there)
        if mask is None:
            places, scores = None, room.matrix @ query
        elif (passed := np.flatnonzero(mask)).size * 8 < self.count:  # few: their rows alone
            places, scores = passed, room.matrix[passed] @ query
        else:
            places, scores = passed, (room.matrix @ query)[passed]
        best = first(scores, k)
        return best if places is None else places[best], scores[best]


def together(*masks: np.ndarray | None) -> np.ndarray | None:
    """The rows that pass all; None passes all."""
    some = [mask for mask in masks if mask is not None]
    return np.logical_and.reduce(some) if some else None


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
