"""An `Index`: pictures by their embeddings, in a LanceDB folder, with what is known of each; it is found and updated.

A row is written whole or not at all: each `add` and `remove` is one commit, so a killed writer loses the batch that it
was at and nothing else, and readers in other processes see whole batches. Several may write at once, to a folder and to
object storage: ids are a primary key, of which Lance commits none twice. Up to `EXACT_BYTES` of vectors a search is
exact, in memory; up to `GRAPH_BYTES` it goes through Lance's HNSW graph, above that through its inverted lists, both
re-ranked by exact cosines and spending what reaches `RECALL` on a sample of the index's own rows; `info` says what was
measured. Rows may have a second vector, that of their text, which is made after the row and is null until then.
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
from diptych.search.columns import (
    KINDS,
    MOST,
    STANDARD,
    TABLE,
    TEXT,
    VECTORS,
    arrow_type,
    cell_of,
    directed,
    vector_cells,
    wider,
)
from diptych.search.exact import fused, unit
from diptych.search.filters import Filter, parse, with_ids
from diptych.search.found import Hit, Info, Model
from diptych.search.lance import Lance
from diptych.search.measure import last_measured, measure
from diptych.search.memory import Memory, vectors_of
from diptych.search.storage import Busy, Exists, StorageError, connect, in_turn, open_table, plainly, tables_of

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
KEY = {"lance-schema:unenforced-primary-key": "true"}  # so Lance finds writers at odds about an id
OWN = "target.source = source.source OR (target.source IS NULL AND source.source IS NULL)"
EXACT_BYTES = 3 << 30  # of vectors; 2 million rows of 384 numbers
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
        self.memory, self.lance = Memory(self), Lance(self)
        self.captioned = False  # as far as was seen; once it is, it stays so
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
        fields.append(pa.field(VECTORS["pictures"], pa.list_(pa.float32(), dim)))
        try:
            with plainly(uri):
                table = database.create_table(TABLE, schema=pa.schema(fields, {"diptych": json.dumps(about)}))
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

    def pieces(self, query: Any) -> "Iterator[pa.RecordBatch]":
        """The same, some thousands of rows at a time."""
        with plainly(self.uri):
            yield from query.limit(None).to_batches(8192)

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
        return Info(self.model, self.dim, len(self), last_measured(self.database, "pictures"), captions)

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
        if space == "pictures":
            return len(self)
        column, table = self.column(space), self.latest()
        with plainly(self.uri):
            return table.count_rows(f"`{column}` IS NOT NULL")

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
        return self.read(query.limit(None)).select(chosen)

    def fetch(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        table = self.latest()
        for some in with_ids(ids):
            query = table.search().where(some).select(columns).limit(None)
            found |= {row["id"]: row for row in self.read(query).to_pylist()}
        return [found[one] for one in ids if one in found]

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> set[str]:
        """Rows with their vectors [N, D], in one commit; a row whose id is there takes the other's place where both are
        of one source. -> the ids that rows of other sources have: those were not added.

        Columns that are not there yet are made. Vectors are brought to length 1. A row that keeps its text keeps the
        vector of it; others have none until `caption` gives them one. Raises DiptychError for a row without an id, an
        id twice, a vector without direction, and a cell that does not fit its column; Busy where other writers leave it
        no turn.
        """
        if not rows:
            return set()
        ids = [row.get("id") for row in rows]
        if not all(isinstance(one, str) and one for one in ids) or len(set(ids)) < len(ids):
            raise DiptychError("rows to index need an id each, a text, and no id twice")
        vectors = directed(vectors, [row["id"] for row in rows], self.dim)
        with self.lock:
            held = self.holds_captions
            done = in_turn(lambda: self.merge(rows, vectors))
            if self.holds_captions and not held:  # another process made the column: Lance kept what it put there
                for some in with_ids([row["id"] for row in rows]):
                    in_turn(partial(self.forget_captions, some))
            self.memory.follow()
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
            return merge.execute(table, on_bad_vectors="null")  # an empty caption's, that is: the pictures' are sound

    def forget_captions(self, condition: str) -> None:
        table = self.latest()
        with plainly(self.uri):
            table.update(where=condition, values={VECTORS["captions"]: None, "added": now()})

    def hold_captions(self) -> None:
        """From now on rows have a place for the vector of their text. Raises Busy as `add` does."""
        with self.lock:
            in_turn(self.place_captions)

    def place_captions(self) -> None:
        import pyarrow as pa

        if not self.holds_captions:
            with plainly(self.uri):
                self.table.add_columns([pa.field(VECTORS["captions"], pa.list_(pa.float32(), self.dim))])

    def uncaptioned(self) -> list[tuple[str, str]]:
        """(id, text) of the rows that have a text and no vector of it yet."""
        missing = f"`text` IS NOT NULL AND `{self.column('captions')}` IS NULL"
        query = self.latest().search().where(missing).select(["id", "text"]).limit(None)
        return [(row["id"], row["text"]) for row in self.read(query).to_pylist() if row["text"].strip()]

    def caption(self, texts: Sequence[tuple[str, str]], vectors: np.ndarray) -> int:
        """The vectors [N, D] of these rows' texts, (id, text) each, in one commit; -> of how many rows.

        Passed over are unknown ids, and rows whose text is another by now. Raises DiptychError for a vector without
        direction, Busy as `add` does.
        """
        vectors = directed(vectors, [identifier for identifier, _ in texts], self.dim)
        with self.lock:
            count = in_turn(lambda: self.merge_captions(texts, vectors))
            self.memory.follow()
        return count

    def merge_captions(self, texts: Sequence[tuple[str, str]], vectors: np.ndarray) -> int:
        import pyarrow as pa

        column, time = self.column("captions"), now()
        schema = pa.schema([self.latest().schema.field(name) for name in ("id", "text", "added", column)])
        ids, said = [identifier for identifier, _ in texts], [text for _, text in texts]
        table = pa.table([ids, said, [time] * len(ids), vector_cells(vectors)], schema=schema)
        with plainly(self.uri):
            merge = self.table.merge_insert("id").when_matched_update_all(where="target.text = source.text")
            return merge.execute(table).num_updated_rows

    def remove(self, ids: Collection[str]) -> None:
        """In commits of a thousand; unknown ids are passed over."""
        with self.lock:
            for some in with_ids(list(ids), 1000):
                in_turn(partial(self.delete, some))
            self.memory.follow()

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
            self.memory.exact = None

    def arrow(self, rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> "pa.Table":
        import pyarrow as pa

        columns: list[Any] = []
        time, schema = now(), self.table.schema  # another process may widen it meanwhile
        for f in schema:
            if f.name in VECTORS.values():
                own = f.name == VECTORS["pictures"]
                columns.append(vector_cells(vectors) if own else pa.array(self.kept_captions(rows), f.type))
                continue
            try:
                cells = [time if f.name == "added" else cell_of(row.get(f.name), str(f.type)) for row in rows]
                columns.append(pa.array(cells, f.type))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise DiptychError(f'column "{f.name}" of the index is a {self.columns[f.name]}: {error}') from error
        return pa.table(columns, schema=schema)

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
        words = self.lance.by_words(text, depth, where, space)
        order = list(fused([*near], words))[:k]
        others = [one for one in order if one not in near]
        for row in self.fetch(others, [*self.columns, column]):
            near[row["id"]] = Hit(row["id"], float(np.dot(row.pop(column), query)), row)
        return [near[one] for one in order if one in near]

    def by_vector(self, query: np.ndarray, k: int, where: Filter | None, space: str = "pictures") -> list[Hit]:
        if self.memory.exact is None and self.is_large:
            return self.lance.by_vector(query, k, where, space)
        exact = self.memory.refresh()
        room = exact.pictures if space == "pictures" else self.memory.captions(exact)
        places, scores = exact.top(query, k, None if where is None else where.mask(exact.rows), room)
        return [Hit(row["id"], float(score), row) for row, score in zip(exact.cells(places), scores, strict=True)]

    @property
    def is_large(self) -> bool:
        return len(self) * self.dim * 4 > EXACT_BYTES

    def kind(self, space: str = "pictures") -> str:
        """How vectors are searched: "exact", or by Lance's index, "hnsw" or "ivf_pq"; "" where there is none yet."""
        return self.lance.kind(space) if self.is_large else "exact"

    def batches(self, space: str = "pictures") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(vectors [N, D], ids [N]) of all rows that have one, some thousands at a time."""
        column = self.column(space)
        for batch in self.pieces(self.latest().search().select(["id", column])):
            vectors, there = vectors_of(batch, column)
            yield vectors[there], batch["id"].to_numpy(zero_copy_only=False)[there]

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """After much was added: join the pieces on disk, bring the indices of words and vectors up to date, measure."""
        with self.lock:
            spaces = ["pictures", *(["captions"] if self.holds_captions else [])]
            with contextlib.suppress(Busy), plainly(self.uri):  # beside other writers: the last of them does it
                kinds = {index.columns[0] for index in self.latest().list_indices()}
                if "text" not in kinds and self.table.count_rows("`text` IS NOT NULL"):
                    self.lance.index_words()
                for space in spaces:
                    if self.column(space) not in kinds and self.count(space) * self.dim * 4 > EXACT_BYTES:
                        self.lance.index_vectors(space)
                if self.table.stats()["fragment_stats"]["num_fragments"] > PIECES:  # it writes them all anew
                    self.table.optimize(cleanup_older_than=timedelta(hours=1))
            for space in spaces:
                rows, last = self.count(space), last_measured(self.database, space)
                if rows and (last is None or abs(rows - last.rows) > 0.1 * last.rows):
                    self.lance.note(measure(self, space))


def now() -> str:
    """UTC, as the column `added` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
