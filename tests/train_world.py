"""A tiny open_clip architecture, drawings with captions, and the plainest loop that trains a system on them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.preprocess import Preprocess
from diptych.core.tower import Tokens, Tower, TowerOutput
from diptych.methods.pretrain.parts.objective import Batch, Objective, PairLike, PairsLike, Phase

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIDE = 16
CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIDE},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def make_clip(seed: int = 0, config: dict[str, Any] = CONFIG) -> CLIP:
    """Width 32, 2 blocks a tower, joint size 24; fresh weights."""
    import open_clip

    from diptych.core.build import build_open_clip, clip_of_open_clip, tokenizer_of_open_clip

    torch.manual_seed(seed)
    model = build_open_clip(config, "here")
    tokenizer = tokenizer_of_open_clip(open_clip.SimpleTokenizer(context_length=20), 20)
    look = Preprocess(config["vision_cfg"]["image_size"], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return clip_of_open_clip(model, config, tokenizer, look, name="tiny", source="tiny")


LEFT = ("towers.text.token_embedding.weight",)  # stays as it is: most of a step's time, and random words do
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 230), "yellow": (230, 220, 50)}
PLACES = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
GROUNDS = {"dark": 40, "bright": 210}


@dataclass(frozen=True)
class Scene:
    """What a drawing shows: a patch of a colour, at a place, on a ground."""

    colour: str
    place: str
    ground: str
    number: int

    def draw(self, side: int) -> Image.Image:
        rng = np.random.default_rng([77, self.number])
        pixels = rng.normal(GROUNDS[self.ground], 25, (side, side, 3))
        size = side // 2 - int(rng.integers(1, 3))
        row, column = (p * (side // 2) + int(rng.integers(0, side // 2 - size + 1)) for p in PLACES[self.place])
        patch = np.array(COLOURS[self.colour]) + rng.normal(0, 30, (size, size, 3))
        pixels[row : row + size, column : column + size] = patch
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def caption(self) -> str:
        return f"a {self.colour} patch, {self.place}, {self.ground}"


def scene_of(number: int, seed: int = 0) -> Scene:
    rng = np.random.default_rng([seed, number])
    chosen = [list(options)[rng.integers(len(options))] for options in (COLOURS, PLACES, GROUNDS)]
    return Scene(*chosen, number=1_000_000 * seed + number)


@dataclass(frozen=True)
class Drawn:
    id: str
    scene: Scene
    texts: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    side: int = 16

    @property
    def picture(self) -> Callable[[], Image.Image]:
        return lambda: self.scene.draw(self.side)


class World:
    """`count` drawings; `texts` says what a scene's texts are, `extra` what else it has."""

    source = "drawings"

    def __init__(
        self,
        count: int,
        seed: int = 0,
        texts: Callable[[Scene], tuple[str, ...]] = lambda scene: (scene.caption(),),
        extra: Callable[[Scene], dict[str, Any]] = lambda scene: {},
        side: int = 16,
    ) -> None:
        scenes = [scene_of(i, seed) for i in range(count)]
        self.pairs = [Drawn(str(i), s, texts(s), extra(s), side) for i, s in enumerate(scenes)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> Drawn:
        return self.pairs[index]

    def __iter__(self) -> Iterator[Drawn]:
        return iter(self.pairs)

    def scenes(self) -> list[Scene]:
        return [pair.scene for pair in self.pairs]


def pixels_of(clip: CLIP, pairs: PairsLike) -> Tensor:
    return torch.stack([clip.preprocess(pairs[i].picture()) for i in range(len(pairs))])


def batch_of(
    objective: Objective, clip: CLIP, pairs: PairsLike, index: list[int], *, step: int = 0, pixels: Tensor | None = None
) -> Batch:
    """What the system sees of some pairs, as a loader would make it."""
    some: list[PairLike] = [pairs[i] for i in index]
    if pixels is None:
        pixels = torch.stack([clip.preprocess(pair.picture()) for pair in some])
    words = [objective.words(pair, np.random.default_rng([step, i])) for pair, i in zip(some, index, strict=True)]
    texts = {role: clip.tokenize([word[role] for word in words]) for role in objective.texts}
    arrays = [objective.extra_of(pair, i) for pair, i in zip(some, index, strict=True)]
    extra = {name: torch.from_numpy(np.stack([a[name] for a in arrays])) for name in arrays[0]}
    return Batch(torch.tensor(index), pixels, texts, extra, step)


def named(objective: Objective, clip: CLIP) -> dict[str, nn.Parameter]:
    """Everything that can be trained, the system's heads with the prefix `heads.`."""
    found = dict(clip.named_parameters())
    return found | {f"heads.{n}": p for n, p in (objective.heads.named_parameters() if objective.heads else ())}


def trainable(objective: Objective, clip: CLIP, phase: Phase) -> dict[str, nn.Parameter]:
    """The parameters that a phase moves: none that the recipe freezes."""
    return {
        name: parameter
        for name, parameter in named(objective, clip).items()
        if any(fnmatchcase(name, pattern) for pattern in phase.trains)
        and not any(fnmatchcase(name, pattern) for pattern in objective.recipe.freeze.replace(",", " ").split())
    }


def total(terms: dict[str, Tensor], phase: Phase) -> Tensor:
    return torch.stack([value for name, value in terms.items() if phase.terms is None or name in phase.terms]).sum()


def train(
    objective: Objective,
    clip: CLIP,
    pairs: PairsLike,
    *,
    steps: int,
    batch: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
) -> list[dict[str, float]]:
    """`steps` of AdamW with a short warm-up; -> the terms of each step."""
    objective.prepare(clip, pairs, seed)
    pixels, order, said = pixels_of(clip, pairs), np.random.default_rng(seed), []
    moving = [p for n, p in trainable(objective, clip, Phase()).items() if n not in LEFT]
    optimiser = torch.optim.AdamW(moving, rate, (0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - 0.9 * step / steps)
        phase = objective.phase(step, steps)
        now = trainable(objective, clip, phase)
        for name, parameter in named(objective, clip).items():
            parameter.requires_grad_(name in now and name not in LEFT)
        index = order.permutation(len(pairs))[:batch].tolist()
        seen = batch_of(objective, clip, pairs, index, step=step, pixels=pixels[index])
        terms = objective.loss(objective.embed(clip, seen), clip, seen)
        optimiser.zero_grad()
        total(terms, phase).backward()
        nn.utils.clip_grad_norm_(moving, 1.0)
        optimiser.step()
        objective.after_step(clip)
        said.append({name: value.item() for name, value in terms.items()})
    clip.eval().requires_grad_(False)
    return said


@torch.no_grad()
def accuracy(clip: CLIP, world: World, prompt: Callable[[str], str], options: dict[str, Any], attribute: str) -> float:
    """Zero-shot, in 0..1: which of the options a drawing shows."""
    text = F.normalize(clip.encode_text([prompt(option) for option in options]), dim=-1)
    image = F.normalize(clip.encode_image(pixels_of(clip, world)), dim=-1)
    wanted = torch.tensor([list(options).index(getattr(scene, attribute)) for scene in world.scenes()])
    return float(((image @ text.T).argmax(1) == wanted).float().mean())


@torch.no_grad()
def scene_accuracy(clip: CLIP, world: World, say: Callable[[Scene], str] = Scene.caption) -> float:
    """Zero-shot among all 32 kinds of scene, in 0..1."""
    kinds = [Scene(c, p, g, 0) for c in COLOURS for p in PLACES for g in GROUNDS]
    text = F.normalize(clip.encode_text([say(kind) for kind in kinds]), dim=-1)
    image = F.normalize(clip.encode_image(pixels_of(clip, world)), dim=-1)
    found = (image @ text.T).argmax(1).tolist()
    right = [
        (kinds[k].colour, kinds[k].place, kinds[k].ground) == (s.colour, s.place, s.ground)
        for k, s in zip(found, world.scenes(), strict=True)
    ]
    return sum(right) / len(right)


# -- where nothing but the loss matters: linear towers -----------------------------------------------------------------

FACTORS, VALUES = 6, 4  # a grid of 2 x 3 patches, each of one of four colours


class Pixels(Tower):
    """One linear map of all pixels: [B, 3, 12, 12] -> [B, D]."""

    modality, kind, transformer, depth = "image", "test.pixels", False, 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed_dim = self.width = size
        self.linear = nn.Linear(3 * 12 * 12, size)

    def forward(self, inputs, *, prompts=(), taps=(), tokens=False) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        return TowerOutput(self.linear(inputs.flatten(1)))


class Bag(Tower):
    """The mean of the vectors of a text's words: [B, L] -> [B, D]."""

    modality, kind, transformer, depth = "text", "test.bag", False, 1
    context_length = 16

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed_dim = self.width = size
        self.table = nn.Embedding(2 + FACTORS * VALUES, size)

    def forward(self, inputs, *, prompts=(), taps=(), tokens=False) -> TowerOutput:
        assert isinstance(inputs, Tokens)
        mask = inputs.mask[..., None]
        return TowerOutput((self.table(inputs.ids) * mask).sum(1) / mask.sum(1))


class Letters:
    """Words such as b3: the fourth colour of the second patch; all others are one word."""

    context_length = 16

    def __call__(self, texts: Sequence[str], names: Sequence[str] | None = None) -> Tokens:
        rows = [[self.number(word) for word in text.split()] or [1] for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return Tokens(ids, ids > 0, torch.tensor([len(row) - 1 for row in rows]))

    def number(self, word: str) -> int:
        known = len(word) == 2 and word[0] in "abcdef" and word[1] in "0123"
        return 2 + VALUES * "abcdef".index(word[0]) + int(word[1]) if known else 1

    def length(self, text: str) -> int:
        return len(text.split())

    def words(self) -> list[str]:
        return ["", "?", *(f"{a}{b}" for a in "abcdef" for b in range(VALUES))]

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        return {"kind": "letters"}


def linear_clip(size: int = 24, seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    look = Preprocess(12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return CLIP("linear", Pixels(size), Bag(size), Letters(), look, logit_scale=1 / 0.07)


@dataclass(frozen=True)
class Tile:
    """A picture of six patches and the words for them."""

    id: str
    values: tuple[int, ...]
    texts: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    noise: float = 60.0

    @property
    def picture(self) -> Callable[[], Image.Image]:
        return self.draw

    def draw(self) -> Image.Image:
        colours = np.array(list(COLOURS.values()))[list(self.values)].reshape(2, 3, 3)
        pixels = colours.repeat(6, 0).repeat(4, 1) + np.random.default_rng([5, int(self.id)]).normal(
            0, self.noise, (12, 12, 3)
        )
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class Tiles(list[Tile]):
    """`count` of them; every value as likely."""

    source = "tiles"

    def __init__(self, count: int, seed: int = 0) -> None:
        values = np.random.default_rng(seed).integers(0, VALUES, (count, FACTORS)).tolist()
        super().__init__(Tile(str(1_000_000 * seed + i), tuple(row), (words_of(row),)) for i, row in enumerate(values))


def words_of(values: Sequence[int], left_out: Sequence[int] = ()) -> str:
    return " ".join(f"{'abcdef'[i]}{value}" for i, value in enumerate(values) if i not in left_out)


@torch.no_grad()
def tile_accuracy(clip: CLIP, pairs: "Tiles") -> float:
    """Zero-shot, in 0..1: the colour of each patch, from the word for it alone."""
    image = F.normalize(clip.encode_image(pixels_of(clip, pairs)), dim=1)
    words = F.normalize(clip.encode_text(clip.tokenizer.words()[2:]), dim=1)
    found = (image @ words.T).unflatten(1, (FACTORS, VALUES)).argmax(2)
    return float((found == torch.tensor([pair.values for pair in pairs])).float().mean())
