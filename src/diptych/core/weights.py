"""Arithmetic on named tensors: lines between models, differences, pruning. Nothing here changes what it is given.

Floating tensors are computed in float32 at least; others (counters of batch norms) are copied from the second model.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from diptych.errors import DiptychError

Weights = Mapping[str, Tensor]


def check_alike(first: Weights, second: Weights) -> None:
    """Raises DiptychError naming a tensor that only one has, or that has two shapes."""
    for name in [*first, *second]:
        if name not in first or name not in second:
            raise DiptychError(f"the models differ: only one has {name}")
        if first[name].shape != second[name].shape:
            raise DiptychError(f"the models differ: {name} is {[*first[name].shape]} and {[*second[name].shape]}")


def interpolate(first: Weights, second: Weights, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) first + alpha second: 0 is the first, 1 the second, both exactly (WiSE-FT, arXiv 2109.01903)."""
    check_alike(first, second)
    if alpha in (0, 1):
        return {name: tensor.detach().clone() for name, tensor in (first, second)[int(alpha)].items()}
    return {
        name: one.float().lerp(second[name].float(), alpha).to(one.dtype) if one.is_floating_point() else
        second[name].detach().clone()
        for name, one in first.items()
    }  # fmt: skip


def delta(first: Weights, second: Weights) -> dict[str, Tensor]:
    """second - first, of floating tensors."""
    check_alike(first, second)
    return {name: second[name] - one for name, one in first.items() if one.is_floating_point()}


def smallest(tensors: Weights, sparsity: float) -> dict[str, Tensor]:
    """Masks of the smallest share of all entries together, by magnitude: True is to be pruned."""
    if not 0 <= sparsity <= 1:
        raise DiptychError(f"sparsity is {sparsity}; it goes from 0 to 1")
    sizes = torch.cat([t.abs().flatten() for t in tensors.values()])
    count = round(sparsity * len(sizes))
    chosen = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    chosen[sizes.topk(count, largest=False).indices] = True
    parts = chosen.split([t.numel() for t in tensors.values()])
    return {name: part.view_as(t) for (name, t), part in zip(tensors.items(), parts, strict=True)}


def prune(weights: Weights, sparsity: float, names: Iterable[str], base: Weights | None = None) -> dict[str, Tensor]:
    """The smallest entries of these tensors become 0; with `base`, those that moved least from it go back to it.

    The others stay as they are. Names of tensors that are not floating are passed over.
    """
    chosen = [name for name in names if weights[name].is_floating_point()]
    start = {name: torch.zeros_like(weights[name]) if base is None else base[name] for name in chosen}
    masks = smallest({name: weights[name] - start[name] for name in chosen}, sparsity) if chosen else {}
    pruned = {name: torch.where(masks[name], start[name], weights[name]) for name in chosen}
    return {name: pruned[name] if name in pruned else tensor.detach().clone() for name, tensor in weights.items()}


def layers(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of tensors by layer: a numbered block with all that is in it, else the part by itself.

    "transformer.resblocks.3.attn.out_proj.weight" belongs to "transformer.resblocks.3"; a stage of numbered blocks
    (timm's "blocks.2.1.conv.weight") is one layer.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        numbered = re.match(r"(.*?\.\d+)\.", name)
        found.setdefault(numbered[1] if numbered else name.rpartition(".")[0] or name, []).append(name)
    return found
