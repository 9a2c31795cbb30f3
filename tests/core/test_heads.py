"""Every kind of head against the formula of its paper, one number at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.nn import functional as F

from diptych.core.heads import (
    KINDS,
    Cache,
    Gaussian,
    Head,
    Linear,
    Neighbours,
    TextRows,
    gaussian_precision,
    ridge_precision,
    unpack_head,
)
from diptych.errors import Unsupported

C, D, N = 3, 6, 20


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


X, ROWS, KEYS = unit(5, D, seed=0), unit(C, D, seed=1), unit(N, D, seed=2)
LABELS = torch.arange(N) % C


def gaussian(alpha: float = 0.5) -> Gaussian:
    means = torch.stack([KEYS[c == LABELS].mean(0) for c in range(C)])
    centred = KEYS - means[LABELS]
    precision = gaussian_precision(centred.T @ centred / (N - 1), N)
    prior = torch.tensor([0.2, 0.3, 0.5]).log()
    return Gaussian(ROWS, means, precision, prior, KEYS, scale=100.0, alpha=alpha)


HEADS: list[Head] = [
    TextRows(ROWS, 100.0),
    Linear(ROWS * 3, torch.tensor([0.1, 0.2, 0.3])),
    Neighbours(KEYS, LABELS, C, k=4),
    Cache(ROWS, KEYS, LABELS, 100.0, alpha=1.2, beta=2.5),
    gaussian(),
]


def test_every_kind_is_tried_here() -> None:
    assert {type(head).__name__ for head in HEADS} == set(KINDS)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_pack_gives_the_same_head(head: Head) -> None:
    spec, tensors = head.pack()
    assert torch.equal(unpack_head(spec, tensors).logits(X), head.logits(X))
    assert head.logits(X).shape == (5, C)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_one_picture_and_many_agree(head: Head) -> None:
    together = head.logits(unit(1500, D, seed=9))
    alone = torch.cat([head.logits(row[None]) for row in unit(1500, D, seed=9)[[0, 700, 1499]]])
    torch.testing.assert_close(together[[0, 700, 1499]], alone, atol=1e-4, rtol=1e-5)


def test_heads_of_one_fit_judged_together_are_as_judged_alone() -> None:
    other = unit(N, D, seed=3)
    kinds: list[list[Head]] = [
        [Neighbours(KEYS, LABELS, C, k) for k in (5, 1, 50)] + [Neighbours(other, LABELS, C, 2)],
        [Cache(ROWS, k, LABELS, 100.0, a, b) for k in (KEYS, other) for b in (1.0, 5.0) for a in (0.5, 2.0)],
        [replace(gaussian(), alpha=a) for a in (0.0, 1.0)] + [replace(gaussian(2.0), means=other[:C])],
        [TextRows(ROWS, s) for s in (1.0, 2.0)],
    ]
    for heads in kinds:
        for head, together in zip(heads, type(heads[0]).logits_each(heads, X), strict=True):
            torch.testing.assert_close(together, head.logits(X), atol=1e-4, rtol=1e-5)


def test_cache_is_the_formula_of_tip_adapter() -> None:
    head = Cache(ROWS, KEYS, LABELS, 100.0, alpha=1.2, beta=2.5)
    for x, found in zip(X, head.logits(X), strict=True):
        for c in range(C):
            cached = sum(
                math.exp(-2.5 * (1 - float(x @ k))) for k, label in zip(KEYS, LABELS, strict=True) if label == c
            )
            assert float(found[c]) == pytest.approx(100 * float(x @ ROWS[c]) + 1.2 * cached, rel=1e-4)


def test_neighbours_vote_by_cosine() -> None:
    head = Neighbours(KEYS, LABELS, C, k=4, temperature=0.1)
    for x, found in zip(X, head.logits(X), strict=True):
        near = sorted(range(N), key=lambda i: -float(x @ KEYS[i]))[:4]
        votes = np.zeros(C)
        for i in near:
            votes[int(LABELS[i])] += math.exp(float(x @ KEYS[i]) / 0.1)
        np.testing.assert_allclose(found.exp().numpy(), np.maximum(votes / votes.sum(), 1e-6), rtol=1e-3, atol=1e-6)


def test_one_neighbour_is_the_nearest() -> None:
    assert torch.equal(Neighbours(KEYS, LABELS, C, k=1).logits(X).argmax(1), LABELS[(X @ KEYS.T).argmax(1)])


def test_precision_of_many_samples_is_the_inverse_covariance() -> None:
    d, n = 8, 100_000
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    samples = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix.T
    precision = gaussian_precision(samples.T.cov(), n) * (n - 1) / d
    truth = torch.linalg.inv(mix @ mix.T)
    assert float((precision - truth).norm() / truth.norm()) < 0.05


def test_precision_is_finite_with_fewer_samples_than_dimensions() -> None:
    centred = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    precision = gaussian_precision(centred.T @ centred / 4, 5)
    assert precision.isfinite().all()
    torch.testing.assert_close(ridge_precision(centred), precision, atol=1e-4, rtol=1e-4)


def test_gaussian_logits_are_log_densities() -> None:
    head = gaussian()
    covariance = torch.linalg.inv(head.precision.double()).numpy()
    gaussian_part = (head.logits(X) - TextRows(ROWS, 100.0).logits(X)).double() / head.alpha
    for x, found in zip(X, gaussian_part, strict=True):
        density = [multivariate_normal(m.double().numpy(), covariance).logpdf(x.double().numpy()) for m in head.means]
        expected = torch.tensor(density, dtype=torch.float64) + head.log_prior.double()
        constant = (found - expected).mean()
        torch.testing.assert_close(found - constant, expected, atol=2e-4, rtol=0)


def test_alpha_zero_is_zero_shot() -> None:
    assert torch.equal(gaussian(alpha=0.0).logits(X), TextRows(ROWS, 100.0).logits(X))
    cache = Cache(ROWS, KEYS, LABELS, 100.0, alpha=0.0, beta=1.0)
    assert torch.equal(cache.logits(X), TextRows(ROWS, 100.0).logits(X))


def test_gaussian_of_new_names_is_the_papers_loop() -> None:
    rows = unit(2, D, seed=5)
    head = gaussian().renamed(rows, nearest=7, copies=3)
    means, precisions = [], []
    for w in rows:
        near = sorted(KEYS, key=lambda x: -float(x @ w))[:7]
        means.append(sum([*near, w, w, w], torch.zeros(D)) / 10)
        scatter = sum((torch.outer(x - w, x - w) for x in near), torch.zeros(D, D)) / 6
        precisions.append(D * torch.linalg.inv(6 * scatter + scatter.trace() * torch.eye(D)))
    torch.testing.assert_close(head.means, torch.stack(means), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.precision, (precisions[0] + precisions[1]) / 2, atol=1e-4, rtol=1e-4)
    assert head.logits(X).shape == (5, 2)
    assert head.alpha == gaussian().alpha


@pytest.mark.parametrize("head", HEADS[1:4], ids=lambda head: type(head).__name__)
def test_heads_that_know_only_their_classes_say_so(head: Head) -> None:
    with pytest.raises(Unsupported, match="only the classes"):
        head.renamed(ROWS)
