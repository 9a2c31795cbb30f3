"""Replay: some pairs of every earlier session are kept, and each batch is in part of them.

Use it where a little old data may be kept: it is simple, and hard to beat. Not where nothing may be kept (privacy,
licences), and not with a memory so small that the towers learn it by heart.

Rolnick et al., Experience Replay for Continual Learning, NeurIPS 2019, arXiv 1811.11682, half new and half old;
Chaudhry et al., On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486. The memory is shared out evenly
among the sessions. No published score with a CLIP was checked.
"""

from dataclasses import dataclass

import numpy as np

from diptych.methods.continual.parts.learner import Joined, Learner, Session, Trainer
from diptych.methods.continual.parts.losses import SessionContrast


@dataclass(frozen=True)
class Config:
    """memory: pairs that are kept, of all sessions together; old: the share of a batch that is of them, about;
    max_scale: the largest multiplier of the cosine."""

    memory: int = 1000
    old: float = 0.5
    max_scale: float = 100.0


class Mixed(SessionContrast):
    """CLIP's loss on new and old pairs."""


def kept(session: Session, count: int, seed: int) -> np.ndarray:
    """Numbers of the pairs kept of a session [at most count]: the first of an order that never changes."""
    return np.random.default_rng([seed, 0xBEEF]).permutation(len(session.pairs))[:count]


class Replay(Learner):
    Config = Config
    keeps = "some pairs of each session"

    def observe(self, session: Session, trainer: Trainer) -> None:
        pairs = session.pairs
        if self.seen:
            each = max(1, self.config.memory // len(self.seen))
            memory = [(old.pairs, kept(old, each, old.number)) for old in self.seen]
            wanted = round(len(pairs) * self.config.old / (1 - self.config.old))  # old rows for all new ones
            memory = repeated(memory, wanted)
            pairs = Joined("the session and what was kept", ((pairs, range(len(pairs))), *memory))
        trainer.train(self.model, Mixed(self.config), pairs)
        self.seen.append(session)


def repeated(memory: list, wanted: int) -> list:
    """The same parts with so many rows in all, each row about as often as any other."""
    total = sum(len(rows) for _, rows in memory)
    ends = np.cumsum([len(rows) for _, rows in memory]) * wanted // total
    counts = np.diff(ends, prepend=0)
    return [(pairs, np.resize(rows, count)) for (pairs, rows), count in zip(memory, counts, strict=True)]
