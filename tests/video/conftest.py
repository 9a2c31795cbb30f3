"""A small random open_clip model with transformer towers, as in tests/adapt, and shots of drawn clips."""

from dataclasses import replace

import pytest
from adapt.conftest import clip as clip  # the same fixture
from adapt_world import NAMES, records_of
from video_world import DrawnClips, clips_of

from diptych.data.records import Records
from diptych.data.support import Support


@pytest.fixture(scope="session")
def drawings() -> DrawnClips:
    return DrawnClips()


@pytest.fixture(scope="session")
def support(drawings: DrawnClips) -> Support:
    """Three clips of each of four classes, and a pool of the same classes without labels."""
    return replace(clips_of(drawings, 3), unlabelled=records_of(NAMES, 6, first=200, labelled=False))


@pytest.fixture(scope="session")
def queries() -> Records:
    return records_of(NAMES, 6, first=300)
