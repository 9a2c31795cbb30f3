"""A tiny open_clip architecture with fresh weights, pairs of drawings, and open_clip's own model with equal weights."""

import os
from typing import Any

import pytest
import torch

from diptych.core.clip import CLIP

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIDE = 16
CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIDE},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def make_clip(seed: int = 0, config: dict[str, Any] = CONFIG) -> CLIP:
    """Width 32, 2 blocks a tower, joint size 24; fresh weights."""
    import open_clip

    from diptych.core.build import build_open_clip, clip_of_open_clip, tokenizer_of_open_clip
    from diptych.core.preprocess import Preprocess

    torch.manual_seed(seed)
    model = build_open_clip(config, "here")
    tokenizer = tokenizer_of_open_clip(open_clip.SimpleTokenizer(context_length=20), 20)
    look = Preprocess(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return clip_of_open_clip(model, config, tokenizer, look, name="tiny", source="tiny")


@pytest.fixture
def clip() -> CLIP:
    return make_clip()
