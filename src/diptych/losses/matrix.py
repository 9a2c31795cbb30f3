"""A student's score matrix against a teacher's, rows and columns: what both think of every pair in a batch.

Wu et al., TinyCLIP, ICCV 2023, arXiv 2309.12314 (affinity mimicking); Vasu et al., MobileCLIP, CVPR 2024, arXiv
2311.17049 (several teachers); Ni et al., Mod-X, ICML 2023, arXiv 2305.07437 (only rows the teacher has right).
Score matrices are [n, m], already multiplied by their scales: s * a @ b.T.
"""

import torch
from torch import Tensor

from diptych.errors import DiptychError
from diptych.losses.precision import in_float32


@in_float32
def row_distillation(student: Tensor, teachers: list[Tensor], *, divergence: bool = False) -> Tensor:
    """Cross-entropy of each row of the student's softmax under the mean of the teachers' softmaxes, [n].

    divergence: less the entropy of that target, so that 0 is the least; the gradient is the same. Teachers get none.
    """
    if not teachers:
        raise DiptychError("distillation needs a teacher's scores")
    target = torch.stack([t.detach().softmax(1) for t in teachers]).mean(0)
    found = -(target * student.log_softmax(1)).sum(1)
    return found + torch.special.xlogy(target, target).sum(1) if divergence else found


def matrix_distillation(
    student: Tensor,
    teachers: list[Tensor],
    *,
    divergence: bool = False,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Mean of the rows' and the columns' distillation; a scalar.

    rows [n], columns [m]: a weight for each (a mask, as `trusted` gives); the mean still counts all of them, so a sum
    over rows, as Mod-X has it, is n times this. The columns of the teachers are a softmax of their own.
    """
    across = row_distillation(student, teachers, divergence=divergence)
    down = row_distillation(student.T, [t.T for t in teachers], divergence=divergence)
    across = across if rows is None else rows * across
    down = down if columns is None else columns * down
    return (across.mean() + down.mean()) / 2


def trusted(scores: Tensor, same: Tensor | None = None) -> Tensor:
    """Rows whose best column is their own: 1 or 0, [n] float. same [n, n]: true where another column is as good."""
    best = scores.argmax(1)
    own = torch.arange(len(scores), device=scores.device)
    right = best == own if same is None else same[own, best]
    return right.to(scores.dtype)
