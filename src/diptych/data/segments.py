"""Pictures with their segments: a mask and a class for each thing, and what is not to be judged.

    index_folder("camvid/train", "camvid/trainannot", "camvid/classes.txt")    # a class number in each pixel
    coco_instances("instances_val2017.json", "val2017")                        # polygons and run lengths
    scene_segments(Scenes(SceneSpec(...), 1000, seed=0))                       # drawn, with exact masks

Files are read when a picture is asked for; a list of them is checked at once. Shapes: N segments, H x W pixels.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.data.masks import check_shape, decode_mask
from diptych.data.pictures import EXTENSIONS, MAX_PIXELS, BadPicture, open_picture
from diptych.data.scenes import SceneRecord, Scenes
from diptych.errors import DiptychError, nearest

Masks = NDArray[np.bool_]
NOT_TOLD = 255  # the number that marks pixels without a class in nearly every set of index pictures
IGNORE = "(ignore)"  # ends the line of a class that is not to be judged


def _no_masks() -> Masks:
    return np.zeros((0, 1, 1), bool)


def union(masks: Masks) -> Masks:
    """Where any mask is: [N, H, W] -> [H, W]."""
    return np.logical_or.reduce(masks, axis=0)


@dataclass(frozen=True)
class Segments:
    """What is in a picture. masks [N, H, W] bool, none of them empty; labels: N numbers into the set's names; ignored
    [H, W] bool: neither to learn from nor to judge, crowds included.

    crowds [M, H, W] bool with crowd_labels: regions of many things of one class, not told apart. What is in no mask and
    not ignored has none of the names.
    """

    masks: Masks
    labels: tuple[int, ...]
    ignored: Masks
    crowds: Masks = field(default_factory=_no_masks)
    crowd_labels: tuple[int, ...] = ()

    def owners(self) -> NDArray[np.int64]:
        """[H, W]: the number of the segment at each pixel, of the smallest where several overlap; -1 for none."""
        owner = np.full(self.ignored.shape, -1, np.int64)
        for i in sorted(range(len(self.masks)), key=lambda i: -int(self.masks[i].sum())):
            owner[self.masks[i]] = i
        owner[self.ignored] = -1
        return owner

    def semantic(self) -> NDArray[np.int64]:
        """[H, W]: the label at each pixel; -1 where it has none or is ignored."""
        return np.array([*self.labels, -1], np.int64)[self.owners()]


@dataclass(frozen=True)
class SegmentRecord:
    """One picture with its segments, read when they are asked for."""

    id: str
    picture: Callable[[], Image.Image]  # upright RGB
    segments: Callable[[], Segments]


@dataclass(frozen=True)
class SegmentRecords:
    """Pictures by number; names: the classes; things: whether a class is of countable things (else: stuff)."""

    items: tuple[SegmentRecord, ...]
    names: tuple[str, ...]
    things: tuple[bool, ...]
    source: str = ""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[SegmentRecord]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> SegmentRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "SegmentRecords": ...
    def __getitem__(self, index: int | slice) -> "SegmentRecord | SegmentRecords":
        return replace(self, items=self.items[index]) if isinstance(index, slice) else self.items[index]

    def without(self, names: Collection[str]) -> "SegmentRecords":
        """As if nobody had told of these classes: their names are gone, and their pixels are ignored."""
        for name in names:
            if name not in self.names:
                raise DiptychError(f'no class "{name}"{nearest(name, self.names)}')
        kept = [i for i, name in enumerate(self.names) if name not in names]
        items = (replace(record, segments=partial(_forget, record.segments, kept)) for record in self.items)
        return SegmentRecords(
            tuple(items), tuple(self.names[i] for i in kept), tuple(self.things[i] for i in kept), self.source
        )


def _forget(segments: Callable[[], Segments], kept: Sequence[int]) -> Segments:
    """Segments of the kept classes alone, numbered anew."""
    found, number = segments(), {label: i for i, label in enumerate(kept)}
    stay = [i for i, label in enumerate(found.labels) if label in number]
    gone = [i for i, label in enumerate(found.labels) if label not in number]
    crowds = [i for i, label in enumerate(found.crowd_labels) if label in number]
    hidden = union(found.masks[gone]) & ~union(found.masks[stay])
    return Segments(
        found.masks[stay],
        tuple(number[found.labels[i]] for i in stay),
        found.ignored | hidden,
        found.crowds[crowds],
        tuple(number[found.crowd_labels[i]] for i in crowds),
    )


# -- a class number in each pixel --------------------------------------------------------------------------------------


def index_folder(pictures: Path | str, indices: Path | str, classes: Path | str) -> SegmentRecords:
    """A folder of pictures and one of PNGs of the same names and sizes, whose pixels are line numbers of `classes`.

    A line that ends in "(ignore)", and the number 255, are ignored. All classes are stuff: each that occurs in a
    picture is one segment. Raises DiptychError for what is missing; when read, for unlike sizes and numbers beyond
    the names.
    """
    pictures, indices, classes = Path(pictures), Path(indices), Path(classes)
    lines = _class_lines(classes)
    number = {}
    for i, line in enumerate(lines):
        if not line.endswith(IGNORE):
            number[i] = len(number)
    if not number:
        raise DiptychError(f"{classes}: every class is to be ignored")
    for folder in (pictures, indices):
        if not folder.is_dir():
            raise DiptychError(f"{folder} is no folder")
    files = sorted(path for path in pictures.iterdir() if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise DiptychError(f"{pictures} holds no picture")
    items = []
    for path in files:
        index = indices / f"{path.stem}.png"
        if not index.is_file():
            raise DiptychError(f"{path} has no index picture: {index} is not there")
        read = partial(_read_index, path, index, lines, number, classes)
        items.append(SegmentRecord(path.name, partial(_open, path), read))
    names = tuple(lines[i] for i in number)
    return SegmentRecords(tuple(items), names, (False,) * len(names), str(pictures))


def _class_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DiptychError(f"{path} cannot be read as a list of classes, one a line: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines or len(set(lines)) < len(lines) or "" in lines:
        raise DiptychError(f"{path} must name classes, one a line, none twice and no line empty")
    return lines


def _open(path: Path) -> Image.Image:
    try:
        return open_picture(path)
    except BadPicture as error:
        raise DiptychError(f"{path}: {error}") from error


def _read_index(path: Path, index: Path, lines: Sequence[str], number: dict[int, int], classes: Path) -> Segments:
    values = index_of(index)
    size, own = _open(path).size, values.shape[::-1]
    if own != size:
        raise DiptychError(f"{index} has {own[0]} x {own[1]} pixels, its picture {path} {size[0]} x {size[1]}")
    found = [int(value) for value in np.unique(values)]
    beyond = [value for value in found if value >= len(lines) and value != NOT_TOLD]
    if beyond:
        raise DiptychError(f"{index} holds the class number {beyond[0]}, but {classes} names {len(lines)} (from 0)")
    told = [value for value in found if value in number]
    masks = values[None] == np.array(told, values.dtype)[:, None, None]
    return Segments(masks, tuple(number[value] for value in told), ~union(masks))


def index_of(path: Path) -> NDArray[np.int64]:
    """The numbers in a PNG of one channel or a palette, [H, W]."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DiptychError(f"{path}: {image.width} x {image.height} pixels, more than the limit")
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise DiptychError(f"{path} is a picture of mode {image.mode}; class numbers need a single channel")
            return np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DiptychError(f"{path} cannot be read as a PNG of class numbers: {error}") from error


