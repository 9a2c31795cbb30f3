import pytest
import torch
from naive import unit

from diptych.errors import DiptychError
from diptych.losses.contrastive import softmax_contrastive
from diptych.losses.groups import within_groups

A, T = unit(9, 5, seed=1), unit(9, 5, seed=2)
GROUPS = torch.tensor([4, 0, 2, 0, 4, 4, 2, 7, 0])


def loss(rows: torch.Tensor) -> torch.Tensor:
    return softmax_contrastive(A[rows], T[rows], 8.0)


def test_groups_count_alike_or_by_their_weights():
    members = {0: [1, 3, 8], 2: [2, 6], 4: [0, 4, 5]}  # 7 has one row
    own = {g: loss(torch.tensor(rows)).item() for g, rows in members.items()}
    assert within_groups(loss, GROUPS).item() == pytest.approx(sum(own.values()) / 3)
    weights = torch.tensor([1.0, 9.0, 0.5, 9.0, 3.0, 9.0, 9.0, 9.0], dtype=torch.float64)
    expected = (own[0] + 0.5 * own[2] + 3 * own[4]) / 4.5
    assert within_groups(loss, GROUPS, weights=weights).item() == pytest.approx(expected)
    assert within_groups(loss, torch.zeros(9, dtype=torch.int64)).item() == pytest.approx(
        softmax_contrastive(A, T, 8.0).item()
    )


def test_rows_of_other_groups_are_no_negatives():
    rows = A.clone().requires_grad_()
    within_groups(lambda i: softmax_contrastive(rows[i], T[i], 8.0), GROUPS, weights=torch.eye(8)[2]).backward()
    assert rows.grad is not None and rows.grad.abs().sum(1).nonzero()[:, 0].tolist() == [2, 6]


def test_nothing_to_contrast_is_said():
    with pytest.raises(DiptychError, match="no group"):
        within_groups(loss, torch.arange(9))
