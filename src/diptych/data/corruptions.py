"""Pictures as they may come in the world: noise, blur, fog, a moved camera. Pure, seeded, of severity 1 to 5.

    changed = change(image, "fog", 3, seed=0)
    changed = change(image, "fog", 3, seed=0, depth=depth)      # [H, W], larger is farther

COMMON are of the kinds of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), DEEP of those of 3D Common
Corruptions (Kar et al. 2022, arXiv 2203.01441), which need the depth of each pixel; without one the scene is a flat
wall, and what depends on depth becomes the same everywhere. Strengths are our own, on pixels of a picture whose shorter
side is SIDE or less; radii and shifts grow with the picture.
"""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.data.pictures import open_picture
from diptych.data.records import Record, Records
from diptych.errors import DiptychError, nearest

Pixels = NDArray[np.floating[Any]]  # [H, W, 3] in 0..1
Depth = NDArray[np.float32]  # [H, W], above 0, larger is farther
Change = Callable[[Pixels, Depth, int, np.random.Generator], Pixels]
SEVERITIES = (1, 2, 3, 4, 5)
SIDE = (
    256  # pictures with a longer short side are made smaller first: a blur of so many pixels is then the same for all
)
VERSION = 1  # of the arithmetic: another one is another picture
AIR = np.array([0.86, 0.88, 0.92], np.float32)  # the colour of fog
FLAT = 1.0  # depth of a picture of which none is known


def change(image: Image.Image, kind: str, severity: int, *, seed: int = 0, depth: Depth | None = None) -> Image.Image:
    """One changed picture of the same size. Raises DiptychError for an unknown kind, severity or a depth that does not
    fit."""
    if kind not in CHANGES:
        raise DiptychError(f'no change of pictures "{kind}"{nearest(kind, list(CHANGES))}')
    if severity not in SEVERITIES:
        raise DiptychError(f"severity is {severity}; it is a whole number from 1 to 5")
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    if depth is None:
        depth = np.full(pixels.shape[:2], FLAT, np.float32)
    if depth.shape != pixels.shape[:2] or not (depth > 0).all():
        raise DiptychError(f"depth [H, W] is {depth.shape} for a picture of {pixels.shape[:2]}; all of it is above 0")
    rng = np.random.default_rng([seed, severity, *kind.encode()])
    changed = CHANGES[kind](pixels, depth.astype(np.float32), severity - 1, rng)
    return Image.fromarray(np.round(changed.clip(0, 1) * 255).astype(np.uint8))


def changed_records(
    records: Records,
    digests: dict[str, str],
    kind: str,
    severity: int,
    *,
    seed: int = 0,
    depth: Callable[[Record], Depth | None] | None = None,
) -> tuple[Records, dict[str, str]]:
    """The same records with changed pictures, made when they are read, and digests that tell them from the plain ones.

    A picture's noise is a function of its bytes and `seed`, so that features of it can be kept.
    """
    salt = f"{kind} {severity} {seed} {VERSION} {'depth' if depth else ''}"
    made = {r.id: hashlib.sha256(f"{digests[r.id]} {salt}".encode()).hexdigest() for r in records}

    def read(record: Record) -> bytes:
        image = open_picture(record)
        own = depth(record) if depth else None
        scale = SIDE / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
            own = None if own is None else resized(own, image.size)
        out = io.BytesIO()
        change(image, kind, severity, seed=int(made[record.id][:8], 16), depth=own).save(out, "BMP")
        return out.getvalue()

    items = tuple(Record(r.id, None, r.label, r.split, r.group, read=partial(read, r)) for r in records)
    return Records(items, records.source), made


def resized(depth: Depth, size: tuple[int, int]) -> Depth:
    """A depth map at another (width, height), each pixel the nearest's: depths of two things are not mixed."""
    return np.asarray(Image.fromarray(depth).resize(size, Image.Resampling.NEAREST))


# -- what they share ---------------------------------------------------------------------------------------------------


def unit(pixels: Pixels) -> float:
    """A two-hundredth of the shorter side: radii and shifts are in it."""
    return min(pixels.shape[:2]) / 200


