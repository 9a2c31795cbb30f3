"""The averaging classifier: its closed form against simulation, dilution, and the case without it."""

import numpy as np
import pytest

from diptych.metrics.dilution import direction, expected_accuracy, filtered_mean, simulated_accuracy

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
MEANS = np.zeros((2, 4))
MEANS[0, 0], MEANS[1, 1], MEANS[1, 0] = 1.0, 1.2, 0.1


def curve(shifted, of=expected_accuracy, **how) -> list[float]:
    return [of(MEANS, (1 - w, w), shifted, 1.0, **how) for w in GRID]


@pytest.mark.parametrize("shifted", [MEANS[0], MEANS[1], 0.6 * MEANS.sum(0)], ids=["one", "other", "between"])
def test_the_closed_form_is_what_happens(shifted: np.ndarray) -> None:
    found = curve(shifted, simulated_accuracy, count=60_000, tests=60_000)
    assert found == pytest.approx(curve(shifted), abs=0.01)


def test_a_share_of_another_source_dilutes_and_between_the_two_it_helps() -> None:
    like_one = curve(MEANS[0])
    assert like_one == sorted(like_one, reverse=True) and like_one[0] - like_one[2] > 0.05
    like_other = curve(MEANS[1])
    assert like_other == sorted(like_other)
    between = curve(MEANS.sum(0))
    assert max(between[1:-1]) > max(between[0], between[-1]) + 0.03, "not every mixture is diluted"


def test_a_filter_turns_the_mean_towards_the_good_source() -> None:
    noisy, good, rng = np.array([0.2, 0.8, 0.0]), np.array([1.0, 0.0, 0.0]), np.random.default_rng(0)
    yx = noisy + 0.7 * rng.standard_normal((400_000, 3))
    for margin in (-0.3, 0.0, 0.5):
        kept = yx[yx @ good > margin]
        assert filtered_mean(noisy, good, 0.7, margin) == pytest.approx(kept.mean(0), abs=0.01)

    def angle(mean: np.ndarray) -> float:
        return float(np.arccos(mean @ good / np.linalg.norm(mean)))

    angles = [angle(filtered_mean(noisy, good, 0.7, margin)) for margin in (-9.0, 0.0, 0.5, 1.0)]
    assert angles[0] == pytest.approx(angle(noisy)) and angles == sorted(angles, reverse=True)
    assert direction([noisy, good], (0.5, 0.5)).tolist() == [0.6, 0.4, 0.0]
