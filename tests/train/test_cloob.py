"""cloob: the loss of the system, its fixed temperature, and its effect against clip: more features are kept."""

import pytest
import torch
from conftest import make_clip
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.engine.loop import Optimiser, train
from diptych.losses.loob import retrieved_loob
from diptych.methods.discover import find
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.cloob import Cloob, Config
from diptych.methods.pretrain.parts.objective import Batch, Objective

FEATURES, WIDE = 20, 48


class Nothing:
    source = "nothing"

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int):
        raise IndexError(index)


def rows(seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_of_unit_rows_with_the_systems_settings(clip: CLIP):
    objective = Cloob(Config(beta=5.0, inverse_tau=20.0))
    objective.prepare(clip, Nothing(), 0)
    image, text = rows(1), rows(2)
    found = objective.loss({"image": 3 * image, "text": text}, clip, Batch(torch.arange(6), rows(3), {}))
    right = retrieved_loob(F.normalize(image, dim=1), F.normalize(text, dim=1), 5.0, 20.0)
    assert set(found) == {"loob"} and float(found["loob"]) == pytest.approx(float(right), abs=1e-5)


def test_the_temperature_is_fixed_and_has_a_limit(clip: CLIP):
    objective = Cloob()
    objective.prepare(clip, Nothing(), 0)
    assert float(clip.logit_scale) == pytest.approx(30) and objective.recipe.freeze == "log_scale"
    clip.log_scale.data.fill_(9.0)
    objective.after_step(clip)
    assert float(clip.logit_scale) == pytest.approx(100)
    assert find("pretrain", "cloob") is Cloob


def world(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features (signs) of falling strength, and what the two towers see of them: turned, and with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, FEATURES), generator=generator).float() * 2 - 1
    turns = torch.Generator().manual_seed(99)
    seen = []
    for _ in range(2):
        turn = torch.linalg.qr(torch.randn(WIDE, WIDE, generator=turns)).Q[:FEATURES]
        noise = 0.1 * torch.randn(count, WIDE, generator=generator)
        seen.append(signs * torch.logspace(0, -1, FEATURES) @ turn + noise)
    return signs, seen[0], seen[1]


def trained(objective: Objective, seed: int) -> tuple[int, float]:
    """Small towers, 300 steps -> directions with 99% of the variance, and how well features are read off them."""
    clip = make_clip()
    objective.prepare(clip, Nothing(), seed)
    torch.manual_seed(seed)
    image, text = (nn.Sequential(nn.Linear(WIDE, 64), nn.GELU(), nn.Linear(64, 24)) for _ in range(2))
    clip.log_scale.requires_grad_(objective.recipe.freeze != "log_scale")
    moving = nn.ModuleDict({"image": image, "text": text}).named_parameters()
    moving = dict(moving) | ({"log_scale": clip.log_scale} if clip.log_scale.requires_grad else {})
    _, x, y = world(2000, 1)

    def loss(step: int) -> dict[str, Tensor]:
        index = torch.randint(0, 2000, (64,))
        batch = Batch(index, x[index], {})
        objective.after_step(clip)
        return objective.loss({"image": image(x[index]), "text": text(y[index])}, clip, batch)

    train(moving, loss, Optimiser("adamw", 3e-3, 0.01), 300)
    signs, x, _ = world(1000, 2)
    with torch.no_grad():
        found = F.normalize(image(x), dim=1)
    spectrum = torch.linalg.eigvalsh(torch.cov(found.T)).flip(0).clamp_min(0)
    directions = int((spectrum.cumsum(0) < 0.99 * spectrum.sum()).sum()) + 1
    found = torch.cat([found, torch.ones(1000, 1)], 1)
    read = found[500:] @ torch.linalg.lstsq(found[:500], signs[:500]).solution
    return directions, float((read.sign() == signs[500:]).float().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_more_features_are_kept_than_by_clip(seed: int):
    """clip tells the pairs of a batch apart by the strong features and leaves the weak ones (14 directions, 18)."""
    directions, read = trained(Cloob(), seed)
    of_clip, read_by_clip = trained(Clip(), seed)
    assert directions >= of_clip + 2
    assert read >= read_by_clip + 0.02
