"""LwF: on the new pairs, the new model answers as the model before the session did.

Use it where no old data may be kept and the old model is good on the new pairs. Not where it is bad there: its wrong
answers are copied with the right ones (mod_x leaves those out).

Li & Hoiem, Learning without Forgetting, ECCV 2016, arXiv 1606.09282, equations 2 and 3, temperature 2 and weight 1. A
CLIP has no old classes: its answers are the softmax over the texts of the batch for each picture, and over the pictures
for each text, at its own temperature, as Zheng et al., ZSCL, ICCV 2023, arXiv 2303.06628, do it with class names.
No published score in this form.
"""

from dataclasses import dataclass

from torch import Tensor

from diptych.core.clip import CLIP
from diptych.losses.matrix import matrix_distillation
from diptych.methods.continual.parts.learner import Learner, Session, Trainer
from diptych.methods.continual.parts.losses import Rows, WithOld


@dataclass(frozen=True)
class Config:
    """temperature: by which the logits of both are divided; weight: of the distillation; max_scale: the largest
    multiplier of the cosine."""

    temperature: float = 2.0
    weight: float = 1.0
    max_scale: float = 100.0


class Answers(WithOld):
    """CLIP's loss, and the old model's answers, times the square of the temperature (Hinton et al., 1503.02531)."""

    def distillation(self, new: Rows, old: Rows, clip: CLIP, before: CLIP, same: Tensor | None) -> Tensor:
        warmth = self.config.temperature
        student = clip.logit_scale / warmth * new[0] @ new[1].T  # [B, B]
        teacher = before.logit_scale / warmth * old[0] @ old[1].T
        return self.config.weight * warmth**2 * matrix_distillation(student, [teacher], divergence=True)


class Lwf(Learner):
    Config = Config
    keeps = "nothing (a copy of the model during a session)"
    cost = "both towers, and the old ones without gradients"

    def observe(self, session: Session, trainer: Trainer) -> None:
        trainer.train(self.model, Answers(self.config, self.old()), session.pairs)
        self.seen.append(session)
