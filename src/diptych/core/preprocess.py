"""From an RGB picture to a tower's pixels, with Pillow alone (the same arithmetic as torchvision on pictures)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
SLIVER = 100  # long over short side, beyond which a picture is cut before its short side is resized


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to 0..1, normalise.

    resize: "shortest" (short side to `size`, centre crop), "longest" (long side to `size`, pad with `fill`),
    "squash" (both sides to `size`). floor: an odd number of pixels to cut is split by rounding down, as transformers
    does, not to the even half, as torchvision does.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    fill: int = 0
    floor: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture -> [3, size, size] float32."""
        return self.tensor(self.crop(image))

    def crop(self, image: Image.Image) -> Image.Image:
        resampling = RESAMPLING[self.interpolation]
        width, height = image.size
        if self.resize == "squash":
            return image.resize((self.size, self.size), resampling)
        if self.resize == "shortest":
            most = SLIVER * min(width, height)  # a line of 1 x 60000 pixels would grow to gigabytes, to be cut off
            if max(width, height) > most:
                left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
                image = image.crop((left, top, min(width, left + most), min(height, top + most)))
                width, height = image.size
            scale_to = self.scaled(width, height)
            image = image.resize(scale_to, resampling) if image.size != scale_to else image
            left, top = self.corner(*image.size)
            return image.crop((left, top, left + self.size, top + self.size))
        scale = self.size / max(width, height)
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resampling)
        canvas = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
        canvas.paste(image, ((self.size - image.width) // 2, (self.size - image.height) // 2))
        return canvas

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """The size with `size` for the short side."""
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the centre crop."""
        whole = int if self.floor else round
        return whole((width - self.size) / 2), whole((height - self.size) / 2)

    def quick(self, image: Image.Image) -> Tensor:
        """As `__call__`, resized by torch where it can: in half the time, within 1/255 of it."""
        width, height = image.size
        sliver = max(width, height) > SLIVER * min(width, height)
        if self.resize != "shortest" or self.interpolation not in ("bicubic", "bilinear") or sliver:
            return self(image)
        (wide, high), mode = self.scaled(width, height), self.interpolation
        left, top = self.corner(wide, high)
        whole = F.interpolate(bytes_of(image)[None], (high, wide), mode=mode, antialias=True)[0]
        return self.normalise(whole[:, top : top + self.size, left : left + self.size])

    def view(
        self, image: Image.Image, rng: np.random.Generator, scale: tuple[float, float], *, flip: bool = True
    ) -> Tensor:
        """One augmented view: random resized crop (area share in `scale`, aspect 3/4..4/3), random flip.

        -> [3, size, size] float32. The recipe of CoOp, Tip-Adapter and GDA; pretraining does not flip, since texts
        speak of left and right.
        """
        box = random_box(image.size, rng, scale)
        crop = image.resize((self.size, self.size), RESAMPLING[self.interpolation], box=box)
        if flip and rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.tensor(crop)

    def resized(self, image: Image.Image, box: tuple[int, int, int, int]) -> Tensor:
        """A crop at the tower's size, [3, size, size] uint8.

        By torch, several times as fast as Pillow and within 1/255 of it: Pillow's weights in 16 bits.
        """
        left, top, right, bottom = box
        if self.interpolation not in ("bicubic", "bilinear"):
            return bytes_of(image.crop(box).resize((self.size, self.size), RESAMPLING[self.interpolation]))
        crop = bytes_of(image)[None, :, top:bottom, left:right]
        return F.interpolate(crop, (self.size, self.size), mode=self.interpolation, antialias=True)[0]

    def normalise(self, pixels: Tensor) -> Tensor:
        """[..., 3, H, W] uint8 -> float32, as the tower reads them."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        values = pixels.numpy().astype(np.float32, order="C")
        values /= 255
        values -= mean
        values /= std
        return torch.from_numpy(values)

    def tensor(self, image: Image.Image) -> Tensor:
        return self.normalise(bytes_of(image))


def bytes_of(image: Image.Image) -> Tensor:
    """A picture as [3, H, W] uint8."""
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)


def random_box(
    size: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a crop: its share of the area in `scale`, its aspect 3/4..4/3."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = h = min(width, height)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