def bell(radius: float) -> NDArray[np.float32]:
    reach = int(np.ceil(3 * radius))
    x = np.arange(-reach, reach + 1) / max(radius, 1e-6)
    weights = np.exp(-x * x / 2).astype(np.float32)
    return weights / weights.sum()


def along(pixels: Pixels, weights: NDArray[np.float32], axis: int) -> Pixels:
    """A one-dimensional filter, borders repeated."""
    reach = len(weights) // 2
    pad = [(0, 0)] * pixels.ndim
    pad[axis] = (reach, reach)
    padded, size = np.pad(pixels, pad, mode="edge"), pixels.shape[axis]
    parts = (w * padded.take(range(i, i + size), axis) for i, w in enumerate(weights))
    return np.stack([*parts]).sum(0)


def blurred(pixels: Pixels, radius: float) -> Pixels:
    return along(along(pixels, bell(radius), 0), bell(radius), 1) if radius > 0 else pixels


def moved(pixels: Pixels, x: NDArray[np.float32] | float, y: NDArray[np.float32] | float) -> Pixels:
    """Each pixel [H, W] looked up so far right and down of it, between four neighbours; borders repeated."""
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    rows, columns = (rows + y).clip(0, height - 1), (columns + x).clip(0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    upper = pixels[top, left] * (1 - across) + pixels[top, right] * across
    lower = pixels[below, left] * (1 - across) + pixels[below, right] * across
    return (upper * (1 - down) + lower * down).astype(np.float32)


def stepped(pixels: Pixels, share: NDArray[np.float32], most: float, levels: int = 5) -> Pixels:
    """Blurred by `share` [H, W] (0 to 1) of a radius, between pictures blurred by equal steps of it."""
    stack = np.stack([blurred(pixels, most * i / (levels - 1)) for i in range(levels)])  # [L, H, W, 3]
    at = share.clip(0, 1) * (levels - 1)
    low = np.minimum(at.astype(int), levels - 2)
    rows, columns = np.mgrid[: at.shape[0], : at.shape[1]]
    part = (at - low)[..., None]
    return stack[low, rows, columns] * (1 - part) + stack[low + 1, rows, columns] * part


# -- the common ones ---------------------------------------------------------------------------------------------------


def gaussian_noise(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    return pixels + (0.05, 0.09, 0.14, 0.2, 0.3)[level] * rng.standard_normal(pixels.shape, np.float32)


def shot_noise(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    photons = (80, 40, 20, 10, 5)[level]
    return (rng.poisson(pixels * photons) / photons).astype(np.float32)


def impulse_noise(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    hit, value = rng.random(pixels.shape), rng.integers(0, 2, pixels.shape).astype(np.float32)
    return np.where(hit < (0.02, 0.05, 0.09, 0.15, 0.24)[level], value, pixels)


def gaussian_blur(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    return blurred(pixels, (0.8, 1.5, 2.4, 3.6, 5.0)[level] * unit(pixels))


def motion_blur(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    reach, angle = (4, 7, 11, 16, 22)[level] * unit(pixels), rng.uniform(0, np.pi)
    steps = np.linspace(-0.5, 0.5, 9) * reach
    return np.mean([moved(pixels, s * np.cos(angle), s * np.sin(angle)) for s in steps], axis=0)


def pixelate(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    share = (0.6, 0.45, 0.33, 0.25, 0.18)[level] * min(1.0, 0.5 / unit(pixels) + 0.5)
    image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    small = image.resize((max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST), np.float32) / 255


def jpeg(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    out = io.BytesIO()
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(out, "JPEG", quality=(40, 25, 15, 9, 5)[level])
    return np.asarray(Image.open(out).convert("RGB"), np.float32) / 255


def brightness(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    return pixels + (0.1, 0.2, 0.3, 0.4, 0.5)[level]


def darkness(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    return pixels * (0.75, 0.55, 0.38, 0.25, 0.15)[level]


def contrast(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    mean = pixels.mean((0, 1))
    return mean + (pixels - mean) * (0.6, 0.45, 0.3, 0.2, 0.1)[level]


def saturate(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey[..., None] + (pixels - grey[..., None]) * (0.6, 0.4, 0.2, 0.1, 0.0)[level]


# -- those that see depth ----------------------------------------------------------------------------------------------


def foggy(pixels: Pixels, depth: Depth, beta: float, air: NDArray[np.float32] = AIR) -> Pixels:
    """I e^(-beta d) + A (1 - e^(-beta d)); beta 0 gives the picture itself."""
    if beta == 0:
        return pixels
    clear = np.exp(-beta * depth)[..., None]
    return pixels * clear + air * (1 - clear)


def fog(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    return foggy(pixels, depth, (0.2, 0.4, 0.65, 0.95, 1.3)[level])


def focus(pixels: Pixels, depth: Depth, at: float, most: float) -> Pixels:
    """Blur whose radius grows with |1/d - 1/d of the focus|, `most` where that is largest in this picture's range."""
    apart = np.abs(1 / depth - 1 / at)
    widest = max(1 / depth.min() - 1 / depth.max(), 1e-6)
    return stepped(pixels, (apart / widest).astype(np.float32), most)


def near_focus(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    """The nearest is sharp. A flat picture lies behind it and blurs as a whole."""
    most = (1.2, 2.2, 3.4, 4.8, 6.5)[level] * unit(pixels)
    return blurred(pixels, most) if depth.min() == depth.max() else focus(pixels, depth, float(depth.min()), most)


def far_focus(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    """The farthest is sharp."""
    most = (1.2, 2.2, 3.4, 4.8, 6.5)[level] * unit(pixels)
    return blurred(pixels, most) if depth.min() == depth.max() else focus(pixels, depth, float(depth.max()), most)


def camera_motion(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    """The camera moves sideways while the shutter is open: near things smear more."""
    reach, angle = (5, 9, 14, 20, 27)[level] * unit(pixels), rng.uniform(0, 2 * np.pi)
    shift = reach * depth.min() / depth
    steps = np.linspace(-0.5, 0.5, 9, dtype=np.float32)
    return np.mean([moved(pixels, s * shift * np.cos(angle), s * shift * np.sin(angle)) for s in steps], axis=0)


def zoom_motion(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    """The camera moves forward while the shutter is open."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    reach = (0.04, 0.08, 0.13, 0.19, 0.26)[level] * depth.min() / depth
    steps = np.linspace(0, 1, 9, dtype=np.float32)
    return np.mean([moved(pixels, s * reach * (width / 2 - x), s * reach * (height / 2 - y)) for s in steps], axis=0)


def view_jitter(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    """The picture from a camera a little aside: near things shift more."""
    reach, angle = (4, 8, 13, 19, 26)[level] * unit(pixels), rng.uniform(0, 2 * np.pi)
    shift = reach * depth.min() / depth
    return moved(pixels, shift * np.cos(angle), shift * np.sin(angle))


def flash(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    """Light from the camera, which falls off with the square of the depth, in a dark room."""
    room = (0.7, 0.5, 0.35, 0.22, 0.12)[level]
    return pixels * (room + (1.4 - room) * np.square(depth.min() / depth))[..., None]


def low_light(pixels: Pixels, depth: Depth, level: int, rng: np.random.Generator) -> Pixels:
    """Few photons, and a reading noise as strong as the picture is dark."""
    light = (0.5, 0.3, 0.18, 0.1, 0.06)[level]
    photons = rng.poisson(pixels * light * 120) / 120
    return (photons + rng.normal(0, 0.015, pixels.shape)).astype(np.float32)


COMMON: dict[str, Change] = {
    f.__name__: f
    for f in (
        gaussian_noise, shot_noise, impulse_noise, gaussian_blur, motion_blur, pixelate, jpeg, brightness, darkness,
        contrast, saturate,
    )
}  # fmt: skip
DEEP: dict[str, Change] = {
    f.__name__: f for f in (fog, near_focus, far_focus, camera_motion, zoom_motion, view_jitter, flash, low_light)
}
CHANGES = COMMON | DEEP
