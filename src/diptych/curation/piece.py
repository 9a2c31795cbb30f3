"""One piece through the stages between two barriers, streamed, and written whole or not at all.

What a finished piece leaves in the work folder: `.arrow` the rows that are left, `.gone` those removed with stage and
reason, `.npz` the counts for the stage that waits at the barrier, and last of all `.json`, figures and examples: where
that is, the piece is done and is not run again.
"""

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from diptych.curation.inputs import PLACE, Input, Piece
from diptych.curation.read import Aside, bytes_at, fitted, read
from diptych.data.pictures import BadPicture, decode, thumbnail_jpeg
from diptych.errors import DiptychError
from diptych.files import atomic, write_atomically
from diptych.methods.curate.parts.pipeline import Counts, Place, Source, Stage, Verdict, chance_of

TEXT_ROWS, PICTURE_ROWS = 4096, 256  # rows a batch
FOLD = 64  # counts of batches that are merged at a time
EXAMPLES = 4  # of each reason in a piece
SIDE = 160  # pixels of an example
INPUT = "input"  # what cannot be read is removed by it
GONE = pa.schema([("key", pa.string()), ("stage", pa.string()), ("why", pa.string())])


@dataclass(frozen=True)
class Segment:
    """The steps between two barriers: the first of `stages` selects by the counts of what reached it, all others do
    not count; `waiting`, the stage behind, counts what is left."""

    number: int
    work: Path
    opened: Input
    source: Source | None
    stages: tuple[Stage, ...]
    waiting: Stage | None
    pictures: bool  # whether bytes of pictures travel: then batches are small
    seed: int = 0

    @property
    def folder(self) -> Path:
        return self.work / f"{self.number}"

    @property
    def batch(self) -> int:
        return PICTURE_ROWS if self.pictures else TEXT_ROWS

    def file(self, piece: int, kind: str) -> Path:
        return self.folder / f"{piece:06d}.{kind}"

    def counts_file(self) -> Path:
        """Those that its first stage selects by."""
        return self.work / f"counts-{self.number}.npz"


@dataclass
class Tally:
    """What one piece saw of one stage."""

    rows: int = 0
    kept: int = 0
    seconds: float = 0.0
    why: Counter[str] = field(default_factory=Counter)
    tallies: Counter[str] = field(default_factory=Counter)


_LOADED: dict[tuple[Path, int], Counts] = {}  # a process reads the counts of a barrier once


def run_piece(segment: Segment, piece: Piece) -> None:
    """Write what the steps make of a piece; nothing where it was written before."""
    if segment.file(piece.number, "json").exists():
        return
    tallies = {stage.name: Tally() for stage in segment.stages}
    removed: list[tuple[str, str, str]] = []
    examples = Examples(segment.seed)
    held: list[Counts] = []
    aside: Aside = []
    state = {"in": 0, "rows": 0, "counted": 0, "count_seconds": 0.0}
    with ExitStack() as stack:
        writer = Writer(segment.file(piece.number, "arrow"), stack)
        for batch in incoming(segment, piece, aside, state):
            left = through(segment, piece, batch, tallies, removed, examples)
            if left is None:
                continue
            if segment.waiting is not None:
                start = time.perf_counter()
                place = Place(piece.number, state["counted"])
                held.append(segment.waiting.count(shown(left, segment, segment.waiting), place))
                state["counted"] += left.num_rows
                if len(held) == FOLD:
                    held = [segment.waiting.merge(held)]
                state["count_seconds"] += time.perf_counter() - start
            writer.write(left)
            state["rows"] += left.num_rows
    if segment.waiting is not None and held:
        save_counts(segment.file(piece.number, "npz"), segment.waiting.merge(held))
    gone = [*((key, INPUT, why) for key, why in aside), *removed]
    columns = [pa.array(column, pa.string()) for column in zip(*gone, strict=True)] or [pa.array([], pa.string())] * 3
    with atomic(segment.file(piece.number, "gone")) as place, ipc.new_file(str(place), GONE) as file:
        file.write_batch(pa.RecordBatch.from_arrays(columns, schema=GONE))
    about = {
        **state,
        "aside": Counter(why for _, why in aside),
        "stages": {
            name: {"rows": t.rows, "kept": t.kept, "seconds": t.seconds, "why": t.why, "tallies": t.tallies}
            for name, t in tallies.items()
        },
        "examples": examples.found(),
    }
    write_atomically(segment.file(piece.number, "json"), json.dumps(about).encode())


