"""Out-of-distribution detection: scores of how well a picture belongs to the known classes, and how well they tell.

Every score is higher for what is in distribution (ID), which is the positive side everywhere.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def scores(logits: Tensor, cosines: Tensor | None = None, temperature: float = 1.0) -> dict[str, Tensor]:
    """Logits [N, K] and, where there are texts, raw cosines [N, K] -> scores [N] by name.

    msp: the largest softmax of the logits (Hendrycks and Gimpel 2017); maxlogit: the largest logit; energy: their
    logsumexp (Liu et al. 2020); mcm: the largest softmax of the cosines over `temperature`, without the model's own
    scale (Ming et al. 2022, arXiv 2211.13445, equation 2).
    """
    logits = logits.double()
    found = {} if cosines is None else {"mcm": (cosines.double() / temperature).softmax(1).amax(1)}
    return found | {"msp": logits.softmax(1).amax(1), "maxlogit": logits.amax(1), "energy": logits.logsumexp(1)}


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """P(score of an ID picture > that of another) + P(equal) / 2, over all pairs of scores [N] and [M]."""
    inside, outside = np.asarray(inside, np.float64), np.sort(np.asarray(outside, np.float64))
    below = np.searchsorted(outside, inside, "left").sum()
    not_above = np.searchsorted(outside, inside, "right").sum()
    return float(int(below + not_above) / (2 * len(inside) * len(outside)))


def fpr_at(inside: ArrayLike, outside: ArrayLike, keep: float = 0.95) -> float:
    """The share of others that score at least as high as the highest threshold which keeps `keep` of the ID."""
    inside, outside = np.sort(np.asarray(inside, np.float64))[::-1], np.asarray(outside, np.float64)
    threshold = inside[max(math.ceil(keep * len(inside) - 1e-9), 1) - 1]
    return float((outside >= threshold).mean())


def aupr(positive: ArrayLike, negative: ArrayLike) -> float:
    """Average precision: sum over thresholds of (recall gained) x precision; equal scores are one threshold."""
    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    values = np.concatenate([positive, negative])
    truth = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # the last of each run of equal scores
    hits = np.cumsum(truth)[ends]
    gained = np.diff(hits, prepend=0) / len(positive)
    return float((gained * hits / (ends + 1)).sum())


def detection(inside: ArrayLike, outside: ArrayLike) -> dict[str, float]:
    """auroc, fpr95, aupr_in (ID positive) and aupr_out (the others positive, scores negated)."""
    flipped = -np.asarray(outside, np.float64), -np.asarray(inside, np.float64)
    return {
        "auroc": auroc(inside, outside),
        "fpr95": fpr_at(inside, outside),
        "aupr_in": aupr(inside, outside),
        "aupr_out": aupr(*flipped),
    }


def roc(inside: ArrayLike, outside: ArrayLike) -> NDArray[np.float64]:
    """Points (share of others kept, share of ID kept) [P, 2] from (0, 0) to (1, 1), one a distinct score."""
    inside, outside = np.sort(np.asarray(inside, np.float64)), np.sort(np.asarray(outside, np.float64))
    at = np.unique(np.concatenate([inside, outside]))[::-1]
    kept = [1 - np.searchsorted(side, at, "left") / len(side) for side in (outside, inside)]
    return np.vstack([[0.0, 0.0], np.column_stack(kept)])


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """The distance between the mean unit embeddings of pictures [N, D] and of texts [M, D] (Liang et al. 2022,
    arXiv 2203.02053)."""
    unit = torch.nn.functional.normalize
    return float((unit(images.double(), dim=-1).mean(0) - unit(texts.double(), dim=-1).mean(0)).norm())
