"""LaCLIP: each time a picture is seen, one of its texts is read: the original, or one of several rewrites of it.

Use it where each picture has one caption in one style and prompts will be in others; rewrites are made once
(`diptych rewrite`), and a step costs what CLIP's does. Not where rewrites lose what captions say (rare names):
look at their recall of words first; and not with texts that differ in what they show, which are several captions.

Fan et al., Improving CLIP Training with Language Rewrites, arXiv 2305.20088 (NeurIPS 2023), section 4: the texts of a
pair are its original and K = 4 rewrites, drawn evenly; the loss is CLIP's. Published: ImageNet zero-shot 21.5 against
15.8 of CLIP (ViT-B/16, CC3M), 48.4 against 40.2 (CC12M).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.core.clip import CLIP
from diptych.data.rewrite_store import read_rewrites, texts_of
from diptych.data.rewrites import Rewrites
from diptych.errors import DiptychError
from diptych.methods.pretrain.parts.contrast import Contrast
from diptych.methods.pretrain.parts.objective import PairLike, PairsLike, Recipe

LOOKED_AT = 1000  # pairs of which one must have a rewrite


@dataclass(frozen=True)
class Config:
    """rewrites: a store of them, by the first text of a pair (`diptych rewrite` makes one); empty: the pair's own
    texts. least: words that a rewrite has at least, or the original is read; max_scale: the largest multiplier of the
    cosine."""

    rewrites: str = ""
    least: int = 2
    max_scale: float = 100.0


class LaClip(Contrast):
    Config = Config
    recipe = Recipe(rate=1e-3, weight_decay=0.5, eps=1e-8, crop=0.5)
    needs = "pairs with several texts each, the original first"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.rewrites: Rewrites = read_rewrites(self.config.rewrites) if self.config.rewrites else {}

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        some = range(0, len(pairs), max(1, len(pairs) // LOOKED_AT))
        if self.rewrites and not any(self.rewrites.keys() & texts_of(pairs, i)[:1] for i in some):
            raise DiptychError(f"{self.config.rewrites} has rewrites of other captions than those of {pairs.source}")

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        original = pair.texts[0]
        texts = (original, *self.rewrites[original].values()) if original in self.rewrites else pair.texts
        text = texts[rng.integers(len(texts))]
        return {"text": text if len(text.split()) >= self.config.least else original}
