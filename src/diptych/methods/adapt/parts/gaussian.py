"""The Gaussian classes that `gda` and `gda_unsupervised` share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.heads import gaussian_precision
from diptych.errors import DiptychError, nearest

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
KEPT = 16_384  # features kept for classes named later: more than the paper's base-to-new runs have
PRIORS = ("uniform", "counts")


@dataclass(frozen=True)
class Classes:
    """Means [C, D], one precision [D, D] for all, and log priors [C] on the scale of the precision."""

    means: Tensor
    precision: Tensor
    log_prior: Tensor


def fit_classes(features: Tensor, weights: Tensor, prior: str = "uniform") -> Classes:
    """Gaussians of one covariance from unit features [N, D] and each one's share in the classes [N, C].

    Means are not normalised again; the scatter is pooled with divisor N - 1; the precision is the ridge estimate. That
    estimate is d / (N - 1) times an inverse covariance, so a prior that is not uniform is multiplied by the same.
    """
    if prior not in PRIORS:
        raise DiptychError(f'a Gaussian prior cannot be "{prior}"{nearest(prior, PRIORS)}')
    count, d = features.shape
    mass = weights.sum(0)  # [C]
    means = (weights.T @ features) / mass.clamp_min(1e-12)[:, None]
    # sum over n, c of w (x - mu)(x - mu)' = sum of x x' - sum over c of mass mu mu', in double: it is a difference
    wide, centres = features.double(), means.double()
    scatter = (wide.T @ (wide * weights.double().sum(1)[:, None]) - (centres.T * mass.double()) @ centres) / (count - 1)
    precision = gaussian_precision(scatter, count).to(features.dtype)
    if prior == "counts":
        log_prior = (mass / mass.sum()).clamp_min(1e-12).log() * (d / (count - 1))
    else:
        log_prior = torch.full_like(mass, 1 / len(mass)).log()
    return Classes(means, precision, log_prior)


def kept(features: Tensor) -> Tensor:
    """At most KEPT rows, evenly spread."""
    if len(features) <= KEPT:
        return features
    return features[torch.linspace(0, len(features) - 1, KEPT).long()].contiguous()
