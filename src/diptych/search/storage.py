"""Where an index lies: a LanceDB folder, or object storage; and in plain words what goes wrong there."""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from diptych.errors import DiptychError, missing_extra

T = TypeVar("T")
PATIENCE = 10.0  # seconds for object storage to answer for the first time; its client by itself waits for many minutes
SETTLED = 100_000_000  # nanoseconds after which a file's time of change is taken to be its last
TURNS = 12  # tries beside other writers, some tenths of a second apart
CONFLICT = re.compile(
    r"commit conflict|concurrent writers|WriteContention|already exists|Table '.*' was not found", re.IGNORECASE
)
ANSWERED = re.compile(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", re.DOTALL)  # of S3
ADDRESS = re.compile(r"uri: Some\((\w+://[^/)]*)")
CAUSES = (
    ("BadScheme", "an http:// endpoint needs AWS_ALLOW_HTTP=true"),
    ("credentials", "no credentials; for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("status: 401", "the credentials were refused"),
    ("status: 403", "the credentials were refused"),
    ("status: 404", "no such bucket"),
    ("kind: Connect", "no server answers at {address}"),
    ("kind: Timeout", "no answer from {address}"),
)


class StorageError(DiptychError):
    """The place where an index lies failed."""


class Busy(StorageError):
    """Another process wrote at the same time, and this write was not made."""


class Exists(DiptychError):
    """There already is an index."""


def connect(uri: str | Path, make: bool = False) -> Any:
    """A LanceDB connection to a folder or to object storage. Raises StorageError where it cannot be reached."""
    os.environ.setdefault("LANCE_LOG", "error")  # its words to its own callers; read at the import
    try:
        import lancedb
    except ImportError as error:
        raise missing_extra("lancedb", "search", "an index") from error
    with plainly(uri):
        if "://" in str(uri):
            return in_time(lambda: lancedb.connect(str(uri)), uri)
        place = Path(uri).expanduser().absolute()
        if make:
            place.mkdir(parents=True, exist_ok=True)
        return lancedb.connect(str(place))


def tables_of(database: Any) -> list[str]:
    with plainly(database.uri):
        return list(database.list_tables().tables)


def open_table(database: Any, name: str) -> Any:
    with plainly(database.uri):
        return database.open_table(name)


def written(uri: str, table: str) -> int | None:
    """When the table was last written to, in nanoseconds; None where that cannot be told from the folder.

    File systems keep time in steps of some milliseconds, so a very recent time is no sure sign.
    """
    if "://" in uri:
        return None
    changed = os.stat(Path(uri).expanduser() / f"{table}.lance" / "_versions").st_mtime_ns
    return changed if time.time_ns() - changed > SETTLED else None


@contextmanager
def plainly(uri: str | Path) -> Iterator[None]:
    """Around calls of Lance alone, whose errors it tells in one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if CONFLICT.search(str(error)):
            raise Busy(
                f"another process writes to {uri} too, and this one did not get its turn; nothing that was written is "
                "lost, and the same command goes on from there"
            ) from error
        raise StorageError(f"cannot use the index at {uri}: {cause(str(error))}") from error


def cause(words: str) -> str:
    if answered := ANSWERED.search(words):
        return f"{answered[2].rstrip('.')} ({answered[1]})"
    address = ADDRESS.search(words)
    for sign, said in CAUSES:
        if sign in words:
            return said.format(address=address[1] if address else "its address")
    return re.sub(r", /\S+\.rs:\S+$", "", words.splitlines()[0])[:300]  # the place in Lance's own sources


def in_time(work: Callable[[], T], uri: str | Path) -> T:
    """work(), which cannot be interrupted. Raises StorageError where it takes longer than PATIENCE."""
    found: SimpleQueue[T | Exception] = SimpleQueue()

    def run() -> None:
        try:
            found.put(work())
        except Exception as error:
            found.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        result = found.get(timeout=PATIENCE)
    except Empty:
        raise StorageError(f"cannot use the index at {uri}: no answer within {PATIENCE:g} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result


def in_turn(work: Callable[[], T]) -> T:
    """work(), again where another process wrote meanwhile. Raises Busy where its turn does not come."""
    for _ in range(TURNS - 1):
        try:
            return work()
        except Busy:
            time.sleep(random.uniform(0.05, 0.5))
    return work()
