"""CLOOB: rows are replaced by what they retrieve from the batch, then contrasted with their positive left out below.

Fürst et al., CLOOB: Modern Hopfield Networks with InfoLOOB Outperform CLIP, NeurIPS 2022, arXiv 2110.11316.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import DiptychError
from diptych.losses.precision import in_float32


@in_float32
def retrieve(queries: Tensor, store: Tensor, beta: float | Tensor) -> Tensor:
    """One step of a modern Hopfield network: queries [n, D], store [B, D] -> unit rows [n, D] (equations 5 to 8).

    beta 0 gives everyone the mean of the store; a large beta gives the nearest stored row.
    """
    return F.normalize((beta * queries @ store.T).softmax(1) @ store, dim=1)


@in_float32
def info_loob(anchors: Tensor, positives: Tensor, inverse_tau: float | Tensor, *, first: int = 0) -> Tensor:
    """tau * mean_i(-k_ii + log sum_{j != i} exp k_ij), k = inverse_tau * anchors @ positives.T (equation 4).

    anchors [n, D] may be a part of the batch: row i belongs to row `first + i` of positives [B, D]. The leading tau
    keeps the gradient's size when tau changes. It can be negative. Raises DiptychError for a batch of one.
    """
    if len(positives) < 2:
        raise DiptychError("InfoLOOB needs at least two pairs in a batch: with one there is nothing to contrast with")
    logits = inverse_tau * anchors @ positives.T  # [n, B]
    own = torch.arange(len(anchors), device=logits.device)
    others = logits.masked_fill(F.one_hot(first + own, len(positives)).bool(), -torch.inf)
    return (others.logsumexp(1) - logits[own, first + own]).mean() / inverse_tau


@in_float32
def retrieved_loob(x: Tensor, y: Tensor, beta: float | Tensor, inverse_tau: float | Tensor) -> Tensor:
    """CLOOB's loss of images x and texts y, unit rows [B, D]: the sum of both terms (equation 9).

    Image and text rows both query the images, and are contrasted with the image rows as anchors; then both query
    the texts, and the text rows are the anchors.
    """
    images = info_loob(retrieve(x, x, beta), retrieve(y, x, beta), inverse_tau)
    return images + info_loob(retrieve(y, y, beta), retrieve(x, y, beta), inverse_tau)
