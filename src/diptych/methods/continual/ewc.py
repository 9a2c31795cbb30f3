"""EWC: weights that mattered for earlier sessions are held near their values, each as far as it mattered.

Use it where no old data may be kept and a second pass over the old towers is too dear. Not where sessions differ much:
importance is measured around one point and tells little far from it.

Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017, arXiv 1612.00796, equation 3, with
lambda 400 (of the Atari experiments); one quadratic for all earlier sessions, whose importances add up (Huszar, arXiv
1712.03847). The model that the stream starts from has none. No published score with a CLIP was checked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.methods.continual.parts.learner import Learner, Session, Trainer
from diptych.methods.continual.parts.losses import SessionContrast
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Config:
    """strength: lambda; batches: of a session, from which the importance of each weight is estimated; max_scale: the
    largest multiplier of the cosine."""

    strength: float = 400.0
    batches: int = 50
    max_scale: float = 100.0


class Elastic(SessionContrast):
    """CLIP's loss, and lambda / 2 * sum of importance * (weight - anchor)^2."""

    def __init__(self, config: Config, importance: Tensors, anchor: Tensors) -> None:
        super().__init__(config)
        self.importance, self.anchor = importance, anchor

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> Tensors:
        terms = super().loss(embeddings, clip, batch)
        if self.importance:
            terms["penalty"] = self.config.strength / 2 * distance(clip, self.importance, self.anchor)
        return terms


def distance(clip: CLIP, importance: Tensors, anchor: Tensors) -> Tensor:
    """Sum of importance * (weight - anchor)^2; a scalar."""
    moved = [(importance[n] * (p - anchor[n]).square()).sum() for n, p in clip.named_parameters() if n in importance]
    return torch.stack(moved).sum()


def fisher(objective: Objective, clip: CLIP, batches: Iterable[Batch]) -> Tensors:
    """Diagonal of the empirical Fisher information by parameter.

    The loss of a batch is a mean over its B pairs, and its squared gradient is about 1 / B of what one pair's would be:
    B * gradient^2, averaged over batches.
    """
    clip.eval().requires_grad_(True)
    named = dict(clip.named_parameters())
    found, count = {name: torch.zeros_like(p) for name, p in named.items()}, 0
    for batch in batches:
        loss = torch.stack([*objective.loss(objective.embed(clip, batch), clip, batch).values()]).sum()
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for total, gradient in zip(found.values(), gradients, strict=True):
            if gradient is not None:
                total += len(batch) * gradient.square()
        count += 1
    clip.requires_grad_(False)
    return {name: total / count for name, total in found.items()}


class Ewc(Learner):
    Config = Config
    keeps = "a value and an importance of each weight"

    def begin(self, clip: CLIP, *, fresh: bool = False) -> None:
        super().begin(clip, fresh=fresh)
        self.importance: Tensors = {}
        self.anchor: Tensors = {}

    def observe(self, session: Session, trainer: Trainer) -> None:
        trainer.train(self.model, Elastic(self.config, self.importance, self.anchor), session.pairs)
        plain = Elastic(self.config, {}, {})
        batches = trainer.batches(self.model, plain, session.pairs, self.config.batches)
        for name, found in fisher(plain, self.model, batches).items():
            self.importance[name] = self.importance.get(name, 0) + found
        self.anchor = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.seen.append(session)

    def state(self) -> Tensors:
        return {f"importance.{n}": t for n, t in self.importance.items()} | {
            f"anchor.{n}": t for n, t in self.anchor.items()
        }

    def load_state(self, state: Tensors, seen: Sequence[Session]) -> None:
        super().load_state(state, seen)
        where = self.model.device
        for kind, held in (("importance", self.importance), ("anchor", self.anchor)):
            parts = {n.removeprefix(f"{kind}."): t.to(where) for n, t in state.items() if n.startswith(f"{kind}.")}
            held.update(parts)
