"""Lines over runs: accuracy under a shift against that on the reference, on probit axes, with what is unsure of it.

Taori et al. 2020 and Miller et al. 2021; as Nguyen et al. 2022 (arXiv 2208.05516) compare sources: by lines,
never by accuracies alone, since a larger source is further along on both axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diptych.metrics.intervals import Interval, interval_of
from diptych.metrics.robustness import Line, linked, unlinked

LEAST, FIT = 4, 0.9  # runs and R^2 that a line needs to be compared with others
CHANCE = 2.0  # runs below so many times chance bend a line
BLOCK = 64  # rounds of the bootstrap at a time


def edge_of(count: int) -> float:
    """Accuracies of `count` cases are kept so far from 0 and 1, where probit is infinite."""
    return 0.5 / count


def accuracies(right: ArrayLike, rounds: int, seed: int = 0) -> NDArray[np.float64]:
    """Whether each of M runs was right on each of N pictures [M, N] -> accuracies [1 + rounds, M]: as they are, and of
    pictures drawn again and again, in a round the same for all runs."""
    right = np.asarray(right, np.float32)
    count, rng = right.shape[1], np.random.default_rng(seed)
    found = [right.mean(1, dtype=np.float64)[None]]
    for first in range(0, rounds, BLOCK):
        times = rng.multinomial(count, np.full(count, 1 / count), min(BLOCK, rounds - first))
        found.append((times.astype(np.float32) @ right.T).astype(np.float64) / count)
    return np.concatenate(found)


@dataclass(frozen=True)
class Trend:
    """The line of some runs. low, high: their accuracies on the reference; draws [R, 2]: (slope, intercept) of the
    bootstrap over pictures and runs, NaN where it drew one run alone."""

    line: Line
    slope: Interval
    intercept: Interval
    r2: float
    runs: int
    low: float
    high: float
    draws: NDArray[np.float64] = field(repr=False)

    @property
    def refused(self) -> str:
        """Why it cannot be compared with others; "" where it can."""
        if self.runs < LEAST:
            return f"{self.runs} runs, and a line needs {LEAST}"
        if not np.isfinite(self.r2):
            return "its runs have one accuracy"
        return f"R\u00b2 is {self.r2:.3f}, below {FIT}" if self.r2 < FIT else ""

    def at(self, accuracy: float) -> Interval:
        """Accuracy under the shift, on the line, of a run with this accuracy on the reference."""
        return spread(float(self.line.expected(accuracy)), self.draws_at(accuracy))

    def draws_at(self, accuracy: float) -> NDArray[np.float64]:
        return unlinked(self.draws[:, 0] * linked(accuracy, "probit", self.line.edge) + self.draws[:, 1], "probit")

    def reaches(self, accuracy: float) -> bool:
        """Whether runs lie on both sides of it: beyond them the line is a guess."""
        return self.low <= accuracy <= self.high


def fit_trend(reference: ArrayLike, shifted: ArrayLike, edges: tuple[float, float], seed: int = 0) -> Trend:
    """Ordinary least squares over runs: accuracies [1 + R, M] on both (see `accuracies`), the first row as they are.

    edges: of the reference and of the shift. The bootstrap draws pictures, as the rows have them, and runs.
    """
    plain, other = np.asarray(reference, np.float64), np.asarray(shifted, np.float64)
    x, y = linked(plain, "probit", edges[0]), linked(other, "probit", edges[1])  # [1 + R, M]
    slope, intercept, r2 = (float(v[0]) for v in least_squares(x[:1], y[:1]))
    runs = x.shape[1]
    rows = np.random.default_rng([seed, 1]).integers(0, runs, (len(x) - 1, runs))
    draws = np.stack(least_squares(*(np.take_along_axis(v[1:], rows, 1) for v in (x, y)))[:2], 1)
    line = Line(slope, intercept, "probit", edges[0])
    ends = float(plain[0].min()), float(plain[0].max())
    return Trend(line, spread(slope, draws[:, 0]), spread(intercept, draws[:, 1]), r2, runs, *ends, draws)


def spread(figure: float, draws: NDArray[np.float64]) -> Interval:
    """As `interval_of`; without ends where no draw is a number."""
    return interval_of(figure, draws) if np.isfinite(draws).any() else Interval(figure, np.nan, np.nan)


def least_squares(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """(slope, intercept, R^2) [R] of each row of x and y [R, M]; NaN where x is one value."""
    dx, dy = (v - v.mean(1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        square = (dx**2).sum(1)
        slope = np.where(square > 1e-18, (dx * dy).sum(1) / square, np.nan)
        intercept = y.mean(1) - slope * x.mean(1)
        r2 = 1 - ((dy - slope[:, None] * dx) ** 2).sum(1) / (dy**2).sum(1)
    return slope, intercept, r2


def difference(one: Trend, other: Trend, accuracy: float) -> Interval:
    """How far one line lies above another at an accuracy on the reference; pictures are drawn for both alike."""
    found = float(one.line.expected(accuracy) - other.line.expected(accuracy))
    return spread(found, one.draws_at(accuracy) - other.draws_at(accuracy))


def above(trend: Trend, reference: ArrayLike, shifted: ArrayLike) -> Interval:
    """Effective robustness of a run, accuracies [1 + R] on both: its accuracy under the shift beyond the line's."""
    plain, other = np.asarray(reference, np.float64), np.asarray(shifted, np.float64)
    base = linked(plain[1:], "probit", trend.line.edge)
    drawn = other[1:] - unlinked(trend.draws[:, 0] * base + trend.draws[:, 1], "probit")
    return spread(float(trend.line.effective_robustness(plain[0], other[0])), drawn)


def matched(trends: Sequence[Trend]) -> float:
    """An accuracy on the reference at which to read lines: the middle, on the probit axis, of what all reach; where
    there is no such, of the gap between."""
    ends = linked([max(t.low for t in trends), min(t.high for t in trends)], "probit", min(t.line.edge for t in trends))
    return float(unlinked(ends.mean(), "probit"))
