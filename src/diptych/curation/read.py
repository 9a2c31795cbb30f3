"""A piece of the input as Arrow batches, one after the other: never more than a batch is in memory."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from diptych.curation.inputs import PATH, PLACE, PLACE_TYPE, Input, Piece
from diptych.data.pairs import MAX_TEXT, BadPair, cell_texts, need_texts, read_text
from diptych.data.pictures import EXTENSIONS, BadPicture
from diptych.data.shards import PICTURE, Shard, index_of, read_member
from diptych.errors import DiptychError

Aside = list[tuple[str, str]]  # (key, why) of rows that cannot be used
TEXT_FIELDS = ("caption", "captions", "key", "given_key")


def read(piece: Piece, opened: Input, size: int, aside: Aside) -> Iterator[pa.RecordBatch]:
    """The rows of a piece with the columns of `opened.schema`, at most `size` a batch; what cannot be used goes into
    `aside`. A key that comes twice in a piece is one of these."""
    read_rows = {"parquet": _table, "arrow": _table, "tar": _shard, "pictures": _pictures, "archive": _archive}
    seen: set[str] = set()
    for batch in read_rows[piece.kind](piece, opened, size, aside):
        if piece.source:
            batch = batch.append_column("source", pa.array([piece.source] * batch.num_rows, pa.string()))
        batch = fitted(batch, opened.schema)
        keys = batch.column("key").to_pylist()
        fresh = []
        for key in keys:
            fresh.append(key not in seen)
            seen.add(key)
        if not all(fresh):
            aside += [(key, "the key comes twice") for key, new in zip(keys, fresh, strict=True) if not new]
            batch = batch.filter(pa.array(fresh))
        yield batch


def fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of a schema in its order; one that is missing is of nulls."""
    columns = []
    for field in schema:
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException as error:
            raise DiptychError(f'column "{field.name}" is {field.type} at first and {column.type} later') from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


# -- tables ------------------------------------------------------------------------------------------------------------


def _table(piece: Piece, opened: Input, size: int, aside: Aside) -> Iterator[pa.RecordBatch]:
    naming = opened.namings[piece.naming]
    given, joined = dict(naming.renamed), naming.joined
    base = Path(piece.path).parent
    row = piece.start + (first_row(piece) if piece.kind == "parquet" else 0)
    for batch in _batches(piece, size):
        name: str
        columns: dict[str, Any] = {}
        for name in batch.schema.names:
            ours, column = given.get(name, name), batch.column(name)
            if ours == PLACE:
                columns[PATH], columns[PLACE] = _places(column, base)
            elif ours == "picture":
                columns[ours] = _bytes(column, base)
            elif name not in joined:
                columns[ours] = column
        if joined:
            cells = [batch.column(name).to_pylist() for name in joined]
            texts = [[text for cell in row for text in cell_texts(cell)] for row in zip(*cells, strict=True)]
            columns["texts"] = pa.array(texts, pa.list_(pa.string()))
        columns["key"] = _keys(columns.get("key"), piece, row, batch.num_rows)
        row += batch.num_rows
        yield pa.RecordBatch.from_pydict(columns)


def first_row(piece: Piece) -> int:
    """Rows of the file before the piece's row group."""
    if piece.group == 0:
        return 0
    with parquet.ParquetFile(piece.path) as file:
        return sum(file.metadata.row_group(n).num_rows for n in range(piece.group))


def _batches(piece: Piece, size: int) -> Iterator[pa.RecordBatch]:
    if piece.kind == "arrow":
        if not piece.files:
            return
        with pa.memory_map(piece.files[0]) as source, pa.ipc.open_file(source) as file:
            table = file.read_all().slice(0, (piece.stop or 0) - piece.start)
            yield from table.combine_chunks().to_batches(max_chunksize=size)
        return
    stop = piece.stop or 0
    at = 0
    with parquet.ParquetFile(piece.path) as file:
        if not file.num_row_groups:
            return
        for batch in file.iter_batches(batch_size=size, row_groups=[piece.group]):
            begin, end = max(piece.start - at, 0), min(stop - at, batch.num_rows)
            at += batch.num_rows
            if begin < end:
                yield batch.slice(begin, end - begin)
            if at >= stop:
                return


