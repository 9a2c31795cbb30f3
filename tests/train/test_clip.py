"""clip: the loss against a float64 loop and open_clip's own, its closed form, and the clamp."""

import math

import pytest
import torch
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.methods.discover import describe_one, find
from diptych.methods.pretrain.clip import Clip, Config
from diptych.methods.pretrain.parts.objective import Batch


def batch(count: int = 5) -> Batch:
    return Batch(torch.arange(count), torch.zeros(count, 3, 16, 16), {})


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_papers_and_open_clips(clip: CLIP):
    from open_clip.loss import ClipLoss

    image, text = rows(5, 1), rows(5, 2)
    ours = Clip().loss({"image": image, "text": text}, clip, batch())["contrastive"]
    a, b = F.normalize(image.double(), dim=-1), F.normalize(text.double(), dim=-1)
    logits = float(clip.logit_scale) * a @ b.T
    naive = 0.0
    for i in range(5):
        naive -= float(logits[i, i] - logits[i].exp().sum().log()) / 10
        naive -= float(logits[i, i] - logits[:, i].exp().sum().log()) / 10
    assert float(ours) == pytest.approx(naive, abs=1e-5)
    assert float(ours) == pytest.approx(float(ClipLoss()(a.float(), b.float(), clip.logit_scale)), abs=1e-5)


def test_equal_rows_leave_the_logarithm_of_the_batch(clip: CLIP):
    same = rows(1, 3).expand(8, -1)
    loss = Clip().loss({"image": same, "text": same}, clip, batch(8))["contrastive"]
    assert float(loss) == pytest.approx(math.log(8), abs=1e-5)


def test_the_temperature_stays_below_its_limit(clip: CLIP):
    clip.log_scale.data.fill_(9.0)
    Clip(Config(max_scale=50.0)).after_step(clip)
    assert float(clip.logit_scale) == pytest.approx(50.0, rel=1e-5)


def test_it_is_found_by_its_folder():
    assert find("pretrain", "clip") is Clip
    assert describe_one("pretrain", "clip").settings == {"max_scale": 100.0}
