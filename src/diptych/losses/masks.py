"""Losses of masks on sampled points, and the costs of pairing masks with truth (Mask2Former, arXiv 2112.01527).

Shapes: N masks, P points, h x w cells. Points are x and y in 0..1. `counted` are weights of points, 0 where the truth
is not known.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

OVERSAMPLE, UNCERTAIN = 3, 0.75  # section 3.3, after PointRend (arXiv 1912.08193)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """maps [N, h, w] read bilinearly at points [N, P, 2], or at [P, 2] shared by all -> [N, P]; outside is 0."""
    if points.dim() == 2:
        return F.grid_sample(maps[None], 2 * points[None, None] - 1, mode="bilinear", align_corners=False)[0, :, 0]
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, mode="bilinear", align_corners=False)[:, 0, 0]


def random_points(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """[*shape, 2], uniform; drawn on the generator's own device, so that every machine draws alike."""
    return torch.rand(*shape, 2, generator=generator, device=generator.device).to(device)


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """logits [N, h, w] -> points [N, count, 2]: three quarters where a mask is least sure (of three times as many drawn
    uniformly, those of the smallest |logit|), the rest uniform."""
    masks = len(logits)
    drawn = random_points((masks, OVERSAMPLE * count), generator, logits.device)
    chosen = round(UNCERTAIN * count)
    order = sample(logits, drawn).abs().topk(chosen, dim=1, largest=False).indices
    near = drawn.gather(1, order[..., None].expand(-1, -1, 2))
    return torch.cat([near, random_points((masks, count - chosen), generator, logits.device)], dim=1)


def point_bce(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Mean binary cross-entropy over the counted points: logits, truth, counted [N, P] -> [N]."""
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (loss * counted).sum(1) / counted.sum(1).clamp_min(1)


def point_dice(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) over the counted points: [N, P] each -> [N]."""
    p, t = logits.sigmoid() * counted, truth * counted
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def pairwise_bce(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """`point_bce` of every mask with every truth: logits [Q, P], truth [N, P], counted [P] -> [Q, N]."""
    truth = truth * counted
    inside, outside = F.softplus(-logits), F.softplus(logits)
    return (inside @ truth.T + outside @ (counted - truth).T) / counted.sum().clamp_min(1)


def pairwise_dice(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """`point_dice` of every mask with every truth: logits [Q, P], truth [N, P], counted [P] -> [Q, N]."""
    p, t = logits.sigmoid() * counted, truth * counted
    return 1 - (2 * p @ t.T + 1) / (p.sum(1)[:, None] + t.sum(1) + 1)
