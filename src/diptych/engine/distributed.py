"""Losses over the batch of all processes, right in value and gradient.

One rule: the processes' gradients are averaged afterwards (DDP does, and the training loop), and the average of the
processes' losses is the loss of the big batch. Two ways to keep it:

- the whole loss in every process, of gathered rows; `gather(..., with_gradient=False)` is enough and sends nothing
  in the backward pass;
- a part each, the mean over own rows against everyone's (`part` of the losses): logits of n own rows by B of the batch,
  not B by B; needs gradients through `gather`, which are right for whole losses too.

Every process has the same number of rows, in the order of ranks. Without a process group all of this is the loss of
the one batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from diptych.errors import DiptychError
from diptych.losses.loob import info_loob, retrieve


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
        own = own_rows(ctx.count)
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


def gather_in_turn(rows: Tensor) -> Tensor:
    """Rows [n, ...] -> [world * n, ...], one of each process in turn: the order that one process would read them in."""
    return gather(rows, with_gradient=False).unflatten(0, (world(), -1)).transpose(0, 1).flatten(0, 1)


def gather_embeddings(embeddings: dict[str, Tensor], *, with_gradient: bool = True) -> dict[str, Tensor]:
    """`gather` for each by its name."""
    return {name: gather(rows, with_gradient=with_gradient) for name, rows in embeddings.items()}


def of_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, in all of them: what was computed or drawn there. Same shape everywhere."""
    if world() > 1:
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(tensor, 0)
    return tensor


@contextmanager
def others_may_be_gone() -> Iterator[None]:
    """Says in words what torch raises where another process has ended, or does not answer in time."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise DiptychError(
            "another process of this run has ended or does not answer; what it said last, there or in its machine's "
            f"output, is why. The same command goes on from the last checkpoint. ({str(error).partition('. ')[0]})"
        ) from error


def own_rows(count: int) -> slice:
    """Where this process's `count` rows are among the gathered ones."""
    return slice(rank() * count, (rank() + 1) * count)


def local_loob(x: Tensor, y: Tensor, beta: Tensor | float, inverse_tau: Tensor | float) -> Tensor:
    """This process's part of `retrieved_loob`, of own rows [n, D]: own queries on everyone's store, then own anchors
    against everyone's."""
    first, images, texts = rank() * len(x), gather(x), gather(y)
    u_x, u_y = retrieve(x, images, beta), gather(retrieve(y, images, beta))
    v_y, v_x = retrieve(y, texts, beta), gather(retrieve(x, texts, beta))
    return info_loob(u_x, u_y, inverse_tau, first=first) + info_loob(v_y, v_x, inverse_tau, first=first)
