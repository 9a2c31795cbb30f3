"""Small pictures, made from the originals when they are first looked at, and kept on disk within bounds."""

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from diptych.data.pictures import BadPicture, decode, thumbnail_jpeg
from diptych.errors import DiptychError
from diptych.files import write_atomically
from diptych.paths import cache_dir

SIDES = (320, 640, 1600)  # pixels of the longer side: the grid, the grid of a dense screen, the whole page
LIMIT = 1 << 30  # bytes on disk
MAX_PIXELS = 64 << 20  # of a picture that someone hands in; 192 MB when decoded
MAX_FILE = 256 << 20  # bytes of an original


class Thumbs:
    """folder: where they are kept; limit: bytes, beyond which the longest unused go, down to three quarters."""

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder or cache_dir() / "thumbs", limit
        self.lock = threading.Lock()
        self.size: int | None = None  # bytes there; None: not counted yet

    def get(self, version: str, side: int, read: Callable[[], bytes]) -> bytes:
        """A JPEG. version: of the picture, hex; read: its bytes. Raises BadPicture."""
        path = self.folder / version[:2] / f"{version}-{side}.jpg"
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            os.utime(path)
            return data
        data = make(read(), side)
        with contextlib.suppress(DiptychError):  # a full disk is no reason to show nothing
            write_atomically(path, data)
            self.added(len(data))
        return data

    def added(self, count: int) -> None:
        with self.lock:
            self.size = self.measure() if self.size is None else self.size + count
            if self.size > self.limit:
                self.shrink()

    def measure(self) -> int:
        return sum(size for _, size, _ in self.files())

    def files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path), the longest unused first."""
        found = []
        for path in self.folder.glob("??/*.jpg"):
            with contextlib.suppress(OSError):  # another server's shrinking
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        return sorted(found, key=lambda one: one[0])

    def shrink(self) -> None:
        files = self.files()
        self.size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self.size <= self.limit * 3 // 4:
                break
            path.unlink(missing_ok=True)
            self.size -= size


def make(data: bytes, side: int) -> bytes:
    """A picture's bytes -> a JPEG of at most `side` pixels each way, upright, without EXIF. Raises BadPicture."""
    refuse_bomb(data)
    image, _ = decode(data, at_least=side)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return thumbnail_jpeg(image, side)


def upload(data: bytes) -> tuple[str, Image.Image]:
    """What was handed in -> its token and the picture. Raises BadPicture."""
    refuse_bomb(data)
    return hashlib.sha256(data).hexdigest()[:32], decode(data)[0]


def refuse_bomb(data: bytes) -> None:
    """By the size in the header, before anything is decoded; `decode` knows the kinds."""
    if len(data) > MAX_FILE:
        raise BadPicture(f"more than {MAX_FILE >> 20} MB")
    width = height = 0
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:  # `decode` says why it does not open
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS // 10**6} million")
