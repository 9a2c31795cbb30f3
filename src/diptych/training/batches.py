"""The batches of a run: which pairs a step sees is a function of (seed, step), whoever loads them.

Threads decode and crop ahead of the step that needs a batch. A pair is loaded by its number, so there may be more
workers than shards, and neither their number nor their order changes a batch.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.core.preprocess import bytes_of, random_box
from diptych.core.tower import Tokens
from diptych.data.pairs import BadPair
from diptych.data.pictures import BadPicture
from diptych.data.scan import SetAside
from diptych.errors import DiptychError
from diptych.methods.pretrain.parts.objective import Batch, Objective, PairsLike

SLICE = 32  # pairs a job
AHEAD = 2  # batches that are loaded while one is worked on
TRIES = 1000  # unusable pairs in a row that are passed over


@dataclass(frozen=True)
class Order:
    """Epochs are permutations of all pairs, cut into batches; the rest of an epoch that fills none is left out."""

    pairs: int
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return self.pairs // self.batch

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """Numbers of the pairs of a step [batch]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return permutation(self.pairs, self.seed, epoch)[place * self.batch : (place + 1) * self.batch]


@lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True)
class Sample:
    """One pair as a step sees it."""

    index: int
    id: str
    pixels: Tensor  # [3, H, W] uint8
    words: dict[str, str]
    extra: dict[str, np.ndarray]


@dataclass
class Batches:
    """Batches by step. crop: the least area of a random resized crop, 1 for the plain picture.

    share: (rank, world) of this process: it loads its part of each batch alone. set_aside: what was met so far that
    cannot be used; the next usable pair takes its place.
    """

    pairs: PairsLike
    clip: CLIP
    objective: Objective
    order: Order
    crop: float = 0.9
    workers: int = 2
    share: tuple[int, int] = (0, 1)
    set_aside: dict[int, SetAside] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, number: int, epoch: int) -> Sample:
        """The pair of this number, or the next that can be used. A function of (seed, epoch, number)."""
        for step in range(TRIES):
            index = (number + step) % len(self.pairs)
            if index in self.set_aside:
                continue
            try:
                return self.sample(index, np.random.default_rng([self.order.seed, epoch, number, 0xA06]))
            except (BadPair, BadPicture) as error:
                with self.lock:
                    self.set_aside[index] = SetAside(self.identifier(index), reason_of(error))
        some = next(iter(self.set_aside.values()))
        raise DiptychError(f"{self.pairs.source}: {TRIES} pairs in a row cannot be used; {some.id}: {some.reason}")

    def identifier(self, index: int) -> str:
        try:
            return self.pairs[index].id
        except BadPair as error:
            return str(error).partition(": ")[0]

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        pair, look = self.pairs[index], self.clip.preprocess
        image = pair.picture()
        if self.crop < 1:
            pixels = look.resized(image, random_box(image.size, rng, (self.crop, 1.0)))
        else:
            pixels = bytes_of(look.crop(image))
        return Sample(index, pair.id, pixels, self.objective.words(pair, rng), self.objective.extra_of(pair, index))

    def slices(self, step: int) -> list[np.ndarray]:
        """This process's rows of a step, in jobs."""
        rank, world = self.share
        rows = np.array_split(self.order.rows(step), world)[rank]
        return [rows[i : i + SLICE] for i in range(0, len(rows), SLICE)]

    def job(self, rows: np.ndarray, epoch: int) -> list[Sample]:
        return [self.load(int(row), epoch) for row in rows]

    def collate(self, samples: list[Sample], step: int) -> tuple[Batch, list[str]]:
        """(the batch, ids of its pairs)."""
        words = {role: [s.words[role] for s in samples] for role in self.objective.texts}
        texts = {role: self.clip.tokenize(said, warn=not self.clip.cuts.cut) for role, said in words.items()}
        extra = {
            name: torch.from_numpy(np.stack([s.extra[name] for s in samples])) for name in (samples[0].extra or {})
        }
        index = torch.tensor([s.index for s in samples])
        pixels = self.clip.preprocess.normalise(torch.stack([s.pixels for s in samples]))
        ids = text_ids(texts[self.objective.texts[0]]) if texts else None
        return Batch(index, pixels, texts, extra, step, ids), [s.id for s in samples]

    def __getitem__(self, step: int) -> tuple[Batch, list[str]]:
        epoch = self.order.epoch(step)
        return self.collate([s for rows in self.slices(step) for s in self.job(rows, epoch)], step)

    def run(self, first: int, last: int) -> Iterator[tuple[Batch, list[str]]]:
        """The batches of steps first..last-1, loaded ahead."""
        if not self.workers:
            yield from (self[step] for step in range(first, last))
            return
        waiting: deque[list[Future[Any]]] = deque()
        pool = ThreadPoolExecutor(self.workers, "pairs")
        try:
            for step in range(first, last):
                while len(waiting) < AHEAD and (ahead := step + len(waiting)) < last:
                    epoch = self.order.epoch(ahead)
                    waiting.append([pool.submit(self.job, rows, epoch) for rows in self.slices(ahead)])
                yield self.collate([s for job in waiting.popleft() for s in job.result()], step)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def text_ids(tokens: Tokens) -> Tensor:
    """[B] int64 of the tokens that a tower reads: the same number for the same text, in any process."""
    rows = [ids[mask].numpy().tobytes() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    return torch.tensor([int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), signed=True) for row in rows])


def reason_of(error: DiptychError) -> str:
    text = str(error)
    return text.rpartition(": ")[2] if isinstance(error, BadPair) else text
