"""The softmax contrastive loss without its [B, B] matrix: memory grows with B, not with its square.

A tile of logits is made, summed into the logsumexps of its rows and columns, and dropped; the backward pass makes it
again. Like the tiles of Cheng et al., Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive
Loss, arXiv 2410.17243, in one pass for both directions.
"""

from typing import Any

import torch
from torch import Tensor

from diptych.losses.precision import in_float32

TILE = 512  # rows and columns; 1 MB of logits, which stay in the processor's cache


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
            raise NotImplementedError("the gradients of a tiled loss have no gradients of their own")
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
    a: Tensor, b: Tensor, scale: Tensor | float, *, weights: Tensor | None = None, tile: int = TILE
) -> Tensor:
    """`softmax_contrastive` of the diagonal, with equal value and gradients, which never holds more than a tile.

    Its gradients have none of their own: for second derivatives take `softmax_rows`.
    """
    rows, columns = tiled_logsumexp(a, b, scale, tile=tile)
    pairs = (rows + columns) / 2 - scale * torch.linalg.vecdot(a, b)
    return pairs.mean() if weights is None else (weights * pairs).mean()
