"""Embeddings on disk, each paid for once: keyed by model, picture bytes and view; shared by methods and runs.

One append-only float32 file a space (model x view) and one SQLite index. Rows become visible by the commit of the
index, so a killed writer leaves at most an unused tail, which the next writer overwrites.
"""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.data.pictures import open_picture
from diptych.data.records import Record, Records
from diptych.data.support import CROP
from diptych.data.video import read_frames
from diptych.errors import DiptychError
from diptych.paths import cache_dir

BATCH = 32
LIMIT = 8 << 30  # bytes; the least recently used spaces go first
Progress = Callable[[int, int], None]

SCHEMA = """
CREATE TABLE IF NOT EXISTS spaces (
    space TEXT PRIMARY KEY, model TEXT, width INT, rows INT DEFAULT 0, used REAL);
CREATE TABLE IF NOT EXISTS rows (
    space TEXT, key BLOB, row INT, seconds REAL, PRIMARY KEY (space, key)) WITHOUT ROWID;
"""


def feature_folder() -> Path:
    return cache_dir() / "features"


@contextlib.contextmanager
def index(folder: Path) -> Iterator[sqlite3.Connection]:
    """The index, opened for one use: connections do not survive a fork."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / "index.sqlite", timeout=60, isolation_level=None)
        with closing(connection):
            connection.executescript(SCHEMA)
            yield connection
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error) or "not a database" in str(error):
            shutil.rmtree(folder, ignore_errors=True)
            raise DiptychError(f"the feature cache at {folder} was damaged and is now empty; start again") from error
        raise DiptychError(f"cannot use the feature cache at {folder}: {error}; set DIPTYCH_CACHE") from error
    except OSError as error:
        raise DiptychError(f"cannot use the feature cache at {folder}: {error.strerror}; set DIPTYCH_CACHE") from error


class Space:
    """The rows of one model and view: key (bytes) -> float32 vector and the seconds it took."""

    def __init__(self, folder: Path, name: str, model: str, width: int) -> None:
        self.folder, self.name, self.width = folder, name, width
        self.data = folder / f"{name}.f32"
        self.known: dict[bytes, tuple[int, float]] = {}
        with index(folder) as db:
            db.execute("INSERT OR IGNORE INTO spaces VALUES (?, ?, ?, 0, ?)", (name, model, width, time.time()))
            db.execute("UPDATE spaces SET used = ? WHERE space = ?", (time.time(), name))
        self.refresh()

    def refresh(self) -> None:
        """Read the index; rows that the file no longer holds are forgotten."""
        whole = self.whole_rows()
        with index(self.folder) as db:
            rows = db.execute("SELECT key, row, seconds FROM rows WHERE space = ?", (self.name,)).fetchall()
            if any(row >= whole for _, row, _ in rows):
                db.execute("DELETE FROM rows WHERE space = ? AND row >= ?", (self.name, whole))
        self.known = {bytes(key): (row, seconds) for key, row, seconds in rows if row < whole}

    def whole_rows(self) -> int:
        return self.data.stat().st_size // (4 * self.width) if self.data.exists() else 0

    def read(self, keys: Sequence[bytes]) -> np.ndarray:
        """[len(keys), width]; all must be known."""
        if not keys:
            return np.empty((0, self.width), np.float32)
        rows = np.memmap(self.data, np.float32, "r", shape=(self.whole_rows(), self.width))
        return rows[[self.known[key][0] for key in keys]]

    def seconds(self, keys: Sequence[bytes]) -> float:
        return sum(self.known[key][1] for key in keys)

    def write(self, keys: Sequence[bytes], rows: np.ndarray, seconds: float) -> None:
        """Append; visible to others when the index commits."""
        rows = np.ascontiguousarray(rows, np.float32)
        with index(self.folder) as db:
            db.execute("BEGIN IMMEDIATE")
            (first,) = db.execute("SELECT rows FROM spaces WHERE space = ?", (self.name,)).fetchone()
            with open(self.data, "r+b" if self.data.exists() else "w+b") as file:
                file.seek(first * 4 * self.width)
                file.write(rows.tobytes())
                file.flush()
                os.fsync(file.fileno())
            entries = [(self.name, key, first + i, seconds) for i, key in enumerate(keys)]
            db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", entries)
            db.execute("UPDATE spaces SET rows = ? WHERE space = ?", (first + len(keys), self.name))
            db.execute("COMMIT")
        self.known |= {key: (first + i, seconds) for i, key in enumerate(keys)}


class FeatureStore:
    """The `FeatureSource` of a task. digests: record id -> hash of the picture's bytes.

    frames: of each video, the middles of so many equal segments; 0 for pictures. Each frame has a row of its own.
    """

    def __init__(
        self, digests: dict[str, str], *, frames: int = 0, progress: Progress | None = None, limit: int = LIMIT
    ) -> None:
        self.digests, self.frames, self.progress, self.limit = digests, frames, progress, limit
        self.folder = feature_folder()
        self.spaces: dict[str, Space] = {}

    def space(self, clip: CLIP, view: str) -> Space:
        name = hashlib.sha256(f"{clip.fingerprint} {view}".encode()).hexdigest()[:32]
        if name not in self.spaces:
            self.spaces[name] = Space(self.folder, name, clip.name, clip.embed_dim)
        return self.spaces[name]

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> Tensor:
        """Unit embeddings [N, D] on the model's device; with views, [N, views, D] of augmented pictures.

        Of a video, the mean of its frames' embeddings, which are not normalised before.
        """
        found = F.normalize(self.rows(clip, records, views, crop).mean(1), dim=-1)
        return found.reshape(len(records), views, -1) if views else found

    def rows(self, clip: CLIP, records: Records, views: int, crop: tuple[float, float] = CROP) -> Tensor:
        """[N * max(views, 1), T, D], not normalised; T is 1 for pictures."""
        space = self.space(clip, self.view_name(views, crop))
        self.fill(clip, records, views=views, crop=crop)
        found = torch.from_numpy(space.read([key for r in records for key in self.keys(r, views)]))
        return found.to(clip.device).reshape(-1, max(self.frames, 1), clip.embed_dim)

    def view_name(self, views: int, crop: tuple[float, float]) -> str:
        name = f"crop {crop[0]:g}-{crop[1]:g}" if views else "plain"
        return f"{name}, {self.frames} frames" if self.frames else name

    def keys(self, record: Record, views: int) -> list[bytes]:
        keys = [bytes.fromhex(self.digests[record.id])]
        for count in (views, self.frames):
            keys = [key + i.to_bytes(2, "big") for key in keys for i in range(count)] if count else keys
        return keys

    def seconds(self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> float:
        """What encoding these pictures took when it was done."""
        space = self.space(clip, self.view_name(views, crop))
        return space.seconds([key for r in records for key in self.keys(r, views)])

    def missing(
        self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP
    ) -> list[Record]:
        known = self.space(clip, self.view_name(views, crop)).known
        wanted = {self.digests[r.id]: r for r in records}  # exact copies are encoded once
        return [r for r in wanted.values() if any(key not in known for key in self.keys(r, views))]

    def fill(self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> None:
        """Encode what is not there yet; batches are kept as they are done."""
        missing = self.missing(clip, records, views=views, crop=crop)
        if not missing:
            return
        self.evict()
        space = self.space(clip, self.view_name(views, crop))
        size = max(1, BATCH // (max(views, 1) * max(self.frames, 1)))
        parts = [missing[i : i + size] for i in range(0, len(missing), size)]

        def load(part: list[Record]) -> tuple[list[bytes], Tensor]:
            keys = [key for record in part for key in self.keys(record, views)]
            return keys, torch.cat([self.views(clip, record, views, crop) for record in part])

        done = 0
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(load, part) for part in parts[:3]]
            for i, part in enumerate(parts):
                start = time.perf_counter()
                keys, pixels = waiting.pop(0).result()
                if i + 3 < len(parts):
                    waiting.append(pool.submit(load, parts[i + 3]))
                with torch.inference_mode():
                    rows = clip.encode_image(pixels).float().cpu().numpy()
                space.write(keys, rows, (time.perf_counter() - start) / len(keys))
                done += len(part)
                if self.progress:
                    self.progress(done, len(missing))

    def views(self, clip: CLIP, record: Record, views: int, crop: tuple[float, float]) -> Tensor:
        """[1, 3, H, W] of the plain picture, or [views, 3, H, W], a function of its bytes alone; frames come last."""
        seed = int(self.digests[record.id][:16], 16)
        rngs = [np.random.default_rng([seed, v]) for v in range(views)] or [None]
        if self.frames:
            return torch.cat([self.clip_pixels(clip, record, rng, crop) for rng in rngs])
        image = open_picture(record)
        return torch.stack([clip.preprocess.view(image, rng, crop) if rng else clip.preprocess(image) for rng in rngs])

    def clip_pixels(
        self, clip: CLIP, record: Record, rng: np.random.Generator | None, crop: tuple[float, float]
    ) -> Tensor:
        """[T, 3, H, W] of a video; with a generator, a random frame of each segment, the same crop of all."""
        if rng is None:
            return torch.stack(read_frames(record, self.frames, clip.preprocess))
        same = int(rng.integers(2**63))

        def look(image: Image.Image) -> Tensor:
            return clip.preprocess.view(image, np.random.default_rng(same), crop)

        return torch.stack(read_frames(record, self.frames, look, rng=rng))

    def texts(self, clip: CLIP, texts: Sequence[str]) -> Tensor:
        """Embeddings [len(texts), D], not normalised, on the model's device."""
        space = self.space(clip, "text")
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in space.known}
        if missing:
            start = time.perf_counter()
            rows = clip.encode_text(list(missing.values())).float().cpu().numpy()
            space.write(list(missing), rows, (time.perf_counter() - start) / len(missing))
        return torch.from_numpy(space.read(keys)).to(clip.device)

    def pixels(
        self,
        clip: CLIP,
        records: Records,
        *,
        rng: np.random.Generator | None = None,
        crop: tuple[float, float] = CROP,
    ) -> Tensor:
        """[N, 3, H, W], of videos [N, T, 3, H, W]; with a generator, a fresh augmented view of each."""
        if self.frames:
            return torch.stack([self.clip_pixels(clip, record, rng, crop) for record in records])
        images = (open_picture(record) for record in records)
        return torch.stack([clip.preprocess.view(i, rng, crop) if rng else clip.preprocess(i) for i in images])

    def evict(self) -> None:
        """Drop the least recently used spaces beyond the limit, never one in use here."""
        with index(self.folder) as db:
            spaces = db.execute("SELECT space, width, rows FROM spaces ORDER BY used").fetchall()
        total = sum(4 * width * rows for _, width, rows in spaces)
        for name, width, rows in spaces:
            if total <= self.limit:
                break
            if name not in self.spaces:
                drop(self.folder, name)
                total -= 4 * width * rows


def drop(folder: Path, space: str) -> None:
    with index(folder) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM rows WHERE space = ?", (space,))
        db.execute("DELETE FROM spaces WHERE space = ?", (space,))
        db.execute("COMMIT")
    (folder / f"{space}.f32").unlink(missing_ok=True)


@dataclass(frozen=True)
class Cached:
    """One space of the cache: a model's pictures, views or texts."""

    model: str
    rows: int
    bytes: int
    used: float  # seconds since 1970


def cache_info() -> list[Cached]:
    """What the feature cache holds, the most recently used first."""
    if not feature_folder().exists():
        return []
    with index(feature_folder()) as db:
        found = db.execute("SELECT model, rows, 4 * width * rows, used FROM spaces ORDER BY used DESC").fetchall()
    return [Cached(*row) for row in found]


def cache_clear() -> int:
    """Remove every cached feature; -> the bytes freed."""
    freed = sum(entry.bytes for entry in cache_info())
    shutil.rmtree(feature_folder(), ignore_errors=True)
    return freed
