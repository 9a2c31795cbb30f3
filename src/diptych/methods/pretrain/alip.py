"""ALIP: each picture has its own text and a machine's caption, and pairs that disagree count less.

Use it on web texts of which many are wrong, with captions that a captioner made for the same pictures: nothing is
thrown away, and a text or a caption that fits counts even where the other does not. Not on clean pairs, where the
weights are noise, and not without captions; the text tower runs twice a step.

Yang et al., ALIP: Adaptive Language-Image Pre-training with Synthetic Caption, arXiv 2308.08428 (ICCV 2023), section
3: weights from the similarities of text and caption, picture and text, picture and caption, against their running
means. Published: ImageNet zero-shot 40.3 against 32.8 of CLIP (ViT-B/32, YFCC15M).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain.parts.contrast import Contrast, unit
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairLike, PairsLike, Recipe


@dataclass(frozen=True)
class Config:
    """sample_gamma, pair_gamma: how steeply a weight falls with a similarity below its mean; momentum: of the running
    means; first_batch: they start at the first batch's instead of the published 1, from which the first hundreds of
    steps weigh little; max_scale: the largest multiplier of the cosine."""

    sample_gamma: float = 2.0
    pair_gamma: float = 2.0
    momentum: float = 0.99
    first_batch: bool = False
    max_scale: float = 100.0


@torch.no_grad()
def similarities(image: Tensor, text: Tensor, caption: Tensor) -> Tensor:
    """Unit rows [B, D] -> cosines [3, B] of text and caption, picture and text, picture and caption."""
    return torch.stack([(a * b).sum(1) for a, b in ((text, caption), (image, text), (image, caption))]).float()


@torch.no_grad()
def gates(found: Tensor, means: Tensor, sample_gamma: float, pair_gamma: float) -> tuple[Tensor, Tensor]:
    """Similarities [3, B] and their means [3] -> weights [B] of the text's loss and of the caption's.

    Each is the sample's weight, at most 1, times the pair's, which is 1 where text and caption agree and may be above
    1 elsewhere (equations 3 to 6).
    """
    excess = found - means[:, None]
    sample = (sample_gamma * excess[0]).exp().clamp(max=1)
    pairs = torch.where(excess[0] < 0, (pair_gamma * excess[1:]).exp(), 1.0)
    text, caption = sample * pairs
    return text, caption


class Alip(Contrast):
    Config = Config
    recipe = Recipe(rate=1e-3, eps=1e-8, warmup=11_800, clip=1.0, crop=0.7)
    texts = ("text", "caption")
    needs = "pairs with two texts, the second a machine's caption"

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        self.means = torch.full((3,), torch.nan if self.config.first_batch else 1.0, device=clip.device)

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        if len(pair.texts) < 2:
            raise DiptychError(f"alip needs a second text for each picture, a caption; {pair.id} has one text alone")
        return {"text": pair.texts[0], "caption": pair.texts[1]}

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        return super().embed(clip, batch) | {"caption": clip.text(batch.texts["caption"]).embedding}

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        image, text, caption = unit(embeddings, "image", "text", "caption")
        found = similarities(image, text, caption)
        now, kept = found.mean(1), self.config.momentum
        self.means = torch.where(self.means.isnan(), now, kept * self.means + (1 - kept) * now)
        of_text, of_caption = gates(found, self.means, self.config.sample_gamma, self.config.pair_gamma)
        return {
            "text": softmax_contrastive(image, text, clip.logit_scale, weights=of_text),
            "caption": softmax_contrastive(image, caption, clip.logit_scale, weights=of_caption),
        }

    def state(self) -> dict[str, Tensor]:
        return {"means": self.means}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.means = state["means"].to(self.means.device)

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        return super().requirements() | {"cost": "the picture tower once, the text tower twice"}
