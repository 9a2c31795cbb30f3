"""A loss within groups of a batch (a language, a source, an expert), then over the groups."""

from collections.abc import Callable

import torch
from torch import Tensor

from diptych.errors import DiptychError


def within_groups(
    loss: Callable[[Tensor], Tensor], groups: Tensor, *, weights: Tensor | None = None, least: int = 2
) -> Tensor:
    """Mean over groups of loss(rows of the group); a scalar.

    loss: takes the numbers of some rows [n] int64 and gives a scalar. groups: [B] int64, a group for each row.
    weights: [G], a weight for each group number, divided by the sum over the groups that take part; None is equal
    weights, whatever the groups' sizes. Groups with fewer than `least` rows have nothing to contrast and take no part.
    Raises DiptychError where no group is left.
    """
    numbers, counts = groups.unique(return_counts=True)
    numbers = numbers[counts >= least]
    if not len(numbers):
        raise DiptychError(f"no group of this batch has {least} rows: make batches larger, or of fewer groups")
    losses = torch.stack([loss((groups == number).nonzero()[:, 0]) for number in numbers])
    if weights is None:
        return losses.mean()
    own = weights[numbers]
    return (own * losses).sum() / own.sum()
