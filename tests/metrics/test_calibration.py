"""Calibration against plain loops and scikit-learn, with ties and probabilities of exactly one; a model found out."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from diptych.core.classifier import temperature_of
from diptych.metrics.calibration import brier, ece, equal_mass_ece, nll, overconfidence, reliability


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in twentieths, so that many are equal, lie on edges of bins, or are one."""
    rng = np.random.default_rng(seed)
    p = rng.multinomial(20, rng.dirichlet(np.full(4, 0.3), 60)) / 20
    p[:3] = np.eye(4)[:3]
    return p, rng.integers(0, 4, len(p))


@pytest.mark.parametrize("seed", range(20))
def test_equal_plain_loops_and_scikit_learn(seed: int) -> None:
    p, truth = case(seed)
    bins: list[list[tuple[float, float]]] = [[] for _ in range(15)]
    top = []
    for row, t in zip(p.tolist(), truth.tolist(), strict=True):
        best = row.index(max(row))
        place = next(b for b in range(15) if row[best] * 15 <= b + 1 + 1e-12)
        bins[place].append((row[best], float(best == t)))
        top.append((row[best], float(best == t)))
    gaps = [abs(sum(r for _, r in b) - sum(c for c, _ in b)) for b in bins]
    assert ece(p, truth) == pytest.approx(sum(gaps) / len(p), abs=1e-9)
    top.sort(key=lambda pair: pair[0])
    sizes = [4] * 15
    at, total = 0, 0.0
    for size in sizes:
        part = top[at : at + size]
        total += abs(sum(r for _, r in part) - sum(c for c, _ in part))
        at += size
    assert equal_mass_ece(p, truth) == pytest.approx(total / 60, abs=1e-9)
    soft = 0.99 * p + 0.01 / 4
    assert nll(soft, truth) == pytest.approx(log_loss(truth, soft, labels=[0, 1, 2, 3]), abs=1e-9)
    onehot = sum(brier_score_loss(truth == c, p[:, c]) for c in range(4))
    assert brier(p, truth) == pytest.approx(onehot, abs=1e-9)


def test_a_confidence_of_one_has_a_bin_and_signs_are_right() -> None:
    sure = np.tile([1.0, 0.0], (4, 1))
    assert reliability(sure, [0, 0, 1, 1]).count[-1] == 4
    assert ece(sure, [0, 0, 1, 1]) == equal_mass_ece(sure, [0, 0, 1, 1]) == overconfidence(sure, [0, 0, 1, 1]) == 0.5
    assert nll(sure, [0, 0, 0, 0]) == 0 and np.isfinite(nll(sure, [1, 1, 1, 1]))


def test_a_model_whose_logits_were_tripled_is_found_out() -> None:
    """Logits drawn so that softmax is the truth's own law; half finds the temperature, the other half is judged."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(8000, 6, generator=generator, dtype=torch.float64)
    truth = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    fit, test = slice(0, 4000), slice(4000, 8000)
    own = temperature_of(logits[fit], truth[fit])
    assert own == pytest.approx(1, abs=0.05)
    good = logits / own

    def of(z: torch.Tensor, rows: slice) -> float:
        return ece(z[rows].softmax(1), truth[rows])

    again = temperature_of(3 * good[fit], truth[fit])
    assert of(3 * good, test) >= 2 * of(good, test)
    assert again == pytest.approx(3 * temperature_of(good[fit], truth[fit]), rel=0.02)
    assert of(3 * good / again, test) == pytest.approx(of(good, test), abs=0.005)
    assert torch.equal((3 * good / again).argmax(1), logits.argmax(1))
