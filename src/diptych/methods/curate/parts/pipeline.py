"""The protocol of the `curate` family: a system is a list of stages, each a function on Arrow batches.

A stage sees rows and says which to keep and why not. One that must have seen everything first (how often is a concept
named? which of these is the first?) counts batches, and the counts are merged, before it selects. Nothing else is
known of the machine: the same stages run in one process, in several, and on a cluster, with the same result. Whatever
is drawn by chance is therefore drawn from the seed and the row's key (`chance_of`), never from the order of the work.

Columns have the names of the field. `key` identifies a row and is always there; `text` (or `texts`, a list) is the
caption, `picture` the bytes of a picture file, `url`, `page_url`, `width`, `height`, `language`, `similarity`,
`embedding`, `punsafe`, `pwatermark`, `aesthetic`, `weight` (how often a trainer should draw the row), `source`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from diptych.methods.settings import changed
from diptych.report import Section

Progress = Callable[[str, int, int], None]  # (what is done, how much, of)
Counts = dict[str, np.ndarray]  # plain arrays, so that they can be written and read without pickling


@dataclass(frozen=True)
class Place:
    """Where a batch lies: the number of its piece of the input, and of its first row within what reached the stage."""

    piece: int
    row: int


@dataclass(frozen=True)
class Verdict:
    """What a stage says of a batch: `batch` has the same rows, with columns added or changed; keep: bool [N]; why: a
    reason a row, of few distinct ones, "" where it is kept. tallies: other things counted, such as texts removed; one
    whose name begins with "_" is for the stage's own sections."""

    batch: pa.RecordBatch
    keep: np.ndarray
    why: Sequence[str]
    tallies: Mapping[str, int] = field(default_factory=dict)


class Stage(ABC):
    """One step. Picklable: what is heavy (a model, a connection) is made when it is first used, not in `__init__`."""

    name: ClassVar[str]
    about: ClassVar[str]  # what it removes or adds, in a line of the report
    needs: tuple[str, ...] = ()  # columns that it reads
    adds: tuple[str, ...] = ()  # columns that it makes; what the input had of that name goes, unless it is needed too
    counts: ClassVar[bool] = False  # whether it must count everything before it selects

    def prepare(self, folder: Path, progress: Progress) -> None:  # noqa: B027 - most have nothing to make
        """Once a run, before any row is read: make what takes long. What is written to `folder`, where the result will
        be, is there for every worker and after a stop; what is written to its `.work`, until the end."""

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        """What `select` must know of these rows: plain arrays, no objects. Where no row comes, nothing is counted."""
        raise NotImplementedError

    def merge(self, counts: Sequence[Counts]) -> Counts:
        """Counts of several batches, in their order, as those of one."""
        raise NotImplementedError

    def finish(self, counts: Counts) -> Counts:
        """Once, when everything is merged."""
        return counts

    @abstractmethod
    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        """counts: of everything that reached the stage; empty where it does not count."""

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        """What the report shows of this stage beside how many rows it removed and why."""
        return ()

    def files(self, counts: Counts) -> Mapping[str, bytes]:
        """What is written beside the rows that are left: the name of a file, its content."""
        return {}


class Source(ABC):
    """A first step that makes rows: links out of an archive, whose path is in the column `archive`. `create` gives
    batches for a batch of what there was; rows without a `key` are numbered."""

    name: ClassVar[str]
    about: ClassVar[str]
    needs: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()

    @abstractmethod
    def create(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]: ...


class Pipeline(ABC):
    """A system, named by its file, with a frozen Config. needs: in words, for tables."""

    Config: ClassVar[type]
    needs: ClassVar[str] = "pictures with texts"
    trains: ClassVar[str] = "nothing"

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def system(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        """What the tables of systems show."""
        return {"needs": cls.needs, "trains": cls.trains, "cost": "rows, a batch at a time", "names_new_classes": True}

    @abstractmethod
    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Source | Stage]:
        """The steps for an input that has these columns. Raises DiptychError where they do not suffice, naming what is
        missing and what would serve."""


def configure(pipeline: type[Pipeline], settings: Mapping[str, str]) -> Pipeline:
    """`--set <system>.<field>=value` -> a pipeline. Raises DiptychError naming the field and the nearest valid one."""
    return pipeline(changed(pipeline.Config(), settings, pipeline.system()))


def chance_of(keys: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """A number in [0, 1) for each key [N], the same on every machine and in every order; independent for each purpose
    (the name of a stage, of an entry)."""
    salt = f"{seed}\0{purpose}\0".encode()
    digests = (hashlib.blake2b(salt + key.encode("utf-8", "surrogatepass"), digest_size=8).digest() for key in keys)
    drawn = np.frombuffer(b"".join(digests), dtype="<u8")
    return (drawn >> np.uint64(11)) * 2.0**-53
