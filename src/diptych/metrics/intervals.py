"""Intervals by the bootstrap, for figures that are means of single cases."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 2000


class Interval(NamedTuple):
    """A figure with its 95% interval, as fractions of one."""

    mean: float
    low: float
    high: float

    @property
    def distinguishable(self) -> bool:
        """For a difference: the whole interval is on one side of zero."""
        return self.low > 0 or self.high < 0


def interval_of(figure: float, draws: ArrayLike) -> Interval:
    """The middle 95% of resampled figures; NaN draws are left out."""
    low, high = np.nanquantile(np.asarray(draws, np.float64), (0.025, 0.975))
    return Interval(figure, float(low), float(high))


def resampled(count: int, rounds: int = ROUNDS, seed: int = 0) -> NDArray[np.int64]:
    """Which of `count` cases each round draws, with replacement: [rounds, count]."""
    return np.random.default_rng(seed).integers(0, count, (rounds, count))


def bootstrap(
    figure: Callable[[NDArray[np.int64]], float], count: int, rounds: int = ROUNDS, seed: int = 0
) -> Interval:
    """`figure(rows)` of all cases and of cases drawn again and again; rows [count] are their numbers."""
    draws = [figure(rows) for rows in resampled(count, rounds, seed)]
    return interval_of(figure(np.arange(count)), draws)


def mean_interval(values: ArrayLike, rounds: int = ROUNDS, seed: int = 0) -> Interval:
    """The mean of values [N] with its interval."""
    values = np.asarray(values, dtype=np.float64)
    return interval_of(float(values.mean()), values[resampled(len(values), rounds, seed)].mean(1))
