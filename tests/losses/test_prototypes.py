import math

import pytest
import torch
from naive import cross_entropy, dot, matrix, one_hot, softmax, unit

from diptych.errors import DiptychError
from diptych.losses.prototypes import (
    cluster_discrimination,
    cluster_scores,
    prototype_cross_entropy,
    prototype_targets,
    sample_clusters,
    sampled_discrimination,
)

B, K, D = 5, 8, 6
ROWS, CENTRES, TEACHER = unit(B, D, seed=1), unit(K, D, seed=2) * 0.7, unit(K, 4, seed=3)
LABELS = torch.tensor([2, 0, 5, 2, 6])
SEVERAL = torch.tensor([[2, 1], [0, 5], [5, 7], [2, 0], [6, 1]])
POSITIVES = torch.zeros(B, K, dtype=torch.bool).scatter(1, SEVERAL, True)


def test_prototypes_are_the_loop():
    logits = matrix(ROWS, CENTRES, 9.0)
    hard = sum(cross_entropy(one_hot(c, K), row) for c, row in zip(LABELS.tolist(), logits, strict=True)) / B
    assert prototype_cross_entropy(ROWS, CENTRES, 9.0, LABELS).item() == pytest.approx(hard, abs=1e-12)
    targets = prototype_targets(TEACHER, LABELS, 0.1)
    kin = matrix(TEACHER, TEACHER, 10.0)
    soft = sum(cross_entropy(softmax(kin[c]), row) for c, row in zip(LABELS.tolist(), logits, strict=True)) / B
    assert prototype_cross_entropy(ROWS, CENTRES, 9.0, targets).item() == pytest.approx(soft, abs=1e-12)
    inputs = [x.clone().requires_grad_() for x in (ROWS, CENTRES, torch.tensor(9.0).double())]
    assert torch.autograd.gradcheck(lambda r, c, s: prototype_cross_entropy(r, c, s, targets), inputs)


def test_prototypes_in_closed_form():
    """Rows on orthonormal prototypes."""
    eye = torch.eye(K, dtype=torch.float64)
    expected = math.log(1 + (K - 1) * math.exp(-2))
    assert prototype_cross_entropy(eye, eye, 2.0, torch.arange(K)).item() == pytest.approx(expected)
    assert torch.equal(prototype_targets(eye, LABELS, 1e-4).argmax(1), LABELS)


def test_absent_prototypes_are_no_option():
    present = torch.tensor([True, False, True, False, False, True, True, False])
    present[0] = True
    kept = CENTRES[present]
    for targets, own in [
        (LABELS, torch.tensor([1, 0, 2, 1, 3])),
        (prototype_targets(TEACHER, LABELS, 0.1), prototype_targets(TEACHER, LABELS, 0.1)[:, present]),
    ]:
        own = own if own.dim() == 1 else own / own.sum(1, keepdim=True)
        found = prototype_cross_entropy(ROWS, CENTRES, 9.0, targets, present=present)
        assert found.item() == pytest.approx(prototype_cross_entropy(ROWS, kept, 9.0, own).item(), abs=1e-12)


def naive_discrimination(scores, joint=False):
    total = 0.0
    for row, own in zip(scores.tolist(), POSITIVES.tolist(), strict=True):
        p = sum(math.exp(-s) for s, mine in zip(row, own, strict=True) if mine)
        n = sum(math.exp(s) for s, mine in zip(row, own, strict=True) if not mine)
        total += math.log(1 + p * n) if joint else math.log((1 + p) * (1 + n))
    return total / B


def test_discrimination_is_the_loop():
    scores = 4 * torch.randn(B, K, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for joint in (False, True):
        found = cluster_discrimination(scores, POSITIVES, joint=joint)
        assert found.item() == pytest.approx(naive_discrimination(scores, joint), abs=1e-12)
        scores.requires_grad_()
        assert torch.autograd.gradcheck(lambda s, j=joint: cluster_discrimination(s, POSITIVES, joint=j), [scores])
        scores = scores.detach()
    with pytest.raises(DiptychError, match="alike"):
        cluster_discrimination(scores, POSITIVES[:, 1:])


def test_discrimination_in_closed_form():
    """All scores 0, p positives of K: log(1 + p) + log(1 + K - p); joint: log(1 + p (K - p))."""
    zero = torch.zeros(B, K, dtype=torch.float64)
    assert cluster_discrimination(zero, POSITIVES).item() == pytest.approx(math.log(3) + math.log(7))
    assert cluster_discrimination(zero, POSITIVES, joint=True).item() == pytest.approx(math.log(1 + 2 * 6))


@pytest.mark.parametrize("joint", [False, True])
def test_positive_scores_learn_on_their_own_unless_joint(joint):
    slopes = []
    for raised in (0.0, 3.0):
        scores = torch.where(POSITIVES, torch.zeros(B, K), torch.full((B, K), raised)).requires_grad_()
        cluster_discrimination(scores, POSITIVES, joint=joint).backward()
        slopes.append(scores.grad[POSITIVES])  # type: ignore[index]
    assert torch.allclose(*slopes) is not joint


def test_scores_are_cosines_and_the_margin_is_an_angle():
    found = cluster_scores(ROWS * 3, CENTRES, 10.0, POSITIVES, margin=0.3)
    for i, row in enumerate(ROWS.tolist()):
        for j, centre in enumerate(CENTRES.tolist()):
            angle = math.acos(dot(row, centre) / 0.7)
            if POSITIVES[i, j]:
                assert angle + 0.3 < math.pi
                angle += 0.3
            assert found[i, j].item() == pytest.approx(10 * math.cos(angle), abs=1e-9)
    assert torch.equal(cluster_scores(ROWS, CENTRES, 10.0, POSITIVES), cluster_scores(ROWS, CENTRES, 10.0))


def test_a_positive_on_the_far_side_is_not_made_nearer_by_its_margin():
    row, far = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    assert cluster_scores(row, far, 1.0, torch.tensor([[True]]), 0.3).item() < -1


def test_sampled_clusters_hold_the_labels_and_only_they_learn():
    clusters = sample_clusters(SEVERAL, 100, 0.2, torch.Generator().manual_seed(0))
    assert len(clusters) == 20 == len(clusters.unique()) and set(SEVERAL.flatten().tolist()) <= set(clusters.tolist())
    assert sample_clusters(SEVERAL, K, 0.01).tolist() == [0, 1, 2, 5, 6, 7]
    centres = torch.randn(100, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    sampled_discrimination(ROWS, centres, SEVERAL, 8.0, clusters, margin=0.3).backward()
    assert centres.grad is not None
    assert centres.grad.abs().sum(1).nonzero()[:, 0].tolist() == clusters.tolist()


def test_all_clusters_are_the_whole_loss():
    expected = naive_discrimination(cluster_scores(ROWS, CENTRES, 8.0))
    found = sampled_discrimination(ROWS, CENTRES, SEVERAL, 8.0, sample_clusters(SEVERAL, K, 1.0))
    assert found.item() == pytest.approx(expected, abs=1e-12)
    part = torch.tensor([0, 1, 2, 5, 6, 7])
    expected = cluster_discrimination(cluster_scores(ROWS, CENTRES, 8.0)[:, part], POSITIVES[:, part])
    assert sampled_discrimination(ROWS, CENTRES, SEVERAL, 8.0, part).item() == pytest.approx(expected.item())
