"""A small world to curate: captions in tables and shards, and a recipe with a stage of every kind."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Place, Stage, Verdict, chance_of

WORDS = ("a", "cat", "dog", "red", "blue", "house", "tree", "running", "in", "the", "of", "city", "moon")


def captions(rows: int, seed: int = 0) -> list[str]:
    drawn = np.random.default_rng(seed)
    words = np.array(WORDS)
    return [" ".join(words[drawn.integers(0, len(words), drawn.integers(1, 9))]) for _ in range(rows)]


def table(path: Path, rows: int, seed: int = 0, group: int = 500) -> Path:
    texts = captions(rows, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"key": [f"{path.stem}-{n}" for n in range(rows)], "caption": texts, "width": list(range(rows))}
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def picture(number: int, side: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, number % 256)).save(out, "JPEG")
    return out.getvalue()


def shard(path: Path, rows: int, first: int = 0, broken: Sequence[int] = ()) -> Path:
    """As img2dataset writes it. broken: rows whose text is empty."""
    texts = captions(rows, first)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for n, text in enumerate(texts):
            key = f"{path.stem}{n:04d}"
            about = {"caption": text, "url": f"http://a.example/{first + n}.jpg", "key": key, "width": 16, "height": 16}
            members = {"jpg": picture(first + n), "txt": b"" if n in broken else text.encode()}
            members["json"] = json.dumps(about).encode()
            for end, data in members.items():
                member = tarfile.TarInfo(f"{key}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


class Short(Stage):
    name, about = "short", "texts of fewer than three words"
    needs = ("text",)
    adds = ("words",)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        words = np.array([len(text.split()) for text in batch.column("text").to_pylist()])
        batch = batch.append_column("words", pa.array(words))
        why = np.where(words >= 3, "", np.where(words == 1, "one word", "two words")).tolist()
        return Verdict(batch, words >= 3, why, {"words": int(words.sum())})


class Seen(Stage):
    """Where a text comes first is known when all were seen."""

    name, about, counts = "seen", "texts that came before", True
    needs = ("text",)

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        texts = np.array(batch.column("text").to_pylist(), dtype=str)
        places = np.array([(place.piece, place.row + n) for n in range(len(texts))], dtype=np.int64).reshape(-1, 2)
        return self.merge([{"texts": texts, "places": places}])

    def merge(self, counts: Sequence[Counts]) -> Counts:
        texts = np.concatenate([one["texts"] for one in counts])
        places = np.concatenate([one["places"] for one in counts])
        texts, first = np.unique(texts, return_index=True)
        return {"texts": texts, "places": places[first]}

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        texts = np.array(batch.column("text").to_pylist(), dtype=str)
        at = counts["places"][np.searchsorted(counts["texts"], texts)]
        keep = (at[:, 0] == place.piece) & (at[:, 1] == place.row + np.arange(len(texts)))
        return Verdict(batch, keep, np.where(keep, "", "seen before").tolist())


class Half(Stage):
    name, about = "half", "every other row, by chance"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        keep = chance_of(batch.column("key").to_pylist(), self.seed, self.name) < 0.5
        return Verdict(batch, keep, np.where(keep, "", "not drawn").tolist())


class Bright(Stage):
    name, about = "bright", "dark pictures"
    needs = ("picture",)
    adds = ("brightness",)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        pictures = [Image.open(io.BytesIO(data)) for data in batch.column("picture").to_pylist()]
        light = np.array([np.asarray(picture).mean() for picture in pictures])
        keep = light > 60
        return Verdict(batch.append_column("brightness", pa.array(light)), keep, np.where(keep, "", "dark").tolist())


@dataclass(frozen=True)
class Config:
    least: int = 3


class Recipe(Pipeline):
    Config = Config

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Stage]:
        bright = [Bright()] if "picture" in columns else []
        return [Short(), *bright, Seen(), Half(seed)]


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a result but the reports, which hold times."""
    kept = [p for p in sorted(out.iterdir()) if p.suffix in (".tar", ".parquet") or "stats" in p.name]
    return {path.name: path.read_bytes() for path in kept}
