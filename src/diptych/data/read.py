"""From what the user gives (folder, table, Hugging Face dataset folder, nothing) to Records."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from diptych.data.pictures import EXTENSIONS
from diptych.data.records import Record, Records
from diptych.data.video import MOVING, VIDEOS
from diptych.errors import DiptychError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
UNLABELLED = frozenset({"unlabelled", "unlabeled"})
TABLES = (".csv", ".tsv", ".parquet")


def read_records(
    source: str | Path | None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
) -> Records:
    """The records of `source`; None gives the built-in OpenMoji drawings.

    A folder holds one folder per class, with or without train, val and test above them; `unlabelled` beside the
    classes is the pool. A table (.csv, .tsv, .parquet) or a Hugging Face dataset folder has a column of pictures
    and one of labels, found by their usual names unless given. Videos may stand in the place of pictures; of a mixture,
    the kind that is more is kept. Raises DiptychError for all that is not so.
    """
    columns = {"image": image_column, "label": label_column, "split": split_column, "group": group_column}
    asked = [f"{kind} column {name!r}" for kind, name in columns.items() if name is not None]
    if source is None:
        from diptych.data.openmoji import openmoji_records

        if asked:
            raise DiptychError(f"{', '.join(asked)}: the built-in pictures have no columns; give a table")
        return openmoji_records()
    if str(source).startswith(("http://", "https://", "s3://", "gs://", "hf://")):
        raise DiptychError(f"{source} is an address: download it, then give the folder or table on this disk")
    path = Path(source).expanduser()
    try:
        is_folder = path.is_dir()
        if not is_folder and not path.exists():
            raise DiptychError(f"{path}: no such folder or table{_in_parent(path)}")
        if is_folder:
            from diptych.data.dataset_folder import is_dataset_folder, read_dataset_folder

            if is_dataset_folder(path):
                records = read_dataset_folder(path, columns)
            elif asked:
                raise DiptychError(
                    f"{path} is a folder of pictures and has no {', '.join(asked)}: "
                    "columns, groups among them, come from a table (.csv, .tsv, .parquet)"
                )
            else:
                records = _read_folder(path)
        else:
            records = _read_file(path, columns)
    except PermissionError as error:
        raise DiptychError(f"{error.filename or path}: no permission to read it") from error
    except OSError as error:
        raise DiptychError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    records = _of_one_kind(records)
    _check_labels(records)
    return records


def _of_one_kind(records: Records) -> Records:
    """Pictures or videos, whichever are more: the live photos of a telephone do not turn its pictures into clips.

    Among videos, GIF, WebP and animated PNG are videos too.
    """
    suffix = {r.id: "" if r.path is None else r.path.suffix.lower() for r in records}
    videos = {id_ for id_, one in suffix.items() if one in VIDEOS}
    either = {id_ for id_, one in suffix.items() if one in MOVING} if videos else set()
    pictures = len(records) - len(videos) - len(either)
    if not videos or pictures > len(videos):
        kept, left, what = records.filter(lambda r: r.id not in videos), len(videos), "videos among more pictures"
    else:
        kept = replace(records.filter(lambda r: r.id in videos | either), videos=True)
        left, what = pictures, "pictures among more videos"
    if not left:
        return kept
    some = next(r.id for r in records if r.id not in {k.id for k in kept})
    return replace(kept, warnings=(*kept.warnings, f"{left} {what} are left out, such as {some}"))


def _read_file(path: Path, columns: dict[str, str | None]) -> Records:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        from diptych.data.tables import read_table

        return read_table(path, columns)
    if suffix in EXTENSIONS | VIDEOS:
        one = "video" if suffix in VIDEOS else "picture"
        raise DiptychError(f"{path} is one {one}: give the folder that holds a folder for each class")
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        raise DiptychError(f"{path} is an archive: unpack it and give the folder")
    if suffix in (".xlsx", ".xls", ".ods", ".numbers"):
        raise DiptychError(f"{path} is a spreadsheet: save it as CSV")
    raise DiptychError(f"{path} is neither a folder nor a table ({', '.join(TABLES)})")


def _in_parent(path: Path) -> str:
    """A hint at the name beside `path` that is most like it."""
    import difflib

    try:
        beside = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f'; did you mean "{path.parent / close[0]}"?' if close else ""


# -- a folder of class folders ---------------------------------------------------------------------------------


def _read_folder(root: Path) -> Records:
    warnings: list[str] = []
    folders, loose = _children(root)
    if not folders:
        if loose:
            raise DiptychError(
                f"{root} holds {len(loose)} pictures and no class folders: "
                "put each picture in a folder named after its class, or list them in a CSV (image,label)"
            )
        raise DiptychError(f"{root} is empty: it should hold one folder for each class, with pictures in it")
    if loose:
        warnings.append(f"{len(loose)} pictures directly in {root} (such as {loose[0]}) have no class: left out")

    items: list[Record] = []
    for split, folder in _split_folders(root, folders):
        names = [folder] if split is None else [f"{folder}/{name}" for name in _children(root / folder)[0]]
        for below in names:
            name = below.rsplit("/", 1)[-1]
            label = None if name.lower() in UNLABELLED else name
            found = sorted(_pictures(root, below, (os.path.realpath(root),), warnings))
            if not found:
                warnings.append(f"folder {below} holds no picture and is left out")
            # An unlabelled pool belongs to no split, wherever it lies.
            side = split if label is not None else None
            items += [Record(id=one, path=root / one, label=label, split=side) for one in found]
    if not items:
        raise DiptychError(f"no pictures below {root}: its {len(folders)} folders hold none (nor their folders)")
    return Records(tuple(items), str(root), tuple(warnings))


def _children(folder: Path) -> tuple[list[str], list[str]]:
    """(names of folders, names of pictures) directly in `folder`, sorted; hidden ones are passed over."""
    folders, pictures = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if os.path.isdir(entry.path):  # unlike entry.is_dir, at ease with links that lead to themselves
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS | VIDEOS:
                pictures.append(entry.name)
    return sorted(folders), sorted(pictures)


def _split_folders(root: Path, folders: list[str]) -> Iterator[tuple[str | None, str]]:
    """(split, folder) for each folder of the root; split is None where the folder is itself a class.

    They are splits when nothing but splits (and an unlabelled pool) is there and one of them holds folders.
    """
    named = [name for name in folders if name.lower() in SPLITS]
    others = [name for name in folders if name.lower() not in SPLITS and name.lower() not in UNLABELLED]
    deep = [name for name in named if _children(root / name)[0]]
    if others and len(deep) >= 2:
        raise DiptychError(
            f"{root} holds both splits ({', '.join(deep)}) and other folders ({', '.join(others[:5])}): "
            "keep either the splits or the classes at the top"
        )
    as_splits = bool(deep) and not others
    for name in folders:
        split = SPLITS.get(name.lower()) if as_splits else None
        if split is not None and (loose := _children(root / name)[1]):
            raise DiptychError(f"{root / name} holds {len(loose)} pictures outside its class folders: {loose[0]}, ...")
        yield split, name


def _pictures(root: Path, below: str, above: tuple[str, ...], warnings: list[str]) -> Iterator[str]:
    """Paths (relative to root, with /) of all pictures in a folder and the folders in it; loops are cut."""
    real = os.path.realpath(root / below)
    if real in above:
        warnings.append(f"{below} is a link to a folder above it and is not followed")
        return
    folders, pictures = _children(root / below)
    yield from (f"{below}/{name}" for name in pictures)
    for name in folders:
        yield from _pictures(root, f"{below}/{name}", (*above, real), warnings)


# -- what must hold for every source -----------------------------------------------------------------------------


def _check_labels(records: Records) -> None:
    labels = records.labels
    if not labels:
        raise DiptychError(f"{records.source}: every picture is unlabelled; at least two classes are needed")
    if len(labels) == 1:
        raise DiptychError(f'{records.source} has one class, "{labels[0]}": telling pictures apart takes at least two')
    seen: dict[str, str] = {}
    for label in labels:
        key = unicodedata.normalize("NFC", label).casefold().strip()
        if key in seen:
            counts = Counter(record.label for record in records)
            raise DiptychError(
                f'{records.source}: classes "{seen[key]}" ({counts[seen[key]]} pictures) and "{label}" '
                f"({counts[label]}) differ only by case, accents' encoding or spaces: make them one, or rename one"
            )
        seen[key] = label
