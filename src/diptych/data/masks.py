"""Masks as COCO writes them, polygons and run lengths, to pixels: bit for bit what COCO's own tools give.

The rules are those of COCO's mask API: https://github.com/cocodataset/cocoapi, common/maskApi.c.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError

FINE = 5  # steps a pixel in which the outline is followed


def check_shape(segmentation: Any, height: int, width: int, at: str) -> None:
    """Raise DiptychError, opening with `at`, for what is neither polygons nor run lengths of this size."""
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise DiptychError(f"{at}: segmentation: a polygon is a list x, y, x, y, ... of 3 or more points")
            try:
                points = np.asarray(polygon, np.float64)
            except (TypeError, ValueError) as error:
                raise DiptychError(f"{at}: segmentation: a polygon holds what is no number") from error
            side = max(height, width)
            if points.ndim != 1 or not bool((np.isfinite(points) & (points >= -side) & (points <= 2 * side)).all()):
                raise DiptychError(f"{at}: segmentation: a polygon lies far outside its {width} x {height} pixels")
    elif isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size != [height, width]:
            raise DiptychError(f"{at}: segmentation.size is {size!r}; its image has [{height}, {width}]")
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            counts = _unpack(counts, at)
        whole = isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts)
        if not whole or sum(counts) != height * width:  # type: ignore[arg-type]
            raise DiptychError(f"{at}: segmentation.counts must be lengths that add up to {height * width} pixels")
    else:
        raise DiptychError(f"{at}: segmentation must be a list of polygons, or run lengths with size and counts")


def decode_mask(segmentation: Any, height: int, width: int, at: str = "mask") -> NDArray[np.bool_]:
    """Polygons or run lengths, which `check_shape` has passed -> [height, width] bool."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        lengths = np.asarray(_unpack(counts, at) if isinstance(counts, str) else counts)
        return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= fill(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
    return mask


def _unpack(text: str, at: str) -> list[int]:
    """Run lengths from COCO's text: 5 bits a character from "0" on, the lowest first, a sixth where more follow; from
    the fourth on, the difference from the one two before."""
    lengths: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > 40:
            raise DiptychError(f"{at}: segmentation.counts is no text of COCO's run lengths")
        value |= (code & 31) << bits
        bits += 5
        if not code & 32:
            if code & 16:
                value -= 1 << bits
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = bits = 0
    if bits:
        raise DiptychError(f"{at}: segmentation.counts ends in the middle of a number")
    return lengths


def fill(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """The inside of one polygon [P, 2] (x, y; the pixel at the corner from 0 to 1) -> [height, width] bool.

    The outline is followed in steps of 1/FINE pixels; where it passes the middle of a column of pixels, the column
    changes between outside and inside from the next row on.
    """
    corners = np.trunc(FINE * points + 0.5).astype(np.int64)
    walk = np.concatenate([_line(a, b) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)])
    before, after = walk[:-1], walk[1:]
    moved = before[:, 0] != after[:, 0]
    before, after = before[moved], after[moved]
    column, rest = np.divmod(np.minimum(before[:, 0], after[:, 0]) - FINE // 2, FINE)
    hit = (rest == 0) & (column >= 0) & (column < width)
    row = (np.minimum(before[:, 1], after[:, 1]) + 0.5) / FINE - 0.5
    row = np.ceil(row.clip(0, height)).astype(np.int64)
    changes = np.bincount((column * height + row)[hit], minlength=height * width + 1)
    return (changes.cumsum()[: height * width] % 2 == 1).reshape(width, height).T


def _line(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """The whole points [S, 2] from a to b, one a step along the longer side, from the same rounding both ways."""
    long = int(abs(b[1] - a[1]) > abs(b[0] - a[0]))  # 0: x, 1: y
    low, high = (a, b) if a[long] <= b[long] else (b, a)
    steps = np.arange(high[long] - low[long] + 1)
    slope = (high[1 - long] - low[1 - long]) / max(len(steps) - 1, 1)
    line = np.empty((len(steps), 2), np.int64)
    line[:, long] = low[long] + steps
    line[:, 1 - long] = np.trunc(low[1 - long] + slope * steps + 0.5)
    return line if low is a else line[::-1]
