"""A small random open_clip model with transformer towers, and shots of drawings."""

import os

import pytest
import torch
from adapt_world import NAMES, SIDE, Drawings, records_of, shots_of

from diptych.core.clip import CLIP
from diptych.core.preprocess import Preprocess
from diptych.data.records import Records
from diptych.data.support import Support

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def clip() -> CLIP:
    """Width 32, 2 blocks a tower, joint size 24; random weights."""
    import open_clip

    from diptych.core.build import build_open_clip, clip_of_open_clip, tokenizer_of_open_clip

    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIDE},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = build_open_clip(cfg, "here").eval()
    tokenizer = tokenizer_of_open_clip(open_clip.SimpleTokenizer(context_length=40), 40)
    look = Preprocess(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return clip_of_open_clip(model, cfg, tokenizer, look, name="tiny", source="tiny")


@pytest.fixture(scope="session")
def drawings() -> Drawings:
    return Drawings()


@pytest.fixture(scope="session")
def support(drawings: Drawings) -> Support:
    """Three shots of four classes, and a pool of the same classes without labels."""
    return shots_of(drawings, 3)


@pytest.fixture(scope="session")
def queries() -> Records:
    """Pictures that no shot is."""
    return records_of(NAMES, 6, first=1000)
