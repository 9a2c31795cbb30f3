"""cloob: the loss against a loop, who queries whom, no saturation, and more of the features than clip keeps."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_world import Tiles, linear_clip, pixels_of, tile_accuracy, train

from diptych.core.clip import CLIP
from diptych.losses.contrastive import softmax_contrastive
from diptych.losses.loob import info_loob, retrieve
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.cloob import Cloob, Config
from diptych.methods.pretrain.parts.objective import Batch


def batch(count: int) -> Batch:
    return Batch(torch.arange(count), torch.zeros(count, 3, 16, 16), {})


def naive(x: list[list[float]], y: list[list[float]], beta: float, scale: float) -> float:
    """Equations 5 to 9, number by number."""

    def dot(a: list[float], b: list[float]) -> float:
        return sum(p * q for p, q in zip(a, b, strict=True))

    def found(queries: list[list[float]], store: list[list[float]]) -> list[list[float]]:
        out = []
        for query in queries:
            weights = [math.exp(beta * dot(query, row)) for row in store]
            mean = [sum(w * row[d] for w, row in zip(weights, store, strict=True)) for d in range(len(query))]
            length = math.sqrt(dot(mean, mean))
            out.append([m / length for m in mean])
        return out

    def loob(anchors: list[list[float]], positives: list[list[float]]) -> float:
        total, count = 0.0, len(anchors)
        for i in range(count):
            others = sum(math.exp(scale * dot(anchors[i], positives[j])) for j in range(count) if j != i)
            total += -scale * dot(anchors[i], positives[i]) + math.log(others)
        return total / count / scale

    return loob(found(x, x), found(y, x)) + loob(found(y, y), found(x, y))


@pytest.mark.parametrize("beta", [0.5, 8.0])
def test_the_loss_is_the_papers(clip: CLIP, beta: float):
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 7, 16, generator=generator)
    cloob = Cloob(Config(beta=beta, scale=12.0))
    cloob.prepare(clip, Tiles(1), 0)
    ours = cloob.loss({"image": image, "text": text}, clip, batch(7))["loob"]
    x, y = (F.normalize(rows.double(), dim=1).tolist() for rows in (image, text))
    assert float(ours) == pytest.approx(naive(x, y, beta, 12.0), abs=1e-5)
    swapped = cloob.loss({"image": text, "text": image}, clip, batch(7))["loob"]
    assert float(swapped) == pytest.approx(float(ours), abs=1e-5), "both terms change places"


def test_the_gradient_of_a_found_pair_does_not_fade():
    """With respect to its own logit it is always -1/B of tau; that of clip's loss is gone at 20."""
    for size in (0.0, 20.0):
        logits = torch.zeros(4, 4).fill_diagonal_(size).requires_grad_()
        (own,) = torch.autograd.grad(info_loob(torch.eye(4), logits.T, 1.0), logits)
        assert torch.allclose(own.diagonal(), torch.full((4,), -0.25), atol=1e-6)
    (faded,) = torch.autograd.grad(softmax_contrastive(logits, torch.eye(4), 1.0), logits)
    assert float(faded.diagonal().abs().max()) < 0.01 * 0.25


def test_retrieval_at_its_limits():
    rows = F.normalize(torch.randn(9, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    assert torch.allclose(retrieve(rows, rows, 0.0), F.normalize(rows.mean(0), dim=0).expand(9, -1), atol=1e-6)
    assert float((retrieve(rows, rows, 200.0) - rows).abs().max()) < 1e-3
    order = torch.randperm(9)
    assert torch.allclose(retrieve(rows[order], rows[order], 8.0), retrieve(rows, rows, 8.0)[order], atol=1e-6)


def test_rows_that_are_alike_come_back_more_alike():
    """A small difference comes back times beta and the covariance of the rows: why a fresh tower can stand still."""
    rng = torch.Generator().manual_seed(2)
    spread = torch.tensor([0.0, 0.1, 0.05, 0.02])
    rows = F.normalize(
        torch.tensor([1.0, 0, 0, 0]) + spread * torch.randn(400, 4, generator=rng, dtype=torch.float64), dim=1
    )
    mean, apart = rows.mean(0), rows - rows.mean(0)
    found = retrieve(rows, rows, 8.0)
    gain = [float((found[:, d] @ apart[:, d]) / apart[:, d].square().sum()) for d in (1, 2, 3)]
    expected = 8 * apart.square().mean(0)[1:] / mean.norm()
    assert gain == pytest.approx(expected.tolist(), rel=0.15)
    assert gain[2] < 0.01


def test_it_may_start_by_clips_loss(clip: CLIP):
    made = dict(zip(("image", "text"), torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0)), strict=True))
    late, usual = Cloob(Config(start=3)), Cloob()
    late.prepare(clip, Tiles(1), 0)
    x, y = (F.normalize(made[name], dim=1) for name in ("image", "text"))
    first = late.loss(made, clip, replace(batch(7), step=2))
    torch.testing.assert_close(first["contrastive"], softmax_contrastive(x, y, 30.0))
    assert set(first) == {"contrastive"}
    assert late.loss(made, clip, replace(batch(7), step=3)) == usual.loss(made, clip, batch(7))


def test_the_temperature_stays_where_it_is_set():
    clip = linear_clip()
    train(Cloob(), clip, Tiles(40), steps=3, batch=20)
    assert float(clip.logit_scale) == pytest.approx(30.0, rel=1e-6)


def spread(rows: Tensor) -> float:
    """How many directions embeddings use: (sum of eigenvalues)^2 / sum of their squares."""
    values = torch.linalg.eigvalsh(torch.cov(rows.T))
    return float(values.sum() ** 2 / values.square().sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_of_what_pictures_show_is_kept_than_by_clip(seed: int):
    """Six independent things a picture: cloob uses more directions, and finds each thing alone at least as well.

    InfoLOOB does that, with retrieval or without; what retrieval does is in the tests above.
    """
    world, held_out = Tiles(1500), Tiles(400, 1)
    used, right = {}, {}
    for system in (Clip(), Cloob()):
        clip = linear_clip(seed=seed)
        train(system, clip, world, steps=200, rate=4e-3, seed=seed)
        with torch.no_grad():
            used[system.system()] = spread(F.normalize(clip.encode_image(pixels_of(clip, held_out)), dim=1))
        right[system.system()] = tile_accuracy(clip, held_out)
    assert used["cloob"] > used["clip"] + 0.5
    assert right["cloob"] > right["clip"] - 0.01
