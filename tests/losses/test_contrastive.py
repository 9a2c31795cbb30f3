import math

import pytest
import torch
from naive import Largest, cross_entropy, matrix, one_hot, turned, unit

from diptych.losses.contrastive import (
    groups_of,
    positives_of,
    sigmoid_contrastive,
    softmax_contrastive,
    softmax_rows,
)

B, D = 6, 5
A, T = unit(B, D, seed=1), unit(B, D, seed=2)
IDS = torch.tensor([3, 1, 3, 2, 1, 3])
WEIGHTS = torch.tensor([0.5, 1.0, 0.0, 2.0, 0.3, 1.0], dtype=torch.float64)
SOFT = torch.rand(B, B, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(1)


def naive(a, b, scale, targets=None, weights=None) -> float:
    logits = matrix(a, b, scale)
    rows = targets.tolist() if targets is not None else [one_hot(i, len(a)) for i in range(len(a))]
    columns = [[v / sum(column) for v in column] for column in turned(rows)]
    weights = [1.0] * len(a) if weights is None else weights.tolist()
    total = 0.0
    for i, weight in enumerate(weights):
        total += weight * cross_entropy(rows[i], logits[i]) / 2
        total += weight * cross_entropy(columns[i], turned(logits)[i]) / 2
    return total / len(a)


@pytest.mark.parametrize("targets", [None, SOFT, positives_of(IDS).double()], ids=["diagonal", "soft", "ids"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_softmax_is_the_loop(targets, weights):
    found = softmax_contrastive(A, T, 7.0, targets=targets, weights=weights)
    assert found.item() == pytest.approx(naive(A, T, 7.0, targets, weights), abs=1e-12)


@pytest.mark.parametrize("targets", [None, SOFT], ids=["diagonal", "soft"])
def test_softmax_gradients(targets):
    inputs = [A.clone().requires_grad_(), T.clone().requires_grad_(), torch.tensor(5.0).double().requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda a, b, s: softmax_contrastive(a, b, s, targets=targets, weights=WEIGHTS), inputs
    )


def test_softmax_of_an_orthonormal_batch():
    """a = b = the identity: log(1 + (B - 1) exp(-s))."""
    rows = torch.eye(B, dtype=torch.float64)
    assert softmax_contrastive(rows, rows, 3.0).item() == pytest.approx(math.log(1 + (B - 1) * math.exp(-3)))
    assert softmax_contrastive(rows[:1], rows[:1], 3.0).item() == 0


def test_repeated_ids_share_the_mass_and_unique_ones_are_the_diagonal():
    targets = positives_of(IDS)
    assert torch.equal(targets, targets.T)
    assert targets[0].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 0, 1 / 3])
    assert torch.equal(positives_of(torch.tensor([5, 9, 7])), torch.eye(3))
    found = softmax_contrastive(A, T, 4.0, targets=positives_of(torch.arange(B)).double())
    assert found.item() == pytest.approx(softmax_contrastive(A, T, 4.0).item(), abs=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_pairs_of_one_id_belong_together(weights):
    """Against the loop with a third of the mass on each of three."""
    found = softmax_contrastive(A, T, 7.0, ids=IDS, weights=weights)
    targets = torch.tensor([[float(i == j) / IDS.tolist().count(i) for j in IDS] for i in IDS.tolist()]).double()
    assert found.item() == pytest.approx(naive(A, T, 7.0, targets, weights), abs=1e-7)  # a third in float32
    inputs = [A.clone().requires_grad_(), T.clone().requires_grad_(), torch.tensor(5.0).double().requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b, s: softmax_contrastive(a, b, s, ids=IDS, weights=weights), inputs)
    yes = IDS[:, None] == IDS
    expected = sigmoid_contrastive(A, T, 6.0, -1.5, positives=yes)
    assert sigmoid_contrastive(A, T, 6.0, -1.5, ids=IDS).item() == pytest.approx(expected.item(), abs=1e-12)


def test_equal_rows_share_what_they_are_given_anyway():
    """The gradient of the images and of the text itself, of which several rows are copies."""
    found = []
    for ids in (IDS, None):
        images, texts = A.clone().requires_grad_(), T[:4].clone().requires_grad_()
        loss = softmax_contrastive(images, texts[IDS], 7.0, ids=ids)
        loss.backward()
        found.append((loss.detach(), images.grad, texts.grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ids", [None, IDS], ids=["diagonal", "ids"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_parts_of_the_batch_make_up_the_loss_and_its_gradients(ids, weights):
    inputs = [[A.clone().requires_grad_(), T.clone().requires_grad_(), torch.tensor(7.0).double().requires_grad_()]
              for _ in range(2)]  # fmt: skip
    whole = softmax_contrastive(*inputs[0], ids=ids, weights=weights)
    parts = [softmax_contrastive(*inputs[1], ids=ids, weights=weights, part=slice(i, i + 2)) for i in range(0, B, 2)]
    mean = torch.stack(parts).mean()
    assert mean.item() == pytest.approx(whole.item(), abs=1e-12)
    whole.backward()
    mean.backward()
    for one, two in zip(*inputs, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-12)
    yes = [sigmoid_contrastive(A[i : i + 3], T, 6.0, -1.5, first=i, ids=ids) for i in (0, 3)]
    expected = sigmoid_contrastive(A, T, 6.0, -1.5, ids=ids)
    assert torch.stack(yes).mean().item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_part_makes_no_matrix_of_the_whole_batch():
    a, b = (unit(64, D, seed=s).requires_grad_() for s in (1, 2))
    with Largest() as largest:
        softmax_contrastive(a, b, 10.0, ids=torch.arange(64) // 2, part=slice(8, 16)).backward()
        sigmoid_contrastive(a[8:16], b, 10.0, -1.0, ids=torch.arange(64) // 2, first=8).backward()
    assert largest.elements == 8 * 64


def test_groups_are_what_any_key_joins_directly_or_through_others():
    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        keys = [torch.randint(0, 9, (10,), generator=generator) for _ in range(2)]
        groups = list(range(10))
        for _ in range(10):  # the plainest way: join until nothing changes
            for i in range(10):
                for j in range(10):
                    if any(key[i] == key[j] for key in keys):
                        groups[i] = groups[j] = min(groups[i], groups[j])
        found = groups_of(*keys)
        assert (list(range(10)) if found is None else found.tolist()) == groups
    assert groups_of(torch.tensor([4, 2, 9]), torch.tensor([-1, 8, 7])) is None
    assert groups_of(torch.tensor([4, 2, 9]), torch.tensor([7, 8, 7])).tolist() == [0, 1, 0]  # type: ignore[union-attr]


def test_parts_of_the_rows_make_up_the_whole():
    forth = torch.cat([softmax_rows(A[i : i + 2], T, 7.0, first=i) for i in range(0, B, 2)])
    back = torch.cat([softmax_rows(T[i : i + 3], A, 7.0, first=i) for i in range(0, B, 3)])
    assert ((forth + back) / 2).mean().item() == pytest.approx(naive(A, T, 7.0), abs=1e-12)
    parts = [sigmoid_contrastive(A[i : i + 2], T, 7.0, -2.0, first=i).item() for i in range(0, B, 2)]
    assert sum(parts) / 3 == pytest.approx(sigmoid_contrastive(A, T, 7.0, -2.0).item(), abs=1e-12)


@pytest.mark.parametrize("positives", [None, positives_of(IDS) > 0], ids=["diagonal", "ids"])
def test_sigmoid_is_the_loop(positives):
    yes = torch.eye(B) if positives is None else positives
    total = 0.0
    for i, row in enumerate(matrix(A, T, 6.0)):
        for j, value in enumerate(row):
            sign = 1 if yes[i, j] else -1
            total += math.log1p(math.exp(-sign * (value - 1.5)))
    found = sigmoid_contrastive(A, T, 6.0, -1.5, positives=positives)
    assert found.item() == pytest.approx(total / B, abs=1e-12)
    inputs = [x.clone().requires_grad_() for x in (A, T, torch.tensor(6.0).double(), torch.tensor(-1.5).double())]
    assert torch.autograd.gradcheck(lambda a, b, s, c: sigmoid_contrastive(a, b, s, c, positives=positives), inputs)


def test_sigmoid_of_an_orthonormal_batch():
    rows = torch.eye(B, dtype=torch.float64)
    expected = math.log1p(math.exp(-(3 - 1))) + (B - 1) * math.log1p(math.exp(-1))
    assert sigmoid_contrastive(rows, rows, 3.0, -1.0).item() == pytest.approx(expected)


def test_half_precision_is_raised_and_autocast_has_no_say():
    a, b = A.float(), T.float()
    expected = softmax_contrastive(a, b, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b.T).dtype is torch.bfloat16
        assert torch.equal(softmax_contrastive(a, b, 100.0), expected)
        assert softmax_contrastive(a.bfloat16(), b.bfloat16(), 100.0).dtype is torch.float32
        assert sigmoid_contrastive(a.bfloat16(), b.bfloat16(), 100.0, -10.0).dtype is torch.float32
