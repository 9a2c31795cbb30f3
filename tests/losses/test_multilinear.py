import itertools
import math

import pytest
import torch
from naive import cross_entropy, dot, one_hot, unit

from diptych.errors import DiptychError
from diptych.losses.contrastive import softmax_contrastive
from diptych.losses.multilinear import (
    multilinear,
    multilinear_contrastive,
    multilinear_scores,
    pairwise_contrastive,
    pairwise_scores,
    permutations_of,
)

B, D, SCALE = 4, 5, 12.0


def rows_of(modalities: int) -> list[torch.Tensor]:
    return [unit(B, D, seed=m) for m in range(modalities)]


def naive(rows, permutations) -> float:
    lists, total = [r.tolist() for r in rows], 0.0
    for m in range(len(rows)):
        others = [k for k in range(len(rows)) if k != m]
        for i in range(B):
            own = SCALE * dot(*(r[i] for r in lists))
            if permutations is None:
                logits, true = [], 0
                for combination in itertools.product(range(B), repeat=len(others)):
                    if all(j == i for j in combination):
                        true = len(logits)
                    vectors = [lists[k][j] for k, j in zip(others, combination, strict=True)]
                    logits.append(SCALE * dot(lists[m][i], *vectors))
            else:
                drawn = [[lists[k][int(permutations[m, k, j])] for k in others] for j in range(B)]
                logits = [own if j == i else SCALE * dot(lists[m][i], *drawn[j]) for j in range(B)]
                true = i
            total += cross_entropy(one_hot(true, len(logits)), logits)
    return total / len(rows) / B


@pytest.mark.parametrize("modalities", [3, 4])
@pytest.mark.parametrize("every", [True, False], ids=["all", "permutations"])
def test_it_is_the_loop(modalities, every):
    rows = rows_of(modalities)
    permutations = None if every else permutations_of(modalities, B, torch.Generator().manual_seed(0))
    found = multilinear_contrastive(rows, SCALE, permutations)
    assert found.item() == pytest.approx(naive(rows, permutations), abs=1e-12)
    inputs = [r.clone().requires_grad_() for r in [*rows, torch.tensor(SCALE).double()]]
    assert torch.autograd.gradcheck(lambda *x: multilinear_contrastive(x[:-1], x[-1], permutations), inputs)


def test_two_modalities_are_clips_loss():
    rows = rows_of(2)
    expected = softmax_contrastive(*rows, SCALE).item()
    for permutations in (None, permutations_of(2, B)):
        assert multilinear_contrastive(rows, SCALE, permutations).item() == expected
    assert naive(rows, None) == pytest.approx(expected)
    torch.testing.assert_close(multilinear(*rows), (rows[0] * rows[1]).sum(1))
    with pytest.raises(DiptychError, match="two modalities"):
        multilinear_contrastive(rows[:1], SCALE)


def test_an_orthonormal_batch():
    """Three identities: the product is 1 for the true sample alone, 0 for all other combinations."""
    rows = [torch.eye(B, dtype=torch.float64)] * 3
    assert multilinear_contrastive(rows, 2.0).item() == pytest.approx(math.log(1 + (B * B - 1) * math.exp(-2)))
    still = torch.arange(B).expand(3, 3, B)
    assert multilinear_contrastive(rows, 2.0, still).item() == pytest.approx(math.log(1 + (B - 1) * math.exp(-2)))


def test_permutations_are_independent_and_of_the_seed():
    drawn = permutations_of(3, 50, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, permutations_of(3, 50, torch.Generator().manual_seed(1)))
    assert (drawn.sort(-1).values == torch.arange(50)).all()
    assert len({tuple(p.tolist()) for p in drawn.flatten(0, 1)}) == 9


def test_scores_see_the_xor_that_no_pair_shows():
    """a = b xor c, written as signs: the product of two modalities is the third."""
    b, c = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    candidates = torch.tensor([[1.0], [-1.0]])
    assert multilinear_scores([b, c], candidates).argmax(1).tolist() == [0, 1, 1, 0]
    assert torch.equal(pairwise_scores([b, c], candidates), b @ candidates.T + c @ candidates.T)
    assert pairwise_scores([b, c], candidates)[1].tolist() == [0.0, 0.0]


def test_the_pairwise_baseline_sums_all_pairs():
    a, b, c = rows_of(3)
    expected = sum(softmax_contrastive(x, y, SCALE).item() for x, y in [(a, b), (a, c), (b, c)])
    assert pairwise_contrastive([a, b, c], SCALE).item() == pytest.approx(expected)
