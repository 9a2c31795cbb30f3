"""MaPLe: prompts in the first blocks of both towers, the picture prompts being linear maps of the text prompts.

It learns from a few labelled pictures and keeps recognising classes it was not shown better than text prompts alone.
Use it with a transformer for pictures, where new classes will come. Not on a CPU for more than a few hundred
pictures: every step goes through both towers and back.

Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023, arXiv 2210.03117: base 82.28, novel 75.14, harmonic mean
78.55 on 11 data sets with ViT-B/16 (zero-shot 69.34, 74.22, 71.70).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, TowerEdits
from diptych.core.heads import TextRows
from diptych.core.text import TextRecipe, class_tokens
from diptych.core.tower import Prompt
from diptych.data.support import Support
from diptych.engine.loop import Cosine, Optimiser, train
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work
from diptych.methods.adapt.parts.prompts import check_length, random_words, words_of
from diptych.methods.adapt.parts.sampling import Batches, steps_of

CROP = (0.08, 1.0)


@dataclass(frozen=True)
class Config:
    """The released defaults for base-to-novel (across data sets: depth 3, rate 0.0026, epochs 2).

    depth: blocks that get prompts, the input counted, at most as many as both towers have. length: tokens a prompt.
    words: the text around the name; its first `length` tokens are where the learned ones start.
    """

    depth: int = 9
    length: int = 2
    words: str = "a photo of a"
    epochs: int = 5
    rate: float = 0.0035
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 4


class MaPLe(Adapter):
    Config = Config
    needs = Needs(transformers=("image", "text"))
    trains = ("text prompts", "coupling")
    cost = "both towers"
    names_new_classes = True
    folds = 2

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        config: Config = self.config
        template = remaining(clip, config)
        check_length(clip, support.names, template, config.length)
        tokens = class_tokens(clip, support.names, template).to(clip.device)
        trainable = start(clip, config, support.seed)
        batches, labels = Batches(support, config.batch), support.labels.to(clip.device)

        def loss(step: int) -> Tensor:
            batch = batches[step]
            pixels = support.pixels(clip, batch.tolist(), batches.crops(step), CROP)
            for_text, for_image = prompts(trainable)
            pictures = clip.encode_image(pixels, prompts=for_image)
            return F.cross_entropy(clip.score(pictures, clip.encode_tokens(tokens, prompts=for_text)), labels[batch])

        train(
            trainable,
            loss,
            Optimiser("sgd", config.rate, config.weight_decay, config.momentum),
            steps_of(len(support), config.batch, config.epochs),
            schedule=Cosine(every=batches.per_epoch, warmup=1, constant=1e-5),
        )
        with torch.no_grad():
            for_text, for_image = prompts(trainable)
            rows = F.normalize(clip.encode_tokens(tokens, prompts=for_text), dim=-1)
        yield (
            config,
            self.classifier(
                clip,
                support,
                TextRows(rows, float(clip.logit_scale)),
                config,
                recipe=TextRecipe((template,)),
                edits=Edits({"text": TowerEdits(prompts=for_text), "image": TowerEdits(prompts=for_image)}),
                trainable=sum(t.numel() for t in trainable.values()),
            ),
        )

    def work(self, classes: int, shots: int) -> Work:
        pictures = classes * shots
        steps = steps_of(pictures, self.config.batch, self.config.epochs)
        length = len(self.config.words.split()) + 5
        return Work(images_backward=steps * min(self.config.batch, pictures), tokens_backward=steps * classes * length)


def remaining(clip: CLIP, config: Config) -> str:
    """The template without the words that the learned tokens stand for: "of a {}."."""
    kept = config.words.split()
    while kept and len(words_of(clip, config.words)) - len(words_of(clip, " ".join(kept))) < config.length:
        kept = kept[1:]
    return " ".join([*kept, "{}."])


def start(clip: CLIP, config: Config, seed: int) -> dict[str, Tensor]:
    """Text prompts [P, W_text] and couplings [W_image, W_text], [W_image] by name, for each of the J blocks."""
    depth = min(config.depth, clip.text.depth, clip.image.depth)
    first = words_of(clip, config.words)[: config.length]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 1)
    bound = 1 / math.sqrt(clip.text.width)  # nn.Linear's own start

    def linear() -> tuple[Tensor, Tensor]:
        shape = clip.image.width, clip.text.width
        weight, bias = (torch.rand(s, generator=generator) * 2 * bound - bound for s in (shape, shape[:1]))
        return weight.to(clip.device), bias.to(clip.device)

    input_coupling, deep_coupling = linear(), linear()  # the release starts all deep ones as copies of one
    trainable: dict[str, Tensor] = {}
    for j in range(depth):
        full = j == 0 and len(first) == config.length
        text = first if full else random_words(clip, config.length, seed, f"block {j}")
        weight, bias = deep_coupling if j else input_coupling
        trainable |= {f"text {j}": text.clone(), f"coupling {j}": weight.clone(), f"coupling bias {j}": bias.clone()}
    return {name: tensor.requires_grad_() for name, tensor in trainable.items()}


def prompts(trainable: dict[str, Tensor]) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The prompts of both towers: texts after the start token, pictures at the end, replaced before each block."""
    depth = len(trainable) // 3
    text = [trainable[f"text {j}"] for j in range(depth)]
    image = [F.linear(text[j], trainable[f"coupling {j}"], trainable[f"coupling bias {j}"]) for j in range(depth)]
    return in_blocks(text, at_end=False), in_blocks(image, at_end=True)


def in_blocks(tokens: Sequence[Tensor], at_end: bool) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(t, block=j, at="end" if at_end else "start", replace=j > 0, position=not at_end)
        for j, t in enumerate(tokens)
    )
