"""The key that scores are joined by, and a join that loses no row silently."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict


def hash_of(url: str | None, text: str | None) -> int:
    """mmh3.hash64(url + text)[0], signed; None counts as "". Both ends of each are trimmed."""
    raise NotImplementedError


class Hashed(Stage):
    """Adds `hash`, int64."""

    name = "hash"
    about = "adds the key that scores are joined by"
    needs = ("url", "text")
    adds = ("hash",)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        raise NotImplementedError


@dataclass(frozen=True)
class Joined:
    """table: the rows of the metadata in their order, with the scores (null without a partner); alone: the numbers of
    the rows without a partner; repeated: rows of scores left out because their hash came before."""

    table: pa.Table
    alone: Sequence[int]
    repeated: int


def join_scores(metadata: pa.Table, scores: pa.Table, *, least: float = 1.0) -> Joined:
    """LEFT join by hash (made of url and text where there is no such column). Raises DiptychError where fewer than the
    share `least` of the rows find a partner, saying which do not."""
    raise NotImplementedError
