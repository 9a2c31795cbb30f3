"""Detection against counting pairs and scikit-learn, with ties; scores against their formulas."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from diptych.metrics.ood import aupr, auroc, detection, fpr_at, modality_gap, roc, scores


@pytest.mark.parametrize("seed", range(20))
def test_equal_counted_pairs_and_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inside = np.round(rng.normal(0.4, 1, rng.integers(5, 60)), rng.integers(0, 3))
    outside = np.round(rng.normal(0, 1, rng.integers(5, 60)), 1)
    pairs = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside) / (len(inside) * len(outside))
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    both = np.r_[inside, outside]
    found = detection(inside, outside)
    assert found["auroc"] == pytest.approx(pairs, abs=1e-9) == pytest.approx(roc_auc_score(truth, both), abs=1e-9)
    fpr, tpr, _ = roc_curve(truth, both, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(fpr[tpr >= 0.95 - 1e-12].min(), abs=1e-9)
    kept = max(t for t in inside if (inside >= t).mean() >= 0.95 - 1e-12)
    assert found["fpr95"] == pytest.approx(sum(o >= kept for o in outside) / len(outside), abs=1e-9)
    assert found["aupr_in"] == pytest.approx(average_precision_score(truth, both), abs=1e-9)
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - truth, -both), abs=1e-9)
    curve = roc(inside, outside)
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(pairs, abs=1e-9)
    assert curve[0].tolist() == [0, 0] and curve[-1].tolist() == [1, 1]


def test_known_answers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=3000), rng.normal(size=3000)
    assert auroc(a, b) == pytest.approx(0.5, abs=0.03)
    assert auroc(-a, -(b + 1)) == pytest.approx(1 - auroc(a, b + 1), abs=1e-12)
    assert auroc([1, 2], [0, 0]) == aupr([1, 2], [0, 0]) == 1 and fpr_at([1, 2], [0, 0]) == 0
    assert auroc([1, 1], [1, 1]) == 0.5 and fpr_at([1, 1], [1, 1]) == 1


def test_scores_are_their_formulas() -> None:
    cosines = torch.tensor([[0.3, 0.1], [0.2, 0.2]])
    found = scores(50 * cosines, cosines)
    for i, row in enumerate(cosines.tolist()):
        assert found["mcm"][i].item() == pytest.approx(math.exp(max(row)) / sum(map(math.exp, row)), abs=1e-6)
        scaled = [math.exp(50 * c) for c in row]
        assert found["msp"][i].item() == pytest.approx(max(scaled) / sum(scaled), abs=1e-6)
        assert found["energy"][i].item() == pytest.approx(math.log(sum(scaled)), abs=1e-5)
        assert found["maxlogit"][i].item() == pytest.approx(50 * max(row), abs=1e-5)
    assert "mcm" not in scores(cosines)


def test_the_gap_is_between_means_of_unit_vectors() -> None:
    assert modality_gap(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])) == pytest.approx(math.sqrt(2))
    assert modality_gap(torch.eye(3), 4 * torch.eye(3)) == pytest.approx(0, abs=1e-9)
