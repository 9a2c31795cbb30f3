"""The set loss of mask queries: each true segment is paired with one query, all other queries are to say "nothing".

Mask2Former (arXiv 2112.01527, section 3.3), after DETR (arXiv 2005.12872). Shapes: B pictures, Q queries, K classes,
N true segments of a picture, h x w cells, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.losses.masks import (
    pairwise_bce,
    pairwise_dice,
    point_bce,
    point_dice,
    random_points,
    sample,
    uncertain_points,
)

UNNAMED = -1  # the label of a segment of which nobody said what it is


@dataclass(frozen=True)
class Truth:
    """masks [N, H, W] float 0 or 1; labels [N] int64, some may be UNNAMED; counted [H, W] float, 0 where the truth is
    not known."""

    masks: Tensor
    labels: Tensor
    counted: Tensor


@dataclass(frozen=True)
class SetLoss:
    """Weights of classes, masks and dice; `void`: of "nothing" in the classes' cross-entropy; points a mask.

    A query that is paired with an unnamed segment learns its mask, and that it may be any class alike, but not nothing.
    """

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    void: float = 0.1
    points: int = 12544

    def __call__(
        self, logits: Tensor, masks: Tensor, truths: Sequence[Truth], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Class logits [B, Q, K + 1], the last "nothing", and mask logits [B, Q, h, w] -> the three terms, weighted.

        Equal for any order of the true segments, with equal states of the generator.
        """
        target = torch.full(logits.shape[:2], logits.shape[2] - 1, device=logits.device)
        found, truth, counted = [], [], []
        for b, one in enumerate(truths):
            rows, columns = self.pair(logits[b], masks[b], one, generator)
            target[b, rows] = one.labels[columns]
            found.append(masks[b, rows])
            truth.append((one.masks, columns))
            counted.append(one.counted.expand(len(rows), -1, -1))
        named = self.classes * self.naming(logits.float().flatten(0, 1), target.flatten())
        matched = torch.cat(found).float()
        if len(matched) == 0:  # nothing to see in any picture
            return {"class": named, "mask": masks.sum() * 0.0, "dice": masks.sum() * 0.0}
        points = uncertain_points(matched, self.points, generator)
        parts = points.split([len(part) for part in found])
        true = torch.cat([sample(m[c], at) for (m, c), at in zip(truth, parts, strict=True)])
        known = torch.cat([sample(m, at) for m, at in zip(counted, parts, strict=True)])
        read = sample(matched, points)
        return {
            "class": named,
            "mask": self.mask * point_bce(read, true, known).mean(),
            "dice": self.dice * point_dice(read, true, known).mean(),
        }

    def naming(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits [N, K + 1] and targets [N], weighted; of unnamed ones, with all K classes alike."""
        logs = logits.log_softmax(-1)
        own = logs.gather(1, target.clamp_min(0)[:, None])[:, 0]
        value = torch.where(target == UNNAMED, logs[:, :-1].mean(1), own)
        weight = torch.where(target == logits.shape[1] - 1, self.void, 1.0)
        return -(weight * value).sum() / weight.sum()

    @torch.no_grad()
    def pair(self, logits: Tensor, masks: Tensor, truth: Truth, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The cheapest pairs of one picture: numbers of queries, rising, and of true segments (Hungarian algorithm).

        cost = -classes p(class) + mask BCE + dice, on points that all masks of the picture share.
        """
        from scipy.optimize import linear_sum_assignment

        points = random_points((self.points,), generator, masks.device)
        read, true = sample(masks.float(), points), sample(truth.masks, points)
        known = sample(truth.counted[None], points)[0]
        cost = -self.classes * logits.float().softmax(-1)[:, truth.labels] * (truth.labels != UNNAMED)
        cost = cost + self.mask * pairwise_bce(read, true, known) + self.dice * pairwise_dice(read, true, known)
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        return torch.as_tensor(rows, device=masks.device), torch.as_tensor(columns, device=masks.device)
