"""Gates over a tower's channels, heads and units: it runs as if what is closed were cut away, with gradients for all.

Shapes: W hidden channels, L blocks, H heads and U units of a block. Wu et al., TinyCLIP, ICCV 2023, arXiv 2309.12314,
section 3.2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.surgery import Kept, cut, need_blocks
from diptych.core.tower import Tower
from diptych.errors import DiptychError


@dataclass(frozen=True)
class Gates:
    """A factor for each channel [W], and of each block for each head [H] and unit [U]; 0 is closed.

    Where all heads (or units) of a block are closed, its attention (feed-forward) part gives nothing, biases included.
    """

    hidden: Tensor
    heads: tuple[Tensor, ...]
    units: tuple[Tensor, ...]


@contextmanager
def gated(tower: Tower, gates: Gates) -> Iterator[None]:
    """While it lasts, the tower runs behind gates.

    Channels are multiplied where they enter (embeddings with their position codes) and after each attention and
    feed-forward part; heads before the out map, units after their activation. Norms are over open channels alone, and
    closed ones stay 0. Raises Unsupported for a tower that cannot be cut, DiptychError where activations are computed
    again in the backward pass, which would go through the gates' own graph twice.
    """
    body: Any = need_blocks(tower)
    if body.checkpoint:
        raise DiptychError(
            "gates are learned with all activations kept: recipe.checkpoint=false; recipe.chunk saves memory"
        )
    hidden = gates.hidden
    open_ = hidden.detach().nonzero()[:, 0]
    handles = []
    if len(open_) < len(hidden):
        norms = [module for module in body.modules() if isinstance(module, nn.LayerNorm)]
        handles += [norm.register_forward_hook(over(open_)) for norm in norms]
    for block, heads, units in zip(body.blocks(), gates.heads, gates.units, strict=True):
        for last, each in last_maps(block, heads, units):
            handles.append(last.register_forward_pre_hook(before(each)))
            handles.append(last.register_forward_hook(after(hidden * (each.detach() != 0).any())))
    body.gate = hidden
    try:
        yield
    finally:
        body.gate = None
        for handle in handles:
            handle.remove()


def last_maps(block: Any, heads: Tensor, units: Tensor) -> Iterator[tuple[nn.Linear, Tensor]]:
    """The out maps of a block's two parts, where they are there, each with a factor for each of its columns."""
    if block.attn is not None:
        yield block.attn.out_proj, heads.repeat_interleave(block.attn.out_proj.in_features // len(heads))
    if block.mlp is not None:
        yield block.mlp.c_proj, units


def before(factor: Tensor) -> Any:
    return lambda module, inputs: (inputs[0] * factor.to(inputs[0].dtype),)


def after(factor: Tensor) -> Any:
    return lambda module, inputs, output: output * factor.to(output.dtype)


def over(channels: Tensor) -> Any:
    """A norm's result over some channels, 0 in the others."""

    def normed(norm: nn.LayerNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        some = inputs[0].index_select(-1, channels)
        weight, bias = norm.weight[channels], norm.bias[channels]
        some = F.layer_norm(some, (len(channels),), weight, bias, norm.eps)
        return torch.zeros_like(output).index_copy(-1, channels, some.to(output.dtype))

    return normed


@torch.no_grad()
def cut_closed(tower: Tower, gates: Gates) -> None:
    """Cut away what is closed and multiply the other gates into the weights: what `gated` computes, without gates.

    Raises Unsupported for a tower that cannot be cut.
    """
    body: Any = need_blocks(tower)
    hidden = gates.hidden
    if body.modality == "image":
        visual = body.visual
        visual.conv1.weight *= hidden[:, None, None, None]
        visual.class_embedding *= hidden
        visual.positional_embedding *= hidden
        if visual.conv1.bias is not None:
            visual.conv1.bias *= hidden
    else:
        body.token_embedding.weight *= hidden
        body.positional_embedding *= hidden
    for block, heads, units in zip(body.blocks(), gates.heads, gates.units, strict=True):
        last: Any
        for last, each in last_maps(block, heads, units):
            last.weight *= hidden[:, None] * each
            last.bias *= hidden
    cut(tower, kept_of(gates))


def kept_of(gates: Gates) -> Kept:
    """What is open, by number."""

    def numbers(gate: Tensor) -> Tensor:
        return gate.nonzero()[:, 0]

    heads, units = (tuple(numbers(gate) for gate in each) for each in (gates.heads, gates.units))
    return Kept(tuple(range(len(heads))), numbers(gates.hidden), heads, units)
