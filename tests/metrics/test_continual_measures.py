"""Measures of a stream against plain loops, and on matrices with known answers."""

import pytest
import torch

from diptych.errors import DiptychError
from diptych.metrics import continual as measures

K = 5
SCORES, START = torch.rand(K, K, generator=torch.Generator().manual_seed(0)).double(), torch.rand(K).double()


def test_they_are_the_loops():
    last = K - 1
    end = [SCORES[last, j].item() for j in range(K)]
    assert measures.average(SCORES) == pytest.approx(sum(end) / K)
    assert measures.old_average(SCORES) == pytest.approx(sum(end[:last]) / last)
    assert measures.learned(SCORES) == pytest.approx(sum(SCORES[j, j].item() for j in range(K)) / K)
    lost = gone = came = 0.0
    for j in range(last):
        lost += max(SCORES[i, j].item() for i in range(j, last)) - end[j]
        gone += end[j] - SCORES[j, j].item()
    for j in range(1, K):
        came += SCORES[j - 1, j].item() - START[j].item()
    assert measures.forgetting(SCORES) == pytest.approx(lost / last)
    assert measures.backward_transfer(SCORES) == pytest.approx(gone / last)
    assert measures.forward_transfer(SCORES, START) == pytest.approx(came / last)


def test_known_answers():
    only_the_last = torch.eye(3)  # each session wipes out the one before
    assert measures.forgetting(only_the_last) == 1 and measures.backward_transfer(only_the_last) == -1
    assert measures.average(only_the_last) == pytest.approx(1 / 3) and measures.old_average(only_the_last) == 0
    nothing_lost = torch.ones(3, 3).tril()
    assert measures.forgetting(nothing_lost) == 0 == measures.backward_transfer(nothing_lost)
    assert measures.forward_transfer(nothing_lost, torch.zeros(3)) == 0
    better_later = torch.tensor([[0.5, 0.2], [0.9, 0.6]])
    assert measures.forgetting(better_later) == pytest.approx(-0.4), "a session that gained later"
    assert measures.forward_transfer(better_later, torch.tensor([0.1, 0.1])) == pytest.approx(0.1)
    one = torch.tensor([[0.7]])
    assert measures.average(one) == pytest.approx(0.7) == measures.old_average(one)
    assert measures.forgetting(one) == measures.backward_transfer(one) == 0
    assert measures.forward_transfer(one, torch.zeros(1)) == 0


def test_what_is_no_matrix_is_refused():
    with pytest.raises(DiptychError, match=r"\[2, 3\]"):
        measures.average(torch.rand(2, 3))
    with pytest.raises(DiptychError, match="each of the 2"):
        measures.forward_transfer(torch.rand(2, 2), torch.rand(3))
