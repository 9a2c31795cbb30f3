"""Pictures into an index: only what is new or changed is read, only what was never seen is run through the model.

Threads read and decode ahead while the model computes; each finished batch is one commit, so a killed run has lost the
batch it was at, and the same command goes on from there.
"""

import hashlib
import itertools
import json
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.data.pairs import BadPair
from diptych.data.pictures import BadPicture
from diptych.data.scan import SetAside
from diptych.errors import DiptychError, TextCut
from diptych.search.columns import cell_of, kind_of_cell
from diptych.search.encoder import Encoder
from diptych.search.filters import Filter, Many, Not, Test
from diptych.search.sources import Item, Source

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.search.index import Index

BATCH = 32  # pictures a pass of the model
AHEAD = 3 * BATCH  # pictures read before it is their turn
COMMIT, PATIENCE = 512, 20.0  # rows a commit, or fewer after so many seconds
Progress = Callable[[int, int], None]


@dataclass
class Seconds:
    """read: of all reading threads together, files to pixels; infer: the model; wait: for the reading threads while the
    model had nothing to do; write: commits; whole: from the first to the last. captions: embedding and writing those,
    after that."""

    read: float = 0.0
    infer: float = 0.0
    wait: float = 0.0
    write: float = 0.0
    whole: float = 0.0
    captions: float = 0.0


@dataclass
class Outcome:
    """Of one source: how many pictures were new, changed, gone and as before; of them, how many had the bytes of one
    that was known, and were not run through the model; how many captions were, those of other sources that were missing
    too."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    same: int = 0
    copies: int = 0
    captions: int = 0
    set_aside: list[SetAside] = field(default_factory=list)
    misfits: Counter[str] = field(default_factory=Counter)  # column -> cells that were left empty
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def done(self) -> int:
        return self.new + self.changed


@dataclass(frozen=True)
class Read:
    """An item that was read: pixels [3, H, W], or the id of a row that is like it."""

    item: Item
    row: dict[str, Any]
    pixels: "Tensor | None"
    like: str | None
    seconds: float


def update(index: "Index", encoder: Encoder, source: Source, *, progress: Progress | None = None) -> Outcome:
    """Bring the rows of a source up to what is there now. Raises DiptychError for another model than the index's."""
    index.check(encoder.model)
    outcome, start = Outcome(set_aside=[*source.set_aside]), time.perf_counter()
    known = {row["path"]: row for row in states(index, source.name)}
    todo = [i for i in source.items if (i.size, i.mtime) != state_of(known.get(i.path))]
    outcome.same = len(source.items) - len(todo)
    there = {item.path for item in source.items}
    gone = [row["id"] for path, row in known.items() if path not in there]
    names = Names(index, source, known)
    digests = Digests(index, known, todo)
    writer = Writer(index, encoder, digests, names, outcome)
    for i, read in enumerate(read_ahead(encoder, todo, digests, outcome.seconds)):
        if isinstance(read, SetAside):
            outcome.set_aside.append(read)
            before = known.get(todo[i].path)
            gone += [before["id"]] if before else []  # sound once, and no longer
        else:
            outcome.seconds.read += read.seconds
            read.row.update(id=names.of(read.item), source=source.name)
            outcome.changed += read.item.path in known
            outcome.new += read.item.path not in known
            writer.add(read)
        if progress:
            progress(i + 1, len(todo))
    writer.finish()
    index.remove(gone)  # last, so that a picture that was moved is known by its bytes
    outcome.gone = len(gone)
    outcome.seconds.whole = time.perf_counter() - start
    return outcome


def update_captions(
    index: "Index", encoder: Encoder, outcome: Outcome, progress: Callable[[str], Progress] | None = None
) -> None:
    """Embed the texts whose vectors are missing, in commits of `COMMIT`, without a template. progress: see `index`.
    Warns once (TextCut) of those that are longer than the model reads."""
    index.check(encoder.model)
    start, todo = time.perf_counter(), index.uncaptioned()
    tell, cuts = progress("captions") if progress and todo else None, encoder.clip.cuts
    before = cuts.cut
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextCut)  # of one in each call
        for at in range(0, len(todo), COMMIT):
            some = todo[at : at + COMMIT]
            outcome.captions += index.caption(some, encoder.texts([text for _, text in some]))
            if tell:
                tell(at + len(some), len(todo))
    outcome.seconds.captions = time.perf_counter() - start
    if cut := cuts.cut - before:
        limit = f"longer than the {encoder.clip.text.context_length} tokens that {encoder.clip.name} reads"
        warnings.warn(f"{cut} different captions are {limit}: what is cut off is not found", TextCut, stacklevel=2)


