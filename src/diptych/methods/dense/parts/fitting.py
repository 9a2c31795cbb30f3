"""Training what stands beside a frozen CLIP, with the engine's one loop; taken up again where it was stopped."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diptych.engine.loop import Group, Loop, Milestones, Optimiser
from diptych.errors import DiptychError
from diptych.files import atomic

EVERY = 20.0  # seconds between two states on disk
UNDECAYED = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)


@dataclass(frozen=True)
class Schedule:
    """AdamW as Mask2Former trains: the rate falls to a tenth at 8/9 of the steps and again at 26/27."""

    steps: int
    rate: float
    weight_decay: float
    clip: float
    milestones: tuple[float, ...] = (8 / 9, 26 / 27)


def train_module(
    module: nn.Module,
    loss: Callable[[int], Mapping[str, Tensor]],
    schedule: Schedule,
    *,
    about: Any = None,
    keep: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Minimise loss(step) over all parameters of the module, in place; norms and embeddings do not decay.

    keep: where the state is written now and then and taken up again; it belongs to `about` (JSON-able) and is left for
    the caller to remove. Raises DiptychError where it belongs to something else, Diverged.
    """
    trainable = dict(module.named_parameters())
    still = {
        f"{name}.{part}".removeprefix(".")
        for name, inner in module.named_modules() if isinstance(inner, UNDECAYED)
        for part, _ in inner.named_parameters(recurse=False)
    }  # fmt: skip
    groups = [
        Group(tuple(n for n in trainable if n not in still), 1.0, schedule.weight_decay),
        Group(tuple(n for n in trainable if n in still)),
    ]
    loop = Loop(
        trainable,
        Optimiser("adamw", schedule.rate),
        schedule.steps,
        groups=groups,
        schedule=Milestones(schedule.milestones),
        clip=schedule.clip or None,
    )
    mark = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    first = take_up(keep, mark, module, loop) if keep and keep.exists() else 0
    written = time.monotonic()
    module.train()
    for step in range(first, schedule.steps):
        loop.step(step, loss)
        if keep and time.monotonic() - written > EVERY and step + 1 < schedule.steps:
            put_down(keep, mark, step + 1, module, loop)
            written = time.monotonic()
        if progress:
            progress(step + 1, schedule.steps)
    module.eval()


def put_down(keep: Path, mark: str, step: int, module: nn.Module, loop: Loop) -> None:
    from safetensors.torch import save_file

    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"loop.{k}": v for k, v in loop.state().items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic(keep) as temporary:
        save_file(tensors, temporary, {"step": str(step), "mark": mark})


def take_up(keep: Path, mark: str, module: nn.Module, loop: Loop) -> int:
    """Fill module and loop from a state on disk; -> the step to go on with."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(keep, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, same = int(about["step"]), about["mark"] == mark
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DiptychError(f"{keep} is not a state of a training, or is damaged ({error}); remove it") from error
    if not same:
        raise DiptychError(f"{keep} was begun with other data, settings or model; remove it to begin anew")
    parts = {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("module.", "loop.")}
    module.load_state_dict(parts["module."])
    device = next(module.parameters()).device
    loop.load_state({k: v if k.startswith("count.") else v.to(device) for k, v in parts["loop."].items()})
    return step
