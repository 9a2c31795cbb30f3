"""Counts of more words than memory holds: they go to disk in parts, by hash, and each part is summed alone."""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from diptych.files import atomic

HELD = 1_000_000  # distinct words in memory at a time
PARTS = 64
SCHEMA = pa.schema([("word", pa.string()), ("count", pa.int64())])


class Tally:
    """How often each word was said. folder: where its files lie; what an earlier tally left there counts too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = Counter[str]()

    def add(self, words: Iterable[str] | Mapping[str, int]) -> None:
        """Words, or how often each was said."""
        self.held.update(words)
        if len(self.held) > HELD:
            self.flush()

    def flush(self) -> None:
        """Write what is held, a batch a part."""
        if not self.held:
            return
        words, counts = np.array([*self.held], object), np.fromiter(self.held.values(), np.int64, len(self.held))
        self.held = Counter()
        part = np.fromiter((zlib.crc32(word.encode()) % PARTS for word in words), np.int64, len(words))
        order = np.argsort(part, kind="stable")
        ends = np.searchsorted(part[order], np.arange(PARTS + 1))
        target = self.folder / f"{len(files_of(self.folder)):06d}.arrow"
        options = ipc.IpcWriteOptions(compression="lz4")
        with atomic(target) as place, ipc.new_file(str(place), SCHEMA, options=options) as file:
            for begin, end in pairwise(ends.tolist()):
                some = order[begin:end]
                file.write_batch(pa.record_batch([pa.array(words[some], pa.string()), counts[some]], schema=SCHEMA))


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def summed(folders: Sequence[Path]) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """(words [N], counts [N]) of all tallies flushed into folders, part by part: a word is in one part alone."""
    files = [file for folder in folders for file in files_of(folder)]
    for part in range(PARTS if files else 0):
        batches = []
        for path in files:
            with pa.memory_map(str(path)) as source, ipc.open_file(source) as file:
                batches.append(file.get_batch(part))
        table = pa.Table.from_batches(batches).group_by("word").aggregate([("count", "sum")]).combine_chunks()
        counts = table.column("count_sum").to_numpy()
        yield pa.concat_arrays(table.column("word").chunks or [pa.array([], pa.string())]), counts
