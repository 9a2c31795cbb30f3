"""Probit lines over runs: known lines are found again, their intervals hold them, and too little is refused."""

from statistics import NormalDist

import numpy as np
import pytest

from diptych.metrics.trends import above, accuracies, difference, edge_of, fit_trend, matched

NORMAL = NormalDist()
SLOPE, INTERCEPT = 0.9, -0.4


def on_the_line(reference: np.ndarray, slope: float = SLOPE, intercept: float = INTERCEPT) -> np.ndarray:
    return np.array([NORMAL.cdf(slope * NORMAL.inv_cdf(a) + intercept) for a in reference])


def plain(reference: np.ndarray, shifted: np.ndarray, rounds: int = 0):
    """Accuracies as they are, without what the pictures leave unsure."""
    return fit_trend(np.tile(reference, (1 + rounds, 1)), np.tile(shifted, (1 + rounds, 1)), (1e-6, 1e-6))


def test_a_known_line_is_found_again() -> None:
    reference = np.linspace(0.3, 0.9, 6)
    found = plain(reference, on_the_line(reference), 50)
    assert found.line.slope == pytest.approx(SLOPE, abs=1e-6) and found.line.intercept == pytest.approx(-0.4, abs=1e-6)
    assert found.r2 == pytest.approx(1) and not found.refused and (found.low, found.high) == (0.3, 0.9)
    for a in (0.35, 0.6, 0.88):
        point = np.full((51), a), np.full((51), on_the_line(np.array([a]))[0])
        assert above(found, *point) == pytest.approx((0, 0, 0), abs=1e-9), "a point on the line is not above it"
        assert found.at(a).mean == pytest.approx(on_the_line(np.array([a]))[0], abs=1e-9)
    assert above(found, np.full(51, 0.6), np.full(51, 0.7)).mean == pytest.approx(0.7 - on_the_line(np.array([0.6]))[0])


def test_intervals_hold_the_truth() -> None:
    """Runs that are right by chance, on 400 pictures each: 200 draws."""
    rng = np.random.default_rng(0)
    reference = np.repeat(np.linspace(0.35, 0.9, 5), 2)
    shifted = on_the_line(reference)
    held = np.zeros(3)
    for seed in range(200):
        right, other = (rng.random((10, 400)) < a[:, None] for a in (reference, shifted))
        found = fit_trend(accuracies(right, 100, seed), accuracies(other, 100, seed + 1000), (1e-3, 1e-3), seed)
        truth = SLOPE, INTERCEPT, on_the_line(np.array([0.6]))[0]
        held += [
            i.low <= t <= i.high for i, t in zip((found.slope, found.intercept, found.at(0.6)), truth, strict=True)
        ]
    assert (held >= 0.9 * 200).all() and (held < 200).all(), held


def test_pictures_are_drawn_for_all_runs_alike() -> None:
    right = np.random.default_rng(5).random((3, 400)) < 0.5
    right[2] = right[0]
    found = accuracies(right, 100)
    assert (found[:, 0] == found[:, 2]).all() and found[0].tolist() == right.mean(1).tolist()
    assert found[1:, 0].std() == pytest.approx(0.5 / 20, rel=0.3) and not np.array_equal(found[:, 0], found[:, 1])
    assert np.allclose(found * 400, np.round(found * 400), atol=1e-3), "whole pictures"


def test_lines_are_compared_where_both_have_runs() -> None:
    low, high = np.array([0.3, 0.4, 0.5, 0.7]), np.array([0.5, 0.6, 0.7, 0.8])
    one, other = plain(low, on_the_line(low), 20), plain(high, on_the_line(high, intercept=-0.9), 20)
    at = matched([one, other])
    assert 0.5 < at < 0.7 and one.reaches(at) and other.reaches(at) and not other.reaches(0.45)
    gap = difference(one, other, at)
    truth = (on_the_line(np.array([at])) - on_the_line(np.array([at]), intercept=-0.9))[0]
    assert gap == pytest.approx((truth,) * 3, abs=1e-9) and gap.distinguishable
    apart = matched([plain(np.array([0.2, 0.3]), low[:2]), plain(np.array([0.6, 0.7]), low[:2])])
    assert 0.3 < apart < 0.6


def test_too_few_runs_and_runs_on_no_line_are_refused() -> None:
    three = np.array([0.3, 0.5, 0.7])
    assert "3 runs, and a line needs 4" in plain(three, on_the_line(three)).refused
    rng = np.random.default_rng(1)
    cloud = plain(np.linspace(0.3, 0.9, 8), rng.uniform(0.3, 0.7, 8))
    assert "below 0.9" in cloud.refused
    same = plain(np.full(5, 0.5), three[[0, 1, 2, 0, 1]])
    assert same.refused == "its runs have one accuracy"


def test_none_right_and_all_right_stay_finite() -> None:
    assert edge_of(500) == 0.001
    reference, shifted = np.array([[0.0, 0.5, 0.8, 1.0]]), np.array([[0.0, 0.3, 0.6, 1.0]])
    found = fit_trend(reference, shifted, (edge_of(50), edge_of(200)))
    x = [NORMAL.inv_cdf(p) for p in (0.01, 0.5, 0.8, 0.99)]
    y = [NORMAL.inv_cdf(p) for p in (0.0025, 0.3, 0.6, 0.9975)]
    slope, intercept = np.polyfit(x, y, 1)
    assert found.line.slope == pytest.approx(slope) and found.line.intercept == pytest.approx(intercept)
    assert np.isfinite(found.line.expected([0.0, 1.0])).all()
