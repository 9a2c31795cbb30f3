"""Crops for training: the same picture as Pillow's, within one of 255 levels, and the same numbers for the tower."""

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.preprocess import Preprocess, bytes_of, random_box


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth waves with noise, so that both weights and rounding show."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 90 * np.sin(x[..., None] / [3, 7, 19]) * np.cos(y[..., None] / [5, 11, 4])
    return Image.fromarray((waves + rng.normal(0, 25, waves.shape)).clip(0, 255).astype(np.uint8)).convert(mode)


def look(size: int = 48, interpolation: str = "bicubic") -> Preprocess:
    return Preprocess(size, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), interpolation)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize(("size", "box"), [((203, 150), (5, 7, 190, 149)), ((31, 20), (0, 0, 31, 20))])
def test_a_crop_is_pillows(interpolation: str, size: tuple[int, int], box: tuple[int, int, int, int]):
    image, form = picture(*size), look(interpolation=interpolation)
    resampling = Image.Resampling[interpolation.upper()]
    expected = np.asarray(image.crop(box).resize((48, 48), resampling)).transpose(2, 0, 1).astype(int)
    found = form.resized(image, box)
    assert found.dtype == torch.uint8 and found.shape == (3, 48, 48)
    apart = np.abs(found.numpy().astype(int) - expected)
    assert apart.max() <= 1 and apart.mean() < 0.01


def test_numbers_are_scaled_and_normalised():
    form, image = look(), picture(48, 48)
    values = np.asarray(image, np.float64).transpose(2, 0, 1) / 255
    expected = (values - np.array(form.mean)[:, None, None]) / np.array(form.std)[:, None, None]
    np.testing.assert_allclose(form(image).numpy(), expected, atol=1e-6)
    many = form.normalise(torch.stack([bytes_of(image), bytes_of(picture(48, 48, "L"))]))
    assert torch.equal(many[0], form(image)) and many.is_contiguous()


def test_boxes_keep_their_share_and_aspect():
    rng = np.random.default_rng(1)
    for _ in range(200):
        left, top, right, bottom = random_box((300, 200), rng, (0.5, 1.0))
        assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200
        w, h = right - left, bottom - top
        assert 0.49 < w * h / 60_000 <= 1.01 and 0.74 < w / h < 1.35
    assert random_box((10, 500), rng, (0.9, 1.0)) == (0, 245, 10, 255)  # none of that share has a fair aspect


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(203, 150), (150, 207), (31, 20), (48, 48), (6000, 48), (6000, 20)])
def test_the_quick_way_is_the_same_within_one_level(interpolation, resize, size):
    form = Preprocess(48, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), interpolation, resize)
    image = picture(*size)
    apart = (form.quick(image) - form(image)).abs() * torch.tensor(form.std)[:, None, None] * 255
    assert apart.max() < 1.01 and apart.mean() < 0.02
