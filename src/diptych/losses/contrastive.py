"""Contrastive losses between two lists of embeddings whose rows belong together."""

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_contrastive(
    a: Tensor, b: Tensor, scale: Tensor | float, *, targets: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """The mean of both directions' cross-entropies: row i of `a` belongs to row i of `b`. -> scalar.

    a, b [B, D] unit rows; scale: the multiplier of the cosine; targets [B, B]: rows of a distribution over `b` for
    each of `a` (its transpose, made to sum to one, is that of `b`); weights [B]: of the pairs.
    Radford et al., arXiv 2103.00020, figure 3.
    """
    logits = scale * a @ b.T  # [B, B]
    if targets is None:
        own = torch.arange(len(a), device=a.device)
        there = F.cross_entropy(logits, own, reduction="none")
        back = F.cross_entropy(logits.T, own, reduction="none")
    else:
        turned = targets.T / targets.T.sum(1, keepdim=True)
        there = F.cross_entropy(logits, targets, reduction="none")
        back = F.cross_entropy(logits.T, turned, reduction="none")
    losses = (there + back) / 2  # [B]
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()


def sigmoid_contrastive(
    a: Tensor, b: Tensor, scale: Tensor | float, bias: Tensor | float, *, positives: Tensor | None = None
) -> Tensor:
    """Every pair on its own, together or not: -> the sum of the [B, B] log-losses over B.

    positives [B, B] bool: which belong together; none: the diagonal. Zhai et al., arXiv 2303.15343, equation 1.
    """
    logits = scale * a @ b.T + bias
    if positives is None:
        positives = torch.eye(len(a), len(b), dtype=torch.bool, device=a.device)
    signs = torch.where(positives, 1.0, -1.0).to(logits.dtype)
    return -F.logsigmoid(signs * logits).sum() / len(a)