# -- COCO --------------------------------------------------------------------------------------------------------------


def coco_instances(annotations: Path | str, pictures: Path | str) -> SegmentRecords:
    """COCO's instances json and the folder of its pictures; all classes are things.

    Polygons and run lengths are decoded as COCO's own tools do. Crowds are ignored. A mask without a pixel is left out.
    Raises DiptychError naming file, entry and field for anything that is not as the format has it.
    """
    path, folder = Path(annotations), Path(pictures)
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} cannot be read as COCO's json: {error}") from error
    images, marks, categories = (_entries(said, path, key) for key in ("images", "annotations", "categories"))
    number: dict[int, int] = {}
    for i, category in enumerate(categories):
        at = f"{path}: categories[{i}]"
        number[_unique(_field(category, at, "id", int), at, number)] = i
    names = tuple(_field(category, f"{path}: categories[{i}]", "name", str) for i, category in enumerate(categories))
    by_image: dict[int, list[tuple[str, Any]]] = {}
    for i, image in enumerate(images):
        at = f"{path}: images[{i}]"
        by_image[_unique(_field(image, at, "id", int), at, by_image)] = []
        file, width, height = (_field(image, at, *key) for key in (("file_name", str), ("width", int), ("height", int)))
        parts = Path(file).parts
        if not parts or Path(file).is_absolute() or ".." in parts:
            raise DiptychError(f"{at}: file_name {file!r} must lie below the folder of the pictures")
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise DiptychError(f"{at}: {width} x {height} pixels; between 1 and {MAX_PIXELS} are read")
    shapes = {image["id"]: (image["height"], image["width"]) for image in images}
    for i, mark in enumerate(marks):
        at = f"{path}: annotations[{i}]"
        owner, category = _field(mark, at, "image_id", int), _field(mark, at, "category_id", int)
        if owner not in by_image:
            raise DiptychError(f"{at}: image_id {owner} is of no image of the file")
        if category not in number:
            raise DiptychError(f"{at}: category_id {category} is of no category of the file")
        check_shape(mark.get("segmentation"), *shapes[owner], at)
        by_image[owner].append((at, mark))
    items = tuple(
        SegmentRecord(
            image["file_name"],
            partial(_open_sized, folder / image["file_name"], shapes[image["id"]], path),
            partial(_read_coco, by_image[image["id"]], shapes[image["id"]], number),
        )
        for image in images
    )
    return SegmentRecords(items, names, (True,) * len(names), str(path))


