import time

import numpy as np
import pytest

from diptych.comparison.stats import (
    accuracy,
    class_recall,
    confusion,
    macro_recall,
    paired_bootstrap,
)
from diptych.metrics.calibration import ece, reliability


def made(seed: int, pictures: int = 83, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (pictures, classes))
    e = np.exp(logits)
    return e / e.sum(axis=1, keepdims=True), rng.integers(0, classes - 1, pictures)  # the last class is absent


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_a_naive_loop(seed: int) -> None:
    p, truth = made(seed)
    found = {c: [0, 0] for c in truth}
    matrix = np.zeros((5, 5), int)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, t in zip(p, truth, strict=True):
        guess = max(range(5), key=lambda c: row[c])
        matrix[t, guess] += 1
        found[t][0] += guess == t
        found[t][1] += 1
        place = next(b for b in range(15) if row[guess] <= (b + 1) / 15)
        bins.setdefault(place, []).append((row[guess], guess == t))
    gaps = [
        len(b) / len(truth) * abs(sum(r for _, r in b) / len(b) - sum(c for c, _ in b) / len(b)) for b in bins.values()
    ]
    assert accuracy(p, truth) == pytest.approx(sum(r for r, _ in found.values()) / len(truth))
    assert macro_recall(p, truth) == pytest.approx(np.mean([r / n for r, n in found.values()]))
    assert ece(p, truth) == pytest.approx(sum(gaps))
    assert (confusion(p, truth) == matrix).all()
    assert np.isnan(class_recall(matrix)[4])


def test_ece_in_closed_form() -> None:
    sure = np.tile([0.9, 0.1], (10, 1))
    assert ece(sure, [0] * 9 + [1]) == pytest.approx(0.0)
    assert ece(sure, [1] * 10) == pytest.approx(0.9)
    assert ece(np.tile([1.0, 0.0], (4, 1)), [0, 0, 1, 1]) == pytest.approx(0.5)  # a probability of one has a bin
    bins = reliability(sure, [0] * 9 + [1])
    assert bins.count.sum() == 10
    assert bins.count[13] == 10  # (13/15, 14/15]


def test_bootstrap_covers_a_known_bernoulli() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low_high = paired_bootstrap({"m": rng.random((1, 200)) < 0.8}, rounds=400, seed=trial).interval("m")
        hits += low_high.low <= 0.8 <= low_high.high
    assert 0.91 <= hits / 300 <= 0.98


def test_interval_of_one_seed_has_the_binomial_width() -> None:
    right = np.arange(400) < 300
    interval = paired_bootstrap({"m": right}).interval("m")
    assert interval.mean == 0.75
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 400), rel=0.08)


def test_seeds_spread_as_the_error_of_their_mean() -> None:
    """Pictures that all agree leave the seeds as the only spread: s / sqrt(S), as the bootknife promises."""
    accuracies = (0.6, 0.7, 0.9)
    right = np.stack([np.full(50, a) for a in accuracies])
    draws = paired_bootstrap({"m": right}, rounds=20_000).draws["m"]
    assert draws.std() == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(3), rel=0.03)


def test_methods_are_paired() -> None:
    rng = np.random.default_rng(1)
    right = rng.random((3, 200)) < 0.7
    boot = paired_bootstrap({"a": right, "same": right.copy(), "other": rng.random((3, 200)) < 0.7})
    assert boot.difference("a", "same") == (0, 0, 0)
    assert boot.difference("a", "other").high - boot.difference("a", "other").low > 0.05
    worse = right.copy()
    worse[:, np.flatnonzero(right.all(axis=0))[:10]] = False
    gap = boot.difference("a", "same"), paired_bootstrap({"a": right, "b": worse}).difference("a", "b")
    assert gap[1].mean == pytest.approx(0.05)
    assert gap[1].distinguishable  # five points, though each interval is 13 wide


def test_a_method_without_seeds_and_one_with_a_missing_seed() -> None:
    rng = np.random.default_rng(2)
    full = (rng.random((3, 100)) < 0.8).astype(float)
    gap = full.copy()
    gap[1] = np.nan
    boot = paired_bootstrap({"full": full, "one": full[:1], "gap": gap})
    assert boot.mean["one"] == pytest.approx(full[0].mean())
    assert boot.mean["gap"] == pytest.approx(full[[0, 2]].mean())
    assert np.isfinite(boot.interval("gap")).all()
    assert boot.difference("one", "one") == (0, 0, 0)


def test_groups_are_drawn_whole() -> None:
    """Ten copies of each picture carry no more than one: the interval must not shrink."""
    right = np.random.default_rng(3).random(60) < 0.75
    copies, group = np.repeat(right, 10), np.repeat(np.arange(60), 10)
    alone = paired_bootstrap({"m": right}).interval("m")
    grouped = paired_bootstrap({"m": copies}, groups=[*map(str, group)]).interval("m")
    naive = paired_bootstrap({"m": copies}).interval("m")
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


def test_bootstrap_is_quick_and_repeats() -> None:
    rng = np.random.default_rng(4)
    right = {m: rng.random((3, 200)) < 0.8 for m in range(9)}
    start = time.process_time()
    first = paired_bootstrap(right)
    assert time.process_time() - start < 1
    assert first.interval(3) == paired_bootstrap(right).interval(3)