def incoming(segment: Segment, piece: Piece, aside: Aside, state: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The rows of a piece as they reach the first stage: of the input, or of what the segment before left."""
    if segment.number:
        with open_rows(segment.work / f"{segment.number - 1}" / f"{piece.number:06d}.arrow") as file:
            for n in range(file.num_record_batches):
                yield file.get_batch(n)
        return
    for batch in read(piece, segment.opened, segment.batch, aside):
        if segment.source is None:
            state["in"] += batch.num_rows
            yield batch
            continue
        start = time.perf_counter()
        made = 0
        for created in segment.source.create(batch):
            if "key" not in created.schema.names:
                keys = [f"{piece.name}-{state['in'] + n:09d}" for n in range(created.num_rows)]
                created = created.append_column("key", pa.array(keys, pa.string()))
            state["in"] += created.num_rows
            made += created.num_rows
            state["source_seconds"] = state.get("source_seconds", 0.0) + time.perf_counter() - start
            for at in range(0, created.num_rows, segment.batch):
                yield created.slice(at, segment.batch)
            start = time.perf_counter()
        state["source_seconds"] = state.get("source_seconds", 0.0) + time.perf_counter() - start


def through(
    segment: Segment,
    piece: Piece,
    batch: pa.RecordBatch,
    tallies: dict[str, Tally],
    removed: list[tuple[str, str, str]],
    examples: "Examples",
) -> pa.RecordBatch | None:
    """What the stages leave of a batch, in which what they add is added; None where it is nothing."""
    for stage in segment.stages:
        if not batch.num_rows:
            return None
        tally = tallies[stage.name]
        place = Place(piece.number, tally.rows)
        start = time.perf_counter()
        verdict = stage.select(shown(batch, segment, stage), place, counts_of(segment) if stage.counts else {})
        checked(verdict, batch, stage)
        keep = np.asarray(verdict.keep, bool)
        after = hidden(verdict.batch, batch, stage)
        tally.seconds += time.perf_counter() - start
        tally.rows += batch.num_rows
        tally.kept += int(keep.sum())
        tally.tallies.update(verdict.tallies)
        if not keep.all():
            out = np.flatnonzero(~keep)
            why: list[str] = [verdict.why[n] for n in out.tolist()]
            tally.why.update(why)
            lost = batch.take(pa.array(out))
            keys = lost.column("key").to_pylist()
            removed += [(key, stage.name, reason) for key, reason in zip(keys, why, strict=True)]
            examples.see(stage.name, keys, why, lost)
            after = after.filter(pa.array(keep))
        batch = after
    return batch if batch.num_rows else None


def checked(verdict: Verdict, batch: pa.RecordBatch, stage: Stage) -> None:
    rows = (verdict.batch.num_rows, len(verdict.keep), len(verdict.why))
    if set(rows) != {batch.num_rows}:
        raise DiptychError(f"{stage.name} was given {batch.num_rows} rows and spoke of {rows}")
    names = verdict.batch.schema.names
    if "key" not in names or len(set(names)) < len(names):
        raise DiptychError(f"{stage.name} must give each column once and leave the key; it gave {', '.join(names)}")
    silent = next((n for n, kept in enumerate(verdict.keep) if bool(kept) == bool(verdict.why[n])), None)
    if silent is not None:
        raise DiptychError(f"{stage.name}: a row is removed with a reason, and kept with none; row {silent} is not so")


def shown(batch: pa.RecordBatch, segment: Segment, stage: Stage) -> pa.RecordBatch:
    """A batch as a stage sees it: with the bytes of its pictures where it needs them, never with their places, and
    without columns of before that it makes anew."""
    anew = [name for name in stage.adds if name in batch.schema.names and name not in stage.needs and name != "key"]
    batch = batch.drop_columns(anew) if anew else batch
    if PLACE not in batch.schema.names:
        return batch
    places = batch.column(PLACE)
    batch = batch.drop_columns([PLACE])
    if "picture" in stage.needs and "picture" not in batch.schema.names:
        return batch.append_column("picture", pa.array(bytes_at(places), pa.binary()))
    return batch


def hidden(after: pa.RecordBatch, before: pa.RecordBatch, stage: Stage) -> pa.RecordBatch:
    """The places again instead of the bytes, unless the stage made other bytes."""
    if PLACE not in before.schema.names:
        return after
    if "picture" in stage.adds:
        return after
    if "picture" in after.schema.names and "picture" not in before.schema.names:
        after = after.drop_columns(["picture"])
    return after.append_column(before.schema.field(PLACE), before.column(PLACE))


class Examples:
    """A few removed rows of every reason, chosen by chance, not the first: those are often alike."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kept: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {}

    def see(self, stage: str, keys: Sequence[str], why: list[str], lost: pa.RecordBatch) -> None:
        chances = chance_of(keys, self.seed, "examples")
        for n in np.argsort(chances, kind="stable").tolist():
            held = self.kept.setdefault((stage, why[n]), [])
            chance = float(chances[n])
            if len(held) == EXAMPLES and chance >= held[-1][0]:
                continue
            held.append((chance, example_of(lost, n)))
            held.sort(key=lambda one: one[0])
            del held[EXAMPLES:]

    def found(self) -> list[dict[str, Any]]:
        return [
            {"stage": stage, "why": why, "chance": chance, **one}
            for (stage, why), held in self.kept.items()
            for chance, one in held
        ]


def example_of(lost: pa.RecordBatch, row: int) -> dict[str, Any]:
    """Key, text, and a thumbnail where there is a picture."""
    names = lost.schema.names
    texts = next((lost.column(name)[row].as_py() for name in ("text", "texts", "url", "archive") if name in names), "")
    text = " · ".join(map(str, texts)) if isinstance(texts, list) else str(texts or "")
    found = {"key": lost.column("key")[row].as_py(), "text": text[:300]}
    data = None
    if "picture" in names:
        data = lost.column("picture")[row].as_py()
    elif PLACE in names:
        data = bytes_at(lost.column(PLACE).slice(row, 1))[0]
    if data:
        try:
            small = thumbnail_jpeg(decode(data, at_least=SIDE)[0], SIDE)
            found["picture"] = base64.b64encode(small).decode()
        except BadPicture as error:
            found["unreadable"] = str(error)
    return found


# -- files -------------------------------------------------------------------------------------------------------------


class Writer:
    """Batches to an Arrow file of the first batch's schema; a column that was all missing there may get a type."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.place = stack.enter_context(atomic(path))
        self.stack = stack
        self.file: Any = None
        self.schema: pa.Schema | None = None
        stack.callback(self.finish)

    def write(self, batch: pa.RecordBatch) -> None:
        if self.schema is None:
            self.open(typed(batch.schema))
        assert self.schema is not None
        self.file.write_batch(fitted(batch, self.schema))

    def open(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.file = ipc.new_file(str(self.place), schema, options=ipc.IpcWriteOptions(compression="lz4"))

    def finish(self) -> None:
        if self.schema is None:
            self.open(pa.schema([("key", pa.string())]))
        self.file.close()


def typed(schema: pa.Schema) -> pa.Schema:
    """Columns of which nothing is known yet are of words."""
    fields = [pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in schema]
    return pa.schema(fields)


class open_rows:
    """The Arrow file of a finished piece, mapped into memory: a batch is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.map = pa.memory_map(str(path))

    def __enter__(self) -> Any:
        return ipc.open_file(self.map)

    def __exit__(self, *_: object) -> None:
        self.map.close()


def save_counts(path: Path, counts: Counts) -> None:
    for name, array in counts.items():
        if np.asarray(array).dtype.hasobject:
            raise DiptychError(f'the counts "{name}" are objects, which could not be read again without unpickling')
    with atomic(path) as place, open(place, "wb") as file:
        np.savez(file, **counts)  # pyright: ignore[reportArgumentType]


def load_counts(path: Path) -> Counts:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def counts_of(segment: Segment) -> Counts:
    path = segment.counts_file()
    state = path, path.stat().st_mtime_ns if path.exists() else 0
    if state not in _LOADED:
        _LOADED.clear()
        _LOADED[state] = load_counts(path)
    return _LOADED[state]
