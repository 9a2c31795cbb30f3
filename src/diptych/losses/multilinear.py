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
from diptych.losses.contrastive import softmax_contrastive, softmax_rows
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
    rows: Sequence[Tensor], scale: Tensor | float, permutations: Tensor | None = None, *, part: slice = slice(None)
) -> Tensor:
    """Mean over the choice of anchor of the cross-entropy of its rows over samples of the others; a scalar.

    permutations [M, M, B]: B - 1 negatives a row, the products of the other modalities' rows, each modality in its own
    order (section 3.3). None: all B^(M - 1) combinations, whose memory is B^M. In several processes give all the same.
    Two modalities are CLIP's loss, whatever the permutations. part: only these rows as anchors, still against all.
    Raises DiptychError for fewer than two modalities.
    """
    if len(rows) < 2:
        raise DiptychError(f"a multilinear contrast needs at least two modalities, not {len(rows)}")
    if len(rows) == 2:
        a, b = rows
        first = part.indices(len(a))[0]
        return (softmax_rows(a[part], b, scale, first=first) + softmax_rows(b[part], a, scale, first=first)).mean() / 2
    own = torch.arange(len(rows[0]), device=rows[0].device)[part]
    losses = []
    for m, anchor in enumerate(rows):
        others = [(k, r) for k, r in enumerate(rows) if k != m]
        if permutations is None:
            losses.append(among_all(anchor[part], [r for _, r in others], scale, own))
        else:
            shuffled = [r[permutations[m, k].to(r.device)] for k, r in others]
            true = multilinear(anchor[part], *(r[part] for _, r in others))
            losses.append(among_shuffled(anchor[part], true, shuffled, scale, own))
    return torch.stack(losses).mean()


def among_shuffled(
    anchor: Tensor, true: Tensor, shuffled: Sequence[Tensor], scale: Tensor | float, own: Tensor
) -> Tensor:
    """logits [n, B]: products of shuffled rows, and in each row's own column its true sample [n]."""
    products = (anchor @ reduce(torch.mul, shuffled).T).scatter(1, own[:, None], true[:, None])
    return F.cross_entropy(scale * products, own)


def among_all(anchor: Tensor, others: Sequence[Tensor], scale: Tensor | float, own: Tensor) -> Tensor:
    """logits [n, B^(M-1)]: the last modality's row changes fastest, so sample i is column i * (1 + B + B^2 + ...)."""
    products, step = others[0], 1
    for row in others[1:]:
        products = (products[:, None] * row).flatten(0, 1)
        step = step * len(row) + 1
    return F.cross_entropy(scale * anchor @ products.T, step * own)


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
