"""CLOOB: rows are replaced by averages of alike rows of the batch, then contrasted without the positive below.

Use it with small or middling data (10^5 to 10^7 pairs), where clip latches on to one or two features of a picture:
averages strengthen what occurs together, and the loss does not saturate once a pair is right. Not with very small
batches: the batch is also the memory that is read from; with 16 pairs there is little in it.

Fürst et al., CLOOB: Modern Hopfield Networks with InfoLOOB Outperform CLIP, NeurIPS 2022, arXiv 2110.11316, equations
4 to 9; the released settings for Conceptual Captions. Retrieval belongs to the training alone: scores are cosines.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.losses.loob import retrieved_loob
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairsLike, Recipe


@dataclass(frozen=True)
class Config:
    """The released settings.

    beta: how sharply rows are retrieved: 0 gives everyone the batch's mean, 200 the row itself. inverse_tau: the
    multiplier of the cosine, fixed; with `recipe.freeze` empty it is where a learned one starts, up to 100.
    """

    beta: float = 8.0
    inverse_tau: float = 30.0


class Cloob(Objective):
    Config = Config
    recipe = Recipe(
        batch=512, rate=1e-3, weight_decay=0.1, beta2=0.999, eps=1e-8, warmup=20_000, cycles=10, freeze="log_scale"
    )
    trains = ("both towers",)

    @torch.no_grad()
    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        clip.log_scale.fill_(math.log(self.config.inverse_tau))

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        image, text = (F.normalize(embeddings[name].float(), dim=-1) for name in ("image", "text"))
        return {"loob": retrieved_loob(image, text, self.config.beta, clip.logit_scale)}

    @torch.no_grad()
    def after_step(self, clip: CLIP) -> None:
        clip.log_scale.clamp_(0, math.log(100))
