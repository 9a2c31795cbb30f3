"""Rows of two modalities against each other: softmax (CLIP) and sigmoid (SigLIP).

Shapes: B pairs, D the embedding size; `a` and `b` are [B, D], row i of one belongs to row i of the other, and both are
of unit length unless a system wants otherwise. `scale` multiplies the dot products (1 / temperature).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.losses.precision import in_float32
from diptych.losses.tiled import TILE, own_logits, tiled_contrastive, tiled_sigmoid


@in_float32
def softmax_contrastive(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    targets: Tensor | None = None,
    ids: Tensor | None = None,
    weights: Tensor | None = None,
    part: slice | None = None,
) -> Tensor:
    """Mean cross-entropy of both directions; a scalar (Radford et al. 2021, arXiv 2103.00020, figure 3).

    targets: [B, B], row i is a distribution over the rows of b; the other direction takes the columns, each divided
    by its sum (a column without mass counts nothing). None is the diagonal.
    ids: [B], equal where pairs belong together: the targets are then `positives_of(ids)`. Where their rows of one
    modality are equal (the same text), that changes neither the loss nor, through these rows, any gradient.
    weights: [B] of the pairs; the result is mean(weights * loss), so that weights below 1 make it smaller (ALIP).
    part: the mean over these pairs alone, still told from all others: logits [n, B] twice, not [B, B].
    Without targets, a batch beyond one tile goes by `tiled_contrastive`: the same loss, in less time and memory.
    """
    if targets is None and len(a) > TILE:
        return tiled_contrastive(a, b, scale, weights=weights, ids=ids, part=part)
    if targets is not None:
        if part is not None or ids is not None:
            raise ValueError("targets stand for the whole batch: give neither part nor ids with them")
        logits = scale * a @ b.T  # [B, B]
        columns = targets / targets.sum(0).clamp_min(torch.finfo(targets.dtype).tiny)
        rows = -(targets * logits.log_softmax(1)).sum(1)
        pairs = (rows - (columns * logits.log_softmax(0)).sum(0)) / 2
    else:
        some = slice(None) if part is None else part
        if len(a[some]) == len(a):
            logits = scale * a @ b.T
            both = logits.logsumexp(1) + logits.logsumexp(0)
        else:
            both = (scale * a[some] @ b.T).logsumexp(1) + (scale * b[some] @ a.T).logsumexp(1)
        pairs = both / 2 - own_logits(a, b, scale, ids, some)
        weights = None if weights is None else weights[some]
    return pairs.mean() if weights is None else (weights * pairs).mean()


@in_float32
def softmax_rows(a: Tensor, b: Tensor, scale: Tensor | float, *, first: int = 0) -> Tensor:
    """Cross-entropy of each row of `a` [n, D] over all of `b` [B, D], whose row `first + i` is its own; -> [n].

    One direction of `softmax_contrastive` for a part of the batch.
    """
    own = torch.arange(first, first + len(a), device=a.device)
    return F.cross_entropy(scale * a @ b.T, own, reduction="none")


@in_float32
def sigmoid_contrastive(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    positives: Tensor | None = None,
    ids: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Every pair is a yes/no question: sum over all pairs, divided by the rows of `a` (Zhai et al., arXiv 2303.15343).

    `a` may be a part of the batch, [n, D], whose row i belongs to row `first + i` of b. positives: [n, B], true where
    the answer is yes; ids: [B], equal where it is. None is that one row. Without positives, a batch beyond one tile
    goes by `tiled_sigmoid`.
    """
    if positives is None and ids is not None and len(a) <= TILE:
        positives = ids[first : first + len(a), None] == ids
    if positives is None and len(a) > TILE:
        return tiled_sigmoid(a, b, scale, bias, first=first, ids=ids)
    logits = scale * a @ b.T + bias  # [n, B]
    if positives is None:
        # -log sigmoid(x) = -log sigmoid(-x) - x: all as negatives, then the positives put right
        return F.softplus(logits).sum() / len(a) - logits.diagonal(first).sum() / len(a)
    return F.softplus(torch.where(positives.bool(), -logits, logits)).sum() / len(a)


def positives_of(ids: Tensor) -> Tensor:
    """Targets [B, B] where ids [B] repeat: row i is even over all pairs with its id (UniCL, SupCon)."""
    same = (ids[:, None] == ids[None]).float()
    return same / same.sum(1, keepdim=True)


def groups_of(*keys: Tensor) -> Tensor | None:
    """Ids [B] for rows that are alike in any of some keys [B] int64, directly or through others; None: none are.

    An id is the number of the first row of its kind.
    """
    groups = torch.arange(len(keys[0]), device=keys[0].device)
    kinds = [(inverse, len(unique)) for unique, inverse in (key.unique(return_inverse=True) for key in keys)]
    if all(count == len(groups) for _, count in kinds):
        return None
    while True:
        before = groups
        for inverse, count in kinds:
            least = groups.new_full((count,), len(groups)).scatter_reduce(0, inverse, groups, "amin")
            groups = least[inverse]
        if torch.equal(groups, before):
            return groups