def state_of(row: Mapping[str, Any] | None) -> tuple[int, int] | None:
    return None if row is None else (row["size"], row["mtime"])


def states(index: "Index", source: str) -> list[dict[str, Any]]:
    mine = Filter("", Test("source", "=", (source,)))
    return index.select(mine, ["id", "path", "size", "mtime", "digest"]).to_pylist()


class Digests:
    """Bytes whose vector the index has: those of rows that stay as they are, and of an item's own row."""

    def __init__(self, index: "Index", known: Mapping[str, Mapping[str, Any]], todo: Sequence[Item]) -> None:
        self.own = {i.path: (known[i.path]["digest"], known[i.path]["id"]) for i in todo if i.path in known}
        moving = {identifier for _, identifier in self.own.values()}
        rows = index.select(None, ["id", "digest"]).to_pylist()
        self.settled = {row["digest"]: row["id"] for row in rows if row["digest"] and row["id"] not in moving}

    def find(self, item: Item, digest: str) -> str | None:
        """The id of a row with this vector."""
        before, identifier = self.own.get(item.path, ("", ""))
        return identifier if before == digest else self.settled.get(digest)


class Names:
    """Ids: an item's name in its source, and where a row of another source has that name, its source's before it."""

    def __init__(self, index: "Index", source: Source, known: Mapping[str, Mapping[str, Any]]) -> None:
        mine = Test("source", "=", (source.name,))
        other = Filter("", Many("or", (Not(mine), Test("source", "null"))))
        self.taken = set(index.select(other, ["id"])["id"].to_pylist())
        self.index, self.source, self.known = index, source, known

    def of(self, item: Item) -> str:
        return self.known[item.path]["id"] if item.path in self.known else self.new(item)

    def change(self, rows: Sequence[dict[str, Any]], taken: Collection[str]) -> None:
        """Other ids for the rows whose own other sources have taken."""
        self.taken |= set(taken)
        items = {item.path: item for item in self.source.items}
        for row in rows:
            if row["id"] in self.taken:
                row["id"] = self.new(items[row["path"]])
                if row["id"] in self.taken:
                    raise DiptychError(f'{self.index.uri} has another picture with the id "{row["id"]}"')

    def new(self, item: Item) -> str:
        name = item.name
        if name in self.taken:
            name = f"{Path(self.source.name).name}/{item.name}"
        return name if name not in self.taken else f"{self.source.name}/{item.name}"


def read_ahead(
    encoder: Encoder, items: Sequence[Item], digests: Digests, seconds: Seconds
) -> Iterator[Read | SetAside]:
    """In the order of the items, decoded by threads, no more than a few batches ahead."""
    import torch

    threads = torch.get_num_threads()
    waiting: deque[Future[Read | SetAside]] = deque()
    # Each reading thread resizes by itself; a team of torch's for each would take the cores from the model.
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), "read", torch.set_num_threads, (1,)) as pool:
        try:
            for item in itertools.chain(items, [None]):
                if item is not None:
                    waiting.append(pool.submit(read_item, encoder, item, digests))
                while waiting and (item is None or len(waiting) >= AHEAD):
                    start = time.perf_counter()
                    found = waiting.popleft().result()
                    seconds.wait += time.perf_counter() - start
                    yield found
        finally:
            for one in waiting:
                one.cancel()
            torch.set_num_threads(threads)


