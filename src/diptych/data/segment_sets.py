"""A set of pictures with masks from the place where the user has it: which reader, and which files belong together."""

import re
from pathlib import Path

from diptych.data.segments import SegmentRecords, coco_instances, index_folder
from diptych.errors import DiptychError

CLASSES = "classes.txt"
MASKS = ("annot", "_annot", "annotations", "_masks", "masks", "_labels", "labels")  # after or beside the pictures' name
FORMS = (
    "known are a folder with classes.txt, a folder of pictures and one of index PNGs (train/ and trainannot/, or "
    "images/ and masks/), and COCO's instances.json with the folder of its pictures beside it"
)


def read_segments(place: str | Path, split: str = "train", pictures: str | Path | None = None) -> SegmentRecords:
    """Pictures with masks from a folder of index pictures or COCO's json.

    split: which of several ("train", "test"). pictures: where those of a json are, if not beside it. Raises
    DiptychError for what is not there, and for a folder of neither kind.
    """
    place = Path(place).expanduser()
    if not place.exists():
        raise DiptychError(f"no such file or folder: {place}")
    if place.is_file():
        if place.suffix.lower() != ".json":
            raise DiptychError(f"{place} is no set of pictures with masks; {FORMS}")
        return coco_instances(place, pictures or beside_json(place))
    if (place / CLASSES).is_file():
        return index_folder(*index_pair(place, split), place / CLASSES)
    found = sorted([*place.glob("annotations/instances*.json"), *place.glob("instances*.json")])
    chosen = [path for path in found if split in path.stem] or found
    if not chosen:
        raise DiptychError(f"{place} holds no pictures with masks; {FORMS}")
    return coco_instances(chosen[0], pictures or beside_json(chosen[0]))


def index_pair(place: Path, split: str) -> tuple[Path, Path]:
    """The folders of pictures and of index pictures: those of the split, or the only ones."""
    folders = {path.name: path for path in sorted(place.iterdir()) if path.is_dir()}
    pairs: dict[str, tuple[Path, Path]] = {}
    for name, path in folders.items():
        masks = [folders[name + end] for end in MASKS if name + end in folders]
        if name in ("images", "pictures"):
            masks += [folders[end] for end in MASKS if end in folders]
        if masks:
            pairs[name] = path, masks[0]
    if split in pairs:
        return pairs[split]
    if len(pairs) != 1:
        what = f"has {', '.join(pairs)} and no {split}" if pairs else "has no folders of pictures and index pictures"
        raise DiptychError(f"{place} {what}; {FORMS}")
    return next(iter(pairs.values()))


def beside_json(path: Path) -> Path:
    """instances_train2017.json -> train2017 beside it or one folder up; else images there, else its own folder."""
    name = re.sub(r"^instances_?", "", path.stem)
    for folder in (path.parent, path.parent.parent):
        for one in (name, "images", "pictures"):
            if one and (folder / one).is_dir():
                return folder / one
    return path.parent
