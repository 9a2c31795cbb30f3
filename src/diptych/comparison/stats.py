"""The figures of a comparison, in numpy: accuracy, and intervals that pair the methods.

Everywhere `probabilities` is [N, C] (rows sum to one), `truth` is the class index of each picture [N].
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diptych.metrics.calibration import correct
from diptych.metrics.intervals import ROUNDS, Interval, interval_of


def accuracy(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """The share of pictures whose most probable class is the true one."""
    return float(correct(probabilities, truth).mean())


def confusion(probabilities: ArrayLike, truth: ArrayLike) -> NDArray[np.int64]:
    """Pictures of class i (row) taken for class j (column), [C, C]."""
    p, truth = np.asarray(probabilities), np.asarray(truth)
    classes = p.shape[1]
    return np.bincount(truth * classes + p.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def class_recall(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """The recall of each class from a confusion matrix, [C]; NaN for a class with no picture."""
    total = matrix.sum(axis=1)
    return np.divide(np.diag(matrix), total, out=np.full(len(total), np.nan), where=total > 0)


def macro_recall(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """The mean over classes of the share found; classes that the truth does not hold are left out."""
    return float(np.nanmean(class_recall(confusion(probabilities, truth))))


@dataclass(frozen=True)
class Bootstrap:
    """Resampled accuracies; round r drew the same pictures and seeds for every key, so they may be subtracted."""

    mean: dict[Hashable, float]
    draws: dict[Hashable, NDArray[np.float64]]  # [rounds]

    def interval(self, key: Hashable) -> Interval:
        return interval_of(self.mean[key], self.draws[key])

    def difference(self, key: Hashable, reference: Hashable) -> Interval:
        """Accuracy of `key` minus that of `reference`."""
        return interval_of(self.mean[key] - self.mean[reference], self.draws[key] - self.draws[reference])


def paired_bootstrap(
    correct: Mapping[Any, ArrayLike],
    rounds: int = ROUNDS,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
) -> Bootstrap:
    """The paired bootstrap over pictures and seeds.

    correct: per key (a method, or a method at some shots) whether each picture was right, [seeds, N]; one row
    stands for a method that no seed changes; a row of NaN is a seed that is missing.
    groups: pictures of one burst, patient or product; then whole groups are drawn, not pictures [N].
    One draw of pictures and one of seeds a round are shared by all keys. Seeds are drawn by the bootknife
    (Hesterberg 2004: one is left out at random, then as many drawn from the rest): with three seeds the plain
    bootstrap would find only two thirds of their variance.
    """
    keys = list(correct)
    if not keys:
        return Bootstrap({}, {})
    arrays = [np.atleast_2d(np.asarray(correct[key], dtype=np.float32)) for key in keys]
    seeds, pictures = max(len(a) for a in arrays), arrays[0].shape[1]
    for key, a in zip(keys, arrays, strict=True):
        if a.shape[1] != pictures or len(a) not in (1, seeds):
            raise ValueError(f"{key}: [seeds, N] = {a.shape}, others have [{seeds}, {pictures}]")
    right = np.stack([np.broadcast_to(a, (seeds, pictures)) for a in arrays])  # [K, S, N]
    known = ~np.isnan(right[:, :, 0])  # [K, S]
    flat = np.nan_to_num(right).reshape(-1, pictures).T  # [N, K * S]
    if groups is not None:  # sum inside the groups first: a drawn group brings all its pictures
        names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        sums = np.zeros((len(names), flat.shape[1]), np.float32)
        np.add.at(sums, place, flat)
        flat, size = sums, np.bincount(place).astype(np.float32)
    else:
        size = np.ones(pictures, np.float32)

    rng = np.random.default_rng(seed)
    seed_weight = _seed_counts(rng, rounds, seeds)  # [R, S]
    units, draws = len(size), np.empty((rounds, len(keys)))
    step = max(1, min(rounds, 10_000_000 // units))  # 40 MB of counts at a time
    for start in range(0, rounds, step):
        many = min(step, rounds - start)
        drawn = rng.integers(0, units, (many, units)) + np.arange(many)[:, None] * units
        count = np.bincount(drawn.ravel(), minlength=many * units).reshape(many, units).astype(np.float32)
        per_seed = (count @ flat / (count @ size)[:, None]).reshape(many, len(keys), seeds)
        weight = seed_weight[start : start + many, None, :] * known
        with np.errstate(invalid="ignore"):
            draws[start : start + many] = (per_seed * weight).sum(axis=2) / weight.sum(axis=2)
    mean = [float(np.nanmean(a, dtype=np.float64)) for a in right]
    return Bootstrap(
        dict(zip(keys, mean, strict=True)),
        {key: draws[:, i] for i, key in enumerate(keys)},
    )


def _seed_counts(rng: np.random.Generator, rounds: int, seeds: int) -> NDArray[np.float64]:
    """How often each seed is drawn in each round, [rounds, seeds]."""
    if seeds == 1:
        return np.ones((rounds, 1))
    left_out = rng.integers(0, seeds, (rounds, 1))
    drawn = rng.integers(0, seeds - 1, (rounds, seeds))
    drawn += drawn >= left_out
    return (drawn[:, :, None] == np.arange(seeds)).sum(axis=1).astype(np.float64)
