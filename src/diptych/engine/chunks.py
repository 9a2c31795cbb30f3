"""Batches larger than memory: towers run in chunks, the loss once over all rows, gradients equal to the big batch's.

Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021, arXiv 2101.06983
(GradCache), as one node of the graph a chunk: what follows the embeddings (gathering, tiles, any loss with parameters
of its own) is ordinary autograd.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from diptych.core.recompute import recomputed

Chunk = TypeVar("Chunk")
Embeddings = dict[str, Tensor]


def embed_in_chunks(embed: Callable[[Chunk], Embeddings], chunks: Sequence[Chunk]) -> Embeddings:
    """embed(chunk) of every chunk, one after the other, as rows of one batch; in the backward pass each runs again.

    Activations of one chunk at a time are in memory, for twice the forward passes. `embed` gives named tensors
    [rows, ...]; for their gradients and random numbers see `recomputed`. Batch norm in training mode takes the
    statistics of a chunk, and moves its running ones twice.
    """
    parts = [embed_chunk(embed, chunk) for chunk in chunks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def embed_chunk(embed: Callable[[Chunk], Embeddings], chunk: Chunk) -> Embeddings:
    names: list[str] = []

    def run() -> tuple[Tensor, ...]:
        found = embed(chunk)
        names[:] = found
        return tuple(found.values())

    rows = recomputed(run)
    return dict(zip(names, rows, strict=True))