def read_item(encoder: Encoder, item: Item, digests: Digests) -> Read | SetAside:
    start = time.perf_counter()
    try:
        data, cells = item.read(), item.cells()
        digest = hashlib.sha256(data).hexdigest()
        row = {**cells, "path": item.path, "size": item.size, "mtime": item.mtime, "digest": digest}
        pixels, like = None, digests.find(item, digest)
        if like is None:
            pixels, (row["width"], row["height"]) = encoder.pixels(data)
    except (BadPicture, BadPair) as error:
        return SetAside(item.name, str(error).removeprefix(f"{item.name}: "))
    return Read(item, row, pixels, like, time.perf_counter() - start)


class Writer:
    """Collects what was read: into the model a batch at a time, into the index a commit at a time."""

    def __init__(self, index: "Index", encoder: Encoder, digests: Digests, names: Names, outcome: Outcome) -> None:
        self.index, self.encoder, self.digests, self.names, self.outcome = index, encoder, digests, names, outcome
        self.fresh: list[Read] = []
        self.copies: list[Read] = []
        self.rows: list[dict[str, Any]] = []
        self.vectors: list[np.ndarray] = []
        self.kinds = index.kinds
        self.last = time.perf_counter()

    def add(self, read: Read) -> None:
        self.fit(read.row)
        (self.copies if read.pixels is None else self.fresh).append(read)
        if len(self.fresh) >= BATCH:
            self.infer()
        many = len(self.rows) + len(self.copies) >= COMMIT
        if many or (self.rows and time.perf_counter() - self.last > PATIENCE):
            self.write()

    def fit(self, row: dict[str, Any]) -> None:
        """Empty the cells that their column cannot hold, and count them; new columns are of their first cell's kind."""
        for name, cell in row.items():
            if cell is None:
                continue
            try:
                kind = self.kinds.setdefault(name, kind_of_cell(cell, name))
                cell_of(cell, kind)
            except (TypeError, ValueError, OverflowError):
                row[name] = None
                self.outcome.misfits[name] += 1

    def infer(self) -> None:
        if not self.fresh:
            return
        start = time.perf_counter()
        found = self.encoder.pictures([read.pixels for read in self.fresh if read.pixels is not None])
        self.rows += [read.row for read in self.fresh]
        self.vectors += list(found)
        self.fresh = []
        self.outcome.seconds.infer += time.perf_counter() - start

    def write(self) -> None:
        start = time.perf_counter()
        columns = ["id", "digest", "width", "height", "vector"]
        found = {row["id"]: row for row in self.index.fetch([read.like or "" for read in self.copies], columns)}
        vectors = []
        for read in self.copies:
            like = found.get(read.like or "")
            if like is None or like["digest"] != read.row["digest"]:  # another process has removed or changed it
                pixels, size = self.encoder.pixels(read.item.read())
                like = {"width": size[0], "height": size[1], "vector": self.encoder.pictures([pixels])[0]}
            read.row.update(width=like["width"], height=like["height"])
            vectors.append(np.asarray(like["vector"], np.float32))
        self.rows += [read.row for read in self.copies]
        if self.rows:
            stacked = np.stack([*self.vectors, *vectors])
            while taken := self.index.add(self.rows, stacked):  # by another process, for another source
                self.names.change(self.rows, taken)
        self.digests.settled |= {row["digest"]: row["id"] for row in self.rows}
        self.outcome.copies += len(self.copies)
        self.rows, self.vectors, self.copies = [], [], []
        self.last = time.perf_counter()
        self.outcome.seconds.write += self.last - start

    def finish(self) -> None:
        self.infer()
        self.write()


def as_json(index: "Index", outcomes: Mapping[str, Outcome]) -> str:
    """What was done with each source, and what the index now is."""
    found = []
    for name, outcome in outcomes.items():
        counts = {key: getattr(outcome, key) for key in ("new", "changed", "gone", "same", "copies", "captions")}
        aside = [{"id": one.id, "reason": one.reason} for one in outcome.set_aside]
        rate = outcome.done / max(outcome.seconds.whole, 1e-9)
        about = {"pictures_per_second": rate, "seconds": asdict(outcome.seconds)}
        found.append({"source": name, **counts, **about, "set_aside": aside, "misfits": dict(outcome.misfits)})
    return json.dumps({"sources": found, "index": asdict(index.info)}, indent=1) + "\n"
