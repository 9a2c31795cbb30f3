"""A CLIP of a few numbers, with a known answer: pictures by their mean colours, texts by their words."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.preprocess import Preprocess
from diptych.core.tower import Tap, Tokens, Tower, TowerOutput

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220), "yellow": (230, 220, 40)}
SIDE = 16


class ColourTower(Tower):
    """Mean colour in 0..1 and its grid of 2 x 2: [B, 3, 16, 16] -> [B, 12]."""

    modality, kind, transformer = "image", "fake.colours", False
    embed_dim = width = 12
    depth = 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, inputs, *, prompts=(), taps: Sequence[Tap] = (), tokens: bool = False) -> TowerOutput:
        if prompts:
            raise self.refuse("prompts")
        assert isinstance(inputs, Tensor)
        return TowerOutput(F.adaptive_avg_pool2d(inputs, 2).flatten(1) * self.scale)


class WordTower(Tower):
    """The mean of its words' vectors: a colour word is that colour in every quarter, other words are nothing."""

    modality, kind, transformer = "text", "fake.words", False
    context_length = 32
    embed_dim = width = 12
    depth = 1

    def __init__(self) -> None:
        super().__init__()
        table = torch.zeros(100, 12)
        for i, colour in enumerate(COLOURS.values()):
            table[10 + i] = (torch.tensor(colour) / 255 - 0.5).repeat_interleave(4)
        self.table = nn.Parameter(table)

    def forward(self, inputs, *, prompts=(), taps: Sequence[Tap] = (), tokens: bool = False) -> TowerOutput:
        assert isinstance(inputs, Tokens)
        words = self.table[inputs.ids] * inputs.mask[..., None]
        return TowerOutput(words.sum(1) + 1e-3)


class WordTokenizer:
    context_length = 32

    def ids(self, text: str) -> list[int]:
        known = {word: 10 + i for i, word in enumerate(COLOURS)}
        words = text.lower().replace(".", " ").replace(",", " ").split()
        return [1, *(known.get(w, 20 + int(hashlib.sha256(w.encode()).hexdigest(), 16) % 80) for w in words), 2]

    def __call__(self, texts: Sequence[str], names: Sequence[str] | None = None) -> Tokens:
        rows = [self.ids(t) for t in texts]
        length = max(map(len, rows))
        ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
        return Tokens(ids, ids > 0, torch.tensor([len(r) - 1 for r in rows]))

    def length(self, text: str) -> int:
        return len(self.ids(text))

    def save(self, folder: Path) -> None: ...

    def spec(self) -> dict[str, Any]:
        return {"kind": "fake"}


def colour_clip(name: str = "colours") -> CLIP:
    preprocess = Preprocess(SIDE, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    return CLIP(name, ColourTower(), WordTower(), WordTokenizer(), preprocess, logit_scale=20.0)


def colour_folder(root: Path, each: int = 12, noise: int = 90, colours: Sequence[str] = tuple(COLOURS)) -> Path:
    """Pictures of noisy colours in class folders; deterministic, all different."""
    generator = torch.Generator().manual_seed(0)
    for colour in colours:
        folder = root / colour
        folder.mkdir(parents=True)
        for i in range(each):
            mean = torch.tensor(COLOURS[colour])[:, None, None] + torch.randn(3, 1, 1, generator=generator) * noise
            pixels = (mean + torch.randn(3, SIDE, SIDE, generator=generator) * 40).clamp(0, 255).byte()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return root
