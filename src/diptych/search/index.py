"""An `Index`: pictures by their embeddings, in a LanceDB folder, with what is known of each; it is found and updated.

A row is written whole or not at all: each `add` and `remove` is one commit, so a killed writer loses the batch that it
was at and nothing else, and readers in other processes see whole batches. Several may write at once, to a folder and to
object storage: ids are a primary key, of which Lance commits none twice. Up to `EXACT_BYTES` of vectors a search is
exact, in memory; up to `GRAPH_BYTES` it goes through Lance's HNSW graph, above that through its inverted lists, both
re-ranked by exact cosines and spending what reaches `RECALL` on a sample of the index's own rows; `info` says what was
measured.
"""

import contextlib
import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import DiptychError, nearest
from diptych.search.columns import KINDS, MOST, STANDARD, arrow_type, cell_of, compute, wider
from diptych.search.exact import Exact, fused, unit, vectors_of
from diptych.search.filters import Filter, literal, parse
from diptych.search.found import Hit, Info, Measured, Model
from diptych.search.measure import keep_measured, last_measured, measure
from diptych.search.storage import (
    Busy,
    Exists,
    StorageError,
    connect,
    in_turn,
    open_table,
    plainly,
    tables_of,
    written,
)  # fmt: skip

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
KEY = {"lance-schema:unenforced-primary-key": "true"}  # so Lance finds writers at odds about an id
OWN = "target.source = source.source OR (target.source IS NULL AND source.source IS NULL)"
TABLE = "pictures"
EXACT_BYTES = 3 << 30  # of vectors; 2 million rows of 384 numbers
GRAPH_BYTES = 64 << 30  # of vectors, of which a graph has a quarter and its links in memory
DEPTH = 8  # times k rows are in the lists that are probed, at least
GRAPH_ROWS = 2_000_000  # of one graph, all of which a query enters
REFINE = {"hnsw": 5, "ivf_pq": 50}  # times k rows are re-ranked
PIECES = 20  # of the table on disk, beyond which they are joined
DEEP = 100  # of each ranking, at least, when vectors and full text are combined


