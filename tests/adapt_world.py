"""Drawn pictures that the features of a random tower can tell apart, as a `FeatureSource`."""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.data.records import Record, Records
from diptych.data.support import CROP, Support

SIDE = 32
LOOKS = {  # class -> colour and shape
    "apple": ((210, 40, 40), "ellipse"),
    "banana": ((230, 210, 50), "chord"),
    "broccoli": ((40, 150, 60), "pieslice"),
    "suitcase": ((50, 70, 200), "rectangle"),
    "carrot": ((240, 130, 30), "chord"),
    "bowl": ((240, 240, 240), "pieslice"),
}
NAMES, NEW_NAMES = ("apple", "banana", "broccoli", "suitcase"), ("carrot", "bowl")


def drawing(name: str, number: int) -> Image.Image:
    """One shape of a class's colour, size, place and ground at random; the same for the same number."""
    rng = np.random.default_rng([int(hashlib.sha256(name.encode()).hexdigest()[:8], 16), number])
    image = Image.fromarray(rng.integers(60, 200, (4, 4, 3), dtype=np.uint8)).resize((40, 40))
    colour, shape = LOOKS[name]
    colour = tuple(int(np.clip(c + rng.normal(0, 25), 0, 255)) for c in colour)
    left, top, size = rng.integers(0, 12), rng.integers(0, 12), rng.integers(20, 28)
    angles = {"start": 20, "end": 290} if shape in ("chord", "pieslice") else {}
    getattr(ImageDraw.Draw(image), shape)([left, top, left + size, top + size], fill=colour, **angles)
    return image


def records_of(names: Sequence[str], each: int, first: int = 0, labelled: bool = True) -> Records:
    items = [Record(f"{name}/{first + i}", None, name if labelled else None) for i in range(each) for name in names]
    return Records(tuple(items), "drawings")


class Drawings:
    """The `FeatureSource` of drawn pictures, kept in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, int, tuple[float, float]], Tensor] = {}

    def picture(self, record: Record) -> Image.Image:
        name, _, number = record.id.partition("/")
        return drawing(name, int(number))

    def view(self, clip: CLIP, record: Record, v: int, crop: tuple[float, float]) -> Tensor:
        if v < 0:
            return clip.preprocess(self.picture(record))
        seed = int(hashlib.sha256(record.id.encode()).hexdigest()[:8], 16)
        return clip.preprocess.view(self.picture(record), np.random.default_rng([seed, v]), crop)

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> Tensor:
        wanted = [(r, v) for r in records for v in (range(views) if views else [-1])]
        keys = [(clip.fingerprint, r.id, v, crop) for r, v in wanted]
        missing = {key: pair for key, pair in zip(keys, wanted, strict=True) if key not in self.kept}
        if missing:
            with torch.no_grad():
                rows = clip.encode_image(torch.stack([self.view(clip, r, v, crop) for r, v in missing.values()]))
            self.kept |= dict(zip(missing, F.normalize(rows, dim=-1), strict=True))
        found = torch.stack([self.kept[key] for key in keys])
        return found.reshape(len(records), views, -1) if views else found

    def texts(self, clip: CLIP, texts: Sequence[str]) -> Tensor:
        return clip.encode_text(texts)

    def pixels(
        self,
        clip: CLIP,
        records: Records,
        *,
        rng: np.random.Generator | None = None,
        crop: tuple[float, float] = CROP,
    ) -> Tensor:
        look = partial(clip.preprocess.view, rng=rng, scale=crop) if rng else clip.preprocess
        return torch.stack([look(self.picture(record)) for record in records])


def shots_of(source: Drawings, each: int, names: Sequence[str] = NAMES, seed: int = 0) -> Support:
    records = records_of(names, each)
    return Support(
        names=tuple(names),
        records=records,
        labels=torch.tensor([names.index(r.label) for r in records if r.label]),
        source=source,
        groups=tuple(range(len(records))),
        seed=seed,
        unlabelled=records_of(NAMES, 12, first=500, labelled=False),
    )
