"""Frozen batch norms folded into the convolutions before them: the same embeddings in fewer passes over the maps."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diptych.core.edits import EditedTower
from diptych.core.tower import Tower

SAME = 1e-4  # the largest difference between unit embeddings


def folded(tower: Tower, side: int) -> Tower:
    """A copy for inference at `side` pixels; the tower itself where it has no such norms, or where a copy would not
    compute the same.

    A norm belongs to the convolution whose output it was seen to read.
    """
    norms = any(isinstance(part, nn.BatchNorm2d) for part in tower.modules())
    if not norms or isinstance(tower, EditedTower):  # an edit names weights that a copy would not have
        return tower
    mine = copy.deepcopy(tower).eval().requires_grad_(False)
    device = next(tower.parameters()).device
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        expected = F.normalize(tower(pixels).embedding, dim=-1)
        for conv, norm in pairs(mine, pixels):
            merged = fuse_conv_bn_eval(mine.get_submodule(conv), mine.get_submodule(norm))  # type: ignore[arg-type]
            put(mine, conv, merged)
            put(mine, norm, activation(mine.get_submodule(norm)))
        found = F.normalize(mine(pixels).embedding, dim=-1)
    return mine if float((found - expected).abs().max()) < SAME else tower


def pairs(tower: nn.Module, pixels: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that read their outputs, as one forward shows them."""
    made: dict[int, tuple[str, Tensor]] = {}  # the outputs are kept, so that no other tensor gets their number
    found: list[tuple[str, str]] = []

    def after_conv(name: str, output: Any) -> None:
        made[id(output)] = (name, output)

    def after_norm(name: str, read: Tensor) -> None:
        if id(read) in made:
            found.append((made[id(read)][0], name))

    hooks = []
    for name, part in tower.named_modules():
        if isinstance(part, nn.Conv2d):
            hooks.append(part.register_forward_hook(lambda _, __, output, name=name: after_conv(name, output)))
        elif isinstance(part, nn.BatchNorm2d):
            hooks.append(part.register_forward_hook(lambda _, inputs, __, name=name: after_norm(name, inputs[0])))
    try:
        tower(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    convs = [conv for conv, _ in found]
    return [pair for pair in found if convs.count(pair[0]) == 1]


def activation(norm: nn.Module) -> nn.Module:
    """What is left of a norm: of timm's, which activate too, that."""
    rest = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def put(tower: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(tower.get_submodule(parent), last, part)
