"""One look at every picture before anything else: is it sound, what are its bytes, what does it look like."""

import hashlib
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from diptych.data.pictures import BadPicture, decode, picture_bytes
from diptych.data.records import Record, Records
from diptych.data.video import digest, read_frames
from diptych.paths import cache_dir

PRINT_SIDE = 32  # a fingerprint is the picture itself at 32 x 32, RGB
BATCH = 256  # results a write: what a killed scan loses
TABLE = """create table if not exists scans
(path text primary key, size integer, mtime integer, digest text, width integer, height integer, print blob)"""
State = tuple[str, int, int]  # path, size, time of change in nanoseconds


@dataclass(frozen=True)
class Scanned:
    digest: str  # SHA-256 of the bytes, hex
    width: int  # upright
    height: int
    print: bytes  # [PRINT_SIDE, PRINT_SIDE, 3] uint8, for `duplicates`


@dataclass(frozen=True)
class SetAside:
    """A picture that cannot be used."""

    id: str
    reason: str


def scan(
    records: Records, progress: Callable[[int, int], None] | None = None
) -> tuple[Records, dict[str, Scanned], list[SetAside]]:
    """(the sound records, what was seen of each by id, the others with their reasons).

    Decodes in threads. What was seen once is remembered under (path, size, time of change).
    `progress(done, total)` is called as it goes.
    """
    scanned: dict[str, Scanned] = {}
    aside: list[SetAside] = []
    with closing(_Memory(cache_dir() / "scans.sqlite")) as memory:
        states = {record.id: _state(record) for record in records}
        known = memory.recall({state[0]: state for state in states.values() if state is not None})
        unseen: list[Record] = []
        for record in records:
            state = states[record.id]
            if state is not None and state[0] in known:
                scanned[record.id] = known[state[0]]
            else:
                unseen.append(record)
        done = len(scanned)
        if progress is not None:
            progress(done, len(records))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(unseen), BATCH):
                fresh: list[tuple[State | None, Scanned]] = []
                some = unseen[start : start + BATCH]
                look = _look_at_video if records.videos else _look
                for record, seen in zip(some, pool.map(look, some), strict=True):
                    if isinstance(seen, SetAside):
                        aside.append(seen)
                    else:
                        scanned[record.id] = seen
                        fresh.append((states[record.id], seen))
                    done += 1
                    if progress is not None:
                        progress(done, len(records))
                memory.keep(fresh)
    sound = records.filter(lambda record: record.id in scanned)
    return replace(sound, warnings=records.warnings + tuple(memory.warnings)), scanned, aside


def fingerprint(image: Image.Image) -> bytes:
    """The picture as PRINT_SIDE x PRINT_SIDE RGB bytes."""
    # Pillow's bilinear filter widens with the reduction: smooth enough to be shifted by parts of a pixel.
    return image.resize((PRINT_SIDE, PRINT_SIDE), Image.Resampling.BILINEAR).tobytes()


def _look(record: Record) -> Scanned | SetAside:
    try:
        data = picture_bytes(record)
        image, (width, height) = decode(data, at_least=4 * PRINT_SIDE)
    except BadPicture as error:
        return SetAside(record.id, str(error))
    return Scanned(hashlib.sha256(data).hexdigest(), width, height, fingerprint(image))


def _look_at_video(record: Record) -> Scanned | SetAside:
    """The fingerprint is that of four frames side by side: copies are alike in all of them."""
    try:
        sizes: list[tuple[int, int]] = []

        def small(image: Image.Image) -> Image.Image:
            sizes.append(image.size)
            return image.resize((PRINT_SIDE // 2, PRINT_SIDE // 2), Image.Resampling.BILINEAR)

        frames = read_frames(record, 4, small, whole=True)
        found = digest(record)
    except BadPicture as error:
        return SetAside(record.id, str(error))
    canvas = Image.new("RGB", (PRINT_SIDE, PRINT_SIDE))
    for i, frame in enumerate(frames):
        canvas.paste(frame, (i % 2 * frame.width, i // 2 * frame.height))
    return Scanned(found, *sizes[0], canvas.tobytes())


def _state(record: Record) -> State | None:
    """(path, size, time of change) of a record's file; None without a file."""
    if record.read is not None or record.path is None:
        return None
    try:
        stat = record.path.stat()
    except OSError:  # a broken link: opening it will say so
        return None
    return os.path.abspath(record.path), stat.st_size, stat.st_mtime_ns


class _Memory:
    """What earlier scans saw, in SQLite, which lets several processes share it. Without a place to write, nothing."""

    def __init__(self, path: Path) -> None:
        self.warnings: list[str] = []
        self.path = path
        self.base: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.OperationalError) as error:
            self._give_up(error)
        except sqlite3.DatabaseError:
            self._start_anew()

    def _open(self) -> None:
        self.base = sqlite3.connect(self.path, timeout=60)
        self.base.execute(TABLE)

    def _start_anew(self) -> None:
        self.close()
        self.warnings.append(f"the scan cache {self.path} was damaged and has been started anew")
        try:
            self.path.unlink(missing_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.close()
        self.warnings.append(f"the scan cache {self.path} cannot be used ({error}): pictures are scanned each time")

    def close(self) -> None:
        if self.base is not None:
            self.base.close()
            self.base = None

    def recall(self, files: dict[str, State]) -> dict[str, Scanned]:
        """What is known of those files (path -> state) that have not changed."""
        known: dict[str, Scanned] = {}
        paths = list(files)
        try:
            for start in range(0, len(paths) if self.base is not None else 0, 500):
                some = paths[start : start + 500]
                assert self.base is not None
                marks = ",".join("?" * len(some))
                for row in self.base.execute(f"select * from scans where path in ({marks})", some):
                    if row[:3] == files[row[0]]:
                        known[row[0]] = Scanned(*row[3:])
        except sqlite3.DatabaseError:
            self._start_anew()
        return known

    def keep(self, seen: list[tuple[State | None, Scanned]]) -> None:
        rows = [(*state, s.digest, s.width, s.height, s.print) for state, s in seen if state is not None]
        if self.base is None or not rows:
            return
        try:
            with self.base:
                self.base.executemany("insert or replace into scans values (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:  # the disk is full, or the cache was taken away
            self._give_up(error)
