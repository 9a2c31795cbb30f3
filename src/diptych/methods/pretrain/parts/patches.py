"""Patch dropout: a picture tower sees some patches of each picture alone (Li et al., FLIP, arXiv 2212.00794)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.core.towers.blocks import only_patches
from diptych.methods.pretrain.parts.chance import chances
from diptych.methods.pretrain.parts.objective import Batch


@contextmanager
def random_patches(clip: CLIP, keep: float, seed: int, batch: Batch) -> Iterator[None]:
    """While it lasts, `keep` of the patches of each picture run, at least one; which, by (seed, step, pair) alone."""

    def kept(count: int) -> Tensor:
        """[B, K] numbers of the patches that are seen: the first of a random order."""
        return chances(seed, batch.step, batch.index, count).argsort(1)[:, : max(1, round(keep * count))]

    with only_patches(clip.image, kept):
        yield


def need_patches(clip: CLIP) -> None:
    """Raises Unsupported for a picture tower that cannot skip patches."""
    with only_patches(clip.image, lambda count: torch.arange(count)[None]):
        pass
