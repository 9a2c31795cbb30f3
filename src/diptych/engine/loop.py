"""The one training loop: devices, precision, accumulation, schedules, clipping. It knows the name of no method.

A method hands over its trainable tensors by name and `loss(step)`. What a step sees is a function of (seed, step),
so a run can be repeated, and taken up again in the middle, without any other state than tensors and optimiser.
"""

import math
import os
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, distributed
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from diptych.engine.sharding import is_sharded, local, part_of
from diptych.errors import DiptychError

PATIENCE = timedelta(minutes=30)  # how long a process waits for the others; the first may evaluate meanwhile
Loss = Tensor | Mapping[str, Tensor]


class Diverged(DiptychError):
    """A loss or a gradient is no longer a number."""


@dataclass(frozen=True)
class Optimiser:
    """rate: the peak learning rate; momentum is SGD's; the betas and eps are AdamW's."""

    kind: Literal["sgd", "adamw"]
    rate: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class Group:
    """Some of the tensors, by name: their share of the learning rate, and their weight decay.

    fixed: `rate` is no share but the rate itself, whatever the schedule says; a negative one goes uphill.
    """

    names: tuple[str, ...]
    rate: float = 1.0
    weight_decay: float = 0.0
    fixed: bool = False


class Moments:
    """An optimiser's state over named tensors, stepped by torch's own functions; of sharded ones, their local parts.

    Not torch.optim's classes: the first of them that is built imports torch's compiler, 5 seconds and 160 MB a process.
    """

    def __init__(self, spec: Optimiser, tensors: Mapping[str, Tensor]) -> None:
        self.spec, self.names, self.tensors = spec, list(tensors), list(tensors.values())
        self.first: list[Any] = [None] * len(tensors)
        if spec.kind == "adamw":
            self.first = [torch.zeros_like(t) for t in self.tensors]
            self.second = [torch.zeros_like(t) for t in self.tensors]
            self.counts = [torch.zeros(()) for _ in self.tensors]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the tensors that have a gradient, and drop it."""
        spec, moved = self.spec, [i for i, t in enumerate(self.tensors) if t.grad is not None]
        if not moved:
            return
        tensors, gradients = [local(self.tensors[i]) for i in moved], [local(self.tensors[i].grad) for i in moved]
        first = [local(self.first[i]) for i in moved]
        common: dict[str, Any] = {"weight_decay": spec.weight_decay, "lr": rate, "maximize": False, "foreach": True}
        if spec.kind == "sgd":
            common |= {"momentum": spec.momentum, "dampening": 0.0, "nesterov": False}
            sgd(tensors, gradients, first, has_sparse_grad=False, **common)  # pyright: ignore[reportArgumentType]
            for i, buffer in zip(moved, first, strict=True):
                self.first[i] = buffer
        else:
            second, counts = [local(self.second[i]) for i in moved], [self.counts[i] for i in moved]
            common |= {"amsgrad": False, "beta1": spec.beta1, "beta2": spec.beta2, "eps": spec.eps}
            adamw(tensors, gradients, first, second, [], counts, **common)  # pyright: ignore[reportArgumentType]
        for i in moved:
            self.tensors[i].grad = None

    def state(self) -> dict[str, Tensor]:
        found = {f"first.{name}": t for name, t in zip(self.names, self.first, strict=True) if t is not None}
        if self.spec.kind == "adamw":
            found |= {f"second.{name}": t for name, t in zip(self.names, self.second, strict=True)}
            found |= {f"count.{name}": t for name, t in zip(self.names, self.counts, strict=True)}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for i, (name, tensor) in enumerate(zip(self.names, self.tensors, strict=True)):
            if f"first.{name}" in state:
                self.first[i] = part_of(state[f"first.{name}"], tensor)
            if self.spec.kind == "adamw":
                self.second[i] = part_of(state[f"second.{name}"], tensor)
                self.counts[i] = state[f"count.{name}"].clone()


@dataclass(frozen=True)
class Cosine:
    """Learning rate from the peak down to `least` along half a cosine, changing every `every` steps (an epoch's).

    warmup: units of `every` before it. constant: their rate; None rises to the peak in equal steps, from `start` where
    that is given.
    cycles: so many cosines, one after the other, each from the peak.
    After a constant warm-up the cosine is as long as the whole run (the toolbox of CoOp and MaPLe), so it ends early.
    """

    every: int = 1
    warmup: int = 0
    constant: float | None = None
    least: float = 0.0
    cycles: int = 1
    start: float | None = None

    def rate(self, peak: float, step: int, steps: int) -> float:
        now, units = step // self.every, math.ceil(steps / self.every)
        if now < self.warmup and self.start is not None:
            return self.start + (peak - self.start) * now / self.warmup
        if now < self.warmup:
            return peak * (now + 1) / self.warmup if self.constant is None else self.constant
        span = units if self.constant is not None else max(units - self.warmup, 1)
        span = math.ceil(span / self.cycles)
        return self.least + (peak - self.least) * (1 + math.cos(math.pi * ((now - self.warmup) % span) / span)) / 2


@dataclass(frozen=True)
class Milestones:
    """The peak, multiplied by `factor` from each of these shares of the run on."""

    at: tuple[float, ...]
    factor: float = 0.1

    def rate(self, peak: float, step: int, steps: int) -> float:
        return peak * self.factor ** sum(step >= share * steps for share in self.at)


class Runtime(Protocol):
    """Where the steps run. `Fabric` is one; `Plain` is one process on the CPU."""

    def autocast(self) -> AbstractContextManager[Any]: ...
    def backward(self, tensor: Tensor) -> None: ...
    def all_reduce(self, data: Tensor) -> Any:
        """The mean over the processes, in place."""
        ...


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
            raise missing_extra("lightning-fabric", "train", "training in several processes") from error
        return Plain()
    if processes() > 1:
        from lightning_fabric.strategies.ddp import DDPStrategy

        here = int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
        strategy = DDPStrategy(timeout=PATIENCE)
        devices: Any = {"devices": here, "num_nodes": processes() // here, "strategy": strategy}
    else:
        devices = {"devices": 1 if device.type != "cuda" else [device.index or 0]}
    fabric = Fabric(accelerator=device.type, precision=precision(device), **devices)
    fabric.launch()
    return fabric  # type: ignore[return-value]


@dataclass(frozen=True)
class Step:
    """What one step did: the loss and its parts before the update, the norm of the gradient before it was clipped."""

    loss: float
    terms: dict[str, float]
    norm: float
    rate: float


class Loop:
    """Training a step at a time, so that a run can be watched, kept and taken up again. `train` is the whole of it.

    trainable: leaf tensors by name, changed in place; some may be sharded (`engine.sharding`). groups: their rates and
    weight decays (none: one group). clip: largest norm of the whole gradient. strict: a tensor that no gradient reaches
    is a mistake.
    """

    def __init__(
        self,
        trainable: Mapping[str, Tensor],
        optimiser: Optimiser,
        steps: int,
        *,
        groups: Sequence[Group] = (),
        schedule: Cosine | Milestones | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        strict: bool = True,
        run: Runtime | None = None,
    ) -> None:
        if not trainable or not all(t.is_leaf and t.requires_grad for t in trainable.values()):
            raise ValueError("train needs leaf tensors that require a gradient")
        self.trainable, self.optimiser, self.steps, self.schedule = trainable, optimiser, steps, schedule
        self.accumulate, self.clip, self.strict = accumulate, clip, strict
        self.run = run or runtime(next(iter(trainable.values())).device)
        groups = groups or (Group(tuple(trainable), 1.0, optimiser.weight_decay),)
        self.moments = [
            (group, Moments(replace(optimiser, weight_decay=group.weight_decay), pick(trainable, group.names)))
            for group in groups
        ]

    def step(self, step: int, loss: Callable[[int], Loss], moving: Container[str] | None = None) -> Step:
        """One update. See `train` for `loss`; raises Diverged. moving: all others stay, whatever gradient they get."""
        rate = self.schedule.rate(self.optimiser.rate, step, self.steps) if self.schedule else self.optimiser.rate
        where = f"at step {step + 1} of {self.steps} (learning rate {rate:.2g})"
        seen = self.backward(step, loss, where)
        for name, tensor in self.trainable.items():
            if moving is not None and name not in moving:
                tensor.grad = None
        norm = clip_gradient(self.trainable, self.clip, where, self.strict)
        for group, moments in self.moments:
            moments.step(group.rate if group.fixed else rate * group.rate)
        return Step(sum(seen.values()), seen, norm, rate)

    def backward(self, step: int, loss: Callable[[int], Loss], where: str) -> dict[str, float]:
        """The terms, and the gradient of all processes in each tensor's `grad`."""
        seen: dict[str, float] = {}
        for part in range(self.accumulate):
            with self.run.autocast():
                terms = loss(step * self.accumulate + part)
            terms = terms if isinstance(terms, Mapping) else {"loss": terms}
            parts = torch.stack([t.float() for t in terms.values()]) / self.accumulate
            for name, value in finite(self.mean(parts.detach()), terms, where).items():
                seen[name] = seen.get(name, 0.0) + value
            self.run.backward(parts.sum())
        if processes() > 1:
            for tensor in self.trainable.values():
                if tensor.grad is not None and not is_sharded(tensor):  # those are averaged already
                    self.run.all_reduce(tensor.grad)
        return seen

    def mean(self, values: Tensor) -> Tensor:
        """Of all processes: what each has a part of, and all must agree on."""
        return self.run.all_reduce(values.clone()) if processes() > 1 else values

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors, for a checkpoint."""
        return {name: tensor for _, moments in self.moments for name, tensor in moments.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for _, moments in self.moments:
            moments.load_state(state)


def pick(trainable: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: trainable[name] for name in names}


def train(
    trainable: Mapping[str, Tensor],
    loss: Callable[[int], Loss],
    optimiser: Optimiser,
    steps: int,
    *,
    schedule: Cosine | Milestones | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Minimise the loss over the named leaf tensors, in place; returns the loss of every step.

    loss(step): a scalar, or named scalars whose sum is minimised; with `accumulate` it is called that many times a
    step, with step * accumulate + 0, 1, ... clip: largest norm of the whole gradient. Several processes average
    their gradients. Raises Diverged, naming the term or tensor, where something stops being finite.
    """
    loop = Loop(trainable, optimiser, steps, schedule=schedule, accumulate=accumulate, clip=clip)
    losses: list[float] = []
    for step in range(steps):
        losses.append(loop.step(step, loss).loss)
        if progress:
            progress(step + 1, steps)
    return losses


def finite(parts: Tensor, terms: Mapping[str, Tensor], where: str) -> dict[str, float]:
    """The values of the terms; parts [len(terms)]: what is summed."""
    values = dict(zip(terms, parts.tolist(), strict=True))
    total = sum(values.values())
    if math.isfinite(total):
        return values
    culprits = [name for name, value in values.items() if not math.isfinite(value)] or list(terms)
    raise Diverged(f"training broke: {' and '.join(culprits)} became {total} {where}; try a smaller learning rate")


def clip_gradient(trainable: Mapping[str, Tensor], clip: float | None, where: str, strict: bool = True) -> float:
    """Scale the whole gradient down to norm `clip`; -> its norm before.

    A tensor that no gradient reaches is a mistake of the method, where it is `strict`.
    """
    missing = [name for name, tensor in trainable.items() if tensor.grad is None]
    if missing and (strict or len(missing) == len(trainable)):
        raise RuntimeError(f"no gradient reaches {', '.join(missing)}")
    reached = {name: t.grad for name, t in trainable.items() if t.grad is not None}
    gradients = [local(gradient) for gradient in reached.values()]
    norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
    norms = norms_over_processes(norms, [is_sharded(gradient) for gradient in reached.values()])
    norm = float(norms.norm())
    if not math.isfinite(norm):
        culprit = next(name for name, n in zip(reached, norms.tolist(), strict=True) if not math.isfinite(n))
        raise Diverged(f"training broke: the gradient of {culprit} is not finite {where}; try a smaller learning rate")
    if clip is not None and norm > clip:
        torch._foreach_mul_(gradients, clip / norm)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def norms_over_processes(norms: Tensor, sharded: Sequence[bool]) -> Tensor:
    """Norms [T] of local parts -> those of the whole tensors; tensors that every process has whole count once."""
    if not any(sharded):
        return norms
    own = torch.tensor(sharded, device=norms.device) | (distributed.get_rank() == 0)
    squares = torch.where(own, norms.square(), 0.0)
    distributed.all_reduce(squares)
    return squares.sqrt()
