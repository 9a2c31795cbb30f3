"""Rows of an index or of a curation to files: Parquet, CSV, or webdataset shards in the layout of img2dataset.

Pure functions on Arrow batches. Columns have the names of the curation protocol: `key`, `text` (or `texts`),
`picture`, `url`, `width`, `height`. Pictures are copied byte for byte.
"""

import hashlib
import io
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.pictures import BadPicture
from diptych.errors import DiptychError
from diptych.files import atomic

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]
PER_SHARD = 10_000
# A spreadsheet runs a cell that begins so; full-width forms too, and it passes over spaces before them.
FORMULA = r"^(\s*[=+\-@\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]|[\t\r\n])"
MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"), (0, b"\x89PNG\r\n\x1a\n", "png"), (0, b"GIF8", "gif"), (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"), (0, b"II*\0", "tif"), (0, b"MM\0*", "tif"), (4, b"ftypavi", "avif"), (4, b"ftyp", "heic"),
    (4, b"jP  ", "jp2"), (0, b"P6", "ppm"), (0, b"P5", "pgm"),
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """rows: written, whether or not with a picture; failed: those whose picture could not be read, by reason."""

    files: tuple[Path, ...]
    rows: int
    failed: Mapping[str, int]


# -- tables ----------------------------------------------------------------------------------------------------------


