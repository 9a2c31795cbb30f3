"""What there is to index: a folder of pictures, webdataset shards, a table; named first, read when it is their turn.

An item's `path` says where its picture is, so that it can be read again: a file; `/shards/00000.tar!OFFSET+SIZE`; or
`/tables/x.parquet!COLUMN!ROW`.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from diptych.data.pairs import TEXTS, BadPair, file_bytes, read_text
from diptych.data.pictures import EXTENSIONS, BadPicture
from diptych.data.read import TABLES
from diptych.data.scan import SetAside
from diptych.data.shards import META, PICTURE, TEXT, expand, key_of, kind_of, parsed, read_member, refusal
from diptych.data.tables import Table, find_column, open_table, parquet_table, word_of
from diptych.errors import DiptychError
from diptych.search.columns import NAME, STANDARD, VECTORS

IN_SHARD = re.compile(r"(?P<file>.+\.tar)!(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)
IN_TABLE = re.compile(r"(?P<file>.+\.parquet)!(?P<column>[^!]+)!(?P<row>\d+)", re.DOTALL | re.IGNORECASE)
OURS = frozenset({"id", "path", "source", "added", "size", "mtime", "digest", *VECTORS.values()})  # not set by data
RENAMED = {"caption": "text", "alttext": "text", "class": "label", "classname": "label", "cls": "label"}
CLASS = ".cls"


@dataclass(frozen=True)
class Item:
    """One picture. name: its id, unique in its source; size, mtime: by which a change is noticed; cells(): what else is
    known of it, column -> cell, read together with the picture."""

    name: str
    path: str
    size: int
    mtime: int
    read: Callable[[], bytes]
    cells: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """name: what the index remembers it by, whichever way it was given; items: what is in it now."""

    name: str
    items: list[Item]
    set_aside: list[SetAside]


def open_source(given: str) -> Source:
    """A folder of pictures, x.txt beside x.jpg; tar shards, a folder of them or `{00000..00009}.tar`; a table.

    Raises DiptychError where there is nothing that could hold pictures.
    """
    paths = expand(given)
    name = os.path.abspath(os.path.expanduser(given))
    first = paths[0]
    if first.suffix == ".tar":
        found = of_shards(name, paths)
    elif first.is_dir():
        shards = sorted(first.glob("*.tar"))
        found = of_shards(name, shards) if shards else of_folder(name)
    elif first.is_file() and first.suffix.lower() in TABLES:
        found = of_table(name, open_table(Path(name)))
    elif first.is_file():
        raise DiptychError(f"{first} is neither a folder, a table ({', '.join(sorted(TABLES))}) nor a .tar shard")
    else:
        raise DiptychError(f"no such folder, table or shard: {first}")
    return found


def picture_at(path: str) -> bytes:
    """The bytes of the picture that a row's `path` names. Raises BadPicture where it is no longer there."""
    if found := IN_SHARD.fullmatch(path):
        return read_member(Path(found["file"]), int(found["offset"]), int(found["size"]))
    if found := IN_TABLE.fullmatch(path):
        table = table_at(found["file"])
        if table.picture is None or found["column"] not in table.inside or int(found["row"]) >= table.rows:
            raise BadPicture(f"{found['file']} has changed")
        return table.picture(found["column"], int(found["row"]))
    if not os.path.isfile(path):
        raise BadPicture("no such file")
    return file_bytes(Path(path))


@lru_cache(maxsize=4)
def table_at(path: str) -> Table:
    try:
        return parquet_table(Path(path))
    except DiptychError as error:
        raise BadPicture(str(error)) from error


# -- folders -----------------------------------------------------------------------------------------------------------


def of_folder(root: str) -> Source:
    items: list[Item] = []
    aside: list[SetAside] = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        there = set(names)
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
                continue
            inside = path.relative_to(root).as_posix()
            try:
                inside.encode()
                state = path.stat()
                beside = path.with_suffix(".txt") if f"{path.stem}.txt" in there else None
                changed = max(state.st_mtime_ns, beside.stat().st_mtime_ns if beside else 0)
            except UnicodeEncodeError:
                aside.append(SetAside(ascii(inside), "its name is not UTF-8"))
                continue
            except OSError as error:
                aside.append(SetAside(inside, (error.strerror or str(error)).lower()))
                continue
            label = path.parent.name if folder != root else None
            cells = partial(cells_beside, label, beside)
            items.append(Item(inside, str(path), state.st_size, changed, partial(file_bytes, path), cells))
    return Source(root, items, aside)


def cells_beside(label: str | None, beside: Path | None) -> dict[str, Any]:
    text = beside and " ".join(read_text(file_bytes(beside), beside.name).split())
    return {"label": label, "text": text or None}


# -- shards ------------------------------------------------------------------------------------------------------------


def of_shards(name: str, paths: list[Path]) -> Source:
    items: list[Item] = []
    aside: list[SetAside] = []
    present = [path for path in paths if path.is_file()]
    if not present:
        raise DiptychError(f"{name}: no such shard, {paths[0]}")
    aside += [SetAside(str(path), "no such shard") for path in paths if path not in set(present)]
    for path in present:
        items += of_shard(path.absolute(), aside)
    return Source(name, items, aside)


def of_shard(path: Path, aside: list[SetAside]) -> Iterator[Item]:
    """From the headers alone."""
    state = path.stat()
    found: dict[str, list[tuple[int | str, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - tarfile keeps every header
                kind = CLASS if member.name.lower().endswith(CLASS) else kind_of(member)
                if reason := refusal(member, state.st_size):
                    aside.append(SetAside(f"{path.name}/{member.name}", reason))
                elif member.isfile() and kind is not None:
                    found.setdefault(key_of(member.name), []).append((kind, member.offset_data, member.size))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        aside.append(SetAside(str(path), f"a broken shard (after {len(found)} keys: {error})"))
    for key, parts in found.items():
        pictures = [(offset, size) for kind, offset, size in parts if kind == PICTURE]
        if not pictures:
            aside.append(SetAside(f"{path.name}/{key}", "no picture"))
            continue
        offset, size = pictures[0]
        read, cells = partial(read_member, path, offset, size), partial(cells_of_member, path, key, parts)
        yield Item(f"{path.stem}/{key}", f"{path}!{offset}+{size}", size, state.st_mtime_ns, read, cells)


def cells_of_member(path: Path, key: str, parts: list[tuple[int | str, int, int]]) -> dict[str, Any]:
    identifier, cells, texts = f"{path.stem}/{key}", {}, []
    for kind, offset, size in parts:
        if kind == PICTURE:
            continue
        if kind == CLASS and size > 1000:
            raise BadPair(f"{identifier}: a class name of {size} bytes")
        said = read_text(read_member(path, offset, size), identifier)
        if kind == META:
            cells |= clean(parsed(said, identifier))
        elif kind == TEXT:
            texts.append(" ".join(said.split()))
        else:
            cells["label"] = said.strip()
    return cells | ({"text": texts[0]} if texts and texts[0] else {})


def clean(cells: dict[str, Any]) -> dict[str, Any]:
    """Columns by our names; what cannot be a cell is left out, and all numbers are of one kind, as JSON has them."""
    found = {}
    for name, cell in cells.items():
        if (column := column_name(name)) and isinstance(cell, str | int | float) and column not in found:
            found[column] = float(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell
    return found


def column_name(name: str) -> str | None:
    """`WIDTH` -> width, `AESTHETIC_SCORE (2)` -> AESTHETIC_SCORE_2; None where nothing can come of it."""
    plain = re.sub(r"[\W_]+", "_", name, flags=re.ASCII).strip("_")
    small = RENAMED.get(plain.lower(), plain.lower())
    found = small if small in STANDARD else plain
    return found if NAME.fullmatch(found) and found not in OURS else None


# -- tables ------------------------------------------------------------------------------------------------------------


def of_table(name: str, table: Table) -> Source:
    """A row a picture; a column `key` or `id` names it, else the picture's path, else the row's number."""
    image = find_column(table, "image", None)
    assert image is not None
    changed = os.stat(name).st_mtime_ns
    columns = columns_of(table, image)
    keys = next((table.column(one) for one in table.names if one.lower() in ("key", "id") and one != image), None)
    paths = None if image in table.inside else table.column(image)
    items: list[Item] = []
    aside: list[SetAside] = []
    seen: set[str] = set()
    paths_seen: set[str] = set()
    for row in range(table.rows):
        numbered = f"{Path(name).name}/{row + 1:08d}"
        said = [word_of(cells[row]) for cells in (keys, paths) if cells]
        identifier = next((word for word in said if word and word not in seen), numbered)
        seen.add(identifier)
        cells = partial(cells_of_row, columns, row)
        if paths is None:
            assert table.picture is not None
            where = f"{name}!{image}!{row}"
            items.append(Item(identifier, where, 0, changed, partial(table.picture, image, row), cells))
            continue
        word = word_of(paths[row])
        path = Path(os.path.abspath(table.base / Path(word).expanduser())) if word else None
        try:
            state = path.stat() if path else None
        except OSError as error:
            aside.append(SetAside(f"{numbered} ({word})", (error.strerror or str(error)).lower()))
            continue
        if path is None or state is None:
            aside.append(SetAside(numbered, "no picture in this row"))
            continue
        if str(path) in paths_seen:
            aside.append(SetAside(numbered, "names a picture that an earlier row names"))
            continue
        paths_seen.add(str(path))
        at = max(changed, state.st_mtime_ns)
        items.append(Item(identifier, str(path), state.st_size, at, partial(file_bytes, path), cells))
    return Source(name, items, aside)


def columns_of(table: Table, image: str) -> dict[str, list[Any]]:
    """Our name -> the cells of a column; the cells of a CSV are numbers where all of them are."""
    found: dict[str, list[Any]] = {}
    named = {one.lower(): one for one in table.names}
    usual = next((named[word] for word in TEXTS.split() if word in named), None)
    for name in [usual, *table.names] if usual else table.names:
        column = "text" if name == usual else column_name(name)
        if name == image or name in table.inside or not column or column in found:
            continue
        cells, words = table.column(name), table.words.get(name)
        if words:
            cells = [words[cell] if isinstance(cell, int) and 0 <= cell < len(words) else None for cell in cells]
        elif table.picture is None:
            cells = numbers(cells)
        if all(cell is None or isinstance(cell, str | int | float) for cell in cells):
            found[column] = cells
    return found


def numbers(cells: list[Any]) -> list[Any]:
    words = [cell if cell not in ("", None) else None for cell in cells]
    try:
        return [None if word is None else float(word) for word in words]
    except ValueError:
        return words


def cells_of_row(columns: dict[str, list[Any]], row: int) -> dict[str, Any]:
    return {name: cells[row] for name, cells in columns.items()}
