"""Recall against a plain loop, with ties, several own items and a query that has none."""

import pytest
import torch

from diptych.errors import DiptychError
from diptych.metrics.retrieval import ranks, recall_at


def test_equals_a_plain_loop_with_ties_and_several_own_items() -> None:
    torch.manual_seed(0)
    scores, own = torch.randint(0, 6, (40, 25)).double(), torch.rand(40, 25) < 0.1
    own[torch.arange(40), torch.arange(40) % 25] = True
    expected = []
    for q in range(40):
        best = max(scores[q, c].item() for c in range(25) if own[q, c])
        expected.append(1 + sum(1 for c in range(25) if not own[q, c] and scores[q, c].item() >= best))
    assert ranks(scores, own).tolist() == expected
    for k, share in recall_at(scores, own, (1, 5)).items():
        assert share == sum(rank <= k for rank in expected) / 40


def test_known_answers() -> None:
    assert recall_at(torch.eye(4))[1] == 1.0
    assert recall_at(torch.zeros(4, 4)) == {1: 0.0, 5: 1.0, 10: 1.0}, "what tells nothing apart finds nothing first"
    with pytest.raises(DiptychError, match="at least one item"):
        ranks(torch.zeros(2, 3), torch.tensor([[True, False, False], [False, False, False]]))
