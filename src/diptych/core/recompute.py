"""Parts of a network whose activations are not kept: the backward pass runs them again (gradient checkpointing).

Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174, as one node of the graph a part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def recomputed(run: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, trains: bool = True) -> tuple[Tensor, ...]:
    """run(*inputs), equal in value and gradients, of which the graph keeps the inputs alone.

    Parameters that `run` uses get their gradient from `loss.backward()` (torch.autograd.grad cannot ask for them);
    trains: whether there are any that want one. torch's random numbers (dropout) are the same both times; a generator
    of one's own must be seeded inside. Batch norm takes the statistics of what `run` is given.
    """
    link = torch.empty(0, requires_grad=trains)  # ties the outputs to the graph: the parameters are inside `run`
    return Recomputed.apply(link, run, *inputs)  # type: ignore[return-value]


class Recomputed(torch.autograd.Function):
    """run(*inputs) without a graph; backward runs it again with one.

    Not torch.utils.checkpoint: its first call imports torch's compiler, 4 seconds and 160 MB a process.
    """

    @staticmethod
    def forward(ctx: Any, link: Tensor, run: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.state, ctx.autocast = run, random_state(), autocast_state()
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True
            raise NotImplementedError("the gradients of what is run again have no gradients of their own")
        wanted = ctx.needs_input_grad[2:]
        inputs = [x.detach().requires_grad_(want) for x, want in zip(ctx.saved_tensors, wanted, strict=True)]
        with torch.enable_grad(), replayed(ctx.state), as_then(ctx.autocast):
            found = ctx.run(*inputs)
        pairs = [(row, g) for row, g in zip(found, gradients, strict=True) if row.requires_grad]
        if pairs:
            rows, slopes = zip(*pairs, strict=True)
            torch.autograd.backward(rows, slopes)
        return None, None, *(x.grad for x in inputs)


def run_stage(stage: nn.Module, hidden: Tensor, recompute: bool) -> Tensor:
    """stage(hidden), run again in the backward pass where asked; its batch norms count what they see once."""
    if not recompute or not torch.is_grad_enabled():
        return stage(hidden)
    seen = False

    def run(hidden: Tensor) -> tuple[Tensor]:
        nonlocal seen
        again, seen = seen, True
        with statistics_held(stage) if again else nullcontext():
            return (stage(hidden),)

    return recomputed(run, hidden, trains=any(p.requires_grad for p in stage.parameters()))[0]


@contextmanager
def statistics_held(module: nn.Module) -> Iterator[None]:
    """While it lasts, the running statistics of batch norms stay as they are, in training mode too."""
    norms = [(m, m.momentum, m.num_batches_tracked) for m in module.modules() if isinstance(m, _BatchNorm)]
    counts = [None if count is None else count.clone() for _, _, count in norms]
    for norm, _, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for (norm, momentum, tracked), count in zip(norms, counts, strict=True):
            norm.momentum = momentum
            if tracked is not None and count is not None:
                tracked.copy_(count)


def random_state() -> tuple[Tensor, list[Tensor]]:
    """Of the CPU's generator, and of every GPU's where one is in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


@contextmanager
def replayed(state: tuple[Tensor, list[Tensor]]) -> Iterator[None]:
    """Random numbers as they were at `state`; afterwards they go on where they were."""
    now = random_state()

    def put(state: tuple[Tensor, list[Tensor]]) -> None:
        torch.set_rng_state(state[0])
        for device, of_device in enumerate(state[1]):
            torch.cuda.set_rng_state(of_device, device)

    put(state)
    try:
        yield
    finally:
        put(now)


def autocast_state() -> dict[str, tuple[bool, torch.dtype]]:
    """Whether and how each kind of device computes in half precision now."""
    return {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")}


@contextmanager
def as_then(autocast: dict[str, tuple[bool, torch.dtype]]) -> Iterator[None]:
    with (
        torch.autocast("cpu", autocast["cpu"][1], enabled=autocast["cpu"][0]),
        torch.autocast("cuda", autocast["cuda"][1], enabled=autocast["cuda"][0]),
    ):
        yield
