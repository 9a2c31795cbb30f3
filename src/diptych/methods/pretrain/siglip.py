"""SigLIP: every picture and text of the batch is asked on its own whether they belong together.

Use it where the batch is small (below about 16 thousand it beats clip's softmax) or spread over many machines: no row
needs the sum over all others. Not for a model whose scores must be a softmax over the batch as it was trained.

Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, equation 1 and section 3.2: the
temperature starts at 10 and a learned bias at -10, so that the many negatives do not rule the first steps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.losses.contrastive import sigmoid_contrastive
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairsLike, Recipe


@dataclass(frozen=True)
class Config:
    """scale, bias: where they start in a CLIP that has no bias yet; one that has keeps its own."""

    scale: float = 10.0
    bias: float = -10.0


class SigLip(Objective):
    Config = Config
    recipe = Recipe(rate=1e-3, weight_decay=1e-4, beta2=0.95, eps=1e-8, warmup=5000, clip=1.0)
    trains = ("both towers", "temperature", "bias")

    @torch.no_grad()
    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        if clip.logit_bias is not None:
            return
        clip.logit_bias = nn.Parameter(clip.log_scale.new_tensor(self.config.bias))
        clip.log_scale.fill_(math.log(self.config.scale))
        if clip.origin and clip.origin["library"] == "open_clip":  # the saved config must ask for a bias
            config = clip.origin["model_cfg"] | {"init_logit_bias": self.config.bias}
            clip.origin = clip.origin | {"model_cfg": config}

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        image, text = (F.normalize(embeddings[name], dim=-1) for name in ("image", "text"))
        assert clip.logit_bias is not None
        own, first = image[batch.own], batch.own.start or 0
        loss = sigmoid_contrastive(own, text, clip.logit_scale, clip.logit_bias, ids=batch.same, first=first)
        return {"sigmoid": loss}
