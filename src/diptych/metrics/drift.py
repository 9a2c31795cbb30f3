"""How an embedding space moved while a model learned something else: turned, bent, and apart from the other's.

Ni et al., Continual Vision-Language Representation Learning with Off-Diagonal Information, ICML 2023, arXiv
2305.07437, section 3: each modality's space turns (intra-modal rotation), and by different rotations (inter-modal
deviation), while the angles within it change little. The deviation is measured here by orthogonal Procrustes.
before, after [N, D]: embeddings of the same N items by the model before and after, of any length. Angles are degrees.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import DiptychError

LEAST = 0.01  # of the largest singular value: directions below it are not taken for known


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Between row i of a and row i of b, [N, D] each -> [N] in 0..180. Exact near 0, where a cosine is not."""
    a, b = unit(a), unit(b)
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


def rotation(before: Tensor, after: Tensor) -> float:
    """Mean angle by which an item moved: intra-modal rotation."""
    same_items(before, after)
    return angles(before, after).mean().item()


def self_angle_change(before: Tensor, after: Tensor) -> float:
    """Mean change of the angle between two items, without sign, over all pairs of items."""
    same_items(before, after)
    if len(before) < 2:
        raise DiptychError("the angle between two items needs two of them")
    first, second = torch.triu_indices(len(before), len(before), 1)
    change = angles(after[first], after[second]) - angles(before[first], before[second])
    return change.abs().mean().item()


def procrustes(before: Tensor, after: Tensor) -> Tensor:
    """The rotation or reflection R [D, D] for which before @ R is nearest to after, rows of unit length.

    On directions that no item has, it is the one that is nearest to leaving them as they are.
    """
    a, b = unit(before), unit(after)
    tie = torch.finfo(a.dtype).eps ** 0.5 * len(a) / a.shape[1]
    u, _, v = torch.linalg.svd(a.T @ b + tie * torch.eye(a.shape[1], dtype=a.dtype, device=a.device))
    return u @ v


def deviation(image_before: Tensor, image_after: Tensor, text_before: Tensor, text_after: Tensor) -> float:
    """Mean angle between a picture turned as the pictures turned and as the texts turned: inter-modal deviation.

    Of each picture's embedding only that part counts which lies in the span of the texts': elsewhere it is not known
    how these turned.
    """
    same_items(image_before, image_after)
    same_items(text_before, text_after)
    of_images, of_texts = procrustes(image_before, image_after), procrustes(text_before, text_after)
    _, sizes, directions = torch.linalg.svd(unit(text_before), full_matrices=False)
    known = directions[sizes > LEAST * sizes[0]]  # [r, D]
    shared = unit(image_before) @ known.T @ known
    return angles(shared @ of_images, shared @ of_texts).mean().item()


def flipped(before: Tensor, after: Tensor) -> float:
    """Share of queries whose best match is another one: scores [Q, C] of both models."""
    if before.shape != after.shape:
        raise DiptychError("scores before and after are of the same queries and items")
    return (before.argmax(1) != after.argmax(1)).double().mean().item()


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.to(torch.float64), dim=1)


def same_items(before: Tensor, after: Tensor) -> None:
    if before.shape != after.shape or not len(before):
        raise DiptychError(f"drift is of the same items: {list(before.shape)} before, {list(after.shape)} after")
