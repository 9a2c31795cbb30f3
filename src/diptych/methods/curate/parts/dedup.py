"""Rows that say what an earlier row says: the same pair, the same address, the same file.

The first of each stays, by its place in the input, whatever the number of workers and the order of their work: hashes
are counted with the places they come from, and when all are there they are gone through in the order of the input. What
is left of the counts, then, is the places of the rows to remove.

LAION-5B (arXiv 2210.08402) drops equal pairs by a hash of text and address, and equal addresses by a Bloom filter.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from diptych.methods.curate.parts.bloom import Bloom, hash64
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.vectors import with_column


class Repeats(Stage):
    """Counts: what [N, words] uint64, and for each batch where it began and how many rows it had, [B, 3] int64."""

    counts = True
    why: ClassVar[str]

    @abstractmethod
    def digests(self, batch: pa.RecordBatch) -> np.ndarray:
        """uint64 [N, words]: equal for rows that are repeats of each other."""

    def repeated(self, digests: np.ndarray) -> np.ndarray:
        """[N, words] in the order of the input -> bool [N]: is it equal to an earlier one?"""
        _, first = np.unique(digests, axis=0, return_index=True)
        later = np.ones(len(digests), bool)
        later[first] = False
        return later

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        return {"what": self.digests(batch), "where": np.array([[place.piece, place.row, len(batch)]], np.int64)}

    def merge(self, counts: Sequence[Counts]) -> Counts:
        return {name: np.concatenate([one[name] for one in counts]) for name in ("what", "where")}

    def finish(self, counts: Counts) -> Counts:
        where, what = counts["where"], counts["what"]
        sizes = where[:, 2]
        places = np.repeat(where[:, :2], sizes, axis=0)  # [N, 2]
        places[:, 1] += np.arange(len(what)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = np.lexsort((places[:, 1], places[:, 0]))
        return {"repeats": places[order][self.repeated(what[order])]}

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        places = counts["repeats"]
        low, high = np.searchsorted(places[:, 0], [place.piece, place.piece + 1])
        keep = ~np.isin(np.arange(place.row, place.row + len(batch)), places[low:high, 1])
        return Verdict(batch, keep, ["" if kept else self.why for kept in keep])


class SamePair(Repeats):
    """Adds `uid`, the md5 of text and address, as cc2dataset does."""

    name = "pair"
    about = "the same text and address as an earlier row"
    why = "the same pair again"
    needs = ("text", "url")
    adds = ("uid",)

    def digests(self, batch: pa.RecordBatch) -> np.ndarray:
        return halves([bytes.fromhex(uid) for uid in uids(batch)])

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        return super().select(with_column(batch, "uid", pa.array(uids(batch), pa.string())), place, counts)


class SameUrl(Repeats):
    """By a Bloom filter that is sized for the rows that came, 1.8 bytes each, while it runs."""

    name = "url"
    about = "the same address as an earlier row (Bloom filter)"
    why = "the same address again"
    needs = ("url",)

    def __init__(self, error: float = 1e-3) -> None:
        self.error = error

    def digests(self, batch: pa.RecordBatch) -> np.ndarray:
        return hash64(batch.column("url").to_pylist())[:, None]

    def repeated(self, digests: np.ndarray) -> np.ndarray:
        return Bloom(len(digests), self.error).seen(digests[:, 0])


class SamePicture(Repeats):
    """By the hash of the file as it was downloaded."""

    name = "copies"
    about = "the same file as an earlier row, under another address"
    why = "the same file again"

    def __init__(self, column: str = "sha256") -> None:
        self.column = column
        self.needs = (column,)

    def digests(self, batch: pa.RecordBatch) -> np.ndarray:
        return halves([bytes.fromhex(digest)[:16] for digest in batch.column(self.column).to_pylist()])


def uids(batch: pa.RecordBatch) -> list[str]:
    """md5 of text + url, in hexadecimal digits."""
    pairs = zip(batch.column("text").to_pylist(), batch.column("url").to_pylist(), strict=True)
    return [
        hashlib.md5((text + url).encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
        for text, url in pairs
    ]


def halves(digests: Sequence[bytes]) -> np.ndarray:
    """16 bytes each -> uint64 [N, 2]."""
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64).reshape(-1, 2)
