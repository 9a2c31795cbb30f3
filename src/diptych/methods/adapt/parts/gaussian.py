"""The Gaussian classes that `gda` and `gda_unsupervised` share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.heads import Gaussian, gaussian_precision
from diptych.errors import DiptychError, nearest

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
ROWS = 4096  # pictures at a time in double precision
KEPT = 16_384  # features kept for classes named later: more than the paper's base-to-new runs have
PRIORS = ("uniform", "counts")


@dataclass(frozen=True)
class Classes:
    """Means [C, D], one precision [D, D] for all, log priors [C] on the scale of the precision; in double precision."""

    means: Tensor
    precision: Tensor
    log_prior: Tensor


def fit_classes(features: Tensor, weights: Tensor, prior: str = "uniform") -> Classes:
    """Gaussians of one covariance from unit features [N, D] and each one's share in the classes [N, C].

    Means are not normalised again; the scatter is pooled with divisor N - 1; the precision is the ridge estimate. That
    estimate is d / (N - 1) times an inverse covariance, so a prior that is not uniform is multiplied by the same. In
    double precision: the scatter is a difference of large sums.
    """
    if prior not in PRIORS:
        raise DiptychError(f'a Gaussian prior cannot be "{prior}"{nearest(prior, PRIORS)}')
    count, d = features.shape
    mass = weights.double().sum(0)  # [C]
    sums, second = features.new_zeros(len(mass), d, dtype=torch.float64), features.new_zeros(d, d, dtype=torch.float64)
    for x, w in zip(features.split(ROWS), weights.split(ROWS), strict=True):
        x, w = x.double(), w.double()
        sums += w.T @ x
        second += x.T @ (x * w.sum(1, keepdim=True))
    means = sums / mass.clamp_min(1e-12)[:, None]
    scatter = second - means.T @ sums  # the sum over n, c of w (x - mu)(x - mu)'
    precision = gaussian_precision(scatter / (count - 1), count)
    if prior == "counts":
        log_prior = (mass / mass.sum()).clamp_min(1e-12).log() * (d / (count - 1))
    else:
        log_prior = torch.full_like(mass, 1 / len(mass)).log()
    return Classes(means, precision, log_prior)


def head_of(fitted: Classes, rows: Tensor, features: Tensor, scale: float) -> Gaussian:
    """The head before alpha is chosen, in single precision on the CPU."""
    if len(features) > KEPT:
        features = features[torch.linspace(0, len(features) - 1, KEPT).long()]
    tensors = (rows, fitted.means, fitted.precision, fitted.log_prior, features)
    return Gaussian(*(t.float().cpu().contiguous() for t in tensors), scale=scale, alpha=0.0)
