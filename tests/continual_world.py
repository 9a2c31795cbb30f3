"""Streams of drawings for a tiny CLIP, and a trainer without folders for the losses of sessions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from train_world import Scene, World, batch_of, make_clip

from diptych.core.clip import CLIP
from diptych.losses.contrastive import groups_of
from diptych.methods.continual.parts.learner import Learner, Session
from diptych.methods.pretrain.parts.objective import Batch, Objective, PairsLike

SAYINGS: dict[str, Callable[[Scene], tuple[str, ...]]] = {
    "plain": lambda s: (s.caption(), f"{s.place}: {s.colour}"),
    "turned": lambda s: (f"{s.ground}, {s.place}, {s.colour}",),
    "short": lambda s: (f"{s.colour} {s.place}",),
}
# settings that cost time, or are too much for the large steps here, cut wherever a system has them
QUICK = {"batches": 2, "memory": 6, "strength": 0.01}


def world(kind: str = "plain", count: int = 20) -> World:
    return World(count, seed=list(SAYINGS).index(kind), texts=SAYINGS[kind])


def sessions(count: int = 3) -> list[Session]:
    return [Session(kind, i, world(kind)) for i, kind in enumerate([*SAYINGS][:count])]


@dataclass
class Once:
    """A `Trainer` of a few plain steps; remembers what it was asked for."""

    steps: int = 2
    rate: float = 0.05
    asked: list[tuple[Objective, PairsLike, float]] = field(default_factory=list)
    seen: list[dict[str, float]] = field(default_factory=list)

    def train(self, clip: CLIP, objective: Objective, pairs: PairsLike, *, times: float = 1.0) -> None:
        self.asked.append((objective, pairs, times))
        clip.train().requires_grad_(True)
        objective.prepare(clip, pairs, 0)
        for batch in self.batches(clip, objective, pairs, self.steps):
            terms = objective.loss(objective.embed(clip, batch), clip, batch)
            self.seen.append({name: float(value.detach()) for name, value in terms.items()})
            torch.stack(list(terms.values())).sum().backward()
            with torch.no_grad():
                for parameter in clip.parameters():
                    if parameter.grad is not None:
                        parameter -= self.rate * parameter.grad
                        parameter.grad = None
        clip.eval().requires_grad_(False)

    def batches(self, clip: CLIP, objective: Objective, pairs: PairsLike, count: int) -> Iterator[Batch]:
        for step in range(count):
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(step))
            yield seen_by(objective, clip, pairs, order[:6].tolist())


def seen_by(objective: Objective, clip: CLIP, pairs: PairsLike, index: list[int]) -> Batch:
    """A batch as the engine hands it to the loss: equal pairs with equal numbers."""
    from dataclasses import replace

    batch = batch_of(objective, clip, pairs, index)
    return replace(batch, same=groups_of(batch.index))


def learner_of(system: type[Learner], **config: Any) -> Learner:
    """Begun on the tiny CLIP."""
    learner = system(system.Config(**config))
    learner.begin(make_clip())
    return learner


def weights(clip: CLIP) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in clip.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
