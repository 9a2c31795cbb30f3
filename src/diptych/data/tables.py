"""Tables (CSV, TSV, Parquet) as Records. The pictures stay where they are, inside the table or beside it."""

import csv
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from diptych.data.pictures import BadPicture, picture_bytes
from diptych.data.read import SPLITS, UNLABELLED
from diptych.data.records import Record, Records
from diptych.errors import DiptychError, nearest

# Usual names, most telling first; compared without case, spaces and underscores.
USUAL = {
    "image": "image img picture photo imagepath imagefile imagefilename filepath filename file path imagename jpg png "
    "video videopath videofile clip mp4",
    "label": "classname labelname categoryname labeltext label class category target species labels classes "
    "categories finelabel",
    "split": "split",
}
MISSING = frozenset({"", "nan", "null", "<na>", "n/a"})
Cell = Any  # str, number, None, or what Arrow makes of it


@dataclass(frozen=True)
class Table:
    """Columns read on demand; pictures that lie inside the table are read one at a time."""

    where: str  # for messages and, where several tables make one source, for ids
    base: Path  # relative paths start here
    names: Sequence[str]
    rows: int
    column: Callable[[str], list[Cell]]  # all cells of one column
    picture: Callable[[str, int], bytes] | None = None  # (column, row) -> a picture that lies inside
    inside: frozenset[str] = frozenset()  # columns with pictures inside
    words: dict[str, list[str]] = field(default_factory=dict)  # column -> the names its whole numbers stand for
    split: str | None = None  # the whole table is one split, or "unlabelled"


def read_table(path: Path, columns: dict[str, str | None]) -> Records:
    """The records of one .csv, .tsv or .parquet file."""
    return records_of([open_table(path)], columns, str(path))


def open_table(path: Path) -> Table:
    return parquet_table(path) if path.suffix.lower() == ".parquet" else _csv(path)


# -- readers ---------------------------------------------------------------------------------------------------


def _csv(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DiptychError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV UTF-8") from error
    header_line = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header_line.count)
    try:
        lines = [line for line in csv.reader(text.splitlines(keepends=True), delimiter=delimiter) if any(line)]
    except csv.Error as error:
        raise DiptychError(f"{path} is not a table: {error}") from error
    if not lines:
        raise DiptychError(f"{path} is empty: its first line should name the columns, such as image,label")
    header = [name.strip() for name in lines[0]]
    rows = lines[1:]
    for name in header:
        if header.count(name) > 1:
            raise DiptychError(f'{path} has two columns called "{name}"')
    for number, row in enumerate(rows, 1):
        if len(row) > len(header):
            raise DiptychError(
                f"{path}, row {number}: {len(row)} cells where the first line names {len(header)} columns; "
                "a cell that holds a comma needs quotes"
            )

    def column(name: str) -> list[Cell]:
        at = header.index(name)
        return [row[at].strip() if at < len(row) else None for row in rows]

    return Table(str(path), path.parent, header, len(rows), column)


def parquet_table(path: Path, split: str | None = None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DiptychError(f"{path} is not a Parquet file, or is truncated: {error}") from error
    schema = file.schema_arrow
    starts = [0]
    for group in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)

    def column(name: str) -> list[Cell]:
        return parquet.ParquetFile(path).read(columns=[name]).column(name).to_pylist()

    @lru_cache(maxsize=2)  # rows are mostly asked for in order: one group is in use, one is being left
    def cells(name: str, group: int):
        return parquet.ParquetFile(path).read_row_group(group, columns=[name]).column(name)

    def picture(name: str, row: int) -> bytes:
        group = bisect_right(starts, row) - 1
        return cell_picture(cells(name, group)[row - starts[group]].as_py(), path.parent)

    def inside(kind: pa.DataType) -> bool:
        holds_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return holds_bytes or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    pictures = frozenset(name for name in schema.names if inside(schema.field(name).type))
    words = _label_names(schema.metadata)
    return Table(str(path), path.parent, schema.names, starts[-1], column, picture, pictures, words, split)


