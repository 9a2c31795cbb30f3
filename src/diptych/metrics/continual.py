"""What a stream of sessions left: measures of a matrix of scores, one row after each session, one column for each.

scores [K, K]: row i is measured after session i, column j on what was held out of session j; larger is better. start
[K]: the same before the first session. All results have the unit of the scores.
"""

import torch
from torch import Tensor

from diptych.errors import DiptychError


def average(scores: Tensor) -> float:
    """Mean over all sessions at the end of the stream (ACC of Lopez-Paz & Ranzato, arXiv 1706.08840)."""
    return square(scores)[-1].mean().item()


def old_average(scores: Tensor) -> float:
    """Mean over all sessions but the last at the end of the stream; the last session's own for a stream of one."""
    scores = square(scores)
    return scores[-1, :-1].mean().item() if len(scores) > 1 else scores[-1, 0].item()


def learned(scores: Tensor) -> float:
    """Mean over sessions right after each was learned: the diagonal."""
    return square(scores).diagonal().mean().item()


def forgetting(scores: Tensor) -> float:
    """Mean over all sessions but the last of what is missing at the end from the best it was since it was learned
    (Chaudhry et al., arXiv 1801.10112, equation 3, from the session's own row on); 0 for a stream of one."""
    scores = square(scores)
    last = len(scores) - 1
    lost = [(scores[j:last, j].max() - scores[last, j]).item() for j in range(last)]
    return sum(lost) / last if last else 0.0


def backward_transfer(scores: Tensor) -> float:
    """Mean over all sessions but the last of its score at the end, less that right after it was learned (BWT of
    Lopez-Paz & Ranzato); negative where sessions were forgotten; 0 for a stream of one."""
    scores = square(scores)
    last = len(scores) - 1
    return (scores[-1] - scores.diagonal())[:last].mean().item() if last else 0.0


def forward_transfer(scores: Tensor, start: Tensor) -> float:
    """Mean over all sessions but the first of its score just before it is learned, less that at the start (FWT of
    Lopez-Paz & Ranzato); 0 for a stream of one."""
    scores = square(scores)
    if start.shape != scores.shape[:1]:
        raise DiptychError(f"forward transfer needs a score at the start for each of the {len(scores)} sessions")
    return (scores.diagonal(1) - start[1:]).mean().item() if len(scores) > 1 else 0.0


def square(scores: Tensor) -> Tensor:
    """In double precision. Raises DiptychError for what is no [K, K]."""
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise DiptychError(f"scores of a stream are [sessions, sessions]; not {list(scores.shape)}")
    return scores.to(torch.float64)
