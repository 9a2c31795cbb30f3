"""What a probe is given: labelled pictures with what is known of each, and any pictures at all."""

import hashlib
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.data.pictures import EXTENSIONS, open_picture
from diptych.data.read import TABLES, read_records
from diptych.data.records import Record, Records
from diptych.data.scan import scan
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.data.tables import open_table
from diptych.data.task import make_task
from diptych.errors import DiptychError, nearest

TURNED = 45.0  # degrees from upright, beyond which a thing counts as turned
SEEN = 0.8  # share of a thing that is seen, below which the view counts as partial
FIFTH = 0.2  # of the pictures, at both ends of what is measured of them
TRIAL = SceneSpec(counts=(1,), textures=("solid", "striped", "dotted", "checked"), turn=60.0)


@dataclass(frozen=True)
class Pictures:
    """Pictures without classes; digests: record id -> SHA-256 of the bytes."""

    records: Records
    digests: dict[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """Labelled pictures that models are judged on.

    labels: places in `classes`; names: the words for each class. factors: record id -> what is special about the
    picture, such as "pose"; {} where nothing is known. textures: record id -> the class of its texture, where pictures
    have the shape of one class and the texture of another. scenes: record id -> the drawn scene that it is.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    records: Records
    labels: tuple[int, ...]
    digests: dict[str, str]
    templates: tuple[str, ...] | None = None
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    textures: Mapping[str, str] = field(default_factory=dict)
    scenes: Mapping[str, SceneRecord] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def some(self, rows: Sequence[int]) -> "Data":
        return replace(self, records=self.records[rows], labels=tuple(self.labels[i] for i in rows))

    def order(self) -> list[int]:
        """Rows in an order that only the pictures' bytes decide."""
        return sorted(range(len(self)), key=lambda i: self.digests[self.records[i].id])

    def at_most(self, count: int) -> "Data":
        """A chance choice that is the same every time."""
        return self.some(sorted(self.order()[:count]))

    def halves(self) -> "tuple[Data, Data]":
        """For choosing and for judging, alike in classes; copies of one picture are on one side."""
        seen: dict[str, int] = {}
        sides: tuple[list[int], list[int]] = ([], [])
        count = [0] * len(self.classes)
        for i in self.order():
            digest = self.digests[self.records[i].id]
            side = seen.setdefault(digest, count[self.labels[i]] % 2)
            sides[side].append(i)
            count[self.labels[i]] += 1
        return self.some(sorted(sides[0])), self.some(sorted(sides[1]))

    def tags(self) -> list[tuple[str, ...]]:
        return [tuple(self.factors.get(record.id, ())) for record in self.records]

    @property
    def hash(self) -> str:
        """Of all that a figure depends on: pictures, labels, words, and what is known of each."""
        known = (self.factors, self.textures)
        rows = sorted(f"{self.digests[r.id]} {r.label} {[k.get(r.id) for k in known]}" for r in self.records)
        return hashlib.sha256("\n".join([*rows, *self.names, *(self.templates or ())]).encode()).hexdigest()


# -- from what a user has ----------------------------------------------------------------------------------------------


def open_data(
    source: str | Path | Records | Scenes | Data,
    *,
    names: str | Path | None = None,
    templates: str | Path | Sequence[str] | None = None,
    factors: Sequence[str] = (),
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
) -> Data:
    """Labelled pictures: the test split of a folder, table or dataset folder (`diptych.task`), "scenes:500", or drawn
    scenes by their shape.

    factors: columns of a table; a cell says what is special about its picture (words, parted by ";"), or yes or no to
    the column's own name. Raises DiptychError for what cannot be judged on.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, Scenes):
        return scene_data(source)
    if found := re.fullmatch(r"scenes:(\d+)", str(source)):
        return scene_data(Scenes(TRIAL, int(found[1]), 1))
    task = make_task(
        source, names=names, templates=templates, image_column=image, label_column=label, split_column=split
    )
    return Data(
        classes=task.classes,
        names=task.names,
        records=task.test,
        labels=tuple(task.labels(task.test)),
        digests=task.digests,
        templates=task.templates,
        factors=factors_of_table(source, factors),
        warnings=(*task.warnings, *(f"{one.id} was set aside: {one.reason}" for one in task.set_aside)),
    )


def open_like(
    source: str | Path | Records | Data, main: Data, *, factors: Sequence[str] = (), texture: bool = False
) -> Data:
    """All labelled pictures of another source with classes of `main`. texture: a table with a column "texture", which
    names the class of each picture's texture."""
    if isinstance(source, Data):
        if source.classes != main.classes:
            raise DiptychError(f"{source.records.source} has other classes than {main.records.source}")
        return source
    records = source if isinstance(source, Records) else read_records(source)
    records, scanned, aside = scan(records.filter(lambda r: r.label is not None))
    unknown = [label for label in records.labels if label not in main.classes]
    if unknown or not len(records):
        what = f'has the class "{unknown[0]}"{nearest(unknown[0], main.classes)}' if unknown else "has no pictures"
        raise DiptychError(f"{source} {what}; it should show classes of {main.records.source}")
    textures: dict[str, str] = {}
    if texture:
        textures = {row: words[0] for row, words in factors_of_table(source, ["texture"]).items() if words}
        if wrong := sorted({*textures.values()} - {*main.classes}):
            raise DiptychError(f'{source}: the texture "{wrong[0]}" is no class{nearest(wrong[0], main.classes)}')
    place = {name: i for i, name in enumerate(main.classes)}
    return replace(
        main,
        records=records,
        labels=tuple(place[str(r.label)] for r in records),
        digests={r.id: scanned[r.id].digest for r in records},
        factors=factors_of_table(source, factors),
        textures=textures,
        scenes={},
        warnings=tuple(f"{one.id} was set aside: {one.reason}" for one in aside),
    )


def open_pictures(source: str | Path | Records | Scenes | Data | Pictures) -> Pictures:
    """Every picture of a folder and the folders in it, of a table, or of records; labels are kept where there are
    some. Raises DiptychError where there is none."""
    if isinstance(source, Pictures):
        return source
    if isinstance(source, Data):
        return Pictures(source.records, source.digests)
    if isinstance(source, Scenes):
        records = source.records()
    elif isinstance(source, Records):
        records = source
    elif Path(source).expanduser().is_dir():
        records = Records(tuple(_below(Path(source).expanduser())), str(source))
    else:
        records = read_records(source)
    if not len(records):
        raise DiptychError(f"no pictures in {source}")
    records, scanned, aside = scan(records)
    if not len(records):
        raise DiptychError(f"{source}: no picture can be read; the first, {aside[0].id}: {aside[0].reason}")
    warnings = tuple(f"{one.id} was set aside: {one.reason}" for one in aside)
    return Pictures(records, {r.id: scanned[r.id].digest for r in records}, warnings)


def _below(root: Path) -> list[Record]:
    found = []
    for at, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                path = Path(at, name)
                inside = path.parent != root
                found.append(Record(str(path.relative_to(root)), path, path.parent.name if inside else None))
    return found


def factors_of_table(source: Any, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Record id ("row 17") -> the words of these columns. Raises DiptychError for a column that is not there."""
    if not columns:
        return {}
    path = Path(str(source)).expanduser()
    if path.suffix.lower() not in TABLES or not path.is_file():
        raise DiptychError(f"{source} is no table: factors are columns of a table ({', '.join(TABLES)})")
    table = open_table(path)
    found: dict[str, list[str]] = {}
    for column in columns:
        if column not in table.names:
            raise DiptychError(f'{path} has no column "{column}"{nearest(column, table.names)}')
        for row, cell in enumerate(table.column(column), 1):
            found.setdefault(f"row {row}", []).extend(_words(cell, column))
    return {row: tuple(words) for row, words in found.items()}


def _words(cell: Any, column: str) -> list[str]:
    text = "" if cell is None else str(cell).strip()
    if text.lower() in ("yes", "true", "1", "1.0"):
        return [column]
    if text.lower() in ("", "no", "false", "0", "0.0", "none", "nan"):
        return []
    return [word.strip() for word in text.split(";") if word.strip()]


# -- drawn scenes ------------------------------------------------------------------------------------------------------


def scene_data(scenes: Scenes, label: str = "shape", names: Mapping[str, str] | None = None) -> Data:
    """Drawn scenes by the main thing's shape (or "colour", "texture", "class"), with their factors and all that is
    known of them. names: the word for a class, where it is another."""
    records = scenes.records(label)
    records, scanned, _ = scan(records)
    known = {record.id: record for record in scenes}
    place = {name: i for i, name in enumerate(records.labels)}
    return Data(
        classes=records.labels,
        names=tuple((names or {}).get(word, word) for word in records.labels),
        records=records,
        labels=tuple(place[str(r.label)] for r in records),
        digests={r.id: scanned[r.id].digest for r in records},
        factors={r.id: scene_factors(known[r.id]) for r in records},
        scenes=known,
    )


def scene_factors(record: SceneRecord) -> tuple[str, ...]:
    """What is special about a scene's main thing, in the words of ImageNet-X where it has one."""
    labels, spec, scene = record.labels, record.spec, record.scene
    if not scene.kinds:
        return ()
    main = scene.things.index(scene.kinds[0])
    thing, drawing = scene.things[main], record.drawing
    whole = math.pi * 1e-9 + float(drawing.whole_masks[main].sum())
    out = max(thing.radius - min(thing.x, thing.y, 1 - thing.x, 1 - thing.y), 0) > 0.5 * thing.radius
    found = {
        "pose": abs(math.degrees(thing.turn)) > TURNED,
        "texture": thing.texture != "solid",
        "smaller": thing.size == "small",
        "larger": thing.size == "large",
        "partial view": out or float(drawing.masks[main].sum()) < SEEN * whole,
        "multiple objects": len(scene.things) > 1,
        "background": spec.background_link > 0 and not labels["usual_background"],
        "colour": spec.colour_link > 0 and not labels["usual_colour"],
        "style": scene.style != "filled",
    }
    return tuple(name for name, holds in found.items() if holds)


def depth_of(data: Data, record: Record) -> NDArray[np.float32]:
    return replace(data.scenes[record.id]).drawing.depth


# -- measured of the pictures themselves -------------------------------------------------------------------------------


def measured_factors(data: Data) -> dict[str, tuple[str, ...]]:
    """What can be told of any picture: the fifth that is darkest, brightest, ... of these. {} below 25 pictures."""
    if len(data) < 5 / FIFTH:
        return {}
    rows = np.array([_look(record) for record in data.records])
    words = (("dark", "bright"), ("low contrast", "high contrast"), ("grey", "vivid"), ("blurred", "detailed"),
             ("few pixels", "many pixels"), ("tall", "wide"))  # fmt: skip
    found: dict[str, list[str]] = {record.id: [] for record in data.records}
    for column, pair in enumerate(words):
        values = rows[:, column]
        low, high = np.quantile(values, (FIFTH, 1 - FIFTH))
        if values.max() - values.min() < 1e-6 or low == high:
            continue
        for record, value in zip(data.records, values, strict=True):
            found[record.id] += [pair[0]] * bool(value <= low) + [pair[1]] * bool(value >= high)
    return {one: tuple(tags) for one, tags in found.items()}


def _look(record: Record) -> list[float]:
    """Brightness, contrast, colourfulness, detail, pixels, width over height."""
    image = open_picture(record)
    width, height = image.size
    image.thumbnail((128, 128))
    pixels = np.asarray(image, np.float32) / 255
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    edges = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    spread = (pixels.max(2) - pixels.min(2)).mean()
    return [grey.mean(), grey.std(), spread, edges / (grey.std() + 0.05), math.log(width * height), width / height]


def noise_pictures(count: int, seed: int) -> Pictures:
    """Pictures of nothing: coloured noise, from fine to coarse."""

    def read(number: int) -> bytes:
        rng = np.random.default_rng([seed, number])
        size = int(rng.choice([4, 16, 64]))
        image = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
        out = io.BytesIO()
        image.resize((64, 64), Image.Resampling.NEAREST).save(out, "BMP")
        return out.getvalue()

    records = Records(tuple(Record(f"noise {i}", None, None, read=partial(read, i)) for i in range(count)), "noise")
    digests = {r.id: hashlib.sha256(f"noise {seed} {r.id}".encode()).hexdigest() for r in records}
    return Pictures(records, digests)
