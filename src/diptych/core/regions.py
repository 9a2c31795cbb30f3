"""Parts of a picture from one pass of a ConvNet over all of it."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-8


def mask_pool(maps: Tensor, masks: Tensor) -> Tensor:
    """maps [B, C, h, w], masks [B, Q, h, w] of weights from 0 -> weighted means [B, Q, C]; 0 for an empty mask."""
    weights = masks.to(maps.dtype)
    return torch.einsum("bchw,bqhw->bqc", maps, weights) / (weights.sum((2, 3)) + EPS)[..., None]


def hard(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits [B, Q, H, W] -> bool masks [B, Q, *size]: resized bilinearly, then those above 0. No gradient."""
    logits = logits.detach()
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    return logits > 0
