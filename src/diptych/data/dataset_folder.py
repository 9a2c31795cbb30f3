"""Hugging Face dataset folders as Records: what `save_to_disk` leaves, or Parquet and Arrow files."""

import re
from pathlib import Path
from typing import Any

from diptych.data.pictures import EXTENSIONS
from diptych.data.read import SPLITS, UNLABELLED
from diptych.data.records import Records
from diptych.data.tables import Table, cell_picture, parquet_table, records_of
from diptych.data.video import VIDEOS
from diptych.errors import DiptychError, missing_extra, nearest


def is_dataset_folder(path: Path) -> bool:
    """True for what `save_to_disk` leaves and for folders with Parquet or Arrow files, not class folders."""
    return bool(_saved(path) or _data_files(path))


def read_dataset_folder(path: Path, columns: dict[str, str | None]) -> Records:
    """The records of a Hugging Face dataset folder. Needs `datasets`, but for Parquet."""
    return records_of(dataset_tables(path), columns, str(path))


def dataset_tables(path: Path) -> list[Table]:
    """Its tables, with their splits."""
    if _saved(path):
        return _saved_to_disk(path)
    tables = []
    for file in _data_files(path):
        make = parquet_table if file.suffix == ".parquet" else _arrow
        words = re.split(r"[^a-z]+", str(file.relative_to(path)).lower())
        tables.append(make(file, split=next((SPLITS[word] for word in words if word in SPLITS), None)))
    return tables


def _arrow(path: Path, split: str | None = None) -> Table:
    datasets = _datasets(path)
    try:
        data = datasets.Dataset.from_file(str(path))
    except Exception as error:  # from pyarrow or datasets, of many types
        raise DiptychError(f"{path} is not an Arrow file of `datasets`: {error}") from error
    return _dataset(data, str(path), path.parent, split)


def _saved_to_disk(path: Path) -> list[Table]:
    datasets = _datasets(path)
    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DiptychError(f"{path} is not a complete save_to_disk folder: {error}") from error
    if not isinstance(data, dict):
        return [_dataset(data, str(path), path, None)]
    tables = []
    for name, part in data.items():
        if name.lower() not in SPLITS and name.lower() not in UNLABELLED:
            raise DiptychError(f'{path} has a split "{name}"{nearest(name, [*SPLITS, *sorted(UNLABELLED)])}')
        tables.append(_dataset(part, name, path, SPLITS.get(name.lower(), "unlabelled")))
    return tables


def _dataset(data: Any, where: str, base: Path, split: str | None) -> Table:
    """A `datasets.Dataset`: memory-mapped, so a picture is read when it is asked for."""
    import datasets

    pictures = frozenset(name for name, kind in data.features.items() if isinstance(kind, datasets.Image))
    words = {name: kind.names for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    for name in pictures:
        data = data.cast_column(name, datasets.Image(decode=False))

    def picture(name: str, row: int) -> bytes:
        return cell_picture(data[row][name], base)

    def column(name: str) -> list[Any]:
        return list(data[name])

    return Table(where, base, data.column_names, len(data), column, picture, pictures, words, split)


def _datasets(path: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "datasets", f"reading {path}") from error
    return datasets


def _saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _data_files(path: Path) -> list[Path]:
    """Parquet and Arrow files as hubs lay them out: in the folder itself, in `data`, or in a folder a split."""
    folders = [path, *(below for below in path.iterdir() if below.is_dir() and not below.name.startswith("."))]
    if any(file.suffix.lower() in EXTENSIONS | VIDEOS | {".tar"} for folder in folders for file in folder.iterdir()):
        return []  # pictures, videos or shards lie here as files: the Parquet file is something else
    return sorted(file for folder in folders for file in folder.iterdir() if is_data(file))


def is_data(file: Path) -> bool:
    """removed.parquet lists what `diptych curate` left out."""
    return file.suffix in (".parquet", ".arrow") and file.name != "removed.parquet"
