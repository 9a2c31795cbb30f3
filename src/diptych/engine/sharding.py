"""Weights in parts, a part on each process; whole one block at a time, while it runs (FSDP, ZeRO stage 3).

Zhao et al., PyTorch FSDP, VLDB 2023, arXiv 2304.11277, in torch's second form (`fully_shard`): parameters, gradients
and what an optimiser keeps of them are DTensors, whose local parts are plain tensors.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diptych.core.clip import CLIP
from diptych.core.tower import Tower

Kind = TypeVar("Kind", bound=nn.Module)


def shard(clip: CLIP) -> None:
    """Give each process its part of the towers, which all have whole; a collective call.

    The temperature stays whole, and so do parameters without dimensions: their gradients are not averaged here.
    """
    from torch.distributed import device_mesh
    from torch.distributed import get_world_size as world

    mesh = device_mesh.init_device_mesh(clip.device.type, (world(),))
    for tower in clip.towers.values():
        assert isinstance(tower, Tower)
        shard_tower(tower, mesh)


def shard_tower(tower: Tower, mesh: Any) -> None:
    """Each block or stage by itself, then what is left."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    scalars = {p for p in tower.parameters() if not p.dim()}
    parts: list[Any] = tower.parts()
    for number, part in enumerate(parts):
        if tower.transformer:  # blocks are run from outside, by their weights: `run` is what makes them whole
            part.run = partial(tower.block, number)  # type: ignore[attr-defined]
        fully_shard(part, mesh=mesh, ignored_params=scalars)
        if tower.transformer:
            register_fsdp_forward_method(part, "run")
    if tower.transformer and parts:
        tower.block = lambda number, *given: parts[number].run(*given)  # type: ignore[attr-defined]
    fully_shard(tower, mesh=mesh, ignored_params=scalars, reshard_after_forward=True)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def local(tensor: Any) -> Any:
    """This process's part of a tensor, on the same memory; of one that is not sharded, itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All parts of a tensor, in every process; a collective call."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def part_of(full: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, sharded as another is and where it is."""
    full = full.to(like.device, copy=True)
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    kind: Any = like
    return distribute_tensor(full, kind.device_mesh, kind.placements, src_data_rank=None)


def load(module: nn.Module, full: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be sharded."""
    state = module.state_dict()
    module.load_state_dict({n: part_of(t, state[n]) if n in state else t for n, t in full.items()})


def blank(module: Kind) -> Kind:
    """A copy whose parameters have no values yet, to be given whole ones (`load_state_dict(..., assign=True)`)."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()
    }
    return copy.deepcopy(module, memo)
