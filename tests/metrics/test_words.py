"""Localisation and paired accuracy: known answers, ties, what cannot be measured."""

import pytest

from diptych.errors import DiptychError
from diptych.metrics.words import localisation_accuracy, paired_accuracy


def test_known_answers() -> None:
    scores = [[0.1, -0.5, 0.2], [0.3, 0.1], [-0.1, -0.1]]
    assert localisation_accuracy(scores, [[1], [0], [0]]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert localisation_accuracy(scores, [{0, 1}, {0, 1}, {0, 1}]) == 1.0
    assert paired_accuracy([1.0, 0.0, 2.0], [0.0, 0.0, 3.0]) == 0.5


def test_what_says_nothing_is_at_chance() -> None:
    assert localisation_accuracy([[0.0] * 4], [[2]]) == 0.25
    assert paired_accuracy([0.0] * 7, [0.0] * 7) == 0.5


@pytest.mark.parametrize(
    ("scores", "wrong"), [([], []), ([[1.0]], []), ([[1.0]], [[]]), ([[1.0]], [[1]]), ([[]], [[0]])]
)
def test_what_cannot_be_measured_is_refused(scores: list[list[float]], wrong: list[list[int]]) -> None:
    with pytest.raises(DiptychError):
        localisation_accuracy(scores, wrong)
    with pytest.raises(DiptychError):
        paired_accuracy([row[0] for row in scores if row], [])
