"""LiT: a picture tower that is good already stays as it is, and a text tower learns to read from it.

Use it with a picture tower that was trained on far more than your pairs (on labels, or without any): it keeps what it
knows, and a step costs little more than the text tower. Not from random weights, which would stay random, and not
where pictures are of a kind that the tower was never shown.

Zhai et al., LiT: Zero-Shot Transfer with Locked-image Text Tuning, arXiv 2111.07991 (CVPR 2022), section 3, the setup
"Lu": picture tower locked, text tower unlocked and, best, pretrained too; the loss is CLIP's over all processes.
Published: ImageNet zero-shot 75.7 from public data (ViT-L/16 of ImageNet-21k, CC12M and YFCC100M), 72.1 with ViT-B/16.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from diptych.core.clip import CLIP
from diptych.methods.pretrain.parts.contrast import Contrast
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairsLike, Recipe


@dataclass(frozen=True)
class Config:
    """scale: where the multiplier of the cosine starts (0: where the model's is); max_scale: the largest."""

    scale: float = 10.0
    max_scale: float = 100.0


class Lit(Contrast):
    Config = Config
    recipe = Recipe(rate=1e-3, weight_decay=1e-4, beta2=0.999, eps=1e-8, clip=1.0, freeze="towers.image.*")
    trains = ("text tower", "temperature")

    @torch.no_grad()
    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        if self.config.scale:
            clip.log_scale.fill_(math.log(self.config.scale))

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        clip.image.eval()  # locked means its running statistics too
        with torch.no_grad():
            image = clip.image(batch.pixels).embedding
        return {"image": image, "text": clip.text(batch.texts["text"]).embedding}

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        return super().requirements() | {"cost": "the text tower; the picture tower without gradients"}
