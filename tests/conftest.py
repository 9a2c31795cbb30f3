"""Every test: a cache of this session alone; one thread, as a process that forks must; real pictures if there are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and numpy are imported


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("diptych-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real pictures: pacs/photo/<class>, pacs/sketch/<class>, cifar10/train/<class>, ..."""
    folder = os.environ.get("DIPTYCH_TEST_DATA")
    if not folder:
        pytest.skip("DIPTYCH_TEST_DATA is not set: no real pictures to test on")
    return Path(folder)
