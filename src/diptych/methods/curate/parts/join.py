"""The key that scores are joined by, and a join that loses no row silently.

LAION-5B's key (rom1504/laion-prepro): 64 bits of MurmurHash3 of url and text, signed. Of six billion pairs about one
collides with another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.errors import DiptychError, missing_extra
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.vectors import with_column
from diptych.report.sections import Section, Text

KEY = "hash"
SHOWN = 5


def hash_of(url: str | None, text: str | None) -> int:
    """mmh3.hash64(url + text)[0], signed; None counts as "". White space around each is no part of it.

    LAION's own keys are of the stored words as they are; a column `hash` is therefore taken as it is, on either side.
    """
    return hasher()((url or "").strip() + (text or "").strip())


@cache
def hasher() -> Any:
    try:
        import mmh3
    except ImportError as error:
        raise missing_extra("mmh3", "curate", "the key of scores") from error
    return lambda words: mmh3.hash64(words.encode("utf-8", "surrogatepass"))[0]


def hashes_of(table: pa.Table | pa.RecordBatch, what: str) -> np.ndarray:
    """int64 [N]: the column `hash` as it is, else made of `url` and `text`, whatever their case."""
    names = {name.lower(): name for name in reversed(table.schema.names)}
    if KEY in names:
        column = table.column(names[KEY])
        if not pa.types.is_integer(column.type) or column.null_count:
            raise DiptychError(
                f"the hash of the {what} is {column.type} with {column.null_count} nulls; int64, no null"
            )
        return column.to_numpy(zero_copy_only=False).astype(np.int64)
    missing = [name for name in ("url", "text") if name not in names]
    if missing:
        raise DiptychError(f"the {what} have no {KEY}, nor {' and '.join(missing)} to make it of: {table.schema.names}")
    pairs = zip(*(table.column(names[name]).to_pylist() for name in ("url", "text")), strict=True)
    return np.fromiter((hash_of(url, text) for url, text in pairs), np.int64, len(table))


class Hashed(Stage):
    """Adds `hash`, int64, of `url` and `text`."""

    name = "hash"
    about = "nothing; adds the key that scores are joined by"
    needs = ("url", "text")
    adds = (KEY,)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        fresh = batch if batch.schema.get_field_index(KEY) < 0 else batch.drop_columns([KEY])
        found = with_column(batch, KEY, pa.array(hashes_of(fresh, "rows")))
        return Verdict(found, np.ones(len(batch), bool), [""] * len(batch))


@dataclass(frozen=True)
class Joined:
    """table: the rows of the metadata in their order, with the scores, null without a partner; alone: the numbers of
    those rows; repeated: rows of the scores that were left out because their hash came before."""

    table: pa.Table
    alone: Sequence[int]
    repeated: int

    @property
    def rate(self) -> float:
        """Share of the rows with a partner; 1 of none."""
        return 1 - len(self.alone) / self.table.num_rows if self.table.num_rows else 1.0


@dataclass(frozen=True)
class Scores:
    """Scores by hash: sorted, distinct hashes int64 [M], and the columns in that order."""

    hashes: np.ndarray
    columns: pa.Table
    repeated: int

    @classmethod
    def of(cls, scores: pa.Table) -> "Scores":
        """Of rows with one hash the first counts."""
        hashes, first = np.unique(hashes_of(scores, "scores"), return_index=True)
        others = [name for name in scores.schema.names if name.lower() not in (KEY, "url", "text", "key")]
        if not others:
            raise DiptychError(f"the scores have no column to join: {scores.schema.names}")
        return cls(hashes, scores.select(others).take(pa.array(first)), scores.num_rows - len(hashes))

    def partners(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For hashes [N]: the row of each in `columns`, and whether there is one, bool [N]."""
        if not len(self.hashes):
            return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), bool)
        row = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        return row, self.hashes[row] == hashes

    def beside(self, rows: Any, hashes: np.ndarray) -> tuple[list[tuple[pa.Field, Any]], np.ndarray]:
        """The columns to put beside `rows`, and which rows have a partner. Raises DiptychError for a column that is
        there already."""
        if taken := [name for name in self.columns.schema.names if name in rows.schema.names]:
            raise DiptychError(f"both sides have {', '.join(taken)}: leave it out on one side, or rename it")
        row, there = self.partners(hashes)
        found = self.columns.take(pa.array(row, mask=~there))
        return [(found.schema.field(i), found.column(i)) for i in range(found.num_columns)], there


def join_scores(metadata: pa.Table, scores: pa.Table, *, least: float = 1.0) -> Joined:
    """LEFT join by hash, that of a column `hash` or else made of url and text, the same way on both sides.

    Raises DiptychError where fewer than the share `least` of the rows find a partner, naming the first that do not.
    """
    hashes, side = hashes_of(metadata, "metadata"), Scores.of(scores)
    columns, there = side.beside(metadata, hashes)
    table = metadata
    for field, column in columns:
        table = table.append_column(field, column)
    alone = np.flatnonzero(~there).tolist()
    joined = Joined(table, alone, side.repeated)
    if joined.rate < least:
        rows = metadata.select([n for n in metadata.schema.names if n.lower() in ("key", "url", "text")])
        shown = "; ".join(
            f"row {i} {' '.join(str(v)[:60] for v in rows.slice(i, 1).to_pylist()[0].values())}" for i in alone[:SHOWN]
        )
        raise DiptychError(
            f"{len(alone)} of {len(table)} rows have no score ({joined.rate:.2%} joined, {least:.2%} asked): {shown}"
        )
    return joined


class JoinScores(Stage):
    """Joins a Parquet file of scores to the rows by hash. Counts first, so that a low rate is refused before anything
    is written."""

    name = "join"
    about = "nothing; joins scores by hash"
    counts = True

    def __init__(self, path: str, least: float = 1.0) -> None:
        self.path, self.least = path, least

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        _, there = read_scores(self.path).partners(hashes_of(batch, "rows"))
        lost = np.flatnonzero(~there)[:SHOWN]
        keys = [str(batch.column("key")[int(i)].as_py()) for i in lost]
        return {"rows": np.array([len(there), int(there.sum())]), "lost": np.array(keys, dtype="U200")}

    def merge(self, counts: Sequence[Counts]) -> Counts:
        rows = sum((one["rows"] for one in counts), np.zeros(2, np.int64))
        lost = [key for one in counts for key in one["lost"].tolist()][:SHOWN]
        return {"rows": np.asarray(rows), "lost": np.array(lost, dtype="U200")}

    def finish(self, counts: Counts) -> Counts:
        rows, joined = counts["rows"].tolist()
        if joined < self.least * rows:
            raise DiptychError(
                f"{rows - joined} of {rows} rows have no score in {self.path} ({joined / rows:.2%} joined, "
                f"{self.least:.2%} asked); the first: {', '.join(counts['lost'].tolist())}"
            )
        return counts

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        columns, there = read_scores(self.path).beside(batch, hashes_of(batch, "rows"))
        for field, column in columns:
            batch = batch.append_column(field, column.combine_chunks())
        tallies = {"with scores": int(there.sum()), "without": int((~there).sum())}
        return Verdict(batch, np.ones(len(batch), bool), [""] * len(batch), tallies)

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        found, lost = tallies.get("with scores", 0), tallies.get("without", 0)
        some = f": {', '.join(counts['lost'].tolist())}" if lost else ""
        return [Text(f"{found:,} rows have scores, {lost:,} have none{some}", title="Scores joined by hash")]


@cache
def read_scores(path: str) -> Scores:
    import pyarrow.parquet as pq

    place = Path(path).expanduser()
    if not place.exists():
        raise DiptychError(f"no scores at {path}: a Parquet file with hash (or url and text) and the scores")
    try:
        return Scores.of(pq.read_table(place))
    except (pa.ArrowInvalid, OSError) as error:
        raise DiptychError(f"{path} cannot be read as Parquet: {error}") from error
