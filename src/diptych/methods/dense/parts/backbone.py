"""A frozen ConvNet CLIP as a backbone: pictures of any size in, its maps at four resolutions out, without a graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.preprocess import RESAMPLING
from diptych.core.towers.blocks import StagedTower
from diptych.errors import Unsupported

LEVELS = 4


@dataclass(frozen=True)
class Pyramid:
    """stages: those whose maps are read, fine to coarse, with their channels and strides."""

    clip: CLIP
    tower: StagedTower
    stages: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, clip: CLIP) -> "Pyramid":
        """The last stage at each of the four coarsest resolutions. Raises Unsupported for a tower without maps."""
        tower = clip.image
        if not isinstance(tower, StagedTower):
            raise Unsupported(
                f'the picture tower of "{clip.name}" ({tower.kind}) is no ConvNet: its maps cannot be read at several '
                "resolutions; mini can, and open_clip's RN50 and convnext models"
            )
        clip.eval()
        side = max(64, clip.preprocess.size)
        with torch.no_grad():
            maps, _ = tower.maps(torch.zeros(1, 3, side, side, device=clip.device), range(tower.depth))
        last = {m.shape[-1]: i for i, m in enumerate(maps)}  # of each resolution
        stages = tuple(last.values())[-LEVELS:]
        if len(stages) < 2:
            raise Unsupported(f'the picture tower of "{clip.name}" ({tower.kind}) has maps of one resolution alone')
        strides = tuple(round(side / maps[i].shape[-1]) for i in stages)
        return cls(clip, tower, stages, tuple(maps[i].shape[1] for i in stages), strides)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """pixels [B, 3, H, W], H and W multiples of the largest stride -> maps fine to coarse, and the last map."""
        self.clip.eval()  # a training loop may have switched it
        return self.tower.maps(pixels.to(self.clip.device), self.stages)

    def pixels(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """An RGB picture resized to (height, width), normalised, padded to the largest stride: [3, H, W]."""
        look = self.clip.preprocess
        height, width = size
        if image.size != (width, height):
            image = image.resize((width, height), RESAMPLING[look.interpolation])
        stride = self.strides[-1]
        return F.pad(look.tensor(image), (0, -width % stride, 0, -height % stride))


def fitted(size: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """(height, width) with a short side of `short`, unless the long one would be more than `longest`."""
    scale = min(short / min(size), longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def padded(maps: Sequence[Tensor]) -> Tensor:
    """Maps [C, h, w] of several pictures -> [B, C, max h, max w], with zeros to the right and below."""
    height, width = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
    return torch.stack([F.pad(m, (0, width - m.shape[-1], 0, height - m.shape[-2])) for m in maps])
