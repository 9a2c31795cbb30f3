"""Which property of models explains a figure: rows of models with tags, paired differences, and a regression.

A row is {"tags": {tag: word}, "accuracy": ..., metric: ...}. A property that never changes alone cannot be told from
those that change with it: what is found of it is marked "observational".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.metrics.intervals import Interval

ENOUGH = 3  # pairs that differ in one tag alone, from which a conclusion is drawn
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Paired:
    """The mean of metric(model with `word`) - metric(its twin with `other`), over twins that differ in `tag` alone."""

    tag: str
    word: str
    other: str
    mean: float
    pairs: int

    @property
    def conclusive(self) -> bool:
        return self.pairs >= ENOUGH


def paired_differences(rows: Sequence[Row], metric: str) -> list[Paired]:
    """For every two words of a tag that some two rows differ in, all else equal."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for a, b in combinations([row for row in rows if _known(row, metric)], 2):
        names = {*a["tags"], *b["tags"]}
        differ = [n for n in names if a["tags"].get(n) != b["tags"].get(n)]
        if len(differ) == 1 and all(differ[0] in row["tags"] for row in (a, b)):
            first, second = sorted((a, b), key=lambda row: row["tags"][differ[0]])
            key = differ[0], second["tags"][differ[0]], first["tags"][differ[0]]
            found.setdefault(key, []).append(second[metric] - first[metric])
    return [Paired(*key, float(np.mean(values)), len(values)) for key, values in sorted(found.items())]


@dataclass(frozen=True)
class Effect:
    """What a word of a tag adds to the metric beside its most frequent word, at equal accuracy and other tags."""

    tag: str
    word: str
    other: str
    effect: Interval
    observational: bool  # fewer than ENOUGH pairs differ in this tag alone


def regression(rows: Sequence[Row], metric: str, rounds: int = 500, seed: int = 0) -> list[Effect]:
    """Least squares of metric ~ accuracy + one-hot(tags), with a bootstrap over models.

    Intervals are widened by sqrt(n / (n - columns)), since the fit takes a part of the spread. Empty where there are
    no more models than columns.
    """
    rows = [row for row in rows if _known(row, metric)]
    columns: list[tuple[str, str, str]] = []
    for tag in sorted({name for row in rows for name in row["tags"]}):
        words = Counter(str(row["tags"].get(tag, "")) for row in rows)
        first = max(sorted(words), key=words.__getitem__)
        columns += [(tag, word, first) for word in sorted(words) if word != first]
    spare = len(rows) - len(columns) - 2
    if not columns or spare < 1:
        return []
    design = np.array([
        [1.0, row["accuracy"], *(float(str(row["tags"].get(tag, "")) == word) for tag, word, _ in columns)]
        for row in rows
    ])  # [n, 2 + columns]  # fmt: skip
    target = np.array([row[metric] for row in rows], np.float64)
    fitted = _solve(design, target)
    rng, draws = np.random.default_rng(seed), []
    for _ in range(rounds):
        index = rng.integers(0, len(rows), len(rows))
        draws.append(_solve(design[index], target[index]) - fitted)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0) * np.sqrt(len(rows) / spare) + fitted
    pairs = Counter[str]()
    for pair in paired_differences(rows, metric):
        pairs[pair.tag] += pair.pairs
    return [
        Effect(tag, word, other, Interval(float(fitted[i]), float(low[i]), float(high[i])), pairs[tag] < ENOUGH)
        for i, (tag, word, other) in enumerate(columns, 2)
    ]


def within(rows: Sequence[Row], tag: str, x: str, y: str, least: int = 4) -> dict[str, float]:
    """Pearson's correlation of two figures over all rows ("") and inside each word of a tag with `least` rows."""
    known = [row for row in rows if _known(row, x) and _known(row, y)]
    groups = {"": known} | {
        word: [row for row in known if row["tags"].get(tag) == word]
        for word in sorted({str(row["tags"][tag]) for row in known if tag in row["tags"]})
    }
    return {
        word: float(np.corrcoef([r[x] for r in own], [r[y] for r in own])[0, 1])
        for word, own in groups.items()
        if len(own) >= least and len({r[x] for r in own}) > 1 and len({r[y] for r in own}) > 1
    }


def _known(row: Row, metric: str) -> bool:
    value = row.get(metric)
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _solve(design: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.lstsq(design, target, rcond=None)[0], np.float64)
