"""The one training loop: devices, precision, accumulation, schedules, clipping. It knows the name of no method.

A method hands over its trainable tensors by name and `loss(step)`. What a step sees is a function of (seed, step),
so a run can be repeated, and taken up again in the middle, without any other state than tensors and optimiser.
"""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from diptych.errors import DiptychError

Loss = Tensor | Mapping[str, Tensor]


class Diverged(DiptychError):
    """A loss or a gradient is no longer a number."""


@dataclass(frozen=True)
class Optimiser:
    """rate: the peak learning rate; momentum is SGD's."""

    kind: Literal["sgd", "adamw"]
    rate: float
    weight_decay: float = 0.0
    momentum: float = 0.9


class Moments:
    """An optimiser's state over tensors, stepped by torch's own functions.

    Not torch.optim's classes: the first of them that is built imports torch's compiler, 5 seconds and 160 MB a process.
    """

    def __init__(self, spec: Optimiser, tensors: list[Tensor]) -> None:
        self.spec, self.tensors = spec, tensors
        self.first: list[Any] = [None] * len(tensors)
        if spec.kind == "adamw":
            self.first = [torch.zeros_like(t) for t in tensors]
            self.second = [torch.zeros_like(t) for t in tensors]
            self.counts = [torch.zeros(()) for _ in tensors]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        spec, gradients = self.spec, [t.grad for t in self.tensors if t.grad is not None]
        common: dict[str, Any] = {"weight_decay": spec.weight_decay, "lr": rate, "maximize": False, "foreach": True}
        if spec.kind == "sgd":
            common |= {"momentum": spec.momentum, "dampening": 0.0, "nesterov": False}
            sgd(self.tensors, gradients, self.first, has_sparse_grad=False, **common)
        else:
            common |= {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
            adamw(self.tensors, gradients, self.first, self.second, [], self.counts, **common)
        for tensor in self.tensors:
            tensor.grad = None


@dataclass(frozen=True)
class Cosine:
    """Learning rate from the peak down to `least` along half a cosine, changing every `every` steps (an epoch's).

    warmup: units of `every` before it. constant: their rate; None rises to the peak in equal steps.
    After a constant warm-up the cosine is as long as the whole run (the toolbox of CoOp and MaPLe), so it ends early.
    """

    every: int = 1
    warmup: int = 0
    constant: float | None = None
    least: float = 0.0

    def rate(self, peak: float, step: int, steps: int) -> float:
        now, units = step // self.every, math.ceil(steps / self.every)
        if now < self.warmup:
            return peak * (now + 1) / self.warmup if self.constant is None else self.constant
        span = units if self.constant is not None else max(units - self.warmup, 1)
        return self.least + (peak - self.least) * (1 + math.cos(math.pi * (now - self.warmup) / span)) / 2


class Runtime(Protocol):
    """Where the steps run. `Fabric` is one; `Plain` is one process on the CPU."""

    def autocast(self) -> AbstractContextManager[Any]: ...
    def backward(self, tensor: Tensor) -> None: ...
    def all_reduce(self, data: Tensor) -> Any: ...


class Plain:
    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, tensor: Tensor) -> None:
        tensor.backward()

    def all_reduce(self, data: Tensor) -> Tensor:
        return data


def precision(device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """bf16 only where the accelerator has units for it; on a CPU it is slower and would change small results."""
    cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if cuda else "32-true"


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def runtime(device: torch.device) -> Runtime:
    """Fabric where several processes or an accelerator are at work (it imports slowly), else the plain loop."""
    if device.type == "cpu" and processes() == 1:
        return Plain()
    from diptych.errors import missing_extra

    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        if processes() > 1:
            raise missing_extra("lightning-fabric", "fabric", "training in several processes") from error
        return Plain()
    if processes() > 1:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
        devices: Any = {"devices": local, "num_nodes": processes() // local, "strategy": "ddp"}
    else:
        devices = {"devices": 1 if device.type != "cuda" else [device.index or 0]}
    fabric = Fabric(accelerator=device.type, precision=precision(device), **devices)
    fabric.launch()
    return fabric  # type: ignore[return-value]


def train(
    trainable: Mapping[str, Tensor],
    loss: Callable[[int], Loss],
    optimiser: Optimiser,
    steps: int,
    *,
    schedule: Cosine | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Minimise the loss over the named leaf tensors, in place; returns the loss of every step.

    loss(step): a scalar, or named scalars whose sum is minimised; with `accumulate` it is called that many times a
    step, with step * accumulate + 0, 1, ... clip: largest norm of the whole gradient. Several processes average
    their gradients. Raises Diverged, naming the term or tensor, where something stops being finite.
    """
    tensors = list(trainable.values())
    if not tensors or not all(t.is_leaf and t.requires_grad for t in tensors):
        raise ValueError("train needs leaf tensors that require a gradient")
    run = runtime(tensors[0].device)
    moments = Moments(optimiser, tensors)
    losses: list[float] = []
    for step in range(steps):
        rate = schedule.rate(optimiser.rate, step, steps) if schedule else optimiser.rate
        where = f"at step {step + 1} of {steps} (learning rate {rate:.2g})"
        total = 0.0
        for part in range(accumulate):
            with run.autocast():
                terms = loss(step * accumulate + part)
            terms = terms if isinstance(terms, Mapping) else {"loss": terms}
            joined = torch.stack([t.float() for t in terms.values()]).sum() / accumulate
            total += finite(joined, terms, where)
            run.backward(joined)
        if processes() > 1:
            for tensor in tensors:
                if tensor.grad is not None:
                    run.all_reduce(tensor.grad)
        clip_gradient(trainable, clip, where)
        moments.step(rate)
        losses.append(total)
        if progress:
            progress(step + 1, steps)
    return losses


def finite(joined: Tensor, terms: Mapping[str, Tensor], where: str) -> float:
    value = float(joined.detach())
    if math.isfinite(value):
        return value
    culprits = [name for name, term in terms.items() if not bool(term.isfinite())] or list(terms)
    raise Diverged(f"training broke: {' and '.join(culprits)} became {value} {where}; try a smaller learning rate")


def clip_gradient(trainable: Mapping[str, Tensor], clip: float | None, where: str) -> None:
    """Scale the whole gradient down to norm `clip`. A tensor that no gradient reaches is a mistake of the method."""
    missing = [name for name, tensor in trainable.items() if tensor.grad is None]
    if missing:
        raise RuntimeError(f"no gradient reaches {', '.join(missing)}")
    gradients = [t.grad for t in trainable.values() if t.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
    norm = float(norms.norm())
    if not math.isfinite(norm):
        culprit = next(name for name, n in zip(trainable, norms.tolist(), strict=True) if not math.isfinite(n))
        raise Diverged(f"training broke: the gradient of {culprit} is not finite {where}; try a smaller learning rate")
    if clip is not None and norm > clip:
        torch._foreach_mul_(gradients, clip / norm)  # pyright: ignore[reportPrivateImportUsage]
