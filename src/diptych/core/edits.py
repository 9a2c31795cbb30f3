"""Changing a tower without touching it: prompts, low-rank deltas and replaced weights as data.

An edited tower computes with the changed weights through `functional_call`; the base weights stay bit-identical
and the edit is undone by dropping it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from diptych.core.tower import Projection, Prompt, Prompts, Tap, Tokens, Tower, TowerOutput


@dataclass(frozen=True)
class LowRank:
    """Delta of one projection: weight[start:stop] += scale * up @ down. down [r, in], up [out, r].

    LoRA (arXiv 2106.09685, equation 3).
    """

    projection: Projection
    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class TowerEdits:
    """What is different in one tower: prompts of every call, low-rank deltas, replaced parameters by name."""

    prompts: tuple[Prompt, ...] = ()
    low_rank: tuple[LowRank, ...] = ()
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.prompts or self.low_rank or self.weights)

    def parameters(self, tower: Tower) -> dict[str, Tensor]:
        """The changed parameters by name, in the graph of the edit."""
        changed = dict(self.weights)
        named = dict(tower.named_parameters()) if self.low_rank else {}
        for delta in self.low_rank:
            name = delta.projection.parameter
            weight = changed.get(name, named[name])
            start, stop = delta.projection.start, delta.projection.stop
            part = weight[start:stop] + delta.scale * (delta.up @ delta.down)
            changed[name] = torch.cat([weight[:start], part, weight[stop:]])
        return changed

    def tensors(self) -> list[Tensor]:
        prompts = [p.tokens for p in self.prompts]
        return [*prompts, *(t for d in self.low_rank for t in (d.down, d.up)), *self.weights.values()]


@dataclass(frozen=True)
class Edits:
    """Edits by tower name."""

    towers: dict[str, TowerEdits] = field(default_factory=dict)

    def of(self, name: str) -> TowerEdits:
        return self.towers.get(name, TowerEdits())

    def __bool__(self) -> bool:
        return any(self.towers.values())

    def to(self, device: torch.device | str) -> "Edits":
        spec, tensors = pack(self)
        return unpack(spec, {name: t.to(device) for name, t in tensors.items()})

    def detached(self) -> "Edits":
        """A copy out of the graph, on the CPU, to keep or save."""
        spec, tensors = pack(self)
        return unpack(spec, {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()})


class EditedTower(Tower):
    """A tower with edits; has the same calls as the tower it wraps and shares its weights."""

    def __init__(self, base: Tower, edits: TowerEdits) -> None:
        super().__init__()
        for name in ("modality", "kind", "transformer", "causal", "context_length", "pads_to"):
            setattr(self, name, getattr(base, name))
        self.embed_dim, self.width, self.depth = base.embed_dim, base.width, base.depth
        self.base = base
        self.edits = edits

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        call = {"prompts": (*self.edits.prompts, *prompts), "taps": taps, "tokens": tokens}
        changed = self.edits.parameters(self.base)
        if not changed:
            return self.base(inputs, **call)
        return functional_call(self.base, changed, (inputs,), call)

    def embed(self, ids: Tensor) -> Tensor:
        return self.base.embed(ids)

    def projections(self) -> list[Projection]:
        return self.base.projections()


def pack(edits: Edits) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Edits -> a JSON-able description and named tensors; `unpack` is the inverse."""
    spec: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, edit in edits.towers.items():
        prompts = []
        for i, prompt in enumerate(edit.prompts):
            tensors[f"{name}.prompt.{i}"] = prompt.tokens
            prompts.append({f.name: getattr(prompt, f.name) for f in fields(prompt) if f.name != "tokens"})
        low_rank = []
        for i, delta in enumerate(edit.low_rank):
            tensors[f"{name}.low_rank.{i}.down"], tensors[f"{name}.low_rank.{i}.up"] = delta.down, delta.up
            low_rank.append({"projection": asdict(delta.projection), "scale": delta.scale})
        for parameter, weight in edit.weights.items():
            tensors[f"{name}.weights.{parameter}"] = weight
        spec[name] = {"prompts": prompts, "low_rank": low_rank, "weights": sorted(edit.weights)}
    return spec, tensors


def unpack(spec: dict[str, Any], tensors: dict[str, Tensor]) -> Edits:
    towers = {}
    for name, part in spec.items():
        prompts = [Prompt(tensors[f"{name}.prompt.{i}"], **p) for i, p in enumerate(part["prompts"])]
        low_rank = [
            LowRank(
                Projection(**d["projection"]),
                tensors[f"{name}.low_rank.{i}.down"],
                tensors[f"{name}.low_rank.{i}.up"],
                d["scale"],
            )
            for i, d in enumerate(part["low_rank"])
        ]
        weights = {p: tensors[f"{name}.weights.{p}"] for p in part["weights"]}
        towers[name] = TowerEdits(tuple(prompts), tuple(low_rank), weights)
    return Edits(towers)