class Index:
    """Open one with `Index.open`, make one with `Index.create`. Searches may run in several threads beside a writer."""

    def __init__(self, database: Any, table: Any, uri: str) -> None:
        try:
            about = json.loads((table.schema.metadata or {})[b"diptych"])
            self.model, self.dim, made = Model(**about["model"]), int(about["dim"]), about["format"]
        except (KeyError, TypeError, ValueError) as error:
            raise DiptychError(f"{uri} was not made by diptych; `diptych index` makes an index") from error
        if made != FORMAT:
            raise DiptychError(f"{uri} has format {made}; this diptych reads {FORMAT}")
        self.uri, self.database, self.table = uri, database, table
        self.exact: Exact | None = None
        self.seen = -1  # the table's version that `exact` holds
        self.seen_state: int | None = None
        self.how: tuple[str, int] | None = None  # Lance's index and what a query spends there; None: not read yet
        self.lock = threading.RLock()

    # -- opening -------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, uri: str | Path, model: Model, dim: int) -> "Index":
        """A new, empty one; uri: a folder, or object storage such as s3://bucket/my.lance. Raises Exists where there
        already is one."""
        import pyarrow as pa

        database = connect(uri, make=True)
        if TABLE in tables_of(database):
            raise Exists(f"{uri} already holds an index")
        about = {"format": FORMAT, "dim": dim, "model": asdict(model)}
        fields = [pa.field(name, arrow_type(kind)) for name, kind in STANDARD.items()]
        fields[0] = pa.field("id", pa.string(), nullable=False, metadata=KEY)
        schema = pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), dim))], {"diptych": json.dumps(about)})
        try:
            with plainly(uri):
                table = database.create_table(TABLE, schema=schema)
        except Busy as error:  # another process, since we looked
            raise Exists(f"{uri} already holds an index") from error
        return cls(database, table, str(uri))

    @classmethod
    def open(cls, uri: str | Path) -> "Index":
        """Raises DiptychError where there is none."""
        local = "://" not in str(uri)
        if local and not Path(uri).expanduser().is_dir():
            beside = Path(uri).expanduser().absolute().parent
            known = [path.name for path in beside.glob("*.lance")] if beside.is_dir() else []
            hint = nearest(Path(uri).name, known) if known else "; `diptych index PICTURES --db my.lance` makes one"
            raise DiptychError(f"no index at {uri}{hint}")
        database = connect(uri)
        if TABLE not in tables_of(database):
            raise DiptychError(f"{uri} holds no index; `diptych index PICTURES --db {uri}` makes one")
        try:
            table = in_turn(partial(open_table, database, TABLE))  # another process may be making it
        except StorageError as error:
            raise DiptychError(f"{error}; it is damaged, or out of reach") from error
        return cls(database, table, str(uri))

    @classmethod
    def exists(cls, uri: str | Path) -> bool:
        return ("://" in str(uri) or Path(uri).expanduser().is_dir()) and TABLE in tables_of(connect(uri))

    # -- what is in it -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.latest().count_rows()

    def latest(self) -> Any:
        """The table as it is now, whoever wrote to it."""
        with plainly(self.uri):
            self.table.checkout_latest()
        return self.table

    def read(self, query: Any) -> "pa.Table":
        with plainly(self.uri):
            return query.to_arrow()

    @property
    def columns(self) -> dict[str, str]:
        """name -> "text", "number" or "yes/no", without the vector."""
        return {f.name: KINDS[str(f.type)] for f in self.table.schema if f.name != "vector"}

    @property
    def kinds(self) -> dict[str, str]:
        """name -> the Arrow type of its cells, likewise."""
        return {f.name: str(f.type) for f in self.table.schema if f.name != "vector"}

    @property
    def info(self) -> Info:
        return Info(self.model, self.dim, len(self), self.measured())

    def check(self, model: Model) -> None:
        """Raises DiptychError where a query of this model would be compared with the vectors of another."""
        if model.hash != self.model.hash:
            same = (model.source, model.classifier) == (self.model.source, self.model.classifier)
            raise DiptychError(
                f"{self.uri} was indexed by the model {self.model}, but was asked with {model}: "
                + ("that model has changed since; " if same else f"use --model {self.model.source}, or ")
                + "index again into another --db"
            )

    def filter(self, where: str | None) -> Filter | None:
        """A condition on the columns; None passes all. Raises DiptychError saying what does not read."""
        return parse(where, self.columns) if where and where.strip() else None

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """All columns but the vector of these rows, in the order of the ids; unknown ids are left out."""
        return self.fetch(ids, [*self.columns])

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """[len(ids), D] unit rows. Raises DiptychError for an unknown id."""
        known = {row["id"]: row["vector"] for row in self.fetch(ids, ["id", "vector"])}
        for identifier in ids:
            if identifier not in known:
                raise DiptychError(f'{self.uri} has no picture with the id "{identifier}"')
        return np.array([known[one] for one in ids], np.float32).reshape(-1, self.dim)

    def select(self, where: Filter | None = None, columns: Sequence[str] | None = None) -> "pa.Table":
        """The rows for which the filter is true, as an Arrow table; `vector` is a column like others."""
        chosen = [*self.columns] if columns is None else list(columns)
        query = self.latest().search().select(chosen)
        if where is not None:
            query = query.where(where.sql())
        return self.read(query.limit(None)).select(chosen)

    def fetch(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        table = self.latest()
        for start in range(0, len(ids), 500):
            some = ", ".join(literal(one) for one in ids[start : start + 500])
            query = table.search().where(f"`id` IN ({some})").select(columns).limit(None)
            found |= {row["id"]: row for row in self.read(query).to_pylist()}
        return [found[one] for one in ids if one in found]

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> set[str]:
        """Rows with their vectors [N, D], in one commit; a row whose id is there takes the other's place where both are
        of one source. -> the ids that rows of other sources have: those were not added.

        Columns that are not there yet are made. Vectors are brought to length 1. Raises DiptychError for a row without
        an id, an id twice, a vector without direction, and a cell that does not fit its column; Busy where other
        writers leave it no turn.
        """
        if not rows:
            return set()
        ids = [row.get("id") for row in rows]
        if not all(isinstance(one, str) and one for one in ids) or len(set(ids)) < len(ids):
            raise DiptychError("rows to index need an id each, a text, and no id twice")
        vectors = np.asarray(vectors, np.float32)
        if vectors.shape != (len(rows), self.dim):
            raise DiptychError(f"{len(rows)} rows need vectors of {len(rows)} x {self.dim}, not of {vectors.shape}")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))[0])
            raise DiptychError(f"the vector of {ids[bad]} has no direction")
        with self.lock:
            done = in_turn(lambda: self.merge(rows, vectors / norms))
            if self.exact is not None:
                self.refresh()
        if done.num_inserted_rows + done.num_updated_rows == len(rows):
            return set()
        sources = {row["id"]: row.get("source") for row in rows}
        there = self.fetch([*sources], ["id", "source"])
        return {row["id"] for row in there if row["source"] != sources[row["id"]]}

    def merge(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> Any:
        """-> Lance's counts."""
        self.latest()
        self.widen(rows)
        table = self.arrow(rows, vectors)
        with plainly(self.uri):
            merge = self.table.merge_insert("id").when_matched_update_all(where=OWN).when_not_matched_insert_all()
            return merge.execute(table)

    def remove(self, ids: Collection[str]) -> None:
        """In commits of a thousand; unknown ids are passed over."""
        gone = list(ids)
        with self.lock:
            for start in range(0, len(gone), 1000):
                some = ", ".join(literal(one) for one in gone[start : start + 1000])
                in_turn(partial(self.delete, f"`id` IN ({some})"))
            if self.exact is not None:
                self.refresh()

    def delete(self, condition: str) -> None:
        with plainly(self.uri):
            self.table.delete(condition)

    def widen(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the columns that the rows have and the table has not."""
        import pyarrow as pa

        known, fresh = set(self.table.schema.names), {}
        for row in rows:
            for name, cell in row.items():
                if name not in known and cell is not None:
                    fresh[name] = wider(fresh.get(name), cell, name)
        if len(known) + len(fresh) > MOST:
            raise DiptychError(f"{len(known) + len(fresh)} columns: an index has at most {MOST}")
        if fresh:
            with plainly(self.uri):
                self.table.add_columns([pa.field(name, arrow_type(kind)) for name, kind in fresh.items()])
            self.exact = None

    def arrow(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> "pa.Table":
        import pyarrow as pa

        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        columns: list[Any] = []
        for f in self.table.schema:
            if f.name == "vector":
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.dim))
                continue
            try:
                cells = [now if f.name == "added" else cell_of(row.get(f.name), str(f.type)) for row in rows]
                columns.append(pa.array(cells, f.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise DiptychError(f'column "{f.name}" of the index is a {self.columns[f.name]}: {error}') from error
        return pa.table(columns, schema=self.table.schema)

    # -- searching -----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: np.ndarray,
        k: int = 20,
        *,
        where: Filter | None = None,
        text: str | None = None,
        model: Model | None = None,
    ) -> list[Hit]:
        """The k rows with the largest cosine to query [D], the best first.

        where: only rows that pass it. text: words to find in the column `text` too; the ranking by vector and the one
        by full text (BM25) are combined by reciprocal rank fusion, `score` stays the cosine. model: what made the
        query; another than the index's is refused.
        """
        if model is not None:
            self.check(model)
        query = unit(query, self.dim)
        if not text:
            return self.by_vector(query, k, where)
        depth = max(DEEP, k)
        near = {hit.id: hit for hit in self.by_vector(query, depth, where)}
        words = self.by_words(text, depth, where)
        order = list(fused([*near], words))[:k]
        others = [one for one in order if one not in near]
        for row in self.fetch(others, [*self.columns, "vector"]):
            near[row["id"]] = Hit(row["id"], float(np.dot(row.pop("vector"), query)), row)
        return [near[one] for one in order if one in near]

    def by_vector(self, query: np.ndarray, k: int, where: Filter | None) -> list[Hit]:
        if self.exact is None and self.is_large:
            return self.by_lance(query, k, where)
        exact = self.refresh()
        places, scores = exact.top(query, k, None if where is None else where.mask(exact.rows))
        return [Hit(row["id"], float(score), row) for row, score in zip(exact.cells(places), scores, strict=True)]

    def by_words(self, text: str, k: int, where: Filter | None) -> list[str]:
        """Ids by BM25."""
        if not any("text" in index.columns for index in self.table.list_indices()):
            self.index_words()
        query = self.latest().search(text, query_type="fts").select(["id", "_score"])
        if where is not None:
            query = query.where(where.sql(), prefilter=True)
        return self.read(query.limit(k))["id"].to_pylist()

    def by_lance(
        self, query: np.ndarray, k: int, where: Filter | None, how: tuple[str, int] | None = None
    ) -> list[Hit]:
        """Through Lance's index, re-ranked by exact cosines; without one, through all rows on disk."""
        if how is None:
            if self.how is None:
                measured = self.measured()
                self.how = (measured.kind, measured.effort) if measured else ("", 0)
            how = self.how
        kind, effort = how
        search = self.latest().search(query).distance_type("cosine").select([*self.columns, "_distance"])
        if kind == "hnsw":
            lists = -(-len(self) // GRAPH_ROWS) + 1  # tidied at another size
            search = search.nprobes(lists).ef(max(effort, REFINE[kind] * k)).refine_factor(REFINE[kind])
        elif kind == "ivf_pq":
            lists = effort + int(DEPTH * k / max(1, len(self)) ** 0.5)  # a list has about the root of all rows
            search = search.nprobes(lists).maximum_nprobes(0).refine_factor(REFINE[kind])  # 0: until there are k
        if where is not None:
            search = search.where(where.sql(), prefilter=True)
        rows = self.read(search.limit(k)).to_pylist()
        return [Hit(row["id"], 1 - float(row.pop("_distance")), row) for row in rows]

    @property
    def is_large(self) -> bool:
        return len(self) * self.dim * 4 > EXACT_BYTES

    @property
    def kind(self) -> str:
        """How vectors are searched: "exact", or by Lance's index, "hnsw" or "ivf_pq"; "" where there is none yet."""
        if not self.is_large:
            return "exact"
        types = [str(index.index_type).lower() for index in self.table.list_indices() if index.columns == ["vector"]]
        return "" if not types else "hnsw" if "hnsw" in types[0] else "ivf_pq"

    def refresh(self) -> Exact:
        """The rows in memory, as they are on disk now: what others wrote is read, and no more than that."""
        state, exact = written(self.uri, TABLE), self.exact
        if exact is not None and state is not None and state == self.seen_state:
            return exact
        with self.lock:
            self.latest()
            version, names = self.table.version, [*self.columns]
            if self.exact is not None and self.exact.rows.column_names != names:
                self.exact = None
            if self.exact is None:
                self.exact = self.read_all(names)
            elif version != self.seen:
                self.exact = self.read_changes(self.exact, names)
            self.seen, self.seen_state = version, state
            return self.exact

    def read_all(self, names: list[str]) -> Exact:
        import pyarrow as pa

        rows = self.table.search().select([*names, "vector"]).limit(None).to_batches(8192)
        exact = Exact.empty(self.dim, self.table.schema.empty_table().select(names), len(self))
        for batch in rows:
            exact = exact.added(vectors_of(batch), pa.Table.from_batches([batch.select(names)]))
        return Exact(exact.room, exact.count, exact.rows.combine_chunks())

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(vectors [N, D], ids [N]) of all rows, some thousands at a time."""
        for batch in self.table.search().select(["id", "vector"]).limit(None).to_batches(8192):
            yield vectors_of(batch), batch["id"].to_numpy(zero_copy_only=False)

    def read_changes(self, exact: Exact, names: list[str]) -> Exact:
        """A row is another one when its id or the time of its writing is."""
        pc = compute()
        there = self.read(self.table.search().select(["id", "added"]).limit(None))
        now, before = (pc.binary_join_element_wise(t["id"], t["added"], "\0") for t in (there, exact.living))
        gone = exact.living["id"].filter(pc.invert(pc.is_in(before, value_set=now))).to_pylist()
        fresh = there["id"].filter(pc.invert(pc.is_in(now, value_set=before))).to_pylist()
        if len(fresh) * 4 > len(exact):
            return self.read_all(names)
        exact = exact.without(gone)
        for start in range(0, len(fresh), 500):
            some = ", ".join(literal(one) for one in fresh[start : start + 500])
            found = self.read(self.table.search().where(f"`id` IN ({some})").select([*names, "vector"]).limit(None))
            exact = exact.added(vectors_of(found), found.select(names))
        return exact

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """After much was added: join the pieces on disk, bring the indices of words and vectors up to date, measure."""
        with self.lock:
            self.latest()
            kinds = {index.columns[0] for index in self.table.list_indices()}
            with contextlib.suppress(Busy), plainly(self.uri):  # beside other writers: the last of them does it
                if "text" not in kinds and self.table.count_rows("`text` IS NOT NULL"):
                    self.index_words()
                if self.is_large and "vector" not in kinds:
                    self.index_vectors()
                if self.table.stats()["fragment_stats"]["num_fragments"] > PIECES:  # it writes them all anew
                    self.table.optimize(cleanup_older_than=timedelta(hours=1))
            measured = self.measured()
            if len(self) and (measured is None or abs(len(self) - measured.rows) > 0.1 * measured.rows):
                self.note(measure(self))

    def index_words(self) -> None:
        from lancedb.index import FTS

        with plainly(self.uri):
            self.table.create_index("text", config=FTS(), replace=True)

    def index_vectors(self) -> None:
        """A graph over numbers of a byte; where that is too large, inverted lists and four numbers a byte."""
        from lancedb.index import HnswSq, IvfPq

        size = next(n for n in (4, 2, 1) if self.dim % n == 0)
        config: Any
        if len(self) * self.dim * 4 <= GRAPH_BYTES:
            config = HnswSq(distance_type="cosine", num_partitions=-(-len(self) // GRAPH_ROWS))
        else:
            lists = max(1, int(len(self) ** 0.5))
            config = IvfPq(distance_type="cosine", num_partitions=lists, num_sub_vectors=self.dim // size)
        self.table.create_index("vector", config=config, replace=True)

    def measured(self) -> Measured | None:
        """What was measured last."""
        return last_measured(self.database)

    def note(self, found: Measured) -> None:
        self.how = found.kind, found.effort
        keep_measured(self.database, found)
