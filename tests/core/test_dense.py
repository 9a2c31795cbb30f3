"""Each place of a picture embedded as if it were all of it: against pictures that are alike everywhere, and by hand."""

import pytest
import torch
from models import IMAGES, STAGED, image_kind, some_pixels, text_kind, vit
from torch.nn import functional as F

from diptych.core.edits import EditedTower, TowerEdits
from diptych.core.tower import Tap
from diptych.errors import Unsupported

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_a_patch_is_the_picture_all_of_whose_tokens_are_alike(name: str) -> None:
    tower, pixels = image_kind(name).tower, some_pixels()
    dense = tower.dense(pixels)
    assert dense.shape == (3, 4, 4, tower.embed_dim)
    hidden = tower(pixels, taps=[Tap(1)]).taps[Tap(1)]
    for b, place in ((0, 0), (1, 7), (2, 15)):
        token = hidden[b, tower.prefix + place]
        alike, _ = tower.block(2, token.expand(1, hidden.shape[1], -1), None, False)
        torch.testing.assert_close(tower.finish(alike)[0], dense[b, place // 4, place % 4], **CLOSE)
    assert (dense[:, 0, 0] - dense[:, 3, 3]).abs().max() > 1e-3


@torch.no_grad()
def test_the_last_block_by_hand() -> None:
    tower = vit().tower
    visual, pixels = tower.visual, some_pixels()
    block = visual.transformer.resblocks[2]
    x = tower(pixels, taps=[Tap(1)]).taps[Tap(1)][:, 1:]  # [B, 16, W]
    width = x.shape[-1]
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    x = x + block.attn.out_proj(F.linear(block.ln_1(x), weight, bias))
    x = visual.ln_post(x + block.mlp(block.ln_2(x))) @ visual.proj
    torch.testing.assert_close(tower.dense(pixels), x.unflatten(1, (4, 4)), **CLOSE)


@pytest.mark.parametrize("name", STAGED)
@torch.no_grad()
def test_a_place_of_a_map_is_the_map_that_is_alike_everywhere(name: str) -> None:
    tower = image_kind(name).tower
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    dense = tower.dense(pixels)
    assert dense.shape == (2, 2, 3, tower.embed_dim)
    _, last = tower.maps(pixels)
    for y, x in ((0, 0), (1, 2)):
        alone = last[:, :, y : y + 1, x : x + 1]
        if "resnet" not in name:  # whose keys have codes of their places
            alone = alone.expand(-1, -1, 2, 3)
        whole = tower.regions(alone, torch.ones(2, 1, *alone.shape[2:]))[:, 0]
        torch.testing.assert_close(dense[:, y, x], whole, **CLOSE)


def test_texts_and_edited_towers_have_no_places() -> None:
    tower = image_kind("open_clip vit").tower
    for other in (text_kind("bert").tower, EditedTower(tower, TowerEdits())):
        with pytest.raises(Unsupported, match="no embedding of each place"):
            other.dense(some_pixels())
