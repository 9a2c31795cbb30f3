"""LaCLIP: each time a picture is seen, one of its texts is read: the original, or one of several rewrites of it.

Use it where each picture has one caption in one style and prompts will be in others; rewrites are made once
(`diptych.data.rewrites`), and a step costs what CLIP's does. Not where rewrites lose what captions say (rare names):
look at their recall of words first; and not with texts that differ in what they show, which are several captions.

Fan et al., Improving CLIP Training with Language Rewrites, arXiv 2305.20088 (NeurIPS 2023), section 4: the texts of a
pair are its original and K = 4 rewrites, drawn evenly; the loss is CLIP's. Published: ImageNet zero-shot 21.5 against
15.8 of CLIP (ViT-B/16, CC3M), 48.4 against 40.2 (CC12M).
"""

from dataclasses import dataclass

import numpy as np

from diptych.methods.pretrain.parts.contrast import Contrast
from diptych.methods.pretrain.parts.objective import PairLike, Recipe


@dataclass(frozen=True)
class Config:
    """least: words that a rewrite has at least, or the original is read; max_scale: the largest multiplier of the
    cosine."""

    least: int = 2
    max_scale: float = 100.0


class LaClip(Contrast):
    Config = Config
    recipe = Recipe(rate=1e-3, weight_decay=0.5, eps=1e-8, crop=0.5)
    needs = "pairs with several texts each, the original first"

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        text = pair.texts[rng.integers(len(pair.texts))]
        return {"text": text if len(text.split()) >= self.config.least else pair.texts[0]}
