"""What the explorer reads of an index: slices of rankings with their vectors, for many questions in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.search.exact import first, together
from diptych.search.filters import Filter
from diptych.search.index import Index

if TYPE_CHECKING:
    import pyarrow as pa

ROOM = 1 << 24  # similarities in memory at a time: 64 MB
DEEPEST, RANKINGS = 10_000, 64  # rows of a ranking, and rankings, kept


@dataclass(frozen=True)
class Slice:
    """Rows in the order of a ranking, without their vectors; vectors [N, D], unit, of the pictures; scores [N], the
    cosines with what was searched, or None."""

    rows: "pa.Table"
    vectors: NDArray[np.float32]
    scores: NDArray[np.float32] | None


class Reading:
    """An index as it is on disk at the last `refresh`. In memory where it fits, else through Lance."""

    def __init__(self, index: Index) -> None:
        self.index, self.version = index, -1
        self.rankings: dict[Any, list[Any]] = {}  # ids by words, (id, score) by Lance
        self.rows: pa.Table | None = None
        self.refresh()

    def refresh(self) -> int:
        """-> the version of what is read from now on."""
        self.exact = None if self.index.is_large else self.index.memory.refresh()
        version = self.index.table.version
        if version != self.version:
            self.version, self.rankings = version, {}
            # a table of many pieces takes ten times as long to pick rows from
            self.rows = None if self.exact is None else self.exact.rows.combine_chunks()
        return version

    def nearest(
        self, queries: NDArray[np.float32], where: Filter | None, start: int, stop: int, space: str = "pictures"
    ) -> list[Slice]:
        """For each query [Q, D], unit: the rows from place `start` to `stop` of its ranking by cosine with pictures or
        with captions. Raises DiptychError where the index holds no vectors of captions."""
        if self.exact is None:
            return [self.by_lance(query, where, start, stop, space) for query in queries]
        exact = self.exact
        room = exact.pictures if space == "pictures" else self.index.memory.captions(exact)
        places = self.passing(where, room.there)
        found = []
        step = max(1, ROOM // max(1, exact.count))
        used = 1 + int(np.flatnonzero(queries.any(0)).max(initial=0))  # `mini`'s texts end in hundreds of zeros
        for i in range(0, len(queries), step):
            few = places is not None and len(places) * 8 < exact.count
            matrix = room.matrix[places, :used] if few else room.matrix[:, :used]
            for scores in queries[i : i + step, :used] @ matrix.T:
                if places is not None and not few:
                    scores = scores[places]
                best = first(scores, stop)[start:]
                found.append(self.at(best if places is None else places[best], scores[best]))
        return found

    def containing(self, words: str, where: Filter | None, start: int, stop: int) -> Slice:
        """The rows whose caption has the words, by BM25. Of rows of one score other limits give another order, so that
        a ranking is asked for once, as deep as it may be read, and kept."""
        key = (words, where and where.where, max(stop, DEEPEST))
        if key not in self.rankings:
            self.keep(key, self.index.lance.by_words(words, key[2], where))
        return self.of(self.rankings[key][start:stop])

    def browse(self, where: Filter | None, start: int, stop: int) -> Slice:
        """The rows as they lie."""
        if self.exact is None:
            return self.of(self.index.select(where, ["id"])["id"].slice(start, stop - start).to_pylist())
        places = self.passing(where)
        chosen = np.arange(self.exact.count) if places is None else places
        return self.at(chosen[start:stop])

    def of(self, ids: Sequence[str]) -> Slice:
        """The rows of these ids, in their order; unknown ids are passed over."""
        import pyarrow as pa

        if self.exact is None:
            rows = self.index.rows(ids)
            vectors = self.index.vectors([row["id"] for row in rows])
            return Slice(pa.Table.from_pylist(rows, self.schema), vectors, None)
        places = self.exact.positions(ids)
        known = dict(zip(self.exact.rows["id"].take(places).to_pylist(), places.tolist(), strict=True))
        return self.at(np.array([known[one] for one in ids if one in known], dtype=np.int64))

    def count(self, where: Filter | None) -> int:
        if self.exact is None:
            return self.index.table.count_rows(where.sql() if where else None)
        places = self.passing(where)
        return self.exact.count if places is None else len(places)

    def has(self, column: str) -> bool:
        """Whether any row has a cell there: an index has the usual columns whether or not they are filled."""
        if self.exact is None:
            return self.index.table.count_rows(f"`{column}` IS NOT NULL") > 0
        return self.exact.rows[column].null_count < self.exact.count

    @property
    def schema(self) -> "pa.Schema":
        """Of the rows, without the vectors."""
        names = [*self.index.columns]
        return (
            self.index.table.schema.empty_table().select(names).schema if self.exact is None else self.exact.rows.schema
        )

    def columns(self, names: Sequence[str]) -> "pa.Table":
        """Of all rows."""
        return self.index.select(None, names) if self.exact is None else self.exact.living.select(list(names))

    def passing(self, where: Filter | None, there: NDArray[np.bool_] | None = None) -> NDArray[np.int64] | None:
        """Where the rows lie that are there and pass; None: all do. there: bool [N], which count; None: all."""
        assert self.exact is not None
        mask = together(self.exact.alive, there, None if where is None else where.mask(self.exact.rows))
        return None if mask is None else np.flatnonzero(mask)

    def at(self, places: NDArray[np.int64], scores: NDArray[np.float32] | None = None) -> Slice:
        assert self.exact is not None and self.rows is not None
        return Slice(self.rows.take(places), self.exact.pictures.matrix[places], scores)

    def by_lance(self, query: NDArray[np.float32], where: Filter | None, start: int, stop: int, space: str) -> Slice:
        """A deeper search ranks otherwise: what the one before it did not find comes after, and nothing twice."""
        key = (query.tobytes(), where and where.where, space)
        found: list[tuple[str, float]] = self.rankings.get(key, [])
        if len(found) < stop:
            seen = {identifier for identifier, _ in found}
            hits = self.index.search(query, stop, where=where, space=space)
            found = [*found, *((hit.id, hit.score) for hit in hits if hit.id not in seen)][:stop]
            if stop <= DEEPEST:
                self.keep(key, found)
        ids, scores = [one for one, _ in found[start:stop]], [score for _, score in found[start:stop]]
        part = self.of(ids)
        if len(part.rows) != len(ids):
            raise DiptychError("the index changed while it was searched; ask again")
        return Slice(part.rows, part.vectors, np.array(scores, np.float32))

    def keep(self, key: Any, ranking: list[Any]) -> None:
        if key not in self.rankings and len(self.rankings) >= RANKINGS:
            self.rankings.pop(next(iter(self.rankings)), None)
        self.rankings[key] = ranking
