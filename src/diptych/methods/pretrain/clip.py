"""CLIP: each picture must find its text among all of the batch, and each text its picture.

Use it first: it is what every other way of pretraining must beat. Not with small batches (the others of the batch are
all that a pair is told from; siglip needs fewer), and not where many pairs share a text.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020, figure 3:
symmetric cross-entropy over the cosines times a learned temperature, which never exceeds 100.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective


@dataclass(frozen=True)
class Config:
    """max_scale: the largest multiplier of the cosine (section 2.5)."""

    max_scale: float = 100.0


class Clip(Objective):
    Config = Config

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        image, text = (F.normalize(embeddings[name], dim=-1) for name in ("image", "text"))
        return {"contrastive": softmax_contrastive(image, text, clip.logit_scale, ids=batch.same, part=batch.own)}

    @torch.no_grad()
    def after_step(self, clip: CLIP) -> None:
        clip.log_scale.clamp_(0, math.log(self.config.max_scale))
