"""Cross-entropy against labels that are shares of several classes: smoothed, or mixed of two."""

from torch import Tensor
from torch.nn import functional as F


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Labels [B] -> shares [B, C]: smoothing / C of each class, the rest of the true one (arXiv 1512.00567)."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Logits [B, C], shares [B, C] that sum to one -> the mean over the batch of -sum(share * log-probability)."""
    return -(shares * logits.log_softmax(1)).sum(1).mean()
