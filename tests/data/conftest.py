"""Pictures made on the spot: every one different, and deterministic."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIPTYCH_CACHE", str(folder))
    return folder


def scene(seed: int, side: int = 64) -> Image.Image:
    """A smooth random picture, as different from other seeds as photographs are from each other."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """photos({"cat": 3, "dog": 2}) -> a folder of class folders with that many pictures."""

    def make(classes: dict[str, int], below: str = "photos", seed: int = 0) -> Path:
        root = tmp_path / below
        for number, (name, count) in enumerate(classes.items()):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                scene(seed + 1000 * number + i).save(folder / f"{i}.png")
        return root

    return make


@pytest.fixture
def test_data() -> Path:
    folder = os.environ.get("DIPTYCH_TEST_DATA")
    if not folder:
        pytest.skip("DIPTYCH_TEST_DATA is not set: no real pictures to test on")
    return Path(folder)