def _label_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names behind whole-number label columns, which `datasets` writes in an Arrow schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError):
        return {}
    return {name: kind["names"] for name, kind in features.items() if "names" in kind}


def cell_picture(cell: Cell, base: Path) -> bytes:
    """The bytes of a picture cell: bytes, or {"bytes", "path"} of which one is there."""
    if isinstance(cell, bytes):
        return cell
    cell = cell or {}
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if cell.get("path"):
        return picture_bytes(base / cell["path"])
    raise BadPicture("no picture in this row")


# -- from tables to records ------------------------------------------------------------------------------------


def records_of(tables: list[Table], asked: dict[str, str | None], source: str) -> Records:
    tables = [table for table in tables if table.rows]
    if not tables:
        raise DiptychError(f"{source} has no rows: it should list one picture a row, with its label")
    items: list[Record] = []
    for table in tables:
        items += _table_records(table, asked, prefix=f"{_short(table.where, source)} " if len(tables) > 1 else "")
    _refuse_joined_labels(items, source)
    return _without_repeats(items, source)


def _short(where: str, source: str) -> str:
    return where.removeprefix(source).lstrip("/\\")


def _table_records(table: Table, asked: dict[str, str | None], prefix: str) -> list[Record]:
    image = find_column(table, "image", asked["image"])
    label = find_column(table, "label", asked["label"])
    split = find_column(table, "split", asked["split"])
    group = find_column(table, "group", asked["group"])
    assert image is not None
    if table.split == "unlabelled":
        label = None
    elif label is None:
        raise _no_column(table, "label")

    sides = _sides(table, split)
    labels = _labels(table, label, sides) if label is not None else [None] * table.rows
    groups = [word_of(cell) for cell in table.column(group)] if group is not None else [None] * table.rows
    if image in table.inside:
        read = table.picture
        assert read is not None
        places = [(None, partial(read, image, row)) for row in range(table.rows)]
    else:
        places = [(path, None) for path in _paths(table, image)]
    sides = [None if side == "unlabelled" else side for side in sides]
    return [
        Record(f"{prefix}row {n + 1}", path, labels[n], sides[n], groups[n], read)
        for n, (path, read) in enumerate(places)
    ]


def find_column(table: Table, kind: str, asked: str | None) -> str | None:
    """The column for `kind`: the one asked for, else the one the data set declares, else the usual name."""
    if asked is not None:
        if asked not in table.names:
            raise DiptychError(f'{table.where} has no column "{asked}"{nearest(asked, table.names)}')
        return asked
    declared = {"image": list(table.inside), "label": list(table.words)}.get(kind, [])
    if len(declared) == 1:
        return declared[0]
    plain = {re.sub(r"[\W_]+", "", name).lower(): name for name in reversed(table.names)}
    found = next((plain[usual] for usual in USUAL.get(kind, "").split() if usual in plain), None)
    if found is None and kind == "image":
        raise _no_column(table, kind)
    return found


def _no_column(table: Table, kind: str) -> DiptychError:
    return DiptychError(
        f"{table.where}: which column holds the {kind}? It has {', '.join(map(repr, table.names))}; "
        f"name it with --{kind}-column ({kind}_column= in Python)"
    )


def word_of(cell: Cell) -> str | None:
    """A cell as a word; None where it is missing. Whole floats (a number column with gaps) lose their .0."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    word = str(cell).strip()
    return None if word.lower() in MISSING else word


def _sides(table: Table, column: str | None) -> list[str | None]:
    if column is None:
        return [table.split] * table.rows
    words = table.words.get(column)
    sides: list[str | None] = []
    for row, cell in enumerate(table.column(column), 1):
        word = (word_of(words[cell] if words and isinstance(cell, int) else cell) or "").lower()
        if word and word not in SPLITS and word not in UNLABELLED:
            valid = [*SPLITS, *sorted(UNLABELLED)]
            raise DiptychError(f'{table.where}, row {row}: "{word}" is no split{nearest(word, valid)}')
        sides.append("unlabelled" if word in UNLABELLED else SPLITS.get(word))
    return sides


def _labels(table: Table, column: str, sides: list[str | None]) -> list[str | None]:
    words = table.words.get(column)
    labels: list[str | None] = []
    missing: list[int] = []
    for row, (cell, side) in enumerate(zip(table.column(column), sides, strict=True), 1):
        if isinstance(cell, (list, tuple, dict)) or (isinstance(cell, str) and re.fullmatch(r"\[.*,.*\]", cell)):
            raise DiptychError(
                f'{table.where}, row {row}: "{column}" holds {cell}: several labels a picture are not supported; '
                "give each picture one class"
            )
        if words is not None and isinstance(cell, int):
            label = words[cell] if 0 <= cell < len(words) else None
        else:
            label = word_of(cell)
        if side == "unlabelled":
            label = None
        elif label is None:
            missing.append(row)
        labels.append(label)
    if missing:
        raise DiptychError(
            f'{table.where}: {len(missing)} rows have no label in column "{column}": {_some(missing)}; fill them, '
            'remove them, or write "unlabelled" in a column called split'
        )
    return labels


def _paths(table: Table, column: str) -> list[Path]:
    paths: list[Path] = []
    empty: list[int] = []
    lost: list[str] = []
    for row, cell in enumerate(table.column(column), 1):
        word = word_of(cell)
        if word is None:
            empty.append(row)
            continue
        if re.match(r"[a-z][a-z0-9]+://", word, re.IGNORECASE):
            raise DiptychError(f"{table.where}, row {row}: {word} is an address: download the pictures first")
        path = table.base / Path(word).expanduser()
        if not path.is_file():
            lost.append(f"row {row} ({word})")
        paths.append(path)
    if empty:
        raise DiptychError(f'{table.where}: {len(empty)} rows have no picture in column "{column}": {_some(empty)}')
    if lost:
        raise DiptychError(
            f"{table.where}: {len(lost)} of {table.rows} pictures are not there: {_some(lost, '')}; "
            f"paths are relative to {table.base.resolve()}"
        )
    return paths


def _some(things: Sequence[object], word: str = "row ") -> str:
    more = f" and {len(things) - 5} more" if len(things) > 5 else ""
    return ", ".join(f"{word}{thing}" for thing in things[:5]) + more


def _refuse_joined_labels(items: list[Record], source: str) -> None:
    """Refuse cells such as "cat;dog" where cat and dog are classes too."""
    labels = {item.label for item in items}
    for item in items:
        for mark in ";|":
            parts = [part.strip() for part in (item.label or "").split(mark)]
            if len(parts) > 1 and labels.issuperset(parts):
                raise DiptychError(
                    f'{source}, {item.id}: "{item.label}" are several labels: give each picture one class'
                )


def _without_repeats(items: list[Record], source: str) -> Records:
    """One record a file and split. Raises where the rows of a file differ in label."""
    first: dict[Path, Record] = {}
    kept: dict[tuple[Path, str | None] | str, Record] = {}
    for item in items:
        if item.path is None:
            kept[item.id] = item
            continue
        before = first.setdefault(item.path, item)
        if before.label != item.label and None not in (before.label, item.label):
            raise DiptychError(
                f'{source}: {item.path.name} is "{before.label}" in {before.id} and "{item.label}" in {item.id}: '
                "several labels a picture are not supported; give each picture one class"
            )
        kept.setdefault((item.path, item.split), item)
    repeated = len(items) - len(kept)
    warnings = (f"{repeated} rows name a picture that an earlier row names, and are left out",) if repeated else ()
    return Records(tuple(kept.values()), source, warnings)
