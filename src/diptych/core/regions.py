"""Parts of a picture from one pass of a ConvNet over all of it."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-8
LANES, MOST = 8, 255  # bytes of an integer; the largest number in a byte


def mask_pool(maps: Tensor, masks: Tensor) -> Tensor:
    """maps [B, C, h, w], masks [B, Q, h, w] of weights from 0 -> weighted means [B, Q, C]; 0 for an empty mask."""
    weights = masks.to(maps.dtype)
    return torch.einsum("bchw,bqhw->bqc", maps, weights) / (weights.sum((2, 3)) + EPS)[..., None]


def cover(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool masks [N, H, W] -> float32 [N, *size]: the share of each cell of such a grid that a mask covers, exactly.

    (Area interpolation lets the cells overlap where H and W are no multiples of the grid.)
    """
    (height, width), (rows, columns) = masks.shape[1:], size
    high, wide = height // rows, width // columns
    if not (height % rows or width % columns or width % LANES) and high <= MOST:
        # bytes of 0 and 1 are added eight at a time, as one integer: no byte grows beyond 255
        lanes = masks.contiguous().view(torch.int64).unflatten(1, (rows, high)).sum(2)
        return lanes.view(torch.uint8).unflatten(2, (columns, wide)).sum(-1, dtype=torch.float32) / (high * wide)
    down, across = (overlaps(n, m).to(masks.device) for n, m in ((height, rows), (width, columns)))
    return torch.stack([down @ (mask.float() @ across.T) for mask in masks])  # one by one: each stays in the cache


def overlaps(pixels: int, cells: int) -> Tensor:
    """[cells, pixels]: the share of each cell of a line that a pixel of it covers."""
    side, pixel = pixels / cells, torch.arange(pixels)
    start = torch.arange(cells, dtype=torch.float64)[:, None] * side
    return ((torch.minimum(start + side, pixel + 1) - torch.maximum(start, pixel)).clamp(min=0) / side).float()


def hard(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits [B, Q, H, W] -> bool masks [B, Q, *size]: resized bilinearly, then those above 0. No gradient."""
    logits = logits.detach()
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    return logits > 0
