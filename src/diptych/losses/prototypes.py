"""Rows against cluster centres: prototypes with soft targets (ProtoCLIP), and several clusters a picture (MLCD).

Chen et al., ProtoCLIP: Prototypical Contrastive Language Image Pretraining, TNNLS 2023, arXiv 2206.10996.
An et al., Multi-label Cluster Discrimination for Visual Representation Learning, ECCV 2024, arXiv 2407.17331.
Shapes: B rows, K clusters, D the embedding size, L labels a row.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import DiptychError
from diptych.losses.precision import in_float32


@in_float32
def prototype_cross_entropy(
    rows: Tensor, prototypes: Tensor, scale: Tensor | float, targets: Tensor, *, present: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of rows [B, D] over prototypes [K, D]; a scalar.

    targets: cluster numbers [B] int64, or distributions [B, K] (see `prototype_targets`). present: [K] bool, false for
    clusters without members, which are no option then, neither for the rows nor for the targets.
    """
    logits = scale * rows @ prototypes.T  # [B, K]
    if present is not None:
        logits = logits[:, present]
        if targets.dim() == 1:
            targets = present.cumsum(0)[targets] - 1
        else:
            targets = targets[:, present]
            targets = targets / targets.sum(1, keepdim=True)
    return F.cross_entropy(logits, targets)


@in_float32
def prototype_targets(centres: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """How alike the teacher's centres [K, D] are to each row's own one, labels [B]: distributions [B, K]."""
    return (centres[labels] @ centres.T / temperature).softmax(1)


def sample_clusters(labels: Tensor, count: int, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of the clusters a step looks at, in order: all that the batch's labels name, filled up by chance.

    labels: [B, L] (over all processes), count: K, share: of all clusters; more where the labels alone are more.
    """
    order = torch.rand(count, generator=generator).to(labels.device)
    order[labels.flatten()] = -1  # first in the order
    named = int((order < 0).sum())
    return order.argsort()[: max(named, round(share * count))].sort().values


@in_float32
def cluster_scores(
    rows: Tensor, centres: Tensor, scale: Tensor | float, positives: Tensor | None = None, margin: float = 0.0
) -> Tensor:
    """scale * cosine of rows [B, D] and learned centres [K, D] -> [B, K].

    margin: radians added to the angle where positives [B, K] is true, so that a positive must be nearer still. Beyond
    pi - margin, where the cosine would rise again, it goes on as a line (ArcFace).
    """
    cosines = (F.normalize(rows, dim=1) @ F.normalize(centres, dim=1).T).clamp(-1, 1)
    if margin and positives is not None:
        angle = torch.tensor(margin, dtype=cosines.dtype, device=cosines.device)
        sine = (1 - cosines.square()).clamp_min(torch.finfo(cosines.dtype).eps).sqrt()
        within = cosines > -angle.cos()
        harder = torch.where(within, cosines * angle.cos() - sine * angle.sin(), cosines - angle * angle.sin())
        cosines = torch.where(positives, harder, cosines)
    return scale * cosines


@in_float32
def cluster_discrimination(scores: Tensor, positives: Tensor, *, joint: bool = False) -> Tensor:
    """log(1 + sum_p exp(-s)) + log(1 + sum_n exp(s)), the mean over rows (equation 5).

    scores [B, K]; positives [B, K] bool: p; all others are n. joint: the ablation log(1 + sum_p exp(-s) sum_n exp(s)),
    in which no score has a fixed zero. Raises DiptychError where shapes differ.
    """
    if scores.shape != positives.shape:
        raise DiptychError(f"scores {tuple(scores.shape)} and positives {tuple(positives.shape)} must be alike: [B, K]")
    own = (-scores).masked_fill(~positives, -torch.inf).logsumexp(1)
    others = scores.masked_fill(positives, -torch.inf).logsumexp(1)
    return (F.softplus(own + others) if joint else F.softplus(own) + F.softplus(others)).mean()


def sampled_discrimination(
    rows: Tensor, centres: Tensor, labels: Tensor, scale: Tensor | float, clusters: Tensor, *, margin: float = 0.0
) -> Tensor:
    """`cluster_discrimination` among some of the clusters; a scalar.

    centres: all of them [K, D]; labels [B, L]: each row's own clusters; clusters: the ones to look at, from
    `sample_clusters`, which must hold all labels. Only their centres get a gradient.
    """
    positives = (labels[:, :, None] == clusters).any(1)  # [B, sampled]
    return cluster_discrimination(cluster_scores(rows, centres[clusters], scale, positives, margin), positives)