def write_parquet(batches: Iterable["pa.RecordBatch"], path: Path) -> Exported:
    """All columns as they are, embeddings and pictures too."""
    import pyarrow.parquet as parquet

    schema, batches = _peek(batches)
    rows = 0
    with atomic(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += len(batch)
    return Exported((path,), rows, {})


def write_csv(batches: Iterable["pa.RecordBatch"], path: Path) -> Exported:
    """Numbers and words; a list as JSON. Pictures and embeddings stay out. Formulas are defused (see `defused`)."""
    from pyarrow import csv

    schema, batches = _peek(batches)
    rows = 0
    with atomic(path) as temporary, csv.CSVWriter(temporary, defused(schema.empty_table()).schema) as writer:
        for batch in batches:
            writer.write_table(defused(batch))
            rows += len(batch)
    return Exported((path,), rows, {})


def defused(batch: "pa.RecordBatch | pa.Table") -> "pa.Table":
    """The columns that fit a cell. Texts, and names of columns, that a spreadsheet would run as a formula get a ' in
    front, as it would write them itself."""
    import pyarrow as pa
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made when it is loaded
    names, columns = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if _is_bytes(field.type) or _is_vector(field.type):
            continue
        if pa.types.is_nested(field.type):
            cells = [None if cell is None else _json(cell) for cell in column.to_pylist()]
            column = pa.array(cells, pa.string())
        elif not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            column = column.cast(pa.string())
        if pa.types.is_string(column.type):
            column = compute.replace_substring_regex(column, FORMULA, r"'\1")
        names.append(field.name)
        columns.append(column)
    names = compute.replace_substring_regex(pa.array(names, pa.string()), FORMULA, r"'\1").to_pylist()
    return pa.table(columns, names=names)


# -- shards ----------------------------------------------------------------------------------------------------------


def picture_of_row(row: Row) -> bytes:
    if row.get("picture") is None:
        raise BadPicture("no picture in this row")
    return row["picture"]


def write_webdataset(
    batches: Iterable["pa.RecordBatch"],
    folder: Path,
    picture: Callable[[Row], bytes] = picture_of_row,
    per_shard: int = PER_SHARD,
) -> Exported:
    """NNNNN.tar of KEY.jpg (.png, ...), KEY.txt, KEY.json; beside it NNNNN.parquet with a line for each row, and
    NNNNN_stats.json, which is written last: a shard that has one is whole.

    KEY is the number of the shard (5 digits) and of the row in it (4). The row's own key is `source_key`. A row whose
    picture cannot be read has its reason in the table and nothing in the tar. Raises DiptychError where `folder` holds
    something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DiptychError(f"{folder} exists and is not an empty folder; shards need one of their own")
    if not 0 < per_shard <= PER_SHARD:
        raise DiptychError(f"per_shard: from 1 to {PER_SHARD}, as the row has four digits of a key; not {per_shard}")
    rows = (row for batch in batches for row in _rows(batch))
    files: list[Path] = []
    failed: Counter[str] = Counter()
    total = 0
    for number, shard in enumerate(_cut(rows, per_shard)):
        paths, stats = _write_shard(shard, number, folder, picture)
        files += paths
        total += stats["count"]
        failed.update({why: count for why, count in stats["status_dict"].items() if why != "success"})
    return Exported(tuple(files), total, dict(failed))


def _write_shard(
    rows: Iterator[Row], number: int, folder: Path, picture: Callable[[Row], bytes]
) -> tuple[list[Path], dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    tar, table, stats = (folder / f"{number:05d}{ending}" for ending in (".tar", ".parquet", "_stats.json"))
    began, lines, status = time.time(), [], Counter()
    with atomic(tar) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index, row in enumerate(rows):
            key = f"{number:05d}{index:04d}"
            about, data = _sample(row, key, picture)
            if data is not None:
                _add(archive, f"{key}.{extension(data)}", data)
                _add(archive, f"{key}.txt", (about["caption"] or "").encode("utf-8", "replace"))
                _add(archive, f"{key}.json", _json({k: v for k, v in about.items() if not _is_floats(v)}, 4).encode())
            lines.append(about)
            status["success" if data is not None else about["error_message"]] += 1
    with atomic(table) as temporary:
        parquet.write_table(pa.Table.from_pylist(lines), temporary)
    count, good = len(lines), status["success"]
    summary = {
        "count": count, "successes": good, "failed_to_download": count - good, "failed_to_resize": 0,
        "duration": time.time() - began, "start_time": began, "end_time": time.time(), "status_dict": dict(status),
    }  # fmt: skip
    with atomic(stats) as temporary:
        temporary.write_text(json.dumps(summary, indent=4), "utf-8")
    return [tar, table, stats], summary


def _sample(row: Row, key: str, picture: Callable[[Row], bytes]) -> tuple[dict[str, Any], bytes | None]:
    texts = row.get("texts") or []
    caption = row.get("text") or (texts[0] if texts else None)
    about = {
        "caption": caption, "url": row.get("url"), "key": key, "source_key": row.get("key"), "status": "success",
        "error_message": None, "width": row.get("width"), "height": row.get("height"),
        "original_width": row.get("original_width") or row.get("width"),
        "original_height": row.get("original_height") or row.get("height"), "sha256": None,
    }  # fmt: skip
    about |= {name: value for name, value in row.items() if name not in {*about, "text", "picture"}}
    try:
        data = picture(row)
        extension(data)
    except BadPicture as error:
        return about | {"status": "failed_to_download", "error_message": str(error)}, None
    return about | {"sha256": hashlib.sha256(data).hexdigest()}, data


def extension(data: bytes) -> str:
    """What a picture's first bytes say it is. Raises BadPicture."""
    for place, mark, name in MAGIC:
        if data[place : place + len(mark)] == mark:
            return name
    raise BadPicture("not a picture of a known kind")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no time and no owner: equal rows make equal shards
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _cut(rows: Iterator[Row], size: int) -> Iterator[Iterator[Row]]:
    """Runs of `size` rows, each to be used up before the next is asked for."""
    for first in rows:
        taken = 1

        def run(first: Row = first) -> Iterator[Row]:
            nonlocal taken
            yield first
            while taken < size and (row := next(rows, None)) is not None:
                taken += 1
                yield row

        yield run()


# -- Arrow -----------------------------------------------------------------------------------------------------------


def _rows(batch: "pa.RecordBatch") -> Iterator[Row]:
    for i in range(0, len(batch), 64):  # not a batch of pictures as Python bytes at once
        yield from batch.slice(i, 64).to_pylist()


def _peek(batches: Iterable["pa.RecordBatch"]) -> "tuple[pa.Schema, Iterator[pa.RecordBatch]]":
    waiting = iter(batches)
    first = next(waiting, None)
    if first is None:
        raise DiptychError("there are no rows to write")

    def again() -> "Iterator[pa.RecordBatch]":
        yield first
        yield from waiting

    return first.schema, again()


def _is_bytes(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _is_vector(kind: "pa.DataType") -> bool:
    from pyarrow import types

    a_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return a_list and types.is_floating(kind.value_type)  # type: ignore[attr-defined]


def _is_floats(value: object) -> bool:
    return isinstance(value, bytes) or (isinstance(value, list) and bool(value) and isinstance(value[0], float))


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
