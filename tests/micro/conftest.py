import pytest

from diptych.core.clip import CLIP
from diptych.core.load import load


@pytest.fixture(scope="session")
def clip() -> CLIP:
    return load("micro", "cpu")
