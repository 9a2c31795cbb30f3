"""Pictures with their texts, by number and without copying: folders, tables, Hugging Face datasets, tar shards.

Nothing is unpacked and no picture is kept: a pair is read when it is asked for, wherever it lies, so a loader may ask
in any order and with any number of workers.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.dataset_folder import dataset_tables, is_dataset_folder
from diptych.data.pictures import EXTENSIONS, BadPicture, decode
from diptych.data.read import TABLES
from diptych.data.scan import SetAside
from diptych.data.tables import Table, find_column, open_table, word_of
from diptych.errors import DiptychError, nearest

TEXTS = "caption captions text texts title description alttext alt sentence sentences raw"  # usual columns of texts
MAX_BYTES = 1 << 28  # of one picture
MAX_TEXT = 1 << 20  # bytes of one text file or JSON


class BadPair(DiptychError):
    """A pair that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Pair:
    """One picture with one or more texts. `picture()` decodes it upright, as RGB, and raises BadPicture."""

    id: str
    picture: Callable[[], Image.Image]
    texts: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Pairs by number. `get` raises BadPair for one that has no text; set_aside: what was seen to be unusable before.

    digest: of the names and sizes of the files, to know the same data again.
    """

    source: str
    count: int
    get: Callable[[int], Pair] = field(repr=False)
    set_aside: tuple[SetAside, ...] = ()
    digest: str = ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.get(index)

    def __iter__(self) -> Iterator[Pair]:
        return (self.get(index) for index in range(self.count))


def read_pairs(
    source: str | Path, *, image_column: str | None = None, text_columns: Sequence[str] | None = None
) -> Pairs:
    """The pairs of `source`, which may be

    - a tar shard as webdataset and img2dataset write it, a folder of them, or a range, `shards/{00000..00099}.tar`:
      members of one name are one pair; each .txt member is a text, without one those of a .json (caption, captions);
    - a folder with texts beside pictures, x.jpg and x.txt, a text on each line;
    - a table (.csv, .tsv, .parquet) or Hugging Face dataset folder, with a column of pictures and one or several of
      captions (`caption`, or `caption_1`, `caption_2`; a cell may hold a list);
    - "scenes:20000": so many drawn scenes with a short caption each, to try things on; "scenes:20000:sketch:de" in a
      style and with captions in a language of theirs.

    Raises DiptychError where there is nothing to read. What cannot be used is in `set_aside`, with the reason.
    """
    from diptych.data.shards import expand, read_shards

    columns = [("image column", image_column), ("text column", ", ".join(text_columns or []))]
    asked = [f"{kind} {name!r}" for kind, name in columns if name]
    if found := re.fullmatch(r"scenes:(\d+)((?::\w+)*)", str(source)):
        from diptych.data.scenes.sets import scenes_of

        return scenes_of(int(found[1]), found[2].split(":")[1:])
    paths = expand(str(source))
    first = paths[0]
    need_finished(first)
    if first.suffix == ".tar":
        pairs = read_shards(paths, str(source))
    elif first.is_dir() and is_dataset_folder(first):
        return checked(read_columns(dataset_tables(first), str(source), [first], image_column, text_columns))
    elif first.is_dir():
        pairs = read_folder(first)
    elif first.suffix.lower() in TABLES and first.exists():
        return checked(read_columns([open_table(first)], str(source), [first], image_column, text_columns))
    else:
        wrong = "is neither a folder, a table nor a .tar shard" if first.exists() else "no such folder, table or shard"
        raise DiptychError(f"{first}: {wrong}")
    if asked:
        raise DiptychError(f"{source} is no table and has no {' and no '.join(asked)}")
    return checked(pairs)


def checked(pairs: Pairs) -> Pairs:
    """Refuse a source without a single usable pair."""
    if not len(pairs):
        first = f"; the first, {pairs.set_aside[0].id}: {pairs.set_aside[0].reason}" if pairs.set_aside else ""
        raise DiptychError(f"{pairs.source} holds no picture with a text ({len(pairs.set_aside)} set aside{first})")
    return pairs


def need_finished(folder: Path) -> None:
    """Refuse what `curate` has not written all of."""
    if (folder / ".work").is_dir() and (folder / "run.json").is_file():
        raise DiptychError(f"{folder} is a result of `diptych curate` that is not finished: give its command again")


def summary(set_aside: Sequence[SetAside]) -> str:
    """`12 set aside: 10 no text, 2 truncated`"""
    reasons = Counter(one.reason.partition(" (")[0] for one in set_aside)
    return f"{len(set_aside)} set aside: " + ", ".join(f"{n} {why}" for why, n in reasons.most_common(4))


def digest_of(files: Sequence[Path]) -> str:
    known = [(path.name, path.stat().st_size if path.is_file() else 0) for path in files]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


def need_texts(identifier: str, texts: Sequence[str]) -> tuple[str, ...]:
    found = tuple(" ".join(text.split()) for text in texts if text.strip())
    if not found:
        raise BadPair(f"{identifier}: the text is empty")
    return found


# -- folders -----------------------------------------------------------------------------------------------------------


def read_folder(root: Path) -> Pairs:
    """Texts beside pictures: x.jpg and x.txt."""
    shards = sorted(root.glob("*.tar"))
    if shards:
        from diptych.data.shards import read_shards

        return read_shards(shards, str(root))
    found: list[Path] = []
    aside: list[SetAside] = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        there = set(names)
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
                continue
            if f"{path.stem}.txt" in there:
                found.append(path)
            else:
                aside.append(SetAside(str(path.relative_to(root)), "no text beside it"))

    def get(index: int) -> Pair:
        path = found[index]
        identifier = str(path.relative_to(root))
        beside = path.with_suffix(".txt")
        lines = read_text(beside.read_bytes()[: MAX_TEXT + 1], identifier).splitlines()
        return Pair(identifier, partial(picture_of, partial(file_bytes, path)), need_texts(identifier, lines))

    return Pairs(str(root), len(found), get, tuple(aside), digest_of(found))


def file_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadPicture(f"more than {MAX_BYTES >> 20} MB")
        return path.read_bytes()
    except OSError as error:
        raise BadPicture((error.strerror or str(error)).lower()) from error


def picture_of(read: Callable[[], bytes]) -> Image.Image:
    return decode(read())[0]


def read_text(data: bytes, identifier: str) -> str:
    if len(data) > MAX_TEXT:
        raise BadPair(f"{identifier}: a text of more than {MAX_TEXT >> 20} MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadPair(f"{identifier}: the text is not UTF-8") from error


# -- tables ------------------------------------------------------------------------------------------------------------


def read_columns(
    tables: Sequence[Table], source: str, files: list[Path], image: str | None, texts: Sequence[str] | None
) -> Pairs:
    """A column of pictures and one or several of texts; where some tables are the training split, those alone."""
    tables = [table for table in tables if table.rows]
    tables = [table for table in tables if table.split in ("train", None)] or tables
    parts = [table_part(table, image, texts) for table in tables]
    starts = [0]
    for rows, _ in parts:
        starts.append(starts[-1] + len(rows))
    aside: list[SetAside] = []
    for table, (rows, _) in zip(tables, parts, strict=True):
        kept = set(rows)
        aside += [SetAside(f"{table.where} row {n + 1}", "no text") for n in range(table.rows) if n not in kept]

    def get(index: int) -> Pair:
        part = bisect_right(starts, index) - 1
        rows, make = parts[part]
        return make(rows[index - starts[part]])

    return Pairs(source, starts[-1], get, tuple(aside), digest_of(files))


def table_part(table: Table, image: str | None, texts: Sequence[str] | None) -> tuple[list[int], Callable[[int], Pair]]:
    """(rows with a text, maker of a row's pair)."""
    column = find_column(table, "image", image)
    assert column is not None
    names = text_columns_of(table, texts)
    cells = [table.column(name) for name in names]
    found = [[text for cells in cells for text in cell_texts(cells[row])] for row in range(table.rows)]
    paths = None if column in table.inside else table.column(column)

    def data(row: int) -> bytes:
        if paths is None:
            assert table.picture is not None
            return table.picture(column, row)
        word = word_of(paths[row])
        if word is None:
            raise BadPicture("no picture in this row")
        return file_bytes(table.base / Path(word).expanduser())

    def make(row: int) -> Pair:
        identifier = f"{Path(table.where).name} row {row + 1}"
        texts = need_texts(identifier, found[row])
        # rows of one picture belong together
        extra = {} if paths is None else {"picture": str(table.base / (word_of(paths[row]) or identifier))}
        return Pair(identifier, partial(picture_of, partial(data, row)), texts, extra)

    return [row for row in range(table.rows) if found[row]], make


def text_columns_of(table: Table, asked: Sequence[str] | None) -> list[str]:
    """Those asked for; else the first usual name; else its numbered ones (caption_1, caption_2)."""
    if asked:
        for name in asked:
            if name not in table.names:
                raise DiptychError(f'{table.where} has no column "{name}"{nearest(name, table.names)}')
        return list(asked)
    plain = {"".join(c for c in name.lower() if c.isalnum()): name for name in reversed(list(table.names))}
    for usual in TEXTS.split():
        if usual in plain:
            return [plain[usual]]
        numbered = [name for key, name in plain.items() if key.rstrip("0123456789") == usual]
        if numbered:
            return sorted(numbered, key=lambda name: list(table.names).index(name))
    raise DiptychError(
        f"{table.where} has no column of texts such as caption; its columns are {', '.join(table.names)}: "
        "name it with --text COLUMN (text_columns= in Python)"
    )


def cell_texts(cell: Any) -> list[str]:
    """The texts of a cell: one, or those of a list (in a CSV: of a JSON list)."""
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            return [cell]
    many = cell if isinstance(cell, (list, tuple)) else [cell]
    return [text for one in many if (text := word_of(one)) and not isinstance(one, (dict, bytes))]
