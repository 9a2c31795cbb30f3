"""siglip: the loss against a float64 loop and open_clip's own, its start, the saved bias, small batches."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from train_world import Tiles, linear_clip, tile_accuracy, train

import diptych
from diptych.core.clip import CLIP
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.parts.objective import Batch
from diptych.methods.pretrain.siglip import Config, SigLip


class Nothing:
    source = "nothing"

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int):
        raise IndexError(index)


def test_the_loss_is_the_papers_and_open_clips(clip: CLIP):
    from open_clip.loss import SigLipLoss

    objective = SigLip()
    objective.prepare(clip, Nothing(), 0)
    assert clip.logit_bias is not None
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(2, 6, 24, generator=generator)
    batch = Batch(torch.arange(6), torch.zeros(6, 3, 16, 16), {})
    ours = float(objective.loss({"image": image, "text": text}, clip, batch)["sigmoid"].detach())
    a, b = F.normalize(image.double(), dim=-1), F.normalize(text.double(), dim=-1)
    naive = 0.0
    for i in range(6):
        for j in range(6):
            logit = 10 * float(a[i] @ b[j]) - 10
            naive += math.log1p(math.exp(-logit if i == j else logit)) / 6
    assert ours == pytest.approx(naive, abs=1e-5)
    theirs = SigLipLoss()(a.float(), b.float(), torch.tensor(10.0), torch.tensor(-10.0))
    assert ours == pytest.approx(float(theirs), abs=1e-5)


def test_a_bias_is_learned_and_saved(clip: CLIP, tmp_path: Path):
    objective = SigLip()
    objective.prepare(clip, Nothing(), 0)
    assert float(clip.logit_scale) == pytest.approx(10)
    assert clip.logit_bias is not None
    clip.logit_bias.data.fill_(-3.5)
    diptych.save(clip, tmp_path / "model")
    again = diptych.load(str(tmp_path / "model"), device="cpu")
    assert again.logit_bias is not None and float(again.logit_bias) == -3.5
    objective.prepare(again, Nothing(), 0)
    assert float(again.logit_bias) == -3.5, "a model that has a bias keeps it"


def test_batches_of_eight_teach_as_much_as_clip_and_without_its_first_bias_less():
    held_out = Tiles(200, seed=9)
    right = {}
    for name, make in {"clip": Clip, "siglip": SigLip, "bias 0": lambda: SigLip(Config(bias=0.0))}.items():
        scores = []
        for seed in range(3):
            model = linear_clip(seed=seed)
            train(make(), model, Tiles(400, seed=seed), steps=150, batch=8, rate=4e-3, seed=seed)
            scores.append(tile_accuracy(model, held_out))
        right[name] = sum(scores) / 3
    assert right["siglip"] > right["clip"] - 0.02
    assert right["siglip"] > right["bias 0"] + 0.03
