"""How far stated probabilities can be trusted.

Everywhere `probabilities` is [N, C] (rows sum to one), `truth` is the class index of each picture [N].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ECE_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks"


def correct(probabilities: ArrayLike, truth: ArrayLike) -> NDArray[np.bool_]:
    """Which pictures the most probable class is right on, [N]."""
    return np.asarray(probabilities).argmax(axis=1) == np.asarray(truth)


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram draws: per bin of top probability, [bins]; NaN means where `count` is 0."""

    edges: NDArray[np.float64]  # [bins + 1]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """sum over bins of count / N * |accuracy - confidence|."""
        gap = np.abs(np.nan_to_num(self.accuracy - self.confidence))
        return float((self.count * gap).sum() / self.count.sum())


def reliability(probabilities: ArrayLike, truth: ArrayLike, bins: int = ECE_BINS) -> Reliability:
    """Pictures in `bins` equal-width bins (low, high] of their top probability."""
    top = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    place = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, weights=top, minlength=bins) / count
        right = np.bincount(place, weights=correct(probabilities, truth), minlength=bins) / count
    return Reliability(np.linspace(0, 1, bins + 1), count, confidence, right)


def ece(probabilities: ArrayLike, truth: ArrayLike, bins: int = ECE_BINS) -> float:
    """Expected calibration error: sum over equal-width bins b of the top probability of
    n_b / N * |accuracy_b - mean top probability_b|."""
    return reliability(probabilities, truth, bins).ece


def equal_mass_ece(probabilities: ArrayLike, truth: ArrayLike, bins: int = ECE_BINS) -> float:
    """The same over bins of equally many pictures: sorted by top probability, cut into `bins` parts whose sizes differ
    by one at most. Pictures of one probability keep their order."""
    top = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    right = correct(probabilities, truth)
    parts = np.array_split(np.argsort(top, kind="stable"), bins)
    return float(sum(abs(right[part].sum() - top[part].sum()) for part in parts) / len(top))


def nll(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean negative log-likelihood of the truth, in nats."""
    p = np.asarray(probabilities, dtype=np.float64)
    own = p[np.arange(len(p)), np.asarray(truth)]
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def brier(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean over pictures of sum over classes of (probability - truth)^2: from 0 to 2."""
    p = np.asarray(probabilities, dtype=np.float64)
    return float(np.square(p - np.eye(p.shape[1])[np.asarray(truth)]).sum(axis=1).mean())


def overconfidence(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean top probability minus accuracy: above zero is surer than right."""
    return float(np.asarray(probabilities, dtype=np.float64).max(axis=1).mean() - correct(probabilities, truth).mean())
