"""lit: what stays bit for bit, its start, and that a good picture tower keeps what it knows."""

from copy import deepcopy

import pytest
import torch
from train_world import World, batch_of, make_clip, scene_accuracy, train

from diptych.core.clip import CLIP
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.lit import Config, Lit


def test_the_picture_tower_stays_bit_for_bit(clip: CLIP):
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    train(Lit(), clip, World(64), steps=3, batch=16)
    changed = {name for name, tensor in clip.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("towers.image") for name in changed)
    assert any(name.startswith("towers.text") for name in changed) and "log_scale" in changed


def test_running_statistics_are_locked_too():
    """A ResNet's batch norms, which move by being called."""
    clip = make_clip(0, RESNET)
    lit, world = Lit(), World(4)
    lit.prepare(clip, world, 0)
    clip.train()
    before = {name: tensor.clone() for name, tensor in clip.image.named_buffers()}
    rows = lit.embed(clip, batch_of(lit, clip, world, [0, 1, 2]))
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.image.named_buffers())
    assert not rows["image"].requires_grad and clip.text.training


RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def test_the_temperature_starts_at_ten_or_where_it_was(clip: CLIP):
    before = float(clip.logit_scale)
    Lit(Config(scale=0.0)).prepare(clip, World(1), 0)
    assert float(clip.logit_scale) == before
    Lit().prepare(clip, World(1), 0)
    assert float(clip.logit_scale) == pytest.approx(10)


def test_a_good_picture_tower_reads_new_texts_from_few_pairs_better_locked():
    """It was trained on many drawings with codes for texts; few of them have captions."""
    codes = World(600, texts=lambda s: (f"{s.colour[:2]}{s.place[0]}{s.place[-2]} {s.ground[:2]}",))
    few, held_out = World(40, seed=2), World(300, seed=1)
    good = make_clip()
    train(Clip(), good, codes, steps=200, rate=4e-3)
    scores = {}
    for name, system in {"lit": Lit(), "clip": Clip()}.items():
        clip = make_clip(1)
        clip.towers["image"] = deepcopy(good.image)
        train(system, clip, few, steps=120, batch=32, rate=4e-3)
        scores[name] = scene_accuracy(clip, held_out)
    assert scores["lit"] > scores["clip"] + 0.05
