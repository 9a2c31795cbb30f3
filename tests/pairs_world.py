"""Shards of drawings of two colours, with captions."""

import io
import tarfile
from pathlib import Path

from PIL import Image

SHADES = ("red", "green", "blue", "white", "black", "yellow")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (255, 255, 0))


def draw(number: int, side: int = 20) -> bytes:
    """A PNG of two halves, one colour each."""
    image = Image.new("RGB", (side, side), COLOURS[number % 6])
    image.paste(COLOURS[(number // 6) % 6], (0, 0, side // 2, side))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def caption(number: int) -> str:
    return f"{SHADES[(number // 6) % 6]} beside {SHADES[number % 6]}"


def write_shards(folder: Path, count: int, per_shard: int = 12) -> Path:
    """Shards of drawings, with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, per_shard):
        with tarfile.open(folder / f"{first // per_shard:05d}.tar", "w") as archive:
            for number in range(first, min(first + per_shard, count)):
                for end, data in (("png", draw(number)), ("txt", caption(number).encode())):
                    info = tarfile.TarInfo(f"{number:05d}.{end}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder
