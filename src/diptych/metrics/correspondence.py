"""Which patch of one picture is which of another: matches by features, and how many are right.

Unlike a class, it asks what a tower knows of places. Features are [N, D], one a patch; places are [N, 2] in pixels.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def matches(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of `second` [M, D] by cosine for each of `first` [N, D], and how sure it is [N]: 1 - the distance to
    it / the distance to the second nearest, Lowe's ratio the other way round. M is at least two."""
    cosines = F.normalize(first.double(), dim=-1) @ F.normalize(second.double(), dim=-1).T
    best, index = cosines.topk(2, dim=1)
    distance = (2 - 2 * best).clamp_min(0).sqrt()
    return index[:, 0], 1 - distance[:, 0] / distance[:, 1].clamp_min(1e-12)


def errors(found: Tensor, truth: Tensor) -> Tensor:
    """Distance in pixels between places [N, 2]: [N]."""
    return (found.double() - truth.double()).norm(dim=-1)


def recall_within(error: Tensor, thresholds: Sequence[float]) -> dict[float, float]:
    """Share of matches whose error [N] is at most each threshold; NaN for none."""
    return {t: float((error <= t).double().mean()) for t in thresholds}


def pck(found: Tensor, truth: Tensor, boxes: Tensor, alpha: float = 0.1) -> float:
    """Percentage of correct keypoints, as a fraction: places [N, 2] within alpha x the longer side of their object's
    box [N, 2] (width, height)."""
    return float((errors(found, truth) <= alpha * boxes.double().amax(-1)).double().mean())