def _entries(said: Any, path: Path, key: str) -> list[Any]:
    entries = said.get(key) if isinstance(said, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DiptychError(f"{path}: {key} must be a list of objects, as in COCO's instances files")
    return entries


def _field(entry: dict[str, Any], at: str, key: str, kind: type) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DiptychError(f"{at}: {key} is {value!r}; it must be of type {kind.__name__}")
    return value


def _unique(key: int, at: str, seen: Collection[int]) -> int:
    if key in seen:
        raise DiptychError(f"{at}: id {key} stands twice")
    return key


def _open_sized(path: Path, shape: tuple[int, int], source: Path) -> Image.Image:
    picture = _open(path)
    if picture.size != shape[::-1]:
        (height, width), size = shape, picture.size
        raise DiptychError(f"{path} has {size[0]} x {size[1]} pixels, {source} says {width} x {height}")
    return picture


def _read_coco(marks: Sequence[tuple[str, Any]], shape: tuple[int, int], number: dict[int, int]) -> Segments:
    kept: dict[bool, list[tuple[int, Masks]]] = {False: [], True: []}
    for at, mark in marks:
        mask = decode_mask(mark["segmentation"], *shape, at)
        if mask.any():
            kept[bool(mark.get("iscrowd", 0))].append((number[mark["category_id"]], mask))
    empty = np.zeros((0, *shape), bool)
    masks, crowds = (np.stack([mask for _, mask in kept[crowd]]) if kept[crowd] else empty for crowd in (False, True))
    labels, crowd_labels = (tuple(label for label, _ in kept[crowd]) for crowd in (False, True))
    return Segments(masks, labels, union(crowds) & ~union(masks), crowds, crowd_labels)


# -- drawn scenes ------------------------------------------------------------------------------------------------------


def scene_segments(scenes: Scenes, by: str = "class") -> SegmentRecords:
    """Each thing with its mask, as far as it is seen; the ground is stuff of its own name ("grass").

    by: "class" ("red circle"), "shape" or "colour". The names are those of all combinations of the spec, so that sets
    of seen and of left-out ones (`SceneSpec.held_out`) share them.
    """
    spec = scenes.spec
    shapes, colours = tuple(dict.fromkeys(spec.shapes)), tuple(dict.fromkeys(spec.colours))
    classes = {"shape": shapes, "colour": colours, "class": tuple(f"{c} {s}" for s in shapes for c in colours)}
    if by not in classes:
        raise DiptychError(f'scenes: no classes by "{by}"; valid: {", ".join(classes)}')
    grounds = tuple(dict.fromkeys(spec.backgrounds))
    names = (*classes[by], *grounds)
    number = {name: i for i, name in enumerate(names)}
    items = tuple(
        SegmentRecord(f"{scenes.seed}-{i}", partial(_scene_picture, scenes, i), partial(_scene, scenes, i, by, number))
        for i in range(len(scenes))
    )
    things = tuple(name not in grounds for name in names)
    return SegmentRecords(items, names, things, f"scenes {scenes.seed}")


def _scene_picture(scenes: Scenes, index: int) -> Image.Image:
    return _scene_of(scenes, index).image()


def _scene_of(scenes: Scenes, index: int) -> SceneRecord:
    return SceneRecord(scenes.spec, scenes.seed, index)


def _scene(scenes: Scenes, index: int, by: str, number: dict[str, int]) -> Segments:
    record = _scene_of(scenes, index)
    masks, scene = record.masks, record.scene
    said = [f"{t.colour} {t.shape}" if by == "class" else getattr(t, by) for t in scene.things]
    seen = [i for i in range(len(masks)) if masks[i].any()]
    ground = ~union(masks)
    masks = np.concatenate([masks[seen], ground[None]]) if ground.any() else masks[seen]
    labels = [number[said[i]] for i in seen] + ([number[scene.background]] if ground.any() else [])
    return Segments(masks, tuple(labels), np.zeros_like(ground))
