"""flip: which patches are seen, that the others cost nothing, chunks, the finish on whole pictures, what it learns."""

from typing import Any

import pytest
import torch
from tiny import bert_clip
from torch.nn import functional as F
from train_world import COLOURS, CONFIG, Scene, World, accuracy, batch_of, make_clip, pixels_of, train

from diptych.core.clip import CLIP
from diptych.core.towers.blocks import only_patches
from diptych.errors import Unsupported
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.flip import Config, Flip
from diptych.methods.pretrain.parts.chance import chances

FINE: dict[str, Any] = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"patch_size": 4}}  # 16 patches


def fine(seed: int = 0) -> CLIP:
    return make_clip(seed, FINE)


def lengths_of(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of tokens that each block of the picture tower is given."""
    seen: list[int] = []
    block = clip.image.block  # type: ignore[attr-defined]

    def counted(index: int, hidden: torch.Tensor, *rest: Any) -> Any:
        seen.append(hidden.shape[1])
        return block(index, hidden, *rest)

    monkeypatch.setattr(clip.image, "block", counted)
    return seen


def test_chance_is_even_and_follows_seed_step_and_pair():
    drawn = chances(3, 7, torch.arange(4000), 5)
    assert float(drawn.min()) >= 0 and float(drawn.max()) < 1
    assert abs(float(drawn.mean()) - 0.5) < 3 * (1 / 12 / drawn.numel()) ** 0.5
    assert abs(float(torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max())) < 0.06
    assert torch.equal(chances(3, 7, torch.tensor([9, 2]), 5), drawn[[9, 2]])
    for seed, step in ((4, 7), (3, 8)):
        assert not torch.equal(chances(seed, step, torch.arange(4000), 5), drawn)


def test_every_patch_is_as_likely_and_none_comes_twice():
    kept = chances(0, 1, torch.arange(3000), 16).argsort(1)[:, :8]
    assert all(len(set(row)) == 8 for row in kept.tolist())
    counts = torch.bincount(kept.flatten(), minlength=16)
    assert float((counts - 1500).abs().max()) < 4 * (3000 * 0.25) ** 0.5


def test_blocks_see_half_of_the_patches_and_the_class_token(monkeypatch: pytest.MonkeyPatch):
    clip, world = fine(), World(6)
    flip = Flip()
    flip.prepare(clip, world, 0)
    seen = lengths_of(clip, monkeypatch)
    flip.embed(clip, batch_of(flip, clip, world, [0, 1, 2]))
    assert seen == [9, 9]
    clip.image(torch.zeros(1, 3, 16, 16))
    assert seen == [9, 9, 17, 17], "whole pictures afterwards"


def test_dropped_patches_are_as_if_they_had_never_been():
    """Other pixels in them change nothing; all patches in another order change nothing either."""
    clip = fine()
    pixels = torch.randn(2, 3, 16, 16)
    top = torch.arange(8).expand(2, -1)  # the upper two rows of four
    with only_patches(clip.image, lambda count: top):
        one = clip.image(pixels).embedding
        pixels[:, :, 8:] += 5
        assert torch.equal(clip.image(pixels).embedding, one)
        pixels[:, :, :8] += 5
        assert not torch.allclose(clip.image(pixels).embedding, one)
    with only_patches(clip.image, lambda count: torch.arange(count).flip(0).expand(2, -1)):
        turned = clip.image(pixels).embedding
    assert torch.allclose(turned, clip.image(pixels).embedding, atol=1e-5)


def test_chunks_see_what_the_whole_batch_sees():
    clip, world = fine(), World(6)
    flip = Flip()
    flip.prepare(clip, world, 5)
    batch = batch_of(flip, clip, world, [4, 0, 3, 1], step=9)
    whole = flip.embed(clip, batch)["image"]
    parts = [flip.embed(clip, batch.rows(slice(i, i + 2)))["image"] for i in (0, 2)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)
    assert not torch.allclose(flip.embed(clip, batch_of(flip, clip, world, [4, 0, 3, 1], step=10))["image"], whole)


def test_the_finish_sees_whole_pictures(monkeypatch: pytest.MonkeyPatch):
    clip, world = fine(), World(6)
    flip = Flip(Config(finish=0.1))
    flip.prepare(clip, world, 0)
    seen = lengths_of(clip, monkeypatch)
    for step in (0, 89, 90, 99):
        flip.phase(step, 100)
        flip.embed(clip, batch_of(flip, clip, world, [0, 1], step=step))
    assert seen == [9, 9, 9, 9, 17, 17, 17, 17]


def test_a_convnet_is_refused():
    with pytest.raises(Unsupported, match="some patches alone"):
        Flip().prepare(bert_clip(), World(1), 0)


def seen_at_once(scene: Scene) -> tuple[str, ...]:
    """What half of a drawing shows as well as all of it."""
    return (f"a {scene.colour} patch, {scene.ground}",)


@torch.no_grad()
def loss_on_whole_pictures(clip: CLIP, world: World) -> float:
    image = F.normalize(clip.encode_image(pixels_of(clip, world)), dim=-1)
    text = F.normalize(clip.encode_text([pair.texts[0] for pair in world]), dim=-1)
    return float(softmax_contrastive(image, text, clip.logit_scale))


def test_half_of_the_patches_teach_as_much_and_a_finish_on_whole_pictures_helps():
    world, held_out = World(600, texts=seen_at_once), World(300, seed=1, texts=seen_at_once)
    systems = {
        "clip": Clip(),
        "flip": Flip(),
        "a fifth": Flip(Config(keep=0.2, finish=0.0)),
        "a fifth, finished": Flip(Config(keep=0.2, finish=0.2)),
    }
    right, loss = {}, {}
    for name, system in systems.items():
        clip = fine()
        train(system, clip, world, steps=60, rate=4e-3)
        right[name] = accuracy(clip, held_out, lambda colour: f"a {colour} patch, dark", COLOURS, "colour")
        loss[name] = loss_on_whole_pictures(clip, held_out)
    assert right["flip"] > right["clip"] - 0.05 and right["clip"] > 0.9
    assert loss["a fifth, finished"] < loss["a fifth"] - 0.05
