"""Captions drawn by chance for each class, as plain arrays that batches make and a merge joins."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.methods.curate.parts.pipeline import Counts


@dataclass(frozen=True)
class Drawn:
    """A caption of a class. chance: what it was drawn by, its own for each row and class; word: the number of the name
    that it says."""

    group: int
    chance: float
    word: int
    caption: str


def pack(drawn: Sequence[Drawn]) -> Counts:
    texts = [one.caption.encode("utf-8", "surrogatepass") for one in drawn]
    return {
        "group": np.array([one.group for one in drawn], np.int32),
        "chance": np.array([one.chance for one in drawn], np.float64),
        "word": np.array([one.word for one in drawn], np.int32),
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "length": np.array([len(text) for text in texts], np.int64),
    }


def join(parts: Sequence[Counts], most: int) -> Counts:
    """Of each class the `most` with the least chance, in the order of class and chance."""
    together = {name: np.concatenate([part[name] for part in parts]) for name in ("group", "chance", "word", "length")}
    text, ends = np.concatenate([part["text"] for part in parts]), np.cumsum(together["length"])
    kept = least(together["group"], together["chance"], most)
    pieces = [text[ends[i] - together["length"][i] : ends[i]] for i in kept]
    return {name: rows[kept] for name, rows in together.items()} | {
        "text": np.concatenate(pieces) if pieces else text[:0]
    }


def least(group: np.ndarray, value: np.ndarray, most: int, *ties: np.ndarray) -> np.ndarray:
    """Indices of the `most` with the least value of each group, in the order of group and value."""
    order = np.lexsort((*ties, value, group))
    sorted_groups = group[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_groups, sorted_groups)
    return order[rank < most]


def unpack(counts: Counts, group: int) -> Iterator[Drawn]:
    """Those of one class, from what `join` gives."""
    ends = np.cumsum(counts["length"])
    first, last = np.searchsorted(counts["group"], [group, group + 1])
    for i in range(first, last):
        caption = counts["text"][ends[i] - counts["length"][i] : ends[i]].tobytes().decode("utf-8", "surrogatepass")
        yield Drawn(group, float(counts["chance"][i]), int(counts["word"][i]), caption)


def judged(
    drawn: Sequence[Drawn], relevant: Callable[[Sequence[Drawn]], list[bool]], batch: int, seen: int, yes: int
) -> list[bool]:
    """The answers for the first of them: in batches, until `seen` are judged and `yes` of them meant the class."""
    answers: list[bool] = []
    while len(answers) < len(drawn) and (len(answers) < seen or sum(answers) < yes):
        answers += relevant(drawn[len(answers) : len(answers) + batch])
    return answers
