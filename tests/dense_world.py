"""A ConvNet CLIP with a known answer, and pictures of coloured boxes with their masks."""

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from fakes import WordTokenizer, WordTower
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.preprocess import Preprocess
from diptych.core.regions import mask_pool
from diptych.core.tower import TowerOutput
from diptych.core.towers.blocks import StagedTower

SIDE = 32
GREY = (127, 127, 127)
HUES = ("red", "orange", "yellow", "lime", "green", "teal", "cyan", "azure", "blue", "violet", "magenta", "rose")
COLOURS = {name: [255 * v for v in colorsys.hsv_to_rgb(i / 12, 0.9, 0.9)] for i, name in enumerate(HUES)}


class ColourStages(StagedTower):
    """Three random convolutions for a pyramid (strides 2, 4, 8, with a batch norm), and the mean colour of each cell of
    8 x 8 as the last map, whose mean is the embedding."""

    kind, depth, width, embed_dim = "fake.stages", 3, 3, 12

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in ((3, 8), (8, 12), (12, 16))
            )
        self.gain = nn.Parameter(torch.ones(3, 1, 1))

    def parts(self) -> list[nn.Module]:
        return list(self.stages)

    def forward(self, inputs, *, prompts=(), taps=(), tokens=False) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        self.check(prompts, taps)
        maps, last = self.maps(inputs, [tap.block for tap in taps])
        return TowerOutput(self.head(last.mean((2, 3))), None, dict(zip(taps, maps, strict=True)))

    def head(self, colours: Tensor) -> Tensor:
        return colours.repeat_interleave(4, -1)

    def maps(self, pixels, stages=()):
        found, hidden = [], pixels
        for stage in self.stages:
            hidden = stage(hidden)
            found.append(hidden)
        return [found[i] for i in stages], F.avg_pool2d(pixels, 8) * self.gain

    def regions(self, last, masks):
        return self.head(mask_pool(last, masks))


class Hues(WordTokenizer):
    def ids(self, text: str) -> list[int]:
        known = {word: 10 + i for i, word in enumerate(HUES)}
        return [1, *(known.get(word, 3) for word in text.lower().replace(".", " ").split()), 2]


def stages_clip(name: str = "stages") -> CLIP:
    look = Preprocess(SIDE, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    text = WordTower()
    with torch.no_grad():
        for i, colour in enumerate(COLOURS.values()):
            text.table[10 + i] = (torch.tensor(colour) / 255 - 0.5).repeat_interleave(4)
    return CLIP(name, ColourStages(), text, Hues(), look, logit_scale=20.0)


@dataclass(frozen=True)
class Truth:
    masks: np.ndarray
    labels: tuple[int, ...]
    ignored: np.ndarray


@dataclass(frozen=True)
class Boxes:
    """Two boxes of different colours before grey; `names` are those told, boxes of other colours are ignored."""

    colours: tuple[str, ...]
    names: tuple[str, ...]
    count: int
    seed: int = 0
    side: int = SIDE

    @property
    def things(self) -> tuple[bool, ...]:
        return (True,) * len(self.names)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> "Box":
        if not 0 <= index < self.count:
            raise IndexError(index)
        return Box(self, index)


@dataclass(frozen=True)
class Box:
    boxes: Boxes
    index: int

    @property
    def id(self) -> str:
        return f"{self.boxes.seed}-{self.index}"

    def drawn(self) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
        side = self.boxes.side
        rng = np.random.default_rng((self.boxes.seed, self.index))
        pixels = np.empty((side, side, 3))
        pixels[:] = GREY
        found = []
        for half, colour in enumerate(rng.permutation(self.boxes.colours)[:2]):
            height, width = rng.integers(side // 3, side // 2 + 1, 2)
            top = rng.integers(side - height + 1)
            left = half * side // 2 + rng.integers(side // 2 - width + 1)
            mask = np.zeros((side, side), bool)
            mask[top : top + height, left : left + width] = True
            pixels[mask] = COLOURS[colour]
            found.append((str(colour), mask))
        return (pixels + rng.normal(0, 15, pixels.shape)).clip(0, 255).astype(np.uint8), found

    def picture(self) -> Image.Image:
        return Image.fromarray(self.drawn()[0])

    def segments(self) -> Truth:
        found = self.drawn()[1]
        told = [(name, mask) for name, mask in found if name in self.boxes.names]
        side = self.boxes.side
        ignored = np.zeros((side, side), bool)
        for name, mask in found:
            ignored |= mask & (name not in self.boxes.names)
        masks = np.stack([mask for _, mask in told]) if told else np.zeros((0, side, side), bool)
        return Truth(masks, tuple(self.boxes.names.index(name) for name, _ in told), ignored)


def miou(segmenter, boxes: Boxes, judged: tuple[str, ...], names: tuple[str, ...]) -> float:
    """Over the boxes' pixels: mean over the judged classes of intersection over union, all pictures together."""
    both, either = dict.fromkeys(judged, 0), dict.fromkeys(judged, 0)
    for record in (boxes[i] for i in range(len(boxes))):
        guess = segmenter.segment(record.picture(), names).semantic().numpy()
        found = record.drawn()[1]
        boxed = np.logical_or.reduce([mask for _, mask in found])
        for name in judged:
            true = np.logical_or.reduce([mask & (own == name) for own, mask in found])
            said = (guess == names.index(name)) & boxed
            both[name] += int((true & said).sum())
            either[name] += int((true | said).sum())
    return sum(both[name] / max(1, either[name]) for name in judged) / len(judged)
