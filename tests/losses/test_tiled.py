import math

import pytest
import torch
from naive import Largest, log_sum, matrix, turned, unit

from diptych.losses import contrastive
from diptych.losses.contrastive import positives_of, sigmoid_contrastive, softmax_contrastive
from diptych.losses.tiled import tiled_contrastive, tiled_logsumexp, tiled_row_logsumexp, tiled_sigmoid

B, D = 11, 6
IDS = torch.tensor([4, 1, 4, 0, 2, 1, 4, 3, 9, 0, 5])
WEIGHTS = torch.rand(B, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def inputs(dtype=torch.float64) -> list[torch.Tensor]:
    parts = unit(B, D, seed=1), unit(B, D, seed=2), torch.tensor(14.0)
    return [p.to(dtype).requires_grad_() for p in parts]


@pytest.mark.parametrize("tile", [1, 4, 11, 100])
def test_the_sums_are_the_loops_of_any_shape(tile):
    a, b = unit(B, D, seed=1), unit(5, D, seed=2)
    rows, columns = tiled_logsumexp(a, b, 9.0, tile=tile)
    assert rows.tolist() == pytest.approx([log_sum(row) for row in matrix(a, b, 9.0)], abs=1e-12)
    assert columns.tolist() == pytest.approx([log_sum(row) for row in turned(matrix(a, b, 9.0))], abs=1e-12)


@pytest.mark.parametrize("tile", [1, 4, 11, 100])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_value_and_gradients_are_those_of_the_whole_matrix(tile, weights):
    found, expected = inputs(), inputs()
    loss = tiled_contrastive(*found, weights=weights, tile=tile)
    whole = softmax_contrastive(*expected, weights=weights)
    (3 * loss).backward()
    (3 * whole).backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, right.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_ids_that_repeat_share_the_mass(weights):
    found, expected = inputs(), inputs()
    loss = tiled_contrastive(*found, weights=weights, ids=IDS, tile=4)
    whole = softmax_contrastive(*expected, weights=weights, targets=positives_of(IDS).double())
    loss.backward()
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-7)  # a third is one in float32
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, right.grad, atol=1e-7, rtol=0)


@pytest.mark.parametrize("ids", [None, IDS], ids=["diagonal", "ids"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_a_part_of_the_batch_in_tiles(ids, weights):
    found, expected = inputs(), inputs()
    loss = tiled_contrastive(*found, weights=weights, ids=ids, part=slice(3, 8), tile=4)
    whole = softmax_contrastive(*expected, weights=weights, ids=ids, part=slice(3, 8))
    loss.backward()
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, right.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("ids", [None, IDS], ids=["diagonal", "ids"])
@pytest.mark.parametrize("part", [slice(None), slice(3, 8)], ids=["whole", "part"])
def test_the_sigmoid_loss_in_tiles(tile, part, ids):
    found, expected = [[*inputs(), torch.tensor(-2.0).double().requires_grad_()] for _ in range(2)]
    first = part.start or 0
    loss = tiled_sigmoid(found[0][part], *found[1:], first=first, tile=tile, ids=ids)
    whole = sigmoid_contrastive(expected[0][part], *expected[1:], first=first, ids=ids)
    (3 * loss).backward()
    (3 * whole).backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, right.grad, atol=1e-12, rtol=0)


def test_gradients_of_rows_and_columns_apart():
    """Random slopes for each sum, so that a mix-up of the two could not hide."""
    slopes = unit(2, B, seed=5)

    def weighed(a, b, scale):
        rows, columns = tiled_logsumexp(a, b[:7], scale, tile=3)
        return slopes[0] @ rows + slopes[1, :7] @ columns

    assert torch.autograd.gradcheck(weighed, inputs())


def test_rows_alone_and_columns_alone():
    for which in (0, 1):
        found, expected = inputs(), inputs()
        tiled_logsumexp(*found, tile=4)[which].sum().backward()
        (expected[2] * expected[0] @ expected[1].T).logsumexp(1 - which).sum().backward()
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.grad, right.grad, atol=1e-12, rtol=0)


def test_rows_without_the_columns():
    found, expected = inputs(), inputs()
    rows = tiled_row_logsumexp(*found, tile=4)
    (unit(B, seed=5) @ rows).backward()
    (unit(B, seed=5) @ tiled_logsumexp(*expected, tile=4)[0]).backward()
    for mine, right in zip(
        [rows, *(x.grad for x in found)], [tiled_logsumexp(*expected)[0], *(x.grad for x in expected)], strict=True
    ):
        torch.testing.assert_close(mine, right, atol=1e-12, rtol=0)


def test_large_batches_go_in_tiles_by_themselves(monkeypatch: pytest.MonkeyPatch):
    right = inputs()
    softmax_contrastive(*right, weights=WEIGHTS).backward()
    tiles = []
    monkeypatch.setattr(contrastive, "TILE", 10)
    monkeypatch.setattr(contrastive, "tiled_contrastive", lambda *a, **k: tiles.append(a) or tiled_contrastive(*a, **k))
    found = inputs()
    softmax_contrastive(*found, weights=WEIGHTS).backward()
    softmax_contrastive(*inputs(), targets=torch.eye(B).double())
    monkeypatch.setattr(contrastive, "tiled_sigmoid", lambda *a, **k: tiles.append(a) or tiled_sigmoid(*a, **k))
    sigmoid_contrastive(*inputs(), -1.0)
    sigmoid_contrastive(*inputs(), -1.0, positives=torch.eye(B) > 0)
    assert len(tiles) == 2
    for mine, whole in zip(found, right, strict=True):
        torch.testing.assert_close(mine.grad, whole.grad, atol=1e-12, rtol=0)


def test_second_derivatives_are_refused_and_not_wrong():
    found = inputs()
    for loss in (tiled_contrastive(*found), tiled_sigmoid(*found, -1.0)):
        with pytest.raises(NotImplementedError, match="no gradients of their own"):
            torch.autograd.grad(loss, found[0], create_graph=True)


def test_closed_form_and_no_overflow():
    rows = torch.eye(B)
    assert tiled_contrastive(rows, rows, 3.0, tile=4).item() == pytest.approx(math.log(1 + (B - 1) * math.exp(-3)))
    assert tiled_contrastive(rows, -rows, 300.0, tile=4).item() == pytest.approx(math.log(B - 1) + 300)


def test_float32_and_autocast():
    whole, tiled = inputs(torch.float32), inputs(torch.float32)
    softmax_contrastive(*whole).backward()
    with torch.autocast("cpu", torch.bfloat16):  # around the backward pass too
        tiled_contrastive(*tiled, tile=4).backward()
    for mine, right in zip(tiled, whole, strict=True):
        torch.testing.assert_close(mine.grad, right.grad, atol=1e-6, rtol=0)
    halves = [x.detach().bfloat16().requires_grad_() for x in whole]
    tiled_contrastive(*halves, tile=4).backward()
    assert all(x.grad is not None and x.grad.dtype is torch.bfloat16 for x in halves)


def test_no_matrix_of_the_whole_batch_is_held():
    a, b = (unit(200, 4, seed=s).requires_grad_() for s in (1, 2))
    with Largest() as largest:
        tiled_contrastive(a, b, 10.0, tile=16).backward()
    assert largest.elements == 200 * 4
