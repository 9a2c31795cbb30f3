"""Changes of training videos [B, T, 3, H, W]: the same in every frame of one video."""

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
STRENGTH = 0.4  # of the jitter: brightness, contrast and saturation are multiplied by 0.6 to 1.4


def mix(
    pixels: Tensor, shares: Tensor, rng: np.random.Generator, mixup: float, cutmix: float, switch: float
) -> tuple[Tensor, Tensor]:
    """Each video with another of the batch, and their label shares [B, C] alike.

    Mixup (arXiv 1710.09412) by Beta(mixup, mixup), or with probability `switch` CutMix (arXiv 1905.04899) by
    Beta(cutmix, cutmix): one ratio, one permutation and one box for the whole batch. A Beta of 0 switches that kind
    off. What is pasted comes from the videos as they were.
    """
    cut = cutmix > 0 and (mixup <= 0 or rng.random() < switch)
    if not cut and mixup <= 0:
        return pixels, shares
    kept = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    other = torch.from_numpy(rng.permutation(len(pixels)))
    if cut:
        height, width = pixels.shape[-2:]
        top, bottom, left, right = box(height, width, kept, rng)
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        pasted = pixels[other, ..., top:bottom, left:right]
        pixels = pixels.clone()
        pixels[..., top:bottom, left:right] = pasted
    else:
        pixels = kept * pixels + (1 - kept) * pixels[other]
    other = other.to(shares.device)
    return pixels, kept * shares + (1 - kept) * shares[other]


def box(height: int, width: int, kept: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box of the share 1 - kept of the area, about a random place, cut at the border."""
    side = (1 - kept) ** 0.5
    high, wide = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    ends = (y - high // 2, y + high // 2), (x - wide // 2, x + wide // 2)
    (top, bottom), (left, right) = ends
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)


def recolour(
    pixels: Tensor,
    rng: np.random.Generator,
    jitter: float,
    grey: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """With probability `jitter` other brightness, contrast and saturation; with `grey`, no colour; drawn a video."""
    if not jitter and not grey:
        return pixels
    means, stds = (torch.tensor(v)[:, None, None] for v in (mean, std))
    luma = torch.tensor(LUMA)[:, None, None]
    done = []
    for video in pixels * stds + means:  # [T, 3, H, W], 0..1
        if rng.random() < jitter:
            light, contrast, colour = (float(f) for f in rng.uniform(1 - STRENGTH, 1 + STRENGTH, 3))
            video = video * light
            middle = (video * luma).sum(1).mean()
            video = middle + contrast * (video - middle)
            plain = (video * luma).sum(1, keepdim=True)
            video = (plain + colour * (video - plain)).clamp(0, 1)
        if rng.random() < grey:
            video = (video * luma).sum(1, keepdim=True).expand_as(video)
        done.append(video)
    return (torch.stack(done) - means) / stds
