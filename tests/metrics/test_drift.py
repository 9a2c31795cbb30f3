"""Drift in closed form: rotations that are known, common and different, in full and in few dimensions."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import DiptychError
from diptych.metrics.drift import angles, deviation, flipped, procrustes, rotation, self_angle_change
from diptych.metrics.retrieval import recall_at

D = 6


def rows(count: int, seed: int, size: int = D) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).double()


def turn(seed: int, size: int = D) -> Tensor:
    return torch.linalg.qr(rows(size, seed, size))[0]


def in_a_plane(degrees: float) -> Tensor:
    """The rotation of the first two of D coordinates."""
    found, angle = torch.eye(D).double(), math.radians(degrees)
    found[:2, :2] = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    return found


@pytest.mark.parametrize("rank", [D, 3])
def test_a_common_rotation_turns_but_does_not_part(rank: int):
    """Also where texts have few directions and pictures have others too."""
    images, texts, both = rows(40, 1), rows(30, 2) @ rows(D, 3)[:, :rank] @ rows(rank, 4), turn(5)
    assert rotation(images, images @ both) > 20 and rotation(texts, texts @ both) > 20
    assert deviation(images, images @ both, texts, texts @ both) == pytest.approx(0, abs=1e-4)
    assert self_angle_change(images, images @ both) == pytest.approx(0, abs=1e-6)
    before = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    after = F.normalize(images @ both, dim=1) @ F.normalize(texts @ both, dim=1).T
    own = before == before.amax(1, keepdim=True)
    assert flipped(before, after) == 0 and recall_at(before, own) == recall_at(after, own)


@pytest.mark.parametrize("degrees", [0.0, 1.0, 30.0, 90.0])
def test_the_deviation_is_the_angle_between_the_rotations(degrees: float):
    """Pictures in one plane, turned in it; texts stay."""
    plane = torch.cat([rows(40, 1)[:, :2], torch.zeros(40, D - 2)], 1).double()
    texts = rows(30, 2)
    after = plane @ in_a_plane(degrees)
    assert deviation(plane, after, texts, texts) == pytest.approx(degrees, abs=1e-4)
    assert rotation(plane, after) == pytest.approx(degrees, abs=1e-9)


def test_a_rotation_is_found_again_and_unknown_directions_stay():
    images, wanted = rows(40, 1), turn(2)
    torch.testing.assert_close(procrustes(images, 3 * images @ wanted), wanted, atol=1e-6, rtol=0)
    few = torch.cat([rows(40, 1)[:, :2], torch.zeros(40, D - 2)], 1).double()
    torch.testing.assert_close(procrustes(few, few @ in_a_plane(40)), in_a_plane(40), atol=1e-6, rtol=0)


def test_angles_are_those_of_plain_trigonometry():
    a, b = rows(8, 1), rows(8, 2)
    for found, x, y in zip(angles(a, b).tolist(), a.tolist(), b.tolist(), strict=True):
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        lengths = math.sqrt(sum(p * p for p in x)) * math.sqrt(sum(q * q for q in y))
        assert found == pytest.approx(math.degrees(math.acos(dot / lengths)), abs=1e-9)
    change = [
        abs(angles(b[i : i + 1], b[j : j + 1]).item() - angles(a[i : i + 1], a[j : j + 1]).item())
        for i in range(8)
        for j in range(i + 1, 8)
    ]
    assert self_angle_change(a, b) == pytest.approx(sum(change) / len(change))
    assert angles(a, 2 * a).max() < 1e-6 and angles(a, -a).min() > 179.999


def test_flips_are_counted():
    before = torch.eye(4)
    after = before[[0, 1, 3, 2]]
    assert flipped(before, after) == 0.5
    for wrong in (lambda: flipped(before, before[:2]), lambda: rotation(before, before[:2])):
        with pytest.raises(DiptychError):
            wrong()
    with pytest.raises(DiptychError, match="two"):
        self_angle_change(before[:1], before[:1])
