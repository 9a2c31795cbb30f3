"""What becomes of accuracy where pictures change: drops, factors, shape against texture, and the line over models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from diptych.metrics.intervals import Interval, bootstrap

Link = Literal["logit", "probit"]
EDGE = 1e-3  # accuracies are kept so far from 0 and 1, where both links are infinite


def relative_drop(clean: float, changed: float) -> float:
    """1 - accuracy on changed pictures / accuracy on the plain ones; NaN where nothing was right."""
    return 1 - changed / clean if clean else float("nan")


@dataclass(frozen=True)
class Factor:
    """One visual factor. accuracy on its pictures, with the interval; error_ratio = (1 - accuracy) / (1 - accuracy of
    all), sensitivity = error_ratio - 1; both NaN where less than 1% of all is wrong."""

    name: str
    count: int
    accuracy: Interval
    error_ratio: float

    @property
    def sensitivity(self) -> float:
        return self.error_ratio - 1


def factor_accuracies(
    right: ArrayLike, tags: Sequence[Sequence[str]], least: int = 10, rounds: int = 1000
) -> list[Factor]:
    """Whether each picture was right [N] and its factors -> the factors with at least `least` pictures, the most
    sensitive first. A picture may have several factors or none."""
    right = np.asarray(right, np.float64)
    wrong = 1 - right.mean()
    found = []
    for name in sorted({tag for own in tags for tag in own}):
        own = right[[name in mine for mine in tags]]
        if len(own) >= least:
            ratio = (1 - own.mean()) / wrong if wrong >= 0.01 else float("nan")
            spread = bootstrap(lambda rows, own=own: float(own[rows].mean()), len(own), rounds)
            found.append(Factor(name, len(own), spread, float(ratio)))
    return sorted(found, key=lambda f: (-np.nan_to_num(f.error_ratio), f.name))


def coarse(probabilities: ArrayLike, members: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Fine classes [N, C] -> coarse ones [N, G]: the mean probability of each group's members."""
    p = np.asarray(probabilities, np.float64)
    return np.stack([p[:, list(group)].mean(1) for group in members], 1)


def shape_bias(guesses: ArrayLike, shapes: ArrayLike, textures: ArrayLike) -> tuple[float, float]:
    """Guesses, shape classes and texture classes of cue-conflict pictures [N] -> (decisions for the shape / decisions
    for shape or texture, share of pictures decided either way). Geirhos et al. 2019, arXiv 1811.12231.

    Pictures whose two cues agree are left out. The bias is NaN where nothing was decided.
    """
    guesses, shapes, textures = (np.asarray(x) for x in (guesses, shapes, textures))
    conflict = shapes != textures
    by_shape = int((guesses == shapes)[conflict].sum())
    decided = by_shape + int((guesses == textures)[conflict].sum())
    many = int(conflict.sum())
    return (by_shape / decided if decided else float("nan")), (decided / many if many else float("nan"))


# -- the line over models ----------------------------------------------------------------------------------------------


def linked(values: ArrayLike, link: Link, edge: float = EDGE) -> NDArray[np.float64]:
    """Accuracies -> the scale on which models lie on a line (Taori et al. 2020; Miller et al. 2021)."""
    p = np.clip(np.asarray(values, np.float64), edge, 1 - edge)
    return np.log(p / (1 - p)) if link == "logit" else torch.special.ndtri(torch.as_tensor(p)).numpy()


def unlinked(values: ArrayLike, link: Link) -> NDArray[np.float64]:
    z = np.asarray(values, np.float64)
    return 1 / (1 + np.exp(-z)) if link == "logit" else torch.special.ndtr(torch.as_tensor(z)).numpy()


@dataclass(frozen=True)
class Line:
    """q(accuracy under shift) = slope * q(accuracy) + intercept over baseline models; edge: of the accuracies."""

    slope: float
    intercept: float
    link: Link
    edge: float = EDGE

    def expected(self, accuracy: ArrayLike) -> NDArray[np.float64]:
        return unlinked(self.slope * linked(accuracy, self.link, self.edge) + self.intercept, self.link)

    def effective_robustness(self, accuracy: ArrayLike, shifted: ArrayLike) -> NDArray[np.float64]:
        """Accuracy under shift beyond what the line gives a model of this accuracy."""
        return np.asarray(shifted, np.float64) - self.expected(accuracy)


def fit_line(accuracy: ArrayLike, shifted: ArrayLike, link: Link = "logit") -> Line:
    """Least squares over models [M]; at least two different accuracies."""
    slope, intercept = np.polyfit(linked(accuracy, link), linked(shifted, link), 1)
    return Line(float(slope), float(intercept), link)


def effective_robustness(
    right: ArrayLike, right_shifted: ArrayLike, baselines: Sequence[int], link: Link = "logit", rounds: int = 500
) -> list[Interval]:
    """For each model, how far it lies above the line of the baselines, with a bootstrap over pictures.

    right [M, N], right_shifted [M, N']: whether each model was right on each picture; baselines: rows of the models
    that the line is fitted to.
    """
    right, right_shifted = np.asarray(right, np.float64), np.asarray(right_shifted, np.float64)
    own, chosen = np.random.default_rng(0), list(baselines)

    def above(plain: NDArray[np.float64], shifted: NDArray[np.float64]) -> NDArray[np.float64]:
        return fit_line(plain[chosen], shifted[chosen], link).effective_robustness(plain, shifted)

    def drawn(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values[:, own.integers(0, values.shape[1], values.shape[1])].mean(1)

    draws = np.array([above(drawn(right), drawn(right_shifted)) for _ in range(rounds)])  # [rounds, M]
    figures = above(right.mean(1), right_shifted.mean(1))
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return [Interval(*map(float, row)) for row in zip(figures, low, high, strict=True)]
