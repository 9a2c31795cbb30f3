"""An index's rows in memory, for exact search: read once, then kept as they are on disk."""

from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.search.columns import TABLE, VECTORS, compute
from diptych.search.exact import Exact, Room, room_for
from diptych.search.filters import with_ids
from diptych.search.storage import written

if TYPE_CHECKING:
    import pyarrow as pa

    from diptych.search.index import Index

PICTURES, CAPTIONS = VECTORS["pictures"], VECTORS["captions"]


class Memory:
    """exact: what was read, None before the first search."""

    def __init__(self, index: "Index") -> None:
        self.index = index
        self.exact: Exact | None = None
        self.seen = -1  # the table's version that `exact` holds
        self.seen_state: int | None = None

    def refresh(self) -> Exact:
        """The rows as they are on disk now: what others wrote is read, and no more than that."""
        state, exact = written(self.index.uri, TABLE), self.exact
        if exact is not None and state is not None and state == self.seen_state:
            return exact
        with self.index.lock:
            version, names = self.index.latest().version, [*self.index.columns]
            if self.exact is not None and self.exact.rows.column_names != names:
                self.exact = None
            if self.exact is None:
                self.exact = self.read_all(names)
            elif version != self.seen:
                self.exact = self.read_changes(self.exact, names)
            self.seen, self.seen_state = version, state
            return self.exact

    def follow(self) -> None:
        """Read what was just written, where the rows are in memory at all."""
        if self.exact is not None:
            self.refresh()

    def captions(self, exact: Exact) -> Room:
        """The vectors of its rows' captions, read when they are first asked for. A row that was written anew since
        counts as one without, until the next `refresh`. Raises DiptychError where the index holds none."""
        if exact.captions is None:
            with self.index.lock:
                self.index.column("captions")
                exact.captions = exact.captions or self.read_captions(exact)
        return exact.captions

    def read_all(self, names: list[str]) -> Exact:
        import pyarrow as pa

        index, table = self.index, self.index.table
        exact = Exact.empty(index.dim, table.schema.empty_table().select(names), len(index))
        for batch in index.pieces(table.search().select([*names, PICTURES])):
            exact = exact.added(vectors_of(batch, PICTURES)[0], pa.Table.from_batches([batch.select(names)]))
        return Exact(exact.pictures, exact.rows.combine_chunks())

    def read_captions(self, exact: Exact) -> Room:
        keys = writings(exact.rows).to_pylist()
        place = {key: i for i, key in enumerate(keys)}
        store, there = np.zeros((room_for(exact.count), self.index.dim), np.float32), np.zeros(exact.count, bool)
        for batch in self.index.pieces(self.index.latest().search().select(["id", "added", CAPTIONS])):
            vectors, said = vectors_of(batch, CAPTIONS)
            for i, key in enumerate(writings(batch).to_pylist()):
                if said[i] and key in place:
                    store[place[key]], there[place[key]] = vectors[i], True
        return Room(store, exact.count, there)

    def read_changes(self, exact: Exact, names: list[str]) -> Exact:
        """A row is another one when its id or the time of its writing is."""
        pc = compute()
        there = self.index.read(self.index.table.search().select(["id", "added"]).limit(None))
        now, before = writings(there), writings(exact.living)
        gone = exact.living["id"].filter(pc.invert(pc.is_in(before, value_set=now))).to_pylist()
        fresh = there["id"].filter(pc.invert(pc.is_in(now, value_set=before))).to_pylist()
        if len(fresh) * 4 > len(exact):
            return self.read_all(names)
        exact = exact.without(gone)
        columns = [*names, PICTURES, *([CAPTIONS] if exact.captions else [])]
        for some in with_ids(fresh):
            query = self.index.table.search().where(some).select(columns)
            found = self.index.read(query.limit(None))
            said = vectors_of(found, CAPTIONS) if exact.captions else None
            exact = exact.added(vectors_of(found, PICTURES)[0], found.select(names), said)
        return exact


def writings(rows: Any) -> Any:
    """Of a table or batch: what tells one writing of a row from another, as Arrow texts [N]."""
    return compute().binary_join_element_wise(rows["id"], rows["added"], "\0")


def vectors_of(rows: "pa.RecordBatch | pa.Table", column: str) -> tuple[np.ndarray, np.ndarray]:
    """-> (vectors [N, D], 0 where a row has none; bool [N], which have)."""
    cells: Any = rows[column]
    if hasattr(cells, "combine_chunks"):
        cells = cells.combine_chunks()
    there = cells.is_valid().to_numpy(zero_copy_only=False)
    flat = cells.flatten().to_numpy(zero_copy_only=False).reshape(-1, cells.type.list_size)  # without the empty cells
    if len(flat) == len(there):
        return flat, there
    vectors = np.zeros((len(there), flat.shape[1]), np.float32)
    vectors[there] = flat
    return vectors, there
