"""An `Index`: pictures by their embeddings, in a LanceDB folder, with what is known of each; it is found and updated.

A row is written whole or not at all: each `add` and `remove` is one commit, so a killed writer loses the batch that it
was at and nothing else, and readers in other processes see whole batches. Up to `EXACT_BYTES` of vectors a search is
exact, in memory; up to `GRAPH_BYTES` it goes through Lance's HNSW graph, above that through its inverted lists, both
re-ranked by exact cosines and spending what reaches `RECALL` on a sample of the index's own rows; `info` says what was
measured. Rows may have a second vector, that of their text, which is made after the row and is null until then.
"""

import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import DiptychError, nearest
from diptych.search.columns import (
    KINDS,
    MOST,
    STANDARD,
    TABLE,
    TEXT,
    VECTORS,
    arrow_type,
    cell_of,
    connect,
    directed,
    tables_of,
    vector_cells,
    wider,
)
from diptych.search.exact import fused
from diptych.search.filters import Filter, literal, parse
from diptych.search.found import Hit, Info, Model
from diptych.search.measure import measure, measured, note
from diptych.search.memory import Memory, vectors_of

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
EXACT_BYTES = 3 << 30  # of vectors; 2 million rows of 384 numbers
GRAPH_BYTES = 64 << 30  # of vectors, of which a graph has a quarter and its links in memory
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
        self.memory = Memory(self)
        self.how: dict[str, tuple[str, int]] = {}  # space -> Lance's index and what a query spends there, once read
        self.captioned = False  # as far as was seen; once it is, it stays so
        self.lock = threading.RLock()

    # -- opening -------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, uri: str | Path, model: Model, dim: int) -> "Index":
        """A new, empty one; uri: a folder, or object storage such as s3://bucket/my.lance. Raises DiptychError where
        there already is one."""
        import pyarrow as pa

        database = connect(uri, make=True)
        if TABLE in tables_of(database):
            raise DiptychError(f"{uri} already holds an index")
        about = {"format": FORMAT, "dim": dim, "model": asdict(model)}
        fields = [pa.field(name, arrow_type(kind)) for name, kind in STANDARD.items()]
        schema = pa.schema(
            [*fields, pa.field(VECTORS["pictures"], pa.list_(pa.float32(), dim))], {"diptych": json.dumps(about)}
        )
        return cls(database, database.create_table(TABLE, schema=schema), str(uri))

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
            table = database.open_table(TABLE)
        except (OSError, RuntimeError, ValueError) as error:
            raise DiptychError(f"the index at {uri} is damaged: {str(error).splitlines()[0][:300]}") from error
        return cls(database, table, str(uri))

    @classmethod
    def exists(cls, uri: str | Path) -> bool:
        return ("://" in str(uri) or Path(uri).expanduser().is_dir()) and TABLE in tables_of(connect(uri))

    # -- what is in it -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.latest().count_rows()

    def latest(self) -> Any:
        """The table as it is now, whoever wrote to it."""
        self.table.checkout_latest()
        return self.table

    @property
    def columns(self) -> dict[str, str]:
        """name -> "text", "number" or "yes/no", without the vectors."""
        return {name: KINDS[kind] for name, kind in self.kinds.items()}

    @property
    def kinds(self) -> dict[str, str]:
        """name -> the Arrow type of its cells, likewise."""
        return {f.name: str(f.type) for f in self.table.schema if f.name not in VECTORS.values()}

    @property
    def info(self) -> Info:
        captions = self.count("captions") if self.holds_captions else None
        return Info(self.model, self.dim, len(self), measured(self.database, "pictures"), captions)

    @property
    def holds_captions(self) -> bool:
        """Whether rows that have a text have a vector of it too, as soon as it was embedded."""
        if not self.captioned:  # Lance answers through another thread: not asked again with every query
            self.captioned = VECTORS["captions"] in self.latest().schema.names
        return self.captioned

    def column(self, space: str) -> str:
        """The column of the vectors of "pictures" or "captions". Raises DiptychError where the index holds none."""
        if space not in VECTORS:
            raise DiptychError(f'search in {" or ".join(VECTORS)}, not in "{space}"{nearest(space, VECTORS)}')
        if space == "captions" and not self.holds_captions:
            raise DiptychError(
                f"{self.uri} holds pictures alone: `diptych index ... --db {self.uri} --captions` embeds captions"
            )
        return VECTORS[space]

    def count(self, space: str) -> int:
        """The rows that have a vector there."""
        return len(self) if space == "pictures" else self.latest().count_rows(f"`{self.column(space)}` IS NOT NULL")

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
        """All columns but the vectors of these rows, in the order of the ids; unknown ids are left out."""
        return self.fetch(ids, [*self.columns])

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """[len(ids), D] unit rows. Raises DiptychError for an unknown id."""
        known = {row["id"]: row["vector"] for row in self.fetch(ids, ["id", "vector"])}
        for identifier in ids:
            if identifier not in known:
                raise DiptychError(f'{self.uri} has no picture with the id "{identifier}"')
        return np.array([known[one] for one in ids], np.float32).reshape(-1, self.dim)

    def select(self, where: Filter | None = None, columns: Sequence[str] | None = None) -> "pa.Table":
        """The rows for which the filter is true, as an Arrow table; `vector` and, where it is held, `text_vector` are
        columns like others."""
        chosen = [*self.columns] if columns is None else list(columns)
        query = self.latest().search().select(chosen)
        if where is not None:
            query = query.where(where.sql())
        return query.limit(None).to_arrow().select(chosen)

    def fetch(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        table = self.latest()
        for start in range(0, len(ids), 500):
            some = ", ".join(literal(one) for one in ids[start : start + 500])
            query = table.search().where(f"`id` IN ({some})").select(columns).limit(None)
            found |= {row["id"]: row for row in query.to_arrow().to_pylist()}
        return [found[one] for one in ids if one in found]

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
        """Rows with their vectors [N, D], in one commit; a row whose id is there takes the other's place.

        Columns that are not there yet are made. Vectors are brought to length 1. A row that keeps its text keeps the
        vector of it; others have none until `caption` gives them one. Raises DiptychError for a row without an id, an
        id twice, a vector without direction, and a cell that does not fit its column.
        """
        if not rows:
            return
        ids = [row.get("id") for row in rows]
        if not all(isinstance(one, str) and one for one in ids) or len(set(ids)) < len(ids):
            raise DiptychError("rows to index need an id each, a text, and no id twice")
        vectors = directed(vectors, [row["id"] for row in rows], self.dim)
        with self.lock:
            self.widen(rows)
            table = self.arrow(rows, vectors)
            merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table, on_bad_vectors="null")  # a caption's that is empty, that is: the pictures' are sound
            self.memory.follow()

    def hold_captions(self) -> None:
        """From now on rows have a place for the vector of their text."""
        import pyarrow as pa

        with self.lock:
            if not self.holds_captions:
                self.table.add_columns([pa.field(VECTORS["captions"], pa.list_(pa.float32(), self.dim))])

    def uncaptioned(self) -> list[tuple[str, str]]:
        """(id, text) of the rows that have a text and no vector of it yet."""
        missing = f"`text` IS NOT NULL AND `{self.column('captions')}` IS NULL"
        rows = self.latest().search().where(missing).select(["id", "text"]).limit(None).to_arrow().to_pylist()
        return [(row["id"], row["text"]) for row in rows if row["text"].strip()]

    def caption(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """The vectors [N, D] of these rows' texts, in one commit; unknown ids are passed over. Raises DiptychError for
        one without direction."""
        import pyarrow as pa

        cells = vector_cells(directed(vectors, ids, self.dim))
        with self.lock:
            names = ["id", "added", self.column("captions")]
            table = pa.table([pa.array(ids, pa.string()), pa.array([now()] * len(ids)), cells], names=names)
            self.table.merge_insert("id").when_matched_update_all().execute(table)
            self.memory.follow()

    def remove(self, ids: Collection[str]) -> None:
        """In commits of a thousand; unknown ids are passed over."""
        gone = list(ids)
        with self.lock:
            for start in range(0, len(gone), 1000):
                some = ", ".join(literal(one) for one in gone[start : start + 1000])
                self.table.delete(f"`id` IN ({some})")
            self.memory.follow()

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
            self.table.add_columns([pa.field(name, arrow_type(kind)) for name, kind in fresh.items()])
            self.memory.exact = None

    def arrow(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> "pa.Table":
        import pyarrow as pa

        columns: list[Any] = []
        time = now()
        for f in self.table.schema:
            if f.name in VECTORS.values():
                own = f.name == VECTORS["pictures"]
                columns.append(vector_cells(vectors) if own else pa.array(self.kept_captions(rows), f.type))
                continue
            try:
                cells = [time if f.name == "added" else cell_of(row.get(f.name), str(f.type)) for row in rows]
                columns.append(pa.array(cells, f.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise DiptychError(f'column "{f.name}" of the index is a {self.columns[f.name]}: {error}') from error
        return pa.table(columns, schema=self.table.schema)

    def kept_captions(self, rows: Sequence[Mapping[str, Any]]) -> list[list[float] | None]:
        """For each the vector of the text that its row on disk has, if that is its own; else None."""
        before = {
            row["id"]: row for row in self.fetch([row["id"] for row in rows], ["id", "text", VECTORS["captions"]])
        }
        found = ((before.get(row["id"]), cell_of(row.get("text"), TEXT)) for row in rows)
        return [one[VECTORS["captions"]] if one and one["text"] == text else None for one, text in found]

    # -- searching -----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: np.ndarray,
        k: int = 20,
        *,
        where: Filter | None = None,
        text: str | None = None,
        space: str = "pictures",
        model: Model | None = None,
    ) -> list[Hit]:
        """The k rows with the largest cosine to query [D], the best first.

        where: only rows that pass it. space: "captions" compares with the vectors of the rows' texts; rows without one
        are not found. text: words to find in the column `text` too; the ranking by vector and the one by full text
        (BM25) are combined by reciprocal rank fusion, `score` stays the cosine. model: what made the query; another
        than the index's is refused. Raises DiptychError where the index holds no vectors of captions.
        """
        if model is not None:
            self.check(model)
        query, column = unit(query, self.dim), self.column(space)
        if not text:
            return self.by_vector(query, k, where, space)
        depth = max(DEEP, k)
        near = {hit.id: hit for hit in self.by_vector(query, depth, where, space)}
        words = self.by_words(text, depth, where, space)
        order = list(fused([*near], words))[:k]
        others = [one for one in order if one not in near]
        for row in self.fetch(others, [*self.columns, column]):
            near[row["id"]] = Hit(row["id"], float(np.dot(row.pop(column), query)), row)
        return [near[one] for one in order if one in near]

    def by_vector(self, query: np.ndarray, k: int, where: Filter | None, space: str = "pictures") -> list[Hit]:
        if self.memory.exact is None and self.is_large:
            return self.by_lance(query, k, where, space)
        exact = self.memory.refresh()
        room = exact.pictures if space == "pictures" else self.memory.captions(exact)
        places, scores = exact.top(query, k, None if where is None else where.mask(exact.rows), room)
        return [Hit(row["id"], float(score), row) for row, score in zip(exact.cells(places), scores, strict=True)]

    def by_words(self, text: str, k: int, where: Filter | None, space: str = "pictures") -> list[str]:
        """Ids by BM25, of rows that have a vector there."""
        if not any("text" in index.columns for index in self.table.list_indices()):
            self.index_words()
        query = self.latest().search(text, query_type="fts").select(["id", "_score"])
        passes = [where.sql()] if where else []
        if space != "pictures":
            passes.append(f"`{self.column(space)}` IS NOT NULL")
        if passes:
            query = query.where(" AND ".join(passes), prefilter=True)
        return query.limit(k).to_arrow()["id"].to_pylist()

    def by_lance(
        self,
        query: np.ndarray,
        k: int,
        where: Filter | None,
        space: str = "pictures",
        how: tuple[str, int] | None = None,
    ) -> list[Hit]:
        """Through Lance's index, re-ranked by exact cosines; without one, through all rows on disk."""
        if how is None:
            if space not in self.how:
                last = measured(self.database, space)
                self.how[space] = (last.kind, last.effort) if last else ("", 0)
            how = self.how[space]
        kind, effort = how
        search = self.latest().search(query, vector_column_name=self.column(space))
        search = search.distance_type("cosine").select([*self.columns, "_distance"])
        if kind == "hnsw":
            lists = -(-len(self) // GRAPH_ROWS) + 1  # tidied at another size
            search = search.nprobes(lists).ef(max(effort, REFINE[kind] * k)).refine_factor(REFINE[kind])
        elif kind == "ivf_pq":
            search = search.nprobes(effort).refine_factor(REFINE[kind])
        if where is not None:
            search = search.where(where.sql(), prefilter=True)
        rows = search.limit(k).to_arrow().to_pylist()
        return [Hit(row["id"], 1 - float(row.pop("_distance")), row) for row in rows]

    @property
    def is_large(self) -> bool:
        return len(self) * self.dim * 4 > EXACT_BYTES

    def kind(self, space: str = "pictures") -> str:
        """How vectors are searched: "exact", or by Lance's index, "hnsw" or "ivf_pq"; "" where there is none yet."""
        if not self.is_large:
            return "exact"
        column = self.column(space)
        types = [str(index.index_type).lower() for index in self.table.list_indices() if index.columns == [column]]
        return "" if not types else "hnsw" if "hnsw" in types[0] else "ivf_pq"

    def batches(self, space: str = "pictures") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(vectors [N, D], ids [N]) of all rows that have one, some thousands at a time."""
        column = self.column(space)
        for batch in self.latest().search().select(["id", column]).limit(None).to_batches(8192):
            vectors, there = vectors_of(batch, column)
            yield vectors[there], batch["id"].to_numpy(zero_copy_only=False)[there]

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """After much was added: join the pieces on disk, bring the indices of words and vectors up to date, measure."""
        with self.lock:
            self.latest()
            kinds = {index.columns[0] for index in self.table.list_indices()}
            if "text" not in kinds and self.table.count_rows("`text` IS NOT NULL"):
                self.index_words()
            spaces = ["pictures", *(["captions"] if self.holds_captions else [])]
            for space in spaces:
                if self.column(space) not in kinds and self.count(space) * self.dim * 4 > EXACT_BYTES:
                    self.index_vectors(space)
            if self.table.stats()["fragment_stats"]["num_fragments"] > PIECES:  # it writes them all anew
                self.table.optimize(cleanup_older_than=timedelta(hours=1))
            for space in spaces:
                rows, last = self.count(space), measured(self.database, space)
                if rows and (last is None or abs(rows - last.rows) > 0.1 * last.rows):
                    found = measure(self, space)
                    self.how[space] = found.kind, found.effort
                    note(self.database, found)

    def index_words(self) -> None:
        from lancedb.index import FTS

        self.table.create_index("text", config=FTS(), replace=True)

    def index_vectors(self, space: str = "pictures") -> None:
        """A graph over numbers of a byte; where that is too large, inverted lists and four numbers a byte."""
        from lancedb.index import HnswSq, IvfPq

        size, rows = next(n for n in (4, 2, 1) if self.dim % n == 0), self.count(space)
        config: Any
        if rows * self.dim * 4 <= GRAPH_BYTES:
            config = HnswSq(distance_type="cosine", num_partitions=-(-rows // GRAPH_ROWS))
        else:
            lists = max(1, int(rows**0.5))
            config = IvfPq(distance_type="cosine", num_partitions=lists, num_sub_vectors=self.dim // size)
        self.table.create_index(self.column(space), config=config, replace=True)


def now() -> str:
    """UTC, as the column `added` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def unit(query: np.ndarray, dim: int) -> np.ndarray:
    query = np.asarray(query, np.float32)
    length = float(np.linalg.norm(query))
    if query.shape != (dim,) or not np.isfinite(length) or length == 0:
        raise DiptychError(f"a query is one vector of {dim} numbers, not all 0; not {query.shape}")
    return query / np.float32(length)
