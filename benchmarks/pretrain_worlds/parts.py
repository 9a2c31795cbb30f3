"""What the worlds of `benchmarks/pretrain.py` share: a tiny CLIP, scenes at hand, and what is measured of a model."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import mean
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F

from diptych.core.build import build_open_clip, clip_of_open_clip
from diptych.core.clip import CLIP
from diptych.core.preprocess import Preprocess
from diptych.core.tokenizer import FastTokenizer
from diptych.data.pairs import Pair
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.data.scenes import words as said
from diptych.data.scenes.spec import BACKGROUNDS
from diptych.methods.pretrain.parts.objective import Objective, PairsLike
from diptych.training.run import Trained

SIDE, CONTEXT = 32, 40
LOOKS = {
    "filled": "plain",
    "inverted": "negative",
    "dark": "dark",
    "noisy": "grainy",
}  # of a style
EASY: dict[str, Any] = {  # scenes of which a tiny model learns the colour and the background in a few hundred steps
    "side": SIDE,
    "shapes": ("circle", "square", "triangle", "cross", "ring", "star"),
    "colours": ("red", "yellow", "green", "blue", "pink", "black"),
    "sizes": ("large",),
    "backgrounds": ("snow", "sand", "grass", "water"),
    "counts": (1,),
    "detail": 1.0,
}
STYLED = SceneSpec(**{**EASY, "backgrounds": BACKGROUNDS, "styles": tuple(LOOKS)})  # background, style, then colour
Values = dict[str, dict[str, list[float]]]  # arm -> what is measured -> a value for each seed


@dataclass(frozen=True)
class Arm:
    """One way of training.

    settings: "<system>.<field>" and "recipe.<field>", on top of the world's. changed: the system with something taken
    out, for an ablation. steps: others than the world's; to be compared with arms of as many. model: what it starts
    from, where that is not the world's.
    """

    system: str
    pairs: PairsLike
    settings: Mapping[str, Any] = field(default_factory=dict)
    changed: type[Objective] | None = None
    steps: int | None = None
    model: Callable[[int], CLIP] | None = None


@dataclass(frozen=True)
class World:
    """What is compared, all arms at equal steps. The world's file has it under the name WORLD.

    about: a sentence or two for the reader. arms: by name, seed -> arm; the seed decides data, order and first weights
    and is the same for all arms. measure: (arm's name, what was trained, seed) -> figures; accuracies in percent.
    claims: what is said of the figures, and whether it holds; only of arms that were measured. settings: for all arms.
    """

    about: str
    arms: Mapping[str, Callable[[int], Arm]]
    measure: Callable[[str, Trained, int], Mapping[str, float]]
    claims: Callable[[Values], Mapping[str, bool]]
    steps: int
    batch: int = 128
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[int], CLIP] = field(default=lambda seed: tiny_clip(seed))


# -- the model ---------------------------------------------------------------------------------------------------------

MORE = """a an the and on of in at with is are there here this that one photo picture image drawing you see we look
shows show has can it stock buy online free clipart wallpaper jpg img by sketch pictured
plain negative dark grainy what find , . : ; | - ( )"""


@cache
def words() -> tuple[str, ...]:
    """Every English word that scenes are told in; others are one unknown word."""
    texts = [
        MORE,
        *(f"{line} {line}s" for line in said.NOUNS["en"].values()),
        *said.ADJECTIVES["en"].values(),
        *said.NUMBERS["en"],
        *said.PLACES["en"].values(),
        *said.RELATION_WORDS["en"].values(),
        *said.GROUNDS["en"].values(),
        *said.SENTENCES["en"].values(),
        *said.TEMPLATES["en"],
        *(f"{word} {word}s" for others in said.SYNONYMS.values() for word in others),
    ]
    return tuple(sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower())}))


def word_tokenizer(more: Sequence[str] = ()) -> FastTokenizer:
    """One token a word. more: words beside those of scenes."""
    known = ["<pad>", "<start>", "?", *dict.fromkeys([*words(), *more]), "<end>"]  # the end is the highest number
    ids = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [(word, ids[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<start> $A <end>", special_tokens=ends
    )
    return FastTokenizer(tokenizer, context_length=CONTEXT, end_id=ids["<end>"])


def tiny_clip(
    seed: int, *, side: int = SIDE, patch: int = 8, width: int = 48, layers: int = 2, embed: int = 48,
    more: Sequence[str] = (),
) -> CLIP:  # fmt: skip
    """open_clip's ViT and text transformer, fresh: `layers` blocks of two heads a tower, a word a token."""
    tokenizer = word_tokenizer(more)
    config = {
        "embed_dim": embed,
        "vision_cfg": {
            "layers": layers, "width": width, "head_width": width // 2, "patch_size": patch, "image_size": side,
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": tokenizer.tokenizer.get_vocab_size(), "width": width,
            "heads": 2, "layers": layers,
        },
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_open_clip(config, "tiny")
    look = Preprocess(side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    clip = clip_of_open_clip(model, config, tokenizer, look, name="tiny", source="tiny")
    clip.origin = {"library": "benchmarks", "model_cfg": config}  # no library opens what is kept of it
    return clip


# -- the data ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Pairs with their pictures at hand, so that a step costs its arithmetic and not the drawing."""

    source: str
    items: list[Pair]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Pair:
        return self.items[index]


def held(scenes: Scenes, texts: Callable[[SceneRecord], tuple[str, ...]], source: str = "scenes") -> Held:
    """Every scene drawn once, with its texts. extra: its labels, and its record under "scene"."""

    def pair(record: SceneRecord) -> Pair:
        image = record.image()
        extra = {**record.labels, "scene": record}
        record.__dict__.pop("drawing", None)  # masks are not needed
        return Pair(record.id, lambda: image, texts(record), extra)

    return Held(f"{source} {scenes.seed}", [pair(record) for record in scenes])


def say(style: str, colour: str, shape: str, background: str) -> str:
    return f"a {LOOKS[style]} picture of a {colour} {shape} on {background}"


@cache
def drawn(spec: SceneSpec, count: int, seed: int, role: str = "short") -> Held:
    """`held` with one text by its role."""
    return held(Scenes(spec, count, seed), lambda record: (record.text(role),))


def told(record: SceneRecord) -> str:
    """A caption that says everything."""
    thing = record.scene.kinds[0]
    return say(record.scene.style, thing.colour, thing.shape, record.scene.background)


@cache
def styled(count: int, seed: int) -> Held:
    """Styled scenes with their captions."""
    return held(Scenes(STYLED, count, seed), lambda record: (told(record),))


def accuracies(clip: CLIP, images: Tensor, pairs: Held, template: str = "{}") -> dict[str, float]:
    """Zero-shot of styled scenes, in percent: images [N, D], each against all 1,152 captions; the nearest one tells.

    (Against the mean of the captions that say a word, a tiny model is right less often: its words are not yet apart.)
    """
    every = list(itertools.product(STYLED.styles, STYLED.colours, STYLED.shapes, STYLED.backgrounds))
    nearest = (images @ sayings(clip, [template.format(say(*words)) for words in every]).T).argmax(1).tolist()
    right = {
        aspect: 100 * mean(every[n][place] == pair.extra[aspect] for n, pair in zip(nearest, pairs.items, strict=True))
        for aspect, place in (("background", 3), ("style", 0), ("colour", 1))
    }
    return {"zero-shot": mean(right.values()), **right}


# -- what is measured --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def pictures(clip: CLIP, pairs: PairsLike) -> Tensor:
    """Unit embeddings [N, D]."""
    parts = [
        torch.stack([clip.preprocess(pairs[i].picture()) for i in range(start, min(start + 256, len(pairs)))])
        for start in range(0, len(pairs), 256)
    ]
    return F.normalize(torch.cat([clip.encode_image(part) for part in parts]), dim=1)


@torch.inference_mode()
def sayings(clip: CLIP, texts: Sequence[str]) -> Tensor:
    """Unit embeddings [N, D]."""
    return F.normalize(clip.encode_text(list(texts)), dim=1)


def zero_shot(
    clip: CLIP, images: Tensor, truth: Sequence[str], options: Sequence[str], say: Callable[[str], Sequence[str]]
) -> float:
    """Percent right: images [N, D], each against the mean of what is said of each option."""
    rows = torch.stack([F.normalize(sayings(clip, say(option)).mean(0), dim=0) for option in options])
    wanted = torch.tensor([list(options).index(word) for word in truth])
    return 100 * float((images @ rows.T).argmax(1).eq(wanted).float().mean())


def recall(queries: Tensor, store: Tensor, k: int = 1) -> float:
    """Percent of queries [N, D] whose own row of store [N, D] is among the k nearest; ties count as missed."""
    scores = queries @ store.T
    rank = (scores >= scores.diagonal()[:, None]).sum(1) - 1
    return 100 * float((rank < k).float().mean())


def effective_rank(rows: Tensor, share: float = 0.99) -> int:
    """How many eigenvalues of the covariance of rows [N, D] hold this share of it."""
    values = torch.linalg.eigvalsh(torch.cov(rows.double().T)).flip(0)
    return int((values.cumsum(0) / values.sum() < share).sum()) + 1


def auroc(right: np.ndarray, wrong: np.ndarray) -> float:
    """How often one of the right scores above one of the wrong, ties by half."""
    difference = right[:, None] - wrong[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def above(found: Values, what: str, arm: str, other: str | None, by: float) -> dict[str, bool]:
    """A claim: an arm's mean is above another's by so much, or (no other) above `by`; {} where one was not measured."""
    if what not in found.get(arm, {}) or (other is not None and what not in found.get(other, {})):
        return {}
    difference = mean(found[arm][what]) - (mean(found[other][what]) if other is not None else 0.0)
    where = f"{by:+g} of {other}" if other is not None else f"{by:g}"
    return {f"{what}: {arm} above {where} ({difference:.3g})": difference > by}


def zero_shot_on(clip: CLIP, images: Tensor, pairs: Held, spec: SceneSpec) -> dict[str, float]:
    """Percent of pictures [N, D] whose colour, background and shape are found, and their mean under "zero-shot".

    What is said of a word are other scenes' captions with it.
    """
    others = drawn(spec, 300, 5000).items
    right = {
        aspect: zero_shot(
            clip, images, [pair.extra[aspect] for pair in pairs.items], options,
            lambda word, aspect=aspect: [p.texts[0] for p in others if p.extra[aspect] == word],
        )
        for aspect, options in (("colour", spec.colours), ("background", spec.backgrounds), ("shape", spec.shapes))
    }  # fmt: skip
    return {"zero-shot": sum(right.values()) / len(right), **right}
