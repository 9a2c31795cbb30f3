"""Tip-Adapter-F: Tip-Adapter whose keys are trained for a few epochs, starting from the labelled pictures.

Use it where `tip_adapter` helps and there are 8 or more shots a class: a little better for some seconds of training.
It cannot name new classes. Not for one or two shots, where there is little to train keys on.

Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022, arXiv 2207.09519
(2111.03930): 65.5% on ImageNet with 16 shots and RN50, where Tip-Adapter has 62.0. The release trains on fresh crops
and keeps the epoch that is best on the test set; here the encoded views take turns and the last epoch is kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import Cache
from diptych.data.support import CROP, Support
from diptych.engine.loop import Cosine, Optimiser, train
from diptych.methods.adapt.parts.adapter import FEW, Adapter, Work, recipe_of, sweep
from diptych.methods.adapt.parts.cache import ALPHAS, BETAS, FALLBACK, MOST, STARTS, build_cache, kept


@dataclass(frozen=True)
class Config:
    """alpha, beta: weight and sharpness of the votes, searched after training. views: augmented copies of each shot;
    none with more than 16 a class unless another number is set. Of very many, as many become keys as in `tip_adapter`.

    epochs, rate, batch, weight_decay: of the training, which runs at start_alpha and start_beta. The release sets the
    former between 1.17 and 10 by data set, so it is chosen on validation as well.
    """

    alpha: float | tuple[float, ...] = ALPHAS
    beta: float | tuple[float, ...] = BETAS
    views: int = 10
    epochs: int = 20
    rate: float = 1e-3
    batch: int = 256
    weight_decay: float = 0.01
    start_alpha: float | tuple[float, ...] = STARTS
    start_beta: float = 1.0


class TipAdapterF(Adapter):
    Config = Config
    trains = ("keys",)
    swept = ("alpha", "beta")
    fallback = {**FALLBACK, "start_alpha": FALLBACK["alpha"]}  # noqa: RUF012
    many = {"views": 0}  # noqa: RUF012

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        shots = kept(support)
        cache = build_cache(clip, shots, support.rows(clip, recipe_of(support)), self.config.views)
        keys = train_keys(cache, clip, shots, self.config)
        for config in sweep(self.config, "alpha", "beta"):
            head = replace(cache, keys=keys, alpha=config.alpha, beta=config.beta)
            yield config, self.classifier(clip, support, head, config, trainable=keys.numel())

    def views(self) -> tuple[int, tuple[float, float]]:
        return self.config.views, CROP

    def work(self, classes: int, shots: int) -> Work:
        count = min(classes * shots, max(FEW * classes, MOST))
        steps = self.config.epochs * math.ceil(count / self.config.batch)
        return Work(seconds=0.03 + 0.002 * steps + (3e-8 + 2e-7 * self.config.epochs) * count**2)


def train_keys(cache: Cache, clip: CLIP, support: Support, config: Config) -> Tensor:
    """Keys after AdamW on the cross-entropy of the whole classifier: [N, D], no longer of length one."""
    pictures = support.features(clip, config.views) if config.views else support.features(clip)[:, None]
    pictures, labels = pictures.cpu(), cache.labels
    head = replace(cache, keys=cache.keys.clone().requires_grad_(), alpha=config.start_alpha, beta=config.start_beta)
    ids = [record.id for record in support.records]
    order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))  # whatever the order of the classes
    an_epoch = math.ceil(len(order) / config.batch)

    def loss(step: int) -> Tensor:
        epoch, part = divmod(step, an_epoch)
        rng = np.random.default_rng([support.seed, 0x71F, epoch])
        shuffled = torch.from_numpy(rng.permutation(len(order)))
        view = torch.from_numpy(rng.integers(pictures.shape[1], size=len(order)))
        index = order[shuffled[part * config.batch : (part + 1) * config.batch]]
        return F.cross_entropy(head.logits(pictures[index, view[: len(index)]]), labels[index])

    optimiser = Optimiser("adamw", config.rate, config.weight_decay)
    train({"keys": head.keys}, loss, optimiser, config.epochs * an_epoch, schedule=Cosine())
    return head.keys.detach()
