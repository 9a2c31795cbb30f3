"""A scene as a picture, with the masks, boxes and depth of what is in it.

Outlines are drawn at four times the size and averaged, each in its own small window.
"""

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from diptych.data.scenes.scene import FAR, Scene, Thing
from diptych.data.scenes.spec import COLOURS, SHAPES
from diptych.errors import DiptychError

Pixels = NDArray[np.uint8]  # [H, W, 3]

RGB = {
    "red": (214, 40, 40),
    "orange": (245, 130, 20),
    "yellow": (248, 220, 20),
    "green": (35, 150, 60),
    "turquoise": (20, 190, 185),
    "blue": (35, 75, 215),
    "purple": (125, 40, 170),
    "pink": (250, 120, 190),
    "brown": (115, 65, 30),
    "black": (22, 22, 22),
}
GROUND = {  # the mean of each background, pale enough for every colour to stand out
    "paper": (246, 244, 236),
    "snow": (226, 234, 244),
    "sand": (226, 208, 168),
    "grass": (170, 203, 152),
    "water": (154, 188, 218),
    "brick": (204, 158, 142),
    "wood": (192, 162, 124),
    "stone": (168, 168, 174),
}
LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)
FINE = 4  # supersampling
PALE = 0.6  # share of white in the second colour of a texture
INK = 0.02  # width of a sketch's line, as a share of the side


