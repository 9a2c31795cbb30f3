"""Why a mixture can be worse than its best source: the average classifier on sources with means of their own.

Two classes y = -1, +1; a source i gives x = y mu_i + sigma noise. The classifier is the mean of y x over all training
data; its direction tends to sum_i w_i mu_i, where w_i is the source's share. On a shifted test x = y mu_s + sigma noise
it is right with probability Phi(<d, mu_s> / (sigma |d|)). Where mu_s lies along one source's mean, every other share
turns d away from it: dilution. Where it lies between two means, a mixture can be better than both: dilution is never to
be taken for granted. After section 5 of Nguyen et al. 2022 (arXiv 2208.05516), in a form of our own.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diptych.metrics.robustness import unlinked


def direction(means: ArrayLike, shares: ArrayLike) -> NDArray[np.float64]:
    """Means of the sources [S, D] and their shares [S] -> that of the classifier [D] on very much data."""
    return np.asarray(shares, np.float64) @ np.asarray(means, np.float64)


def expected_accuracy(means: ArrayLike, shares: ArrayLike, shifted: ArrayLike, sigma: float) -> float:
    """Phi(<d, mu_s> / (sigma |d|)), mu_s = shifted [D]."""
    d, mean = direction(means, shares), np.asarray(shifted, np.float64)
    return float(unlinked(d @ mean / (sigma * np.linalg.norm(d)), "probit"))


def simulated_accuracy(
    means: ArrayLike, shares: ArrayLike, shifted: ArrayLike, sigma: float, *, count: int, tests: int, seed: int = 0
) -> float:
    """The same from `count` training points and `tests` points of the shift, drawn by chance."""
    means, mean, rng = np.asarray(means, np.float64), np.asarray(shifted, np.float64), np.random.default_rng(seed)
    source = rng.choice(len(means), count, p=np.asarray(shares, np.float64))
    y = rng.choice((-1.0, 1.0), count)
    x = y[:, None] * means[source] + sigma * rng.standard_normal((count, means.shape[1]))
    classifier = (y[:, None] * x).mean(0)
    y = rng.choice((-1.0, 1.0), tests)
    x = y[:, None] * mean + sigma * rng.standard_normal((tests, len(mean)))
    return float((np.sign(x @ classifier) == y).mean())


def filtered_mean(mean: ArrayLike, good: ArrayLike, sigma: float, margin: float) -> NDArray[np.float64]:
    """The mean of y x over what a filter keeps of a source with this mean [D]: the points on which the classifier of a
    good source, in the direction g = good / |good|, agrees with the label by more than `margin`: y <g, x> > margin.

    Along g that is a truncated normal, so that the mean moves by sigma phi(a) / (1 - Phi(a)) towards the good source,
    a = (margin - <g, mean>) / sigma; across g it stays.
    """
    mean, g = np.asarray(mean, np.float64), np.asarray(good, np.float64)
    g = g / np.linalg.norm(g)
    a = (margin - g @ mean) / sigma
    density = np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    return mean + g * sigma * density / unlinked(-a, "probit")
