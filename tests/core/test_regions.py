"""Parts of a picture from one pass: a mask of everything is the picture, any other what a loop over its pixels says."""

import pytest
import torch
from models import clip, image_kind, shaken
from torch import Tensor, nn

from diptych.core.mini_networks import EfficientNetLite0
from diptych.core.regions import cover, hard, mask_pool
from diptych.core.tower import Tap
from diptych.core.towers.open_clip import ResNetImage

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def resnet(size: int = 64) -> ResNetImage:
    return ResNetImage(clip(vision={"layers": (1, 1, 1, 1), "width": 8, "head_width": 8, "image_size": size}).visual)


TOWERS = {
    "resnet": resnet,
    "convnext": lambda: image_kind("timm convnext").tower,
    "mini": lambda: shaken(EfficientNetLite0(nn.Linear(1280, 12), 12)),
}


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_mask_pooling_is_that_of_a_plain_loop():
    maps, masks = some(2, 5, 3, 4), some(2, 6, 3, 4) > 0
    masks[1, 2] = False
    pooled = mask_pool(maps, masks)
    for b in range(2):
        for q in range(6):
            inside = [maps[b, :, y, x] for y in range(3) for x in range(4) if masks[b, q, y, x]]
            expected = sum(inside) / len(inside) if inside else torch.zeros(5)
            torch.testing.assert_close(pooled[b, q], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_mask_of_everything_is_the_picture(name: str):
    tower, pixels = TOWERS[name](), some(2, 3, 64, 64)
    maps, last = tower.maps(pixels, [1, 3])
    assert last.shape[-2:] == (2, 2)
    embedding = tower(pixels).embedding
    torch.testing.assert_close(tower.regions(last, torch.ones(2, 3, 2, 2))[:, 1], embedding, **CLOSE)
    taps = tower(pixels, taps=[Tap(1), Tap(3)]).taps
    torch.testing.assert_close(maps, [taps[Tap(1)], taps[Tap(3)]])


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_what_is_outside_of_a_mask_does_not_count(name: str):
    tower = TOWERS[name]()
    last, masks = tower.maps(some(1, 3, 96, 128))[1], torch.zeros(1, 2, 3, 4)
    masks[0, 0, 0, :2] = masks[0, 1, 2] = 1
    other = last.clone()
    other[0, :, 1] += 3 * some(tower.width, 4)  # in neither mask
    other[0, :, 1] -= other[0, :, 1].mean() - last[0, :, 1].mean()
    if name == "resnet":  # its query is the picture's mean, which must stay
        other[0, :, 1] += (last - other).sum((2, 3))[0, :, None] / 4
    regions = tower.regions(last, masks)
    torch.testing.assert_close(regions, tower.regions(other, masks), **CLOSE)
    assert not torch.allclose(regions[0, 0], regions[0, 1], atol=1e-3)


@torch.no_grad()
def test_masked_attention_pooling_is_that_of_a_plain_loop():
    tower = resnet()
    pool = tower.visual.attnpool.double()
    last, masks = some(1, tower.width, 2, 2).double(), torch.tensor([[[[1, 0], [1, 1]], [[0, 0], [0, 0]]]])
    found = tower.regions(last, masks)
    codes, heads = pool.positional_embedding, pool.num_heads
    pixels = last[0].flatten(1).T  # [4, W]
    mean = pixels.mean(0) + codes[0]
    for q in range(2):
        seen = [mean] + [pixels[i] + codes[1 + i] for i in range(4) if masks[0, q].flatten()[i]]
        parts = []
        for part in range(heads):
            rows = slice(part * tower.width // heads, (part + 1) * tower.width // heads)
            query = pool.q_proj(mean)[rows]
            scores = torch.stack([query @ pool.k_proj(key)[rows] for key in seen]) / len(query) ** 0.5
            parts.append(sum(p * pool.v_proj(key)[rows] for p, key in zip(scores.softmax(0), seen, strict=True)))
        torch.testing.assert_close(found[0, q], pool.c_proj(torch.cat(parts)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 96), (2, 3)),
        ((24, 20), (4, 5)),
        ((510, 8), (2, 1)),
        ((512, 8), (1, 2)),
        ((7, 9), (3, 4)),
        ((2, 3), (5, 3)),
    ],
)
def test_cells_are_covered_by_what_a_plain_loop_says(shape: tuple[int, int], size: tuple[int, int]):
    masks = some(3, *shape) > 0.3
    masks[0], masks[1] = True, False
    finer = masks.repeat_interleave(size[0], 1).repeat_interleave(size[1], 2).double()  # each pixel in as many
    found = cover(masks, size)
    assert found.shape == (3, *size) and found.dtype == torch.float32
    for row in range(size[0]):
        for column in range(size[1]):
            cell = finer[:, row * shape[0] : (row + 1) * shape[0], column * shape[1] : (column + 1) * shape[1]]
            torch.testing.assert_close(found[:, row, column].double(), cell.mean((1, 2)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cover(masks.transpose(1, 2), size[::-1]), found.transpose(1, 2))  # not contiguous


def test_hard_masks_are_thresholded_after_they_were_resized():
    logits = torch.tensor([[[[4.0, -1.0], [-1.0, -1.0]]]], requires_grad=True)
    assert hard(logits, (1, 1)).tolist() == [[[[True]]]]  # their mean is above 0
    assert hard(logits, (2, 2)).tolist() == [[[[True, False], [False, False]]]]
    assert not hard(logits, (1, 1)).requires_grad
