"""Subsets on their way to a browser: rows of a question or of a selection, written to a file that is fetched once."""

import re
import secrets
import shutil
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.pictures import BadPicture
from diptych.errors import DiptychError
from diptych.search.export import Exported, write_csv, write_parquet, write_webdataset
from diptych.search.web.explorer import Explorer, Ranking, deepen, is_safe, kind_of, space_of
from diptych.search.web.schema import DEEPEST, Ready, Wish

if TYPE_CHECKING:
    import pyarrow as pa

KEPT = 4  # subsets at a time; the oldest goes
ENDINGS = {"parquet": ".parquet", "csv": ".csv", "webdataset": ".zip"}
TYPES = {".parquet": "application/vnd.apache.parquet", ".csv": "text/csv; charset=utf-8", ".zip": "application/zip"}


@dataclass(frozen=True)
class Waiting:
    path: Path
    name: str


def rows_for(explorer: Explorer, wish: Wish) -> "pa.Table":
    """What a wish asks for: columns as people know them (`key` for the index's id), with `score`, in order of rank."""
    import pyarrow as pa

    if wish.ids:
        part = explorer.reading.of(wish.ids)
        table = part.rows
        if explorer.safe:
            table = table.filter(pa.array([is_safe(row) for row in table.to_pylist()], pa.bool_()))
    else:
        table = ranked(explorer, wish)
    if not len(table):
        raise DiptychError("nothing to export: no picture passes")
    names = [name for name in table.column_names if name not in explorer.hidden]
    return table.select(names).rename_columns(["key" if name == "id" else name for name in names])


def ranked(explorer: Explorer, wish: Wish) -> "pa.Table":
    import pyarrow as pa

    question, most = wish.question, wish.most
    where, how = explorer.filter_of(question), kind_of(question)

    def part(start: int, stop: int) -> Any:
        if how == "browse":
            return explorer.reading.browse(where, start, stop)
        if how == "words":
            return explorer.reading.containing(question.text, where, start, stop)
        return explorer.reading.nearest(explorer.vector_of(question)[None], where, start, stop, space_of(question))[0]

    if question.fold:
        if most > DEEPEST:
            raise DiptychError(f"near-duplicates are folded in subsets of up to {DEEPEST}; ask for less or for all")
        ranking = deepen(Ranking(), part, most, folding=True)
        shown = ranking.shown[:most]
        scores = [score for _, score in shown]
        # the schema is that of the index: a column may be empty in these rows
        table = pa.Table.from_pylist([row for row, _ in shown], explorer.reading.schema)
    else:
        found = part(0, most)
        table, scores = found.rows, [None] * len(found.rows) if found.scores is None else found.scores.tolist()
    table = table.append_column("score", pa.array(scores, pa.float32()))
    least = wish.least
    if least is not None and how == "near":
        table = table.filter(pa.array([score is not None and score >= least for score in scores], pa.bool_()))
    return table


class Downloads:
    """Files that wait to be fetched, in a folder that goes with the server."""

    def __init__(self, read: Callable[[dict[str, Any]], bytes]) -> None:
        self.read, self.lock = read, threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="diptych-export-"))
        self.waiting: OrderedDict[str, Waiting] = OrderedDict()

    def make(self, table: "pa.Table", kind: str, name: str, rows: Callable[[str], dict[str, Any] | None]) -> Ready:
        """rows: a key to the row of the index, which says where its picture is; None where it has gone."""
        token = secrets.token_urlsafe(24)
        path = self.folder / f"{token}{ENDINGS[kind]}"
        batches = table.to_batches(max_chunksize=4096)
        if kind == "webdataset":
            done = self.shards(batches, path, rows)
        else:
            done = (write_parquet if kind == "parquet" else write_csv)(batches, path)
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "subset"
        with self.lock:
            self.waiting[token] = Waiting(path, f"{plain}-{done.rows}{ENDINGS[kind]}")
            while len(self.waiting) > KEPT:
                _, oldest = self.waiting.popitem(last=False)
                oldest.path.unlink(missing_ok=True)
            made = self.waiting[token]
        return Ready(token=token, name=made.name, rows=done.rows, failed=dict(done.failed), bytes=path.stat().st_size)

    def shards(self, batches: Any, path: Path, rows: Callable[[str], dict[str, Any] | None]) -> Exported:
        def picture(row: Mapping[str, Any]) -> bytes:
            found = rows(row["key"])
            if found is None:
                raise BadPicture("no longer in the index")
            return self.read(found)

        with tempfile.TemporaryDirectory(dir=self.folder) as shards:
            done = write_webdataset(batches, Path(shards) / "shards", picture)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # pictures do not shrink
                for file in done.files:
                    archive.write(file, file.name)
        return done

    def find(self, token: str) -> Waiting | None:
        with self.lock:
            return self.waiting.get(token)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
