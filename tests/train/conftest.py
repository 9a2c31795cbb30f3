"""The tiny CLIP with fresh weights, its architecture as a file, and shards of pairs."""

import json
from pathlib import Path

import pytest
from pairs_world import write_shards
from train_world import CONFIG, make_clip

from diptych.core.clip import CLIP


@pytest.fixture
def clip() -> CLIP:
    return make_clip()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", 36)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    return str(tmp_path / "tiny.json")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