def _keys(given: Any, piece: Piece, row: int, rows: int) -> pa.Array:
    made = [f"{piece.name}-{row + n:09d}" for n in range(rows)]
    if given is None:
        return pa.array(made, pa.string())
    begin = f"{piece.source}-" if piece.source else ""
    words = given.cast(pa.string()).to_pylist()
    return pa.array([f"{begin}{word}" if word else own for word, own in zip(words, made, strict=True)], pa.string())


def _places(column: pa.Array, base: Path) -> tuple[pa.Array, pa.Array]:
    """(paths as absolute words, their places). What is not named like a picture has no place: a table of strangers must
    not carry off other files; nor has an address."""
    words, places = [], []
    for word in column.to_pylist():
        is_path = bool(word) and Path(word).suffix.lower() in EXTENSIONS and "://" not in word
        words.append(str(base / Path(word).expanduser()) if is_path else word)
        places.append({"file": words[-1], "offset": 0, "size": -1} if is_path else None)
    return pa.array(words, pa.string()), pa.array(places, PLACE_TYPE)


def _bytes(column: pa.Array, base: Path) -> pa.Array:
    """Bytes of pictures, or {"bytes", "path"} as `datasets` keeps them, of which one is there."""
    if not pa.types.is_struct(column.type):
        return column.cast(pa.binary())
    inside = column.field("bytes").cast(pa.binary())
    if not inside.null_count or column.type.get_field_index("path") < 0:
        return inside
    _, places = _places(column.field("path").filter(inside.is_null()), base)
    read = iter(bytes_at(places))
    return pa.array([data if data is not None else next(read) for data in inside.to_pylist()], pa.binary())


# -- shards, folders, archives -----------------------------------------------------------------------------------------


def _shard(piece: Piece, opened: Input, size: int, aside: Aside) -> Iterator[pa.RecordBatch]:
    shard = index_of(Path(piece.path))
    begin = f"{piece.source}-" if piece.source else ""
    own = piece.name.removeprefix(begin)
    whole = piece.stop is None
    if whole:
        aside += [(f"{piece.name or shard.path.stem}/{one.id}", one.reason.partition(" (")[0]) for one in shard.aside]
    fields = [f.name for f in opened.schema if f.name not in ("key", "text", "texts", "source", PLACE)]
    beside = Beside(Path(piece.path), opened.schema)
    rows: list[dict[str, Any]] = []
    members: list[str] = []
    for n in range(len(shard) if whole else min(piece.stop or 0, len(shard))):
        word = str(shard.keys[n]).replace("/", "-")
        key = begin + (word if word.startswith(own) else f"{own}-{word}")
        try:
            pair = shard.pair(n)
            key = begin + str(pair.extra.get("given_key", word)) if not own else key
        except BadPair as error:
            aside.append((key, str(error).rpartition(": ")[2]))
            continue
        offset, length = next((o, s) for kind, o, s in members_of(shard, n) if kind == PICTURE)
        place = {"file": piece.path, "offset": offset, "size": length}
        extra = {name: pair.extra.get(name) for name in fields}
        rows.append({"key": key, **_texts(pair.texts, opened), **extra, PLACE: place})
        members.append(str(shard.keys[n]))
        if len(rows) == size:
            yield beside.put(_made(rows, opened.schema), members)
            rows, members = [], []
    if rows:
        yield beside.put(_made(rows, opened.schema), members)


def is_vector(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)


def vectors_beside(shards: Sequence[Path]) -> list[list[pa.Field]]:
    """The columns of vectors in each table that lies beside a shard under its name, as `curate` writes them."""
    found = []
    for path in (shard.with_suffix(".parquet") for shard in shards):
        if path.is_file() and path.stat().st_size:
            try:
                schema = parquet.read_schema(path)
            except pa.ArrowException as error:
                raise DiptychError(f"{path} is not a Parquet file, or is truncated: {error}") from error
            found.append([one for one in schema if is_vector(one.type)] if "key" in schema.names else [])
    return found


class Beside:
    """Vectors of a shard's samples, out of the table beside it."""

    def __init__(self, shard: Path, schema: pa.Schema) -> None:
        (own,) = vectors_beside([shard]) or [[]]
        self.names = [one.name for one in own if one.name in schema.names]
        if self.names:
            self.table = parquet.read_table(shard.with_suffix(".parquet"), columns=["key", *self.names])
            self.rows = {key: n for n, key in enumerate(self.table.column("key").to_pylist())}

    def put(self, batch: pa.RecordBatch, members: Sequence[str]) -> pa.RecordBatch:
        """The vectors of samples by the names of their members; null where the table has none."""
        for name in self.names:
            rows = pa.array([self.rows.get(member) for member in members], pa.int64())
            column = self.table.column(name).combine_chunks().take(rows)
            batch = batch.set_column(batch.schema.get_field_index(name), self.table.schema.field(name), column)
        return batch


