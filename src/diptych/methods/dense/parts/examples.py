"""Pictures with masks as the maps of a frozen backbone and the truth beside them: what a training step sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import DiptychError
from diptych.methods.dense.parts.backbone import Pyramid, fitted, padded
from diptych.methods.dense.parts.matcher import UNNAMED, Truth
from diptych.methods.dense.parts.segmenter import SegmentRecordsLike

KEPT = 2 << 30  # bytes of maps and masks that stay in memory
LEAST = 0.001  # of the picture: smaller parts of what is ignored are borders between masks


class Unread(Exception):
    """A picture that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Views:
    """How a picture is shown. crop 0: whole, its short side `size`, its long one at most `longest`. Else large-scale
    jitter: the picture, fitted into crop x crop, grown by `least` to `most`, and of that a chance crop x crop.
    flip: half of the time mirrored.
    """

    size: int = 1024
    longest: int = 2560
    crop: int = 1024
    least: float = 0.1
    most: float = 2.0
    flip: bool = True

    def whole(self, size: tuple[int, int]) -> tuple[int, int]:
        return fitted(size, self.size, self.longest)


@dataclass(frozen=True)
class Example:
    """maps [C, h, w] fine to coarse; masks [N, H, W] and ignored [H, W] bool, at the padded picture's size; labels."""

    maps: list[Tensor]
    masks: Tensor
    ignored: Tensor
    labels: Tensor

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in [*self.maps, self.masks, self.ignored])

    def truth(self, size: tuple[int, int]) -> Truth:
        """Padded to the size of its batch; what is padded does not count."""
        height, width = size
        pad = (0, width - self.masks.shape[-1], 0, height - self.masks.shape[-2])
        return Truth(F.pad(self.masks.float(), pad), self.labels, F.pad(1 - self.ignored.float(), pad))


class Examples:
    """Batches by number: a function of (seed, step). Views without jitter are kept, since the backbone is frozen.

    unnamed: each connected part of what is ignored is a segment too, of the class UNNAMED, and counts.
    set_aside: pictures that cannot be read, with the reason; another stands in for them.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        records: SegmentRecordsLike,
        views: Views,
        batch: int,
        seed: int,
        unnamed: bool = False,
    ) -> None:
        if len(records) == 0:
            raise DiptychError("no pictures with masks to learn from")
        self.pyramid, self.records, self.views, self.batch, self.seed = pyramid, records, views, batch, seed
        self.unnamed = unnamed
        self.kept: dict[tuple[int, bool], Example] = {}
        self.bytes = 0
        self.set_aside: dict[str, str] = {}

    def __call__(self, step: int) -> tuple[list[Tensor], list[Truth]]:
        """Maps [B, C, h, w] fine to coarse, and the truth of each picture."""
        found = [self.at(step * self.batch + i) for i in range(self.batch)]
        maps = [padded([example.maps[level] for example in found]) for level in range(len(found[0].maps))]
        size = (max(e.masks.shape[-2] for e in found), max(e.masks.shape[-1] for e in found))
        return maps, [example.truth(size) for example in found]

    def at(self, position: int) -> Example:
        """The picture at a place of the order: each once an epoch, mixed anew each time."""
        epoch, place = divmod(position, len(self.records))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        rng = np.random.default_rng((self.seed, epoch, place))
        for index in np.roll(order, -place).tolist():
            try:
                return self.example(index, rng)
            except Unread as error:
                self.set_aside[self.records[index].id] = str(error)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.set_aside.items())[:3])
        raise DiptychError(f"none of the {len(self.records)} pictures can be read: {reasons}")

    def example(self, index: int, rng: np.random.Generator) -> Example:
        views = self.views
        flip = views.flip and rng.random() < 0.5
        if not views.crop and (index, flip) in self.kept:
            return self.kept[index, flip]
        record = self.records[index]
        if record.id in self.set_aside:
            raise Unread(self.set_aside[record.id])
        try:
            image = record.picture()
        except DiptychError as error:
            raise Unread(str(error)) from error
        segments = record.segments()
        masks, ignored = torch.as_tensor(segments.masks), torch.as_tensor(segments.ignored)
        labels = torch.as_tensor(segments.labels, dtype=torch.int64)
        if self.unnamed:
            parts = connected(ignored.bool())
            masks, ignored = torch.cat([masks.bool(), parts]), torch.zeros_like(ignored)
            labels = torch.cat([labels, torch.full((len(parts),), UNNAMED)])
        planes = torch.cat([masks.bool(), ignored.bool()[None]])  # [N + 1, H, W]
        image, planes = self.show(image, planes, rng)
        if flip:
            image, planes = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), planes.flip(-1)
        pixels = self.pyramid.pixels(image, (image.height, image.width))
        maps = [m[0] for m in self.pyramid(pixels[None])[0]]
        below, right = pixels.shape[-2] - image.height, pixels.shape[-1] - image.width
        masks = F.pad(planes[:-1], (0, right, 0, below))
        ignored = F.pad(planes[-1], (0, right, 0, below), value=True)
        seen = masks.flatten(1).any(1)
        device = maps[0].device
        example = Example(maps, masks[seen].to(device), ignored.to(device), labels[seen].to(device))
        if not views.crop and self.bytes + example.bytes() <= KEPT:
            self.bytes += example.bytes()
            self.kept[index, flip] = example
        return example

    def show(self, image: Image.Image, planes: Tensor, rng: np.random.Generator) -> tuple[Image.Image, Tensor]:
        """The picture and its masks [N, H, W], resized and cropped alike."""
        views, true = self.views, (image.height, image.width)
        if not views.crop:
            size = views.whole(true)
        else:
            scale = views.crop / max(true) * rng.uniform(views.least, views.most)
            size = (max(1, round(true[0] * scale)), max(1, round(true[1] * scale)))
        top, left = (int(rng.integers(max(0, side - views.crop) + 1)) if views.crop else 0 for side in size)
        height, width = (min(side, views.crop) if views.crop else side for side in size)
        x, y = true[1] / size[1], true[0] / size[0]  # pixels of the picture in one of what is shown
        box = (left * x, top * y, (left + width) * x, (top + height) * y)  # no more than this is ever made larger
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        rows = nearest(height, box[1], box[3], true[0])
        columns = nearest(width, box[0], box[2], true[1])
        return image, planes[:, rows][:, :, columns]


def connected(area: Tensor) -> Tensor:
    """[H, W] bool -> its connected parts [N, H, W], those of at least LEAST of the picture."""
    from scipy.ndimage import label

    numbers, count = label(area.numpy())  # type: ignore[misc]
    parts = torch.from_numpy(numbers)[None] == torch.arange(1, count + 1)[:, None, None]
    return parts[parts.flatten(1).sum(1) >= LEAST * area.numel()]


def nearest(count: int, start: float, stop: float, full: int) -> Tensor:
    """Numbers of the pixels nearest to the middles of `count` equal parts from start to stop, of `full` pixels."""
    at = start + (torch.arange(count) + 0.5) * (stop - start) / count
    return at.long().clamp(0, full - 1)


def digest_of(records: SegmentRecordsLike) -> Sequence[str]:
    """What tells two sets of pictures apart: their names, and those of their classes."""
    return [*records.names, *(records[i].id for i in range(len(records)))]
