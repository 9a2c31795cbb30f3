"""CLOOB: embeddings are averaged over what is alike in the batch before they are contrasted, so more of them counts.

Use it on 10^5 to 10^7 pairs with small batches, where clip learns one or two features of a picture and stops: what
occurs together is made stronger, and the loss does not go quiet once a pair is found. Not with batches of a dozen,
which hold nothing to average over, nor where many pairs of a batch share a text. And look at the first steps: a small
difference between rows comes back from retrieval times beta and their covariance, so fresh transformers, whose rows are
all alike, learn one coarse thing and then stand still, with a gradient near 0. `start` leads them past that.

Fürst et al., CLOOB: Modern Hopfield Networks with InfoLOOB Outperform CLIP, arXiv 2110.11316 (NeurIPS 2022), equations
5 to 9. The model is used like any CLIP: by plain cosines, without retrieval. Published: ImageNet zero-shot 24.0
against 20.3 of CLIP (RN50, CC3M).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.engine.distributed import local_loob
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain.parts.contrast import unit
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairsLike, Recipe


@dataclass(frozen=True)
class Config:
    """beta: how sharply rows retrieve (0: the batch's mean; large: themselves); scale: the multiplier of the cosine,
    1/tau, which stays where it is; with recipe.freeze empty it is learned, up to max_scale; start: steps by clip's loss
    first, after which rows are apart and retrieval tells them from each other (not published)."""

    beta: float = 8.0
    scale: float = 30.0
    max_scale: float = 100.0
    start: int = 0


class Cloob(Objective):
    Config = Config
    recipe = Recipe(
        batch=512, rate=1e-3, weight_decay=0.1, beta2=0.999, eps=1e-8, warmup=20_000, cycles=10, freeze="log_scale"
    )
    trains = ("both towers",)

    @torch.no_grad()
    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        clip.log_scale.fill_(math.log(self.config.scale))

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        image, text = unit(embeddings, "image", "text")
        if batch.step < self.config.start:
            return {"contrastive": softmax_contrastive(image, text, clip.logit_scale, part=batch.own)}
        return {"loob": local_loob(image[batch.own], text[batch.own], self.config.beta, clip.logit_scale)}

    @torch.no_grad()
    def after_step(self, clip: CLIP) -> None:
        clip.log_scale.clamp_(0, math.log(self.config.max_scale))
