"""Losses of masks on points against naive loops in float64."""

import math

import torch
from torch import Tensor

from diptych.losses.masks import (
    pairwise_bce,
    pairwise_dice,
    point_bce,
    point_dice,
    random_points,
    sample,
    uncertain_points,
)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bilinear(field: Tensor, x: float, y: float) -> float:
    """Cell (i, j) has its middle at ((j + 0.5) / w, (i + 0.5) / h); all outside is 0."""
    height, width = field.shape
    at_y, at_x = y * height - 0.5, x * width - 0.5
    total = 0.0
    for i in (math.floor(at_y), math.floor(at_y) + 1):
        for j in (math.floor(at_x), math.floor(at_x) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += float(field[i, j]) * (1 - abs(at_y - i)) * (1 - abs(at_x - j))
    return total


def test_points_are_read_bilinearly():
    maps = some(3, 4, 5)
    points = torch.rand(3, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [[bilinear(m, *p.tolist()) for p in at] for m, at in zip(maps, points, strict=True)]
    torch.testing.assert_close(sample(maps, points), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(sample(maps, points[1])[1], sample(maps, points)[1])


def test_losses_are_those_of_plain_loops():
    logits, truth = some(3, 9), (some(3, 9, seed=1) > 0).double()
    counted = (some(3, 9, seed=2) > -0.5).double()
    for n in range(3):
        points = [i for i in range(9) if counted[n, i]]
        p = [1 / (1 + math.exp(-float(logits[n, i]))) for i in points]
        t = [float(truth[n, i]) for i in points]
        bce = -sum(math.log(a if b else 1 - a) for a, b in zip(p, t, strict=True)) / len(points)
        dice = 1 - (2 * sum(a * b for a, b in zip(p, t, strict=True)) + 1) / (sum(p) + sum(t) + 1)
        assert math.isclose(point_bce(logits, truth, counted)[n], bce, rel_tol=1e-12)
        assert math.isclose(point_dice(logits, truth, counted)[n], dice, rel_tol=1e-12)


def test_costs_of_pairs_are_the_losses_of_each_pair():
    logits, truth, counted = some(4, 9), (some(3, 9, seed=1) > 0).double(), (some(9, seed=2) > -0.5).double()
    for pairwise, single in ((pairwise_bce, point_bce), (pairwise_dice, point_dice)):
        costs = pairwise(logits, truth, counted)
        for q in range(4):
            for n in range(3):
                torch.testing.assert_close(costs[q, n], single(logits[q : q + 1], truth[n : n + 1], counted[None])[0])


def test_where_nothing_counts_the_losses_are_nothing():
    none = torch.zeros(2, 5)
    assert point_bce(torch.randn(2, 5), none, none).tolist() == [0, 0]
    assert point_dice(torch.randn(2, 5), none, none).tolist() == [0, 0]


def test_uncertain_points_lie_where_a_mask_is_least_sure():
    """A mask that is sure everywhere but around its edge at x = 0.5."""
    x = (torch.arange(32) + 0.5) / 32
    logits = (40 * (x - 0.5)).expand(2, 32, 32)
    points = uncertain_points(logits, 400, torch.Generator().manual_seed(0))
    assert points.shape == (2, 400, 2)
    near = (points[..., 0] - 0.5).abs() < 0.15  # 30% of the candidates lie there, a quarter is chosen
    assert near[:, :300].float().mean() > 0.97  # the rest at the very border, beyond which a mask reads 0
    assert 0.15 < near[:, 300:].float().mean() < 0.45  # uniform: 0.3
    again = uncertain_points(logits, 400, torch.Generator().manual_seed(0))
    assert torch.equal(points, again)
    assert random_points((5,), torch.Generator().manual_seed(0), torch.device("cpu")).shape == (5, 2)
