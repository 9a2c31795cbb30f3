"""Searching through Lance's own indices: of words, and of vectors that are too many for memory."""

from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.search.filters import Filter
from diptych.search.found import Hit, How, Measured
from diptych.search.measure import keep_measured, last_measured
from diptych.search.storage import plainly

if TYPE_CHECKING:
    from diptych.search.index import Index

GRAPH_BYTES = 64 << 30  # of vectors, of which a graph has a quarter and its links in memory
GRAPH_ROWS = 2_000_000  # of one graph, all of which a query enters
DEPTH = 8  # times k rows are in the lists that are probed, at least
REFINE = {"hnsw": 5, "ivf_pq": 50}  # times k rows are re-ranked


class Lance:
    """how: space -> how its vectors are searched, once that was read."""

    def __init__(self, index: "Index") -> None:
        self.index = index
        self.how: dict[str, How] = {}

    def by_words(self, text: str, k: int, where: Filter | None, space: str = "pictures") -> list[str]:
        """Ids by BM25, of rows that have a vector there."""
        if not any("text" in index.columns for index in self.listed()):
            self.index_words()
        query = self.index.latest().search(text, query_type="fts").select(["id", "_score"])
        passes = [where.sql()] if where else []
        if space != "pictures":
            passes.append(f"`{self.index.column(space)}` IS NOT NULL")
        if passes:
            query = query.where(" AND ".join(passes), prefilter=True)
        return self.index.read(query.limit(k))["id"].to_pylist()

    def by_vector(
        self, query: np.ndarray, k: int, where: Filter | None, space: str = "pictures", how: How | None = None
    ) -> list[Hit]:
        """Re-ranked by exact cosines; without an index of the vectors, through all rows on disk."""
        if how is None:
            if space not in self.how:
                last = last_measured(self.index.database, space)
                self.how[space] = How(last.kind, last.effort, last.rows) if last else How("", 0, 0)
            how = self.how[space]
        search = self.index.latest().search(query, vector_column_name=self.index.column(space))
        search = search.distance_type("cosine").select([*self.index.columns, "_distance"])
        if how.kind == "hnsw":
            lists = -(-how.rows // GRAPH_ROWS) + 1  # tidied at another size
            refine = REFINE["hnsw"]
            search = search.nprobes(lists).ef(max(how.effort, refine * k)).refine_factor(refine)
        elif how.kind == "ivf_pq":
            lists = how.effort + int(DEPTH * k / max(1, how.rows) ** 0.5)  # a list has about the root of all rows
            search = search.nprobes(lists).maximum_nprobes(0)  # 0: until there are k
            search = search.refine_factor(REFINE["ivf_pq"])
        if where is not None:
            search = search.where(where.sql(), prefilter=True)
        found = self.index.read(search.limit(k))
        if how.kind == "hnsw" and len(found) < k:  # few pass the filter, or equal vectors part the graph
            found = self.index.read(search.bypass_vector_index())
        rows = found.to_pylist()
        return [Hit(row["id"], 1 - float(row.pop("_distance")), row) for row in rows]

    def kind(self, space: str) -> str:
        """Of the index of these vectors: "hnsw" or "ivf_pq"; "" where there is none yet."""
        column = self.index.column(space)
        types = [str(index.index_type).lower() for index in self.listed() if index.columns == [column]]
        return "" if not types else "hnsw" if "hnsw" in types[0] else "ivf_pq"

    def listed(self) -> list[Any]:
        with plainly(self.index.uri):
            return list(self.index.table.list_indices())

    def index_words(self) -> None:
        from lancedb.index import FTS

        with plainly(self.index.uri):
            self.index.table.create_index("text", config=FTS(), replace=True)

    def index_vectors(self, space: str = "pictures") -> None:
        """A graph over numbers of a byte; where that is too large, inverted lists and four numbers a byte."""
        from lancedb.index import HnswSq, IvfPq

        dim, rows, column = self.index.dim, self.index.count(space), self.index.column(space)
        size = next(n for n in (4, 2, 1) if dim % n == 0)
        config: Any
        if rows * dim * 4 <= GRAPH_BYTES:
            config = HnswSq(distance_type="cosine", num_partitions=-(-rows // GRAPH_ROWS))
        else:
            lists = max(1, int(rows**0.5))
            config = IvfPq(distance_type="cosine", num_partitions=lists, num_sub_vectors=dim // size)
        with plainly(self.index.uri):
            self.index.table.create_index(column, config=config, replace=True)

    def note(self, found: Measured) -> None:
        """Search as was measured from now on, in other processes too."""
        self.how[found.space] = How(found.kind, found.effort, found.rows)
        keep_measured(self.index.database, found)
