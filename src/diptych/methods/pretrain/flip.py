"""FLIP: the picture tower sees a random half of each picture's patches, so a step costs half and batches can double.

Use it where the picture tower is most of the cost, that is for long trainings of vision transformers on many patches.
Not for short ones or pictures of few patches, where what is hidden is missed; not for ConvNets, which cannot skip.

Li et al., Scaling Language-Image Pre-training via Masking, arXiv 2212.00794 (CVPR 2023), sections 3 and 4.1: the loss
is CLIP's, nothing is reconstructed, texts stay whole; patches are dropped after the position codes. A short finish on
whole pictures closes the gap to how the model is used. Published: ImageNet zero-shot 69.6 at half of the patches
against 68.6 of CLIP in the same epochs (ViT-L/16, LAION-400M, table 1), 70.1 after the finish.
"""

from dataclasses import dataclass

from diptych.core.clip import CLIP
from diptych.methods.pretrain.parts.contrast import Contrast
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairsLike, Phase, Recipe
from diptych.methods.pretrain.parts.patches import need_patches, random_patches


@dataclass(frozen=True)
class Config:
    """keep: the share of patches that are seen (0.5; 0.25 is the paper's fastest); finish: the share of the steps, at
    the end, that see whole pictures (0.32 of 32 epochs); max_scale: the largest multiplier of the cosine."""

    keep: float = 0.5
    finish: float = 0.01
    max_scale: float = 100.0


class Flip(Contrast):
    Config = Config
    recipe = Recipe(rate=1e-3, beta2=0.95, eps=1e-8, warmup=3900, crop=0.5)

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        self.seed, self.whole = seed, False
        need_patches(clip)

    def phase(self, step: int, steps: int) -> Phase:
        self.whole = step >= round((1 - self.config.finish) * steps)
        return Phase()

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        if self.whole:
            return super().embed(clip, batch)
        with random_patches(clip, self.config.keep, self.seed, batch):
            return super().embed(clip, batch)
