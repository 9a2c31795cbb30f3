"""What systems with CLIP's own loss share; their Config has `max_scale`, the largest multiplier of the cosine."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective


def unit(embeddings: Embeddings, *names: str) -> list[Tensor]:
    """Rows of unit length."""
    return [F.normalize(embeddings[name], dim=-1) for name in names]


class Contrast(Objective):
    """Symmetric cross-entropy of the batch, and a temperature with a limit (arXiv 2103.00020, figure 3)."""

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        image, text = unit(embeddings, "image", "text")
        return {"contrastive": softmax_contrastive(image, text, clip.logit_scale, ids=batch.same, part=batch.own)}

    @torch.no_grad()
    def after_step(self, clip: CLIP) -> None:
        clip.log_scale.clamp_(0, math.log(self.config.max_scale))
