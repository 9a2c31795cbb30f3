"""Contrastive losses without their [B, B] matrix: memory grows with B, not with its square.

A tile of logits is made, summed into the logsumexps of its rows and columns, and dropped; the backward pass makes it
again. Like the tiles of Cheng et al., Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive
Loss, arXiv 2410.17243, in one pass for both directions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.losses.precision import in_float32

TILE = 512  # rows and columns; 1 MB of logits, which stay in the processor's cache
ONCE = "the gradients of a tiled loss have no gradients of their own"


class LogSumExp(torch.autograd.Function):
    """log sum exp of scale * a @ b.T over every row [n] and, where both are wanted, over every column [m]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, tile: int, both: bool) -> tuple[Tensor, Tensor]:
        rows = a.new_empty(len(a))
        columns, high = a.new_zeros(len(b)), a.new_full((len(b),), -torch.inf)  # sums of exp(logit - high)
        for i in range(0, len(a), tile):
            part = scale * a[i : i + tile]
            row_sum, row_high = a.new_zeros(len(part)), a.new_full((len(part),), -torch.inf)
            for j in range(0, len(b), tile):
                logits = part @ b[j : j + tile].T
                add(logits, 1, row_sum, row_high)
                if both:
                    add(logits, 0, columns[j : j + tile], high[j : j + tile])
            rows[i : i + tile] = row_sum.log() + row_high
        columns = columns.log_().add_(high)
        ctx.save_for_backward(a, b, scale, rows, columns)
        ctx.tile, ctx.both = tile, both
        return rows, columns

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True
            raise NotImplementedError(ONCE)
        a, b, scale, rows, columns = ctx.saved_tensors
        tile, (of_rows, of_columns) = ctx.tile, gradients
        to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
        with torch.autocast(a.device.type, enabled=False):
            for i in range(0, len(a), tile):
                part, here = scale * a[i : i + tile], slice(i, i + tile)
                for j in range(0, len(b), tile):
                    there = slice(j, j + tile)
                    logits = part @ b[there].T
                    slopes = (logits - rows[here, None]).exp_().mul_(of_rows[here, None])
                    if ctx.both:
                        slopes += logits.sub_(columns[there]).exp_().mul_(of_columns[there])
                    to_a[here].addmm_(slopes, b[there])
                    to_b[there].addmm_(slopes.T, part)
            to_scale = torch.linalg.vecdot(a, to_a).sum() if ctx.needs_input_grad[2] else None
        return to_a.mul_(scale), to_b, to_scale, None, None


def add(logits: Tensor, dim: int, total: Tensor, high: Tensor) -> None:
    """Add a tile's exp(logits) over `dim` to sums of exp(logit - high), in place; `high` rises with it."""
    now = torch.maximum(high, logits.amax(dim))
    total.mul_((high - now).exp_()).add_((logits - now.unsqueeze(dim)).exp_().sum(dim))
    high.copy_(now)


def tiled_logsumexp(a: Tensor, b: Tensor, scale: Tensor | float, *, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """log sum exp(scale * a @ b.T) of every row [n] and of every column [m]; a is [n, D], b is [m, D]."""
    return LogSumExp.apply(a, b, torch.as_tensor(scale, dtype=a.dtype, device=a.device), tile, True)  # type: ignore


def tiled_row_logsumexp(a: Tensor, b: Tensor, scale: Tensor | float, *, tile: int = TILE) -> Tensor:
    """The rows alone, [n]: for a part of a batch, `a`, against all of it, `b`."""
    return LogSumExp.apply(a, b, torch.as_tensor(scale, dtype=a.dtype, device=a.device), tile, False)[0]  # type: ignore


@in_float32
def tiled_contrastive(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    *,
    weights: Tensor | None = None,
    ids: Tensor | None = None,
    part: slice | None = None,
    tile: int = TILE,
) -> Tensor:
    """`softmax_contrastive`, with equal value and gradients, which never holds more than a tile.

    ids: [B] int64, equal where pairs belong together: then the targets are `positives_of(ids)`, else the diagonal.
    Its gradients have none of their own: for second derivatives take `softmax_rows`.
    """
    some = slice(None) if part is None else part
    if len(a[some]) == len(a):
        rows, columns = tiled_logsumexp(a, b, scale, tile=tile)
    else:
        rows, columns = (tiled_row_logsumexp(x[some], y, scale, tile=tile) for x, y in ((a, b), (b, a)))
    pairs = (rows + columns) / 2 - own_logits(a, b, scale, ids, some)
    return pairs.mean() if weights is None else (weights[some] * pairs).mean()


def own_logits(a: Tensor, b: Tensor, scale: Tensor | float, ids: Tensor | None, part: slice) -> Tensor:
    """The logits of pairs with themselves, or their mean over all of the same id (both directions'); of a part, [n]."""
    if ids is None:
        return scale * torch.linalg.vecdot(a[part], b[part])
    # the mean of logits is the logit of the mean
    of_a, of_b = (sums / counts[:, None] for sums, counts in (sums_of_alike(a, ids), sums_of_alike(b, ids)))
    return scale * (torch.linalg.vecdot(a[part], of_b[part]) + torch.linalg.vecdot(b[part], of_a[part])) / 2


def sums_of_alike(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(the sum of all rows with each row's id [B, D], how many they are [B])."""
    _, where, counts = ids.unique(return_inverse=True, return_counts=True)
    return rows.new_zeros(len(counts), rows.shape[1]).index_add(0, where, rows)[where], counts[where]


class SoftplusSum(torch.autograd.Function):
    """Sum of softplus(scale * a @ b.T + bias) over all pairs; one pass makes the gradients too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, tile: int) -> Tensor:
        total, to_bias = a.new_zeros(()), a.new_zeros(())
        to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
        for i in range(0, len(a), tile):
            part, here = scale * a[i : i + tile], slice(i, i + tile)
            for j in range(0, len(b), tile):
                there = slice(j, j + tile)
                logits = (part @ b[there].T).add_(bias)
                total += F.softplus(logits).sum()
                slopes = logits.sigmoid_()
                to_bias += slopes.sum()
                to_a[here].addmm_(slopes, b[there])
                to_b[there].addmm_(slopes.T, part)
        to_scale = torch.linalg.vecdot(a, to_a).sum()
        ctx.save_for_backward(to_a.mul_(scale), to_b, to_scale, to_bias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True
            raise NotImplementedError(ONCE)
        return *(gradient * slope for slope in ctx.saved_tensors), None


@in_float32
def tiled_sigmoid(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    first: int = 0,
    ids: Tensor | None = None,
    tile: int = TILE,
) -> Tensor:
    """`sigmoid_contrastive` where each row's positives are those of its id, or its own; equal value and gradients."""
    given, some = {"dtype": a.dtype, "device": a.device}, slice(first, first + len(a))
    every = SoftplusSum.apply(a, b, torch.as_tensor(scale, **given), torch.as_tensor(bias, **given), tile)
    if ids is None:
        positive = scale * torch.linalg.vecdot(a, b[some]) + bias
    else:
        sums, counts = sums_of_alike(b, ids)
        positive = scale * torch.linalg.vecdot(a, sums[some]) + bias * counts[some]
    return (every - positive.sum()) / len(a)  # type: ignore[operator]
