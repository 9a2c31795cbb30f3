"""Any number of modalities at once: the multilinear inner product, which sees what no pair of modalities shows.

Saporta et al., Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited Modalities,
NeurIPS 2024, arXiv 2411.01053. Shapes: M modalities, each [B, D]; row i of all of them is one sample.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import DiptychError
from diptych.losses.contrastive import softmax_contrastive
from diptych.losses.precision import in_float32


def multilinear(*rows: Tensor) -> Tensor:
    """Sum over D of the product of all modalities, [B]; the dot product for two."""
    return reduce(torch.mul, rows).sum(-1)


def permutations_of(modalities: int, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Random permutations [M, M, B] for `multilinear_contrastive`: [anchor, modality]; [m, m] stays unused."""
    many = [torch.randperm(batch, generator=generator) for _ in range(modalities * modalities)]
    return torch.stack(many).reshape(modalities, modalities, batch)


@in_float32
def multilinear_contrastive(
    rows: Sequence[Tensor], scale: Tensor | float, permutations: Tensor | None = None
) -> Tensor:
    """Mean over the choice of anchor of the cross-entropy of its rows over samples of the others; a scalar.

    permutations [M, M, B]: B - 1 negatives a row, the products of the other modalities' rows, each modality in its own
    order (section 3.3). None: all B^(M - 1) combinations, whose memory is B^M. In several processes give all the same.
    Two modalities are CLIP's loss, whatever the permutations. Raises DiptychError for fewer.
    """
    if len(rows) < 2:
        raise DiptychError(f"a multilinear contrast needs at least two modalities, not {len(rows)}")
    if len(rows) == 2:
        return softmax_contrastive(rows[0], rows[1], scale)
    losses = []
    for m, anchor in enumerate(rows):
        others = [(k, r) for k, r in enumerate(rows) if k != m]
        if permutations is None:
            losses.append(among_all(anchor, [r for _, r in others], scale))
        else:
            shuffled = [r[permutations[m, k].to(r.device)] for k, r in others]
            losses.append(among_shuffled(anchor, [r for _, r in others], shuffled, scale))
    return torch.stack(losses).mean()


def among_shuffled(
    anchor: Tensor, others: Sequence[Tensor], shuffled: Sequence[Tensor], scale: Tensor | float
) -> Tensor:
    """logits [B, B]: products of shuffled rows, and on the diagonal the true sample."""
    own = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    true = multilinear(anchor, *others)[:, None]
    products = torch.where(own, true, anchor @ reduce(torch.mul, shuffled).T)
    return F.cross_entropy(scale * products, torch.arange(len(anchor), device=anchor.device))


def among_all(anchor: Tensor, others: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """logits [B, B^(M-1)]: the last modality's row changes fastest, so sample i is column i * (1 + B + B^2 + ...)."""
    products, step = others[0], 1
    for row in others[1:]:
        products = (products[:, None] * row).flatten(0, 1)
        step = step * len(row) + 1
    return F.cross_entropy(scale * anchor @ products.T, step * torch.arange(len(anchor), device=anchor.device))


@in_float32
def pairwise_contrastive(rows: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """The baseline: the sum of CLIP's loss over all pairs of modalities."""
    return torch.stack([softmax_contrastive(a, b, scale) for a, b in combinations(rows, 2)]).sum()


def multilinear_scores(queries: Sequence[Tensor], candidates: Tensor) -> Tensor:
    """What the known modalities [Q, D] say of each candidate [C, D] of the missing one: [Q, C]."""
    return reduce(torch.mul, queries) @ candidates.T


def pairwise_scores(queries: Sequence[Tensor], candidates: Tensor) -> Tensor:
    """The baseline's: the sum of the dot products with each known modality, [Q, C]."""
    return sum(queries[1:], queries[0]) @ candidates.T
