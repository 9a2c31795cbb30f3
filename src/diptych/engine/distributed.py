"""Losses over the batch of all processes, right in value and gradient.

One rule: the processes' gradients are averaged afterwards (DDP does, and the training loop), and the average of the
processes' losses is the loss of the big batch. Two ways to keep it:

- the whole loss in every process, of gathered rows; `gather(..., with_gradient=False)` is enough and sends nothing
  in the backward pass;
- a part each, own rows against everyone's: the local losses below. Each is the mean over own rows. Logits of n own
  rows by B of the batch, not B by B; needs gradients through `gather`.

Every process has the same number of rows, in the order of ranks. Without a process group all of this is the loss of
the one batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from diptych.losses.contrastive import sigmoid_contrastive
from diptych.losses.loob import info_loob, retrieve
from diptych.losses.multilinear import multilinear_contrastive
from diptych.losses.precision import in_float32
from diptych.losses.tiled import tiled_row_logsumexp


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if world() > 1 else 0


class Gather(torch.autograd.Function):
    """All rows, in the order of ranks. Backward: the sum over processes, or own rows' gradient times their number."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, summed: bool) -> Tensor:
        ctx.summed, ctx.count = summed, len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        own = slice(rank() * ctx.count, (rank() + 1) * ctx.count)
        if not ctx.summed:
            return gradient[own] * world(), None
        gradient = gradient.clone()  # contiguous, and ours to write on
        dist.all_reduce(gradient)
        return gradient[own], None


def gather(rows: Tensor, *, with_gradient: bool = True) -> Tensor:
    """Rows [n, ...] of every process -> [world * n, ...], the same everywhere.

    with_gradient: own rows get the gradients of all processes' losses, summed: right for whole and for local losses.
    Without, they get this process's alone, times the number of processes: the same for a loss that every process
    computes whole, and wrong for a local one.
    """
    return Gather.apply(rows, with_gradient) if world() > 1 else rows  # type: ignore[return-value]


def gather_embeddings(embeddings: dict[str, Tensor], *, with_gradient: bool = True) -> dict[str, Tensor]:
    """`gather` for each by its name."""
    return {name: gather(rows, with_gradient=with_gradient) for name, rows in embeddings.items()}


def of_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, in all of them: what was computed or drawn there. Same shape everywhere."""
    if world() > 1:
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(tensor, 0)
    return tensor


# -- own rows [n, D] against everyone's ------------------------------------------------------------------------------


@in_float32
def local_softmax(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """The part of `softmax_contrastive`, in tiles."""
    rows, columns = (tiled_row_logsumexp(x, gather(y), scale) for x, y in ((a, b), (b, a)))
    return ((rows + columns) / 2 - scale * torch.linalg.vecdot(a, b)).mean()


def local_sigmoid(a: Tensor, b: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """The part of `sigmoid_contrastive`; only b travels."""
    return sigmoid_contrastive(a, gather(b), scale, bias, first=rank() * len(a))


def local_loob(x: Tensor, y: Tensor, beta: Tensor | float, inverse_tau: Tensor | float) -> Tensor:
    """The part of `retrieved_loob`: own queries on everyone's store, then own anchors against everyone's."""
    first, images, texts = rank() * len(x), gather(x), gather(y)
    u_x, u_y = retrieve(x, images, beta), gather(retrieve(y, images, beta))
    v_y, v_x = retrieve(y, texts, beta), gather(retrieve(x, texts, beta))
    return info_loob(u_x, u_y, inverse_tau, first=first) + info_loob(v_y, v_x, inverse_tau, first=first)


def local_multilinear(rows: Sequence[Tensor], scale: Tensor | float, permutations: Tensor | None = None) -> Tensor:
    """The part of `multilinear_contrastive`; permutations [M, M, B] of the big batch, the same in all processes."""
    own = slice(rank() * len(rows[0]), (rank() + 1) * len(rows[0]))
    return multilinear_contrastive([gather(r) for r in rows], scale, permutations, part=own)
