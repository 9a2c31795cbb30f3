"""The tiny CLIP with fresh weights."""

import pytest
from train_world import make_clip

from diptych.core.clip import CLIP


@pytest.fixture
def clip() -> CLIP:
    return make_clip()
