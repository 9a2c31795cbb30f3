"""Tar shards of webdataset and img2dataset, read in place: an index of members by offset, then one read a member.

An archive is a stranger's: links, absolute paths and members beyond the limits are set aside, nothing is unpacked.
"""

import hashlib
import json
import re
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from diptych.data.pairs import MAX_BYTES, MAX_TEXT, BadPair, Pair, Pairs, digest_of, need_texts, picture_of, read_text
from diptych.data.pictures import EXTENSIONS, BadPicture
from diptych.data.scan import SetAside
from diptych.errors import DiptychError
from diptych.files import atomic
from diptych.paths import cache_dir

PICTURE, TEXT, META = 0, 1, 2
FORMAT = 1  # of the kept index


def expand(source: str) -> list[Path]:
    """`shards/{00000..00099}.tar` -> 100 paths. Without a range, the path itself."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if found is None:
        return [Path(source).expanduser()]
    first, last = found[1], found[2]
    if int(last) < int(first) or int(last) - int(first) > 10**6:
        raise DiptychError(f"{source}: the range {found[0]} is empty or too long")
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [path for n in numbers for path in expand(f"{source[: found.start()]}{n}{source[found.end() :]}")]


@dataclass(frozen=True)
class Shard:
    """keys [P]; starts [P + 1]: where each pair's members begin in `members` [M, 3] (kind, offset, size)."""

    path: Path
    keys: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    aside: tuple[SetAside, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def pair(self, row: int) -> Pair:
        identifier = f"{self.path.stem}/{self.keys[row]}"
        members = self.members[self.starts[row] : self.starts[row + 1]].tolist()
        place, length = next((offset, size) for kind, offset, size in members if kind == PICTURE)
        texts = [self.text(offset, size, identifier) for kind, offset, size in members if kind == TEXT]
        extra: dict[str, Any] = {}
        for kind, offset, size in members:
            if kind == META:
                extra |= parsed(self.text(offset, size, identifier), identifier)
        if not texts:
            caption, captions = extra.get("caption"), extra.get("captions")
            texts = [text for text in [caption, *(captions or [])] if isinstance(text, str)]
        picture = partial(picture_of, partial(read_member, self.path, place, length))
        return Pair(identifier, picture, need_texts(identifier, texts), extra)

    def text(self, offset: int, size: int, identifier: str) -> str:
        return read_text(read_member(self.path, offset, size), identifier)


def parsed(text: str, identifier: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadPair(f"{identifier}: its JSON is damaged") from error
    return found if isinstance(found, dict) else {}


def read_member(path: Path, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise BadPicture(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if len(data) < size:
        raise BadPicture(f"truncated ({path} has become shorter)")
    return data


def read_shards(paths: Sequence[Path], source: str) -> Pairs:
    """The pairs of all shards, in their order. A shard that cannot be opened is set aside as a whole."""
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        raise DiptychError(f"{source}: no such shard, {missing[0]}")
    with ThreadPoolExecutor(4) as pool:
        shards = list(pool.map(index_of, (path for path in paths if path not in set(missing))))
    aside = [SetAside(str(path), "no such shard") for path in missing]
    aside += [one for shard in shards for one in shard.aside]
    starts = np.cumsum([0, *map(len, shards)]).tolist()

    def get(index: int) -> Pair:
        shard = bisect_right(starts, index) - 1
        return shards[shard].pair(index - starts[shard])

    return Pairs(source, starts[-1], get, tuple(aside), digest_of(paths))


def index_of(path: Path) -> Shard:
    """A shard's index, kept under (path, size, time of change)."""
    state = path.stat()
    name = hashlib.sha256(f"{FORMAT} {path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = cache_dir() / "shards" / f"{name}.npz"
    try:
        with np.load(kept, allow_pickle=False) as file:
            aside = tuple(SetAside(one, why) for one, why in file["aside"].tolist())
            return Shard(path, file["keys"], file["starts"], file["members"], aside)
    except (OSError, ValueError, KeyError):
        shard = look_through(path, state.st_size)
    with atomic(kept) as temporary, open(temporary, "wb") as file:
        about = np.array([(one.id, one.reason) for one in shard.aside], dtype=str).reshape(-1, 2)
        np.savez(file, keys=shard.keys, starts=shard.starts, members=shard.members, aside=about)
    return shard


def look_through(path: Path, size: int) -> Shard:
    """Read the headers alone."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    aside: list[SetAside] = []
    count = 0
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                count += 1
                if reason := refusal(member, size):
                    aside.append(SetAside(f"{path.name}/{member.name}", reason))
                elif member.isfile() and (kind := kind_of(member)) is not None:
                    found.setdefault(key_of(member.name), []).append((kind, member.offset_data, member.size))
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - tarfile keeps every header
            file.seek(archive.offset)
            if archive.offset < size and any(file.read(512)):  # tarfile takes a damaged header for the end
                aside.append(SetAside(str(path), f"a damaged shard (after {count} members)"))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        aside.append(SetAside(str(path), f"a broken shard (after {count} members: {error})"))
    keys, starts, members = [], [0], []
    for key, parts in found.items():
        kinds = {kind for kind, _, _ in parts}
        if PICTURE not in kinds or len(kinds) == 1:
            aside.append(SetAside(f"{path.name}/{key}", "no text" if PICTURE in kinds else "no picture"))
            continue
        keys.append(key)
        members += parts
        starts.append(len(members))
    table = np.array(members, dtype=np.int64).reshape(-1, 3)
    return Shard(path, np.array(keys, dtype=str), np.array(starts), table, tuple(aside))


def refusal(member: tarfile.TarInfo, size: int) -> str | None:
    """Why a member is not read; None where it may be."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        return "a path that leads out of the archive"
    if member.issym() or member.islnk():
        return "a link"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "no plain file"
    if member.offset_data + member.size > size:
        return "cut off by the end of the shard"
    most = MAX_BYTES if kind_of(member) == PICTURE else MAX_TEXT
    return f"more than {most >> 20} MB" if kind_of(member) is not None and member.size > most else None


def key_of(name: str) -> str:
    """webdataset's: all up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    stem = file.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def kind_of(member: tarfile.TarInfo) -> int | None:
    last = f".{member.name.rpartition('.')[2].lower()}"
    if last in EXTENSIONS:
        return PICTURE
    return {".txt": TEXT, ".text": TEXT, ".caption": TEXT, ".json": META}.get(last)
