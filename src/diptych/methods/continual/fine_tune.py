"""Fine-tuning: each session is trained on as it comes, with CLIP's loss and nothing to hold on to what was before.

Use it as the lower line of every comparison, and where only the latest session counts. Not where earlier sessions
matter: what they taught is lost as far as the new pairs move the towers.

No paper of its own; in Ni et al., Continual Vision-Language Representation Learning with Off-Diagonal Information,
ICML 2023, arXiv 2305.07437, it is the continual training that loses the first domain. No published score was checked.
"""

from dataclasses import dataclass

from diptych.methods.continual.parts.learner import Learner, Session, Trainer
from diptych.methods.continual.parts.losses import SessionContrast


@dataclass(frozen=True)
class Config:
    """max_scale: the largest multiplier of the cosine."""

    max_scale: float = 100.0


class Contrastive(SessionContrast):
    """CLIP's loss on the session alone."""


class FineTune(Learner):
    Config = Config

    def observe(self, session: Session, trainer: Trainer) -> None:
        trainer.train(self.model, Contrastive(self.config), session.pairs)
        self.seen.append(session)
