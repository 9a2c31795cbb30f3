import math

import pytest
import torch
from naive import dot, log_sum, matrix, softmax, unit
from torch.nn import functional as F

from diptych.errors import DiptychError
from diptych.losses.loob import info_loob, retrieve, retrieved_loob

B, D = 7, 16
X, Y = unit(B, D, seed=1), unit(B, D, seed=2)


def naive_retrieve(queries, store, beta):
    found = []
    for query in queries.tolist():
        shares = softmax([beta * dot(query, s) for s in store.tolist()])
        mean = [dot(shares, column) for column in store.T.tolist()]
        found.append([v / math.sqrt(dot(mean, mean)) for v in mean])
    return torch.tensor(found, dtype=torch.float64)


def naive_loob(anchors, positives, inverse_tau):
    logits = matrix(anchors, positives, inverse_tau)
    rows = [log_sum([v for j, v in enumerate(row) if j != i]) - row[i] for i, row in enumerate(logits)]
    return sum(rows) / len(rows) / inverse_tau


def test_every_part_is_the_loop():
    torch.testing.assert_close(retrieve(X, Y, 8.0), naive_retrieve(X, Y, 8.0))
    assert info_loob(X, Y, 30.0).item() == pytest.approx(naive_loob(X, Y, 30.0), abs=1e-12)
    images = naive_loob(naive_retrieve(X, X, 8.0), naive_retrieve(Y, X, 8.0), 30.0)
    texts = naive_loob(naive_retrieve(Y, Y, 8.0), naive_retrieve(X, Y, 8.0), 30.0)
    assert retrieved_loob(X, Y, 8.0, 30.0).item() == pytest.approx(images + texts, abs=1e-12)
    assert images != pytest.approx(texts, abs=1e-3)
    assert retrieved_loob(X.float(), Y.float(), 8.0, 30.0).item() == pytest.approx(images + texts, abs=1e-5)


def test_gradients():
    inputs = [X[:4].clone(), Y[:4].clone(), torch.tensor(3.0).double(), torch.tensor(5.0).double()]
    assert torch.autograd.gradcheck(retrieved_loob, [x.requires_grad_() for x in inputs])


def test_an_orthonormal_batch():
    """The positive is not below: log(B - 1) / inverse_tau - 1, however large inverse_tau."""
    rows = torch.eye(B, dtype=torch.float64)
    for inverse_tau in (1.0, 30.0):
        assert info_loob(rows, rows, inverse_tau).item() == pytest.approx(math.log(B - 1) / inverse_tau - 1)


def test_it_does_not_saturate():
    """The gradient of a positive's cosine is -1 / B however good it is, where InfoNCE's dies away."""
    for positive in (0.0, 20.0):
        a, b = torch.eye(B, dtype=torch.float64, requires_grad=True), torch.eye(B, dtype=torch.float64) * positive
        info_loob(a, b, 1.0).backward()
        slope = a.grad[0, 0].item()  # type: ignore[index]
        assert slope == pytest.approx(-positive / B)
        a = torch.eye(B, dtype=torch.float64, requires_grad=True)
        F.cross_entropy(a @ b.T, torch.arange(B)).backward()
        if positive:
            assert abs(a.grad[0, 0].item()) < 0.01 * abs(slope)  # type: ignore[index]


def test_the_limits_of_retrieval():
    mean = F.normalize(X.mean(0), dim=0)
    torch.testing.assert_close(retrieve(Y, X, 0.0), mean.expand(B, D))
    assert (retrieve(X, X, 200.0) - X).abs().max() < 1e-3
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(retrieve(X[order], Y[order], 8.0), retrieve(X, Y, 8.0)[order])


def test_parts_of_the_rows_make_up_the_whole():
    parts = [info_loob(X[i : i + 1], Y, 9.0, first=i).item() for i in range(B)]
    assert sum(parts) / B == pytest.approx(naive_loob(X, Y, 9.0), abs=1e-12)


def test_one_pair_has_nothing_to_contrast_with():
    with pytest.raises(DiptychError, match="two pairs"):
        info_loob(X[:1], Y[:1], 30.0)
