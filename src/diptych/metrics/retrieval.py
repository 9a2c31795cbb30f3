"""Recall at k: how often what belongs to a query is among the k that score highest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.errors import DiptychError


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """Place of each query's best own item among the others, from 1: [Q] int64.

    scores [Q, C], larger is nearer; own [Q, C] bool, at least one true in each row. Other items that score as much
    stand before it, so that a model which cannot tell anything has no luck. Raises DiptychError for a row without.
    """
    if not bool(own.any(1).all()):
        raise DiptychError("each query needs at least one item of its own to be found")
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~own).sum(1)


def recall_at(scores: Tensor, own: Tensor | None = None, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries [Q, C] with an own item among the first k; own: which, the diagonal where not given."""
    if own is None:
        own = torch.eye(len(scores), scores.shape[1], dtype=torch.bool, device=scores.device)
    found = ranks(scores, own)
    return {k: (found <= k).double().mean().item() for k in ks}