def members_of(shard: Shard, row: int) -> list[tuple[int, int, int]]:
    return [tuple(m) for m in shard.members[shard.starts[row] : shard.starts[row + 1]].tolist()]


def _texts(texts: Sequence[str], opened: Input) -> dict[str, Any]:
    if "texts" in opened.schema.names:
        return {"texts": list(texts)}
    return {"text": " ".join(texts)}


def _made(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of a stranger's JSON: a value that is not of its column's type is missing."""
    columns = {}
    for field in schema:
        if field.name == "source":
            continue
        values = [row.get(field.name) for row in rows]
        try:
            columns[field.name] = pa.array(values, field.type)
        except (pa.ArrowException, OverflowError):
            columns[field.name] = pa.array([_as(value, field.type) for value in values], field.type)
    return pa.RecordBatch.from_pydict(columns)


def _as(value: Any, kind: pa.DataType) -> Any:
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowException, OverflowError):
        return str(value) if pa.types.is_string(kind) and value is not None else None


def fields_of_shards(paths: Sequence[Path], peeked: int) -> tuple[bool, list[pa.Field]]:
    """(whether samples have several texts, the fields of their JSON), by the first samples of the first shard that has
    any. A field that is neither a word, a number nor true or false is left out."""
    shard = next((found for found in map(index_of, paths) if len(found)), None)
    many, kinds = False, {}
    for n in range(min(peeked, len(shard) if shard else 0)):
        assert shard is not None
        try:
            pair = shard.pair(n)
        except BadPair:
            continue
        many = many or len(pair.texts) > 1
        for name, value in pair.extra.items():
            if name in TEXT_FIELDS or name in ("text", "texts", "source", "picture", PLACE) or value is None:
                continue
            if isinstance(value, (bool, int, float, str)):
                kinds.setdefault(name, set()).add(type(value))
    order = ((str, pa.string()), (float, pa.float64()), (int, pa.int64()), (bool, pa.bool_()))
    return many, [pa.field(name, next(ours for one, ours in order if one in found)) for name, found in kinds.items()]


def _pictures(piece: Piece, opened: Input, size: int, aside: Aside) -> Iterator[pa.RecordBatch]:
    folder = Path(piece.path)
    begin = f"{piece.source}-" if piece.source else ""
    rows: list[dict[str, Any]] = []
    for name in piece.files:
        path = folder / name
        key = begin + re.sub(r"[^\w-]+", "_", name)
        lines, why = lines_beside(path)
        if why:
            aside.append((key, why))
            continue
        rows.append({"key": key, **_texts(lines, opened), PLACE: {"file": str(path), "offset": 0, "size": -1}})
        if len(rows) == size:
            yield _made(rows, opened.schema)
            rows = []
    if rows:
        yield _made(rows, opened.schema)


def lines_beside(picture: Path) -> tuple[Sequence[str], str]:
    """(texts of the .txt beside a picture, one a line; why there is none)."""
    try:
        with open(picture.with_suffix(".txt"), "rb") as file:
            text = read_text(file.read(MAX_TEXT + 1), "")
        return need_texts("", text.splitlines()), ""
    except OSError:
        return (), "no text beside it"
    except BadPair as error:
        return (), str(error).removeprefix(": ")


def _archive(piece: Piece, opened: Input, size: int, aside: Aside) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"key": [piece.name], "archive": [piece.path]})


# -- pictures ----------------------------------------------------------------------------------------------------------


def bytes_at(places: pa.Array) -> list[bytes | None]:
    """The bytes that lie at places. None where there is no place, or nothing there any more."""
    found: list[bytes | None] = []
    for place in places.to_pylist():
        if place is None:
            found.append(None)
            continue
        try:
            path, size = Path(place["file"]), place["size"]
            found.append(path.read_bytes() if size < 0 else read_member(path, place["offset"], size))
        except (OSError, BadPicture):
            found.append(None)
    return found
