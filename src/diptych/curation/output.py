"""What is left as shards: tar files in img2dataset's layout, or Parquet, so many rows each, in the order of the input.

A shard is a function of the finished pieces that it reaches into, so shards too are made by any number of processes.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from diptych.curation.inputs import PLACE
from diptych.curation.piece import GONE, PICTURE_ROWS, Segment, open_rows, typed
from diptych.curation.read import bytes_at, fitted, is_vector
from diptych.errors import DiptychError
from diptych.files import atomic, write_atomically

SHARD = 10_000  # rows, as img2dataset's
SIGNS = (  # how the files of pictures begin, and their endings
    (b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)  # fmt: skip
LEFT_OVER = re.compile(
    r"\.(\d{5}(\.tar|\.parquet|_stats\.json)|removed\.parquet|metadata\.txt|report\.(html|json)|run\.json)\..+"
)


@dataclass(frozen=True)
class Shards:
    """rows: of every finished piece, in order."""

    out: Path
    last: Segment
    rows: tuple[int, ...]
    schema: pa.Schema
    tar: bool

    @property
    def count(self) -> int:
        return -(-sum(self.rows) // SHARD)


def schema_of(last: Segment, pieces: int) -> pa.Schema:
    """The columns of all that is left: those of pieces in which nothing is left do not count."""
    found = []
    for n in range(pieces):
        with open_rows(last.file(n, "arrow")) as file:
            if file.num_record_batches:
                found.append(file.schema)
    try:
        return typed(pa.unify_schemas(found, promote_options="permissive")) if found else pa.schema([])
    except pa.ArrowException as error:
        raise DiptychError(f"a stage gave a column different types in different pieces: {error}") from error


def rows_between(shards: Shards, begin: int, end: int) -> Iterator[pa.RecordBatch]:
    """Rows `begin` to `end` of what is left, few at a time: their pictures are read with them."""
    after = 0
    for n, rows in enumerate(shards.rows):
        at, after = after, after + rows
        if after <= begin or at >= end:
            continue
        with open_rows(shards.last.file(n, "arrow")) as file:
            for b in range(file.num_record_batches):
                batch = file.get_batch(b)
                first, last = max(begin - at, 0), min(end - at, batch.num_rows)
                at += batch.num_rows
                for start in range(first, last, PICTURE_ROWS):
                    yield fitted(batch.slice(start, min(PICTURE_ROWS, last - start)), shards.schema)


def write_shard(shards: Shards, number: int) -> None:
    """Shard `number`, whole; nothing where it is there already."""
    name = f"{number:05d}"
    stats = shards.out / f"{name}_stats.json"
    if (stats if shards.tar else shards.out / f"{name}.parquet").exists():
        return
    batches = rows_between(shards, number * SHARD, (number + 1) * SHARD)
    if not shards.tar:
        with atomic(shards.out / f"{name}.parquet") as place:
            write_parquet(place, (without_places(batch) for batch in batches))
        return
    used: set[str] = set()
    with (
        atomic(shards.out / f"{name}.tar") as place,
        atomic(shards.out / f"{name}.parquet") as table,
        tarfile.open(place, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        write_parquet(table, (to_tar(tar, batch, used) for batch in batches))
    rows = min(SHARD, sum(shards.rows) - number * SHARD)
    about = {"count": rows, "successes": rows, "failed_to_download": 0, "failed_to_resize": 0}
    write_atomically(stats, json.dumps({**about, "status_dict": {"success": rows}}, indent=1).encode())


def without_places(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.drop_columns([PLACE]) if PLACE in batch.schema.names else batch


def write_parquet(place: Path, batches: Iterator[pa.RecordBatch]) -> None:
    writer = None
    for batch in batches:
        if writer is None:
            writer = parquet.ParquetWriter(place, batch.schema, compression="zstd")
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


def to_tar(tar: tarfile.TarFile, batch: pa.RecordBatch, used: set[str]) -> pa.RecordBatch:
    """Add the samples to a shard; -> their rows without pictures, with the keys that the members begin with."""
    names = batch.schema.names
    pictures = batch.column("picture").to_pylist() if "picture" in names else bytes_at(batch.column(PLACE))
    table = batch.drop_columns([name for name in ("picture", PLACE) if name in names])
    vectors = [one.name for one in table.schema if is_vector(one.type)]  # in the table alone: they are no text
    members = []
    for row, data in zip(table.drop_columns(vectors).to_pylist(), pictures, strict=True):
        if not data:
            raise DiptychError(f"the picture of {row['key']} was there and cannot be read any more")
        key = unused(safe(row["key"]), used)
        members.append(key)
        texts = row.get("texts") or [row.get("text") or ""]
        about = {"key": key, "caption": texts[0], **without(row, "key", "text")}
        if key != row["key"]:
            about["given_key"] = row["key"]
        add(tar, f"{key}.{ending(data)}", data)
        for n, text in enumerate(texts):
            add(tar, f"{key}.{n}.txt" if n else f"{key}.txt", text.encode("utf-8", "replace"))
        add(tar, f"{key}.json", json.dumps(about, ensure_ascii=False, default=str).encode("utf-8", "replace"))
    table = table.set_column(table.schema.get_field_index("key"), "key", pa.array(members, pa.string()))
    return table.rename_columns(["caption" if name == "text" else name for name in table.schema.names])


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def safe(key: str) -> str:
    """A key as the name of a member: webdataset takes all after the first dot for an ending."""
    return re.sub(r"[^\w-]", "_", key, flags=re.ASCII)[:80] or "row"


def unused(key: str, used: set[str]) -> str:
    name, n = key, 1
    while name in used:
        n += 1
        name = f"{key}-{n}"
    used.add(name)
    return name


def ending(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypheic"):
        return data[8:12].decode()
    return next((end for sign, end in SIGNS if data.startswith(sign)), "jpg")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without owner and date: the same rows give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_removed(out: Path, segments: Sequence[Segment], pieces: int) -> None:
    """removed.parquet: every row that is not in the shards, with the stage that removed it and why."""
    with atomic(out / "removed.parquet") as place, parquet.ParquetWriter(place, GONE, compression="zstd") as writer:
        for segment in segments:
            for n in range(pieces):
                with open_rows(segment.file(n, "gone")) as file:
                    writer.write_table(file.read_all())


def clear_left_overs(out: Path) -> None:
    """What a kill left of files that were being written."""
    for path in out.iterdir():
        if LEFT_OVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