@dataclass(frozen=True)
class Drawing:
    """picture [H, W, 3] uint8; owner [H, W] int16: the number of the thing seen at each pixel, -1 for none.

    cover [N, H, W] uint8: how much of each pixel the thing would fill were nothing before it; depth [H, W] float32.
    """

    picture: Pixels
    owner: NDArray[np.int16]
    cover: NDArray[np.uint8]
    scene: Scene

    @property
    def masks(self) -> NDArray[np.bool_]:
        """What is seen of each thing [N, H, W]; no two overlap."""
        return self.owner == np.arange(len(self.scene.things))[:, None, None]

    @property
    def whole_masks(self) -> NDArray[np.bool_]:
        """Each thing with what is hidden of it [N, H, W]."""
        return self.cover >= 128

    @property
    def boxes(self) -> NDArray[np.int64]:
        """[N, 4] x0, y0, x1, y1 in pixels around what is seen; x1 and y1 lie just outside. Zeros where nothing is."""
        found = np.zeros((len(self.scene.things), 4), np.int64)
        for i, mask in enumerate(self.masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if len(rows):
                found[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return found

    @property
    def depth(self) -> NDArray[np.float32]:
        """[H, W], from 1 (front) to FAR (background)."""
        return np.array([thing.depth for thing in self.scene.things] + [FAR], np.float32)[self.owner]

    def semantic(self, by: str = "class") -> NDArray[np.int64]:
        """[H, W]: 0 for the background, else 1 + the number of what is there in SHAPES, COLOURS or `class_names()`."""
        numbers = [class_number(thing, by) + 1 for thing in self.scene.things]
        return np.array([*numbers, 0], np.int64)[self.owner]


def class_names() -> tuple[str, ...]:
    """ "red circle", "orange circle", ...: shapes one after another, each in all colours."""
    return tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)


def class_number(thing: Thing, by: str = "class") -> int:
    shape, colour = SHAPES.index(thing.shape), COLOURS.index(thing.colour)
    numbers = {"shape": shape, "colour": colour, "class": shape * len(COLOURS) + colour}
    if by not in numbers:
        raise DiptychError(f'scenes: no classes by "{by}"; valid: {", ".join(numbers)}')
    return numbers[by]


def draw(scene: Scene, side: int) -> Drawing:
    """The picture of a scene, side x side pixels: the same bytes every time."""
    rng = Random(scene.grain)
    sketch = scene.style == "sketch"
    canvas = _ground(scene.background, side, rng)
    if sketch:
        canvas = 255 - (255 - canvas) * np.float32(0.4)
    owner = np.full((side, side), -1, np.int16)
    cover = np.zeros((len(scene.things), side, side), np.uint8)
    for i, thing in enumerate(scene.things):
        window, alpha = _rasterise(thing, side)
        ink = _ink(thing, window, side, sketch)
        if sketch:
            line = _rasterise(thing, side, outline=True)[1][..., None] / np.float32(255)
            ink = ink * (1 - line) + np.asarray(RGB[thing.colour], np.float32) * line
        part = canvas[window]
        part += (ink - part) * (alpha[..., None] / np.float32(255))
        cover[i][window] = alpha
        owner[window][alpha >= 128] = i
    return Drawing(_styled(canvas, scene), owner, cover, scene)


def _rasterise(thing: Thing, side: int, outline: bool = False) -> tuple[tuple[slice, slice], Pixels]:
    """The window that holds a thing, and how much of each of its pixels is filled [h, w], 0 to 255."""
    reach = thing.radius * side + 1
    x0, y0 = (max(0, min(side - 1, int(at * side - reach))) for at in (thing.x, thing.y))
    x1, y1 = (max(1, min(side, int(at * side + reach) + 1)) for at in (thing.x, thing.y))
    big = Image.new("L", ((x1 - x0) * FINE, (y1 - y0) * FINE))
    pen = ImageDraw.Draw(big)
    for number, ring in enumerate(thing.rings):
        points = ((ring * side - [x0, y0]) * FINE - 0.5).ravel().tolist()
        if outline:
            pen.line(points + points[:4], fill=255, width=max(FINE, round(2 * INK * side * FINE)), joint="curve")
        else:
            pen.polygon(points, fill=0 if number else 255)
    return (slice(y0, y1), slice(x0, x1)), np.asarray(big.reduce(FINE))


def _ink(thing: Thing, window: tuple[slice, slice], side: int, sketch: bool) -> NDArray[np.float32]:
    """The colours of a thing's inside: [3], or [h, w, 3] where it has a texture."""
    strong = np.asarray(RGB[thing.colour], np.float32)
    pale = np.full(3, 252, np.float32) if sketch else np.asarray(strong + (255 - strong) * PALE, np.float32)
    if thing.texture == "solid":
        return pale if sketch else strong
    rows = np.arange(window[0].start, window[0].stop)[:, None] + 0.5 - thing.y * side
    columns = np.arange(window[1].start, window[1].stop) + 0.5 - thing.x * side
    period = max(4.0, side / 11)
    c, s = np.cos(thing.turn), np.sin(thing.turn)
    u, v = (columns * c + rows * s) / period, (rows * c - columns * s) / period
    match thing.texture:
        case "striped":
            on = (u + v) % 1 < 0.5
        case "dotted":
            on = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 > 0.12
        case _:
            on = (u % 1 < 0.5) == (v % 1 < 0.5)
    return np.where(on[..., None], strong, pale)


def _styled(canvas: NDArray[np.float32], scene: Scene) -> Pixels:
    """The canvas [H, W, 3] as a picture in the scene's style."""
    side, strength = len(canvas), scene.strength
    if scene.gain != 1:
        canvas = canvas * np.float32(scene.gain)
    if scene.style == "noisy":
        rng = np.random.default_rng(scene.grain)
        canvas = canvas + (35 * strength * rng.standard_normal(canvas.shape)).astype(np.float32)
    elif scene.style == "inverted":
        canvas = 255 - canvas
    elif scene.style == "dark":
        canvas = canvas * np.float32(0.4**strength)
    elif scene.style == "grey":
        canvas = np.repeat(canvas @ LUMA, 3, 2).astype(np.float32)
    picture = (np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)
    if scene.style == "blurred":
        blur = ImageFilter.GaussianBlur(side / 64 * 1.5 * strength)
        return np.asarray(Image.fromarray(picture).filter(blur))
    if scene.style == "pixelated":
        few = max(8, round(side / (1 + 2 * strength)))
        small = Image.fromarray(picture).resize((few, few), Image.Resampling.BOX)
        return np.asarray(small.resize((side, side), Image.Resampling.NEAREST))
    return picture


def _ground(name: str, side: int, rng: Random) -> NDArray[np.float32]:
    """A window of the background's tile, at a place and brightness of its own."""
    tile = _tile(name, side)
    y, x = rng.randrange(side), rng.randrange(side)
    return tile[y : y + side, x : x + side] * np.float32(rng.uniform(0.97, 1.02))


@cache
def _tile(name: str, side: int) -> NDArray[np.float32]:
    """[2 side, 2 side, 3]: the background's pattern around its mean colour."""
    rng = np.random.default_rng([41, list(GROUND).index(name)])
    y, x = np.mgrid[: 2 * side, : 2 * side].astype(np.float32) / side * 64  # as if 64 pixels wide
    grain = rng.standard_normal((2 * side, 2 * side)).astype(np.float32)
    slow = _smooth(rng.standard_normal((18, 18)), 2 * side)
    match name:
        case "paper":
            light = 1.5 * grain
        case "snow":
            light = 3 * slow + 14 * (_smooth(grain[:64, :64], 2 * side) > 1.9)
        case "sand":
            light = 7 * grain + 3 * np.sin(y / 3 + 2 * slow)
        case "grass":
            light = 10 * _smooth(rng.standard_normal((16, 128)), 2 * side) + 4 * grain
        case "water":
            light = 10 * np.sin(y * 0.7 + 1.5 * np.sin(x * 0.25) + slow)
        case "brick":
            row = np.floor(y / 6)
            joint = (y % 6 < 1) | ((x + 6 * (row % 2)) % 12 < 1)
            light = 30 * joint - 4 + 2 * grain
        case "wood":
            light = 9 * np.sin(x * 0.8 + 2.5 * _smooth(rng.standard_normal((5, 12)), 2 * side))
        case _:
            light = 9 * slow + 3 * grain
    return np.asarray(GROUND[name], np.float32) + light[..., None].astype(np.float32)


def _smooth(values: NDArray[np.floating], side: int) -> NDArray[np.float32]:
    """[h, w] -> [side, side], in between by bicubic interpolation."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
