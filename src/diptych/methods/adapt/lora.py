"""LoRA: low-rank changes of the attention weights in both towers, learned from a few labelled pictures.

The strongest few-shot method here that touches the towers, with few settings to choose. Use it with a transformer
for pictures and an accelerator. Not on a CPU beyond small models: 500 steps a shot go through both towers and back.

Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR workshops 2024, arXiv 2405.18541
(CLIP-LoRA), on Hu et al., LoRA, arXiv 2106.09685. The release scales by alpha / sqrt(rank) and drops a quarter of the
inputs of the change; the changes here being weights, an input is dropped for a whole step and not a token.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, LowRank, TowerEdits
from diptych.core.heads import TextRows
from diptych.core.text import PHOTO, TextRecipe, class_rows
from diptych.data.support import Support
from diptych.engine.loop import Cosine, Optimiser, train
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work
from diptych.methods.adapt.parts.sampling import Batches

CROP = (0.08, 1.0)
ROLES = ("query", "key", "value")
TOWERS = ("image", "text")


@dataclass(frozen=True)
class Config:
    """The released defaults. steps_per_shot: of `batch` pictures each. dropout: share of a change's inputs."""

    rank: int = 2
    alpha: float = 1.0
    dropout: float = 0.25
    rate: float = 2e-4
    weight_decay: float = 0.01
    steps_per_shot: int = 500
    batch: int = 32


class LoRA(Adapter):
    Config = Config
    needs = Needs(transformers=TOWERS)
    trains = ("low-rank changes of query, key and value in both towers",)
    cost = "both towers"
    names_new_classes = True
    folds = 2

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        config: Config = self.config
        recipe = TextRecipe((support.templates or PHOTO)[:1])
        edits = start(clip, config, support.seed)
        trainable = {
            f"{tower} block {delta.projection.block} {delta.projection.role} {name}": getattr(delta, name)
            for tower in TOWERS
            for delta in edits.of(tower).low_rank
            for name in ("down", "up")
        }
        tokens = clip.tokenize([recipe.texts(name)[0] for name in support.names]).to(clip.device)
        batches, labels = Batches(support, config.batch), support.labels.to(clip.device)

        def loss(step: int) -> Tensor:
            batch = batches[step]
            edited = clip.edited(dropped(edits, config.dropout, support.generator(step)))
            pictures = edited.encode_image(support.pixels(clip, batch.tolist(), batches.crops(step), CROP))
            return F.cross_entropy(clip.score(pictures, edited.encode_tokens(tokens)), labels[batch])

        shots = int(support.counts.max())
        optimiser = Optimiser("adamw", config.rate, config.weight_decay)
        train(trainable, loss, optimiser, config.steps_per_shot * shots, schedule=Cosine(least=1e-6))
        rows = class_rows(clip.edited(edits), support.names, recipe)
        yield (
            config,
            self.classifier(
                clip,
                support,
                TextRows(rows, float(clip.logit_scale)),
                config,
                recipe=recipe,
                edits=edits,
                trainable=sum(t.numel() for t in trainable.values()),
            ),
        )

    def work(self, classes: int, shots: int) -> Work:
        steps = self.config.steps_per_shot * shots
        pictures = steps * min(self.config.batch, classes * shots)
        return Work(images_backward=pictures, tokens_backward=steps * classes * 9)


def start(clip: CLIP, config: Config, seed: int) -> Edits:
    """Changes that change nothing yet: down [r, in] uniform as nn.Linear starts, up [out, r] zero."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 2)
    scale = config.alpha / math.sqrt(config.rank)
    towers = {}
    for name in TOWERS:
        tower = getattr(clip, name)
        weights = dict(tower.named_parameters())
        low_rank = []
        for projection in tower.projections():
            if projection.role not in ROLES:
                continue
            inputs = weights[projection.parameter].shape[1]
            down = (torch.rand(config.rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
            up = torch.zeros(projection.stop - projection.start, config.rank)
            down, up = (t.to(clip.device).requires_grad_() for t in (down, up))
            low_rank.append(LowRank(projection, down, up, scale))
        towers[name] = TowerEdits(low_rank=tuple(low_rank))
    return Edits(towers)


def dropped(edits: Edits, share: float, generator: torch.Generator) -> Edits:
    """The changes with a share of their inputs left out, the others scaled up to keep the mean."""
    if not share:
        return edits

    def drop(delta: LowRank) -> LowRank:
        kept = (torch.rand(delta.down.shape[1], generator=generator) >= share).to(delta.down)
        return replace(delta, down=delta.down * kept / (1 - share))

    return Edits({name: replace(t, low_rank=tuple(map(drop, t.low_rank))) for name, t in edits.towers.items()})
