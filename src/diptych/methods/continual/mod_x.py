"""Mod-X: the new model keeps the old one's similarities between all pictures and texts of a batch, where it was right.

Use it to go on training a CLIP on new pairs where no old data may be kept: both towers turn together instead of apart,
so what was learned before is still found. Not where the new pairs contradict the old ones, and not with small batches:
the similarities to the others of a batch are all that holds the old space in place.

Ni et al., Continual Vision-Language Representation Learning with Off-Diagonal Information, ICML 2023, arXiv
2305.07437, section 4: rows whose best match under the old model is their own are distilled, as softmax of plain
cosines. No published score was checked; the abstract gives none.
"""

from dataclasses import dataclass

from torch import Tensor

from diptych.core.clip import CLIP
from diptych.losses.matrix import matrix_distillation, trusted
from diptych.methods.continual.parts.learner import Learner, Session, Trainer
from diptych.methods.continual.parts.losses import Rows, WithOld


@dataclass(frozen=True)
class Config:
    """alpha: weight of the sum over the rows of a batch of `rows` pairs; a batch of another size has the same weight
    a row. selection: whether rows that the old model has wrong are left out. max_scale: the largest multiplier of the
    cosine."""

    alpha: float = 20.0
    rows: int = 280
    selection: bool = True
    max_scale: float = 100.0


class OffDiagonal(WithOld):
    """CLIP's loss + alpha / 2 * sum of r_i KL(softmax O_i || softmax M_i), over the rows of M and of its transpose."""

    def distillation(self, new: Rows, old: Rows, clip: CLIP, before: CLIP, same: Tensor | None) -> Tensor:
        now, then = new[0] @ new[1].T, old[0] @ old[1].T  # [B, B] cosines, without a temperature
        if self.config.selection:
            rows, columns = trusted(then, same), trusted(then.T, same)
        else:
            rows = columns = None
        kept = matrix_distillation(now, [then], divergence=True, rows=rows, columns=columns)
        return self.config.alpha * self.config.rows * kept  # a mean over rows, where the paper has a sum


class ModX(Learner):
    Config = Config
    keeps = "nothing (a copy of the model during a session)"
    cost = "both towers, and the old ones without gradients"

    def observe(self, session: Session, trainer: Trainer) -> None:
        trainer.train(self.model, OffDiagonal(self.config, self.old()), session.pairs)
        self.seen.append(session)
