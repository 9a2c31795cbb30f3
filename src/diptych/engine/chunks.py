"""Batches larger than memory: towers run in chunks, the loss once over all rows, gradients equal to the big batch's.

Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021, arXiv 2101.06983
(GradCache), as one node of the graph a chunk: what follows the embeddings (gathering, tiles, any loss with parameters
of its own) is ordinary autograd.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")
Embeddings = dict[str, Tensor]


def embed_in_chunks(embed: Callable[[Chunk], Embeddings], chunks: Sequence[Chunk]) -> Embeddings:
    """embed(chunk) of every chunk, one after the other, as rows of one batch; in the backward pass each runs again.

    Activations of one chunk at a time are in memory, for twice the forward passes. `embed` gives named tensors
    [rows, ...]; parameters it uses get their gradient from `loss.backward()` (torch.autograd.grad cannot ask for them).
    torch's random numbers (dropout, dropped patches) are the same both times; a generator of one's own must be seeded
    inside. Batch norm in training mode takes the statistics of a chunk, and moves its running ones twice.
    """
    parts = [embed_chunk(embed, chunk) for chunk in chunks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def embed_chunk(embed: Callable[[Chunk], Embeddings], chunk: Chunk) -> Embeddings:
    names: list[str] = []
    link = torch.empty(0, requires_grad=True)  # ties the outputs to the graph: the parameters are inside `embed`
    rows = Replayed.apply(link, embed, chunk, names)
    return dict(zip(names, rows, strict=True))  # type: ignore[arg-type]


class Replayed(torch.autograd.Function):
    """embed(chunk) without a graph; backward runs it again with one.

    Not torch.utils.checkpoint: its first call imports torch's compiler, 4 seconds and 160 MB a process.
    """

    @staticmethod
    def forward(
        ctx: Any, link: Tensor, embed: Callable[[Any], Embeddings], chunk: Any, names: list[str]
    ) -> tuple[Tensor, ...]:
        ctx.embed, ctx.chunk, ctx.names = embed, chunk, names
        ctx.state, ctx.autocast = random_state(), autocast_state()
        found = embed(chunk)
        names += found
        return tuple(found.values())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True
            raise NotImplementedError("the gradients of rows embedded in chunks have no gradients of their own")
        with torch.enable_grad(), replayed(ctx.state), as_then(ctx.autocast):
            found = ctx.embed(ctx.chunk)
        pairs = [(found[n], g) for n, g in zip(ctx.names, gradients, strict=True) if found[n].requires_grad]
        if pairs:
            rows, slopes = zip(*pairs, strict=True)
            torch.autograd.backward(rows, slopes)
        return None, None, None, None


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
