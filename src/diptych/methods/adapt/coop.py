"""CoOp: the words around the class name are learned from a few labelled pictures; both towers stay frozen.

It gives better texts than a hand-written template, at the running cost of zero-shot, and can still name new classes
with the words it learned. Use it from about 4 shots a class where templates describe the pictures badly. Not for one
shot, and not where recognising other classes as well as before matters most (`maple` and `gda` lose less there).

Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, arXiv 2109.01134: 16 shots gain about 15 points
over hand-written prompts on average of 11 data sets. The random crops are drawn from `views` encoded ones a picture,
not afresh each epoch: the frozen image tower runs once.
"""

from collections.abc import Iterator
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
from diptych.errors import DiptychError, nearest
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work
from diptych.methods.adapt.parts.prompts import check_length, random_words, words_of
from diptych.methods.adapt.parts.sampling import Batches, steps_of

CROP = (0.08, 1.0)
TEMPLATE = "{}."
POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True)
class Config:
    """The released defaults.

    position: where the class name stands: "end", "middle" or "front" of the learned context. length: its tokens.
    words: start from these words ("a photo of a", then `length` is theirs) and not from noise. class_specific: one
    context a class, which cannot name new classes. epochs: 0 is 200 from 8 shots a class, 100 from 2, 50 for one.
    """

    position: str = "end"
    length: int = 16
    words: str = ""
    class_specific: bool = False
    epochs: int = 0
    rate: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 32
    views: int = 4


class CoOp(Adapter):
    Config = Config
    needs = Needs(transformers=("text",))
    trains = ("context",)
    cost = "text tower"
    names_new_classes = True
    folds = 2

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        config: Config = self.config
        context = start(clip, support, config).requires_grad_()
        check_length(clip, support.names, TEMPLATE, context.shape[-2])
        tokens = class_tokens(clip, support.names, TEMPLATE).to(clip.device)
        features, labels = support.features(clip, config.views, CROP), support.labels.to(clip.device)
        batches = Batches(support, config.batch)

        def loss(step: int) -> Tensor:
            batch = batches[step]
            pictures = features[batch, batches.views(step, config.views)]
            texts = clip.encode_tokens(tokens, prompts=around(context, config.position))
            return F.cross_entropy(clip.score(pictures, texts), labels[batch])

        train(
            {"context": context},
            loss,
            Optimiser("sgd", config.rate, config.weight_decay, config.momentum),
            steps_of(len(support), config.batch, epochs(config, int(support.counts.max()))),
            schedule=Cosine(every=batches.per_epoch, warmup=1, constant=1e-5),
        )
        prompts = around(context.detach(), config.position)
        with torch.no_grad():
            rows = F.normalize(clip.encode_tokens(tokens, prompts=prompts), dim=-1)
        yield (
            config,
            self.classifier(
                clip,
                support,
                TextRows(rows, float(clip.logit_scale)),
                config,
                recipe=TextRecipe((TEMPLATE,)),
                edits=Edits({"text": TowerEdits(prompts=prompts)}),
                trainable=context.numel(),
            ),
        )

    def views(self) -> tuple[int, tuple[float, float]]:
        return self.config.views, CROP

    def work(self, classes: int, shots: int) -> Work:
        steps = steps_of(classes * shots, self.config.batch, epochs(self.config, shots))
        length = self.config.length + 5  # start, a name of two tokens, full stop, end
        return Work(tokens_backward=steps * classes * length, seconds=0.02 + 0.002 * steps)


def epochs(config: Config, shots: int) -> int:
    """The paper's epochs for so many shots a class, unless the config says how many."""
    return config.epochs or (200 if shots >= 8 else 100 if shots >= 2 else 50)


def start(clip: CLIP, support: Support, config: Config) -> Tensor:
    """The context before training: [M, W], or [C, M, W] for one a class."""
    if config.position not in POSITIONS:
        raise DiptychError(f'coop.position cannot be "{config.position}"{nearest(config.position, POSITIONS)}')
    if config.words:
        shared = words_of(clip, config.words)
        return shared.expand(len(support.names), -1, -1).clone() if config.class_specific else shared.clone()
    if config.class_specific:
        return torch.stack([random_words(clip, config.length, support.seed, name) for name in support.names])
    return random_words(clip, config.length, support.seed)


def around(context: Tensor, position: str) -> tuple[Prompt, ...]:
    """The context in its place: before the name, half before and half after it, or after it."""
    before = {"end": context.shape[-2], "middle": context.shape[-2] // 2, "front": 0}[position]
    parts = Prompt(context[..., :before, :], at="start"), Prompt(context[..., before:, :], at="name")
    return tuple(part for part in parts if part.tokens.shape[-2])
