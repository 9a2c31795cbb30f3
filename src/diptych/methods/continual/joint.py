"""Joint training: at each session anew from the start, on all pairs so far together.

Use it as the upper line of every comparison, and where all data may be kept and time does not matter. Not a continual
method: it keeps everything, and the cost of a session grows with the number of sessions.

No paper of its own; the upper bound of Li & Hoiem, Learning without Forgetting, arXiv 1606.09282, and of most that
followed. No published score was checked.
"""

from dataclasses import dataclass

from diptych.core.clip import CLIP
from diptych.methods.continual.parts.learner import Joined, Learner, Session, Trainer, snapshot
from diptych.methods.continual.parts.losses import SessionContrast


@dataclass(frozen=True)
class Config:
    """max_scale: the largest multiplier of the cosine."""

    max_scale: float = 100.0


class Together(SessionContrast):
    """CLIP's loss on the pairs of all sessions."""


class Joint(Learner):
    Config = Config
    keeps = "the first model and all pairs"
    cost = "both towers, on all sessions so far"

    def begin(self, clip: CLIP, *, fresh: bool = False) -> None:
        super().begin(clip, fresh=fresh)
        self.first = snapshot(clip).state_dict()

    def observe(self, session: Session, trainer: Trainer) -> None:
        self.seen.append(session)
        every = [one.pairs for one in self.seen]
        together = Joined("all sessions so far", tuple((pairs, range(len(pairs))) for pairs in every))
        self.model.load_state_dict(self.first)
        trainer.train(self.model, Together(self.config), together, times=len(together) / len(session.pairs))
