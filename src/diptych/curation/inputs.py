"""What is to be curated: files and folders cut into pieces, the same on every machine and for any number of workers.

A piece is what one worker reads at a time: a shard, some rows of a table, some pictures of a folder, an archive. It is
streamed as Arrow batches with the columns of the family's protocol; pictures that lie in files stay there, and only
their places travel, until a stage or the output wants their bytes.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as parquet

from diptych.curation.csv_tables import import_csv, look_at_csv
from diptych.data.pairs import TEXTS, need_finished
from diptych.data.pictures import EXTENSIONS
from diptych.data.shards import expand, index_of
from diptych.data.tables import USUAL
from diptych.errors import DiptychError, nearest

State = tuple[int, int]  # bytes of a file, and when it was changed, in nanoseconds
Kind = Literal["parquet", "csv", "arrow", "tar", "pictures", "archive"]
ROWS = 20_000  # of a table in a piece
PICTURES = 2_000  # of a folder in a piece
SPLITS = 16  # pieces of one row group at most: each decodes the rows before its own
PEEKED = 200  # samples whose texts and fields are looked at to know the columns
ARCHIVES = (".warc", ".warc.gz", ".wat", ".wat.gz")
KNOWN = (  # columns of the protocol: found whatever their case, as in LAION's URL and TEXT
    "key", "text", "texts", "url", "page_url", "width", "height", "language", "similarity", "embedding", "punsafe",
    "pwatermark", "aesthetic", "weight",
)  # fmt: skip
PATHS_CALLED = ("image", "img", "picture", "photo", "imagepath")
FILES_CALLED = ("imagefile", "imagefilename", "filepath", "filename", "file", "path", "imagename")
PICTURES_CALLED = ("picture", *USUAL["image"].split())
PATH = "image"  # the column of paths of pictures, whatever it was called
PLACE = "_picture"  # where the bytes of a row's picture lie; never shown to a stage
PLACE_TYPE = pa.struct([("file", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a file (of one row group of Parquet), or the pictures of a folder named in `files`."""

    number: int
    kind: Kind
    path: str
    name: str  # begins the keys of rows that have none, and of those that are unique in their file alone
    start: int = 0
    stop: int | None = None
    group: int = 0
    files: tuple[str, ...] = ()
    source: str = ""
    naming: int = 0


@dataclass(frozen=True)
class Naming:
    """renamed: column of a table -> ours; joined: columns that together are `texts`."""

    renamed: tuple[tuple[str, str], ...] = ()
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """pictures: "" none, "places" they lie in files, "bytes" in the table. namings: one for each source."""

    source: str
    pieces: tuple[Piece, ...] = field(repr=False)
    schema: pa.Schema
    pictures: Literal["", "places", "bytes"] = ""
    namings: tuple[Naming, ...] = (Naming(),)
    sharded: bool = False  # shards and folders of pictures come out as shards
    files: Mapping[str, State] = field(default_factory=dict, repr=False)

    @property
    def columns(self) -> list[str]:
        """Those that a stage may ask for."""
        shown = [name for name in self.schema.names if name != PLACE]
        return [*shown, "picture"] if self.pictures == "places" and "picture" not in shown else shown

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:32]


def open_input(source: str, *, text: Sequence[str] = (), image: str | None = None) -> Input:
    """What `source` holds: Parquet or CSV files, webdataset shards (img2dataset's layout, `{00000..00099}.tar`),
    pictures with texts beside them, WAT or WARC archives; a folder of any of these; or several, `a=PATH,b=PATH`, whose
    rows get a column `source`. Writes nothing.

    text, image: the columns to take as captions and pictures, where tables name them otherwise. Raises DiptychError.
    """
    named = sources_of(source)
    found = [_open(path, text, image) for _, path in named]
    labels = [name for name, _ in named] if len(named) > 1 or named[0][0] else [""]
    kinds = {one.pieces[0].kind for one in found}
    if "archive" in kinds and len(kinds) > 1:
        raise DiptychError(f"{source}: archives and finished rows are curated apart, each with its own recipe")
    if len(found) == 1 and not labels[0]:
        return numbered(found[0])
    if len({one.pictures for one in found}) > 1:
        raise DiptychError(f"{source}: pictures must be in all of the sources in the same way, or in none")
    pieces = tuple(
        replace(piece, source=label, name=f"{label}-{piece.name}", naming=n)
        for n, (label, one) in enumerate(zip(labels, found, strict=True))
        for piece in one.pieces
    )
    schema = together([*(one.schema for one in found), pa.schema([("source", pa.string())])], source)
    each = zip(labels, found, strict=True)
    files = {f"{label}={name}": state for label, one in each for name, state in one.files.items()}
    mixed = Input(
        source, pieces, schema, found[0].pictures, tuple(one.namings[0] for one in found),
        any(one.sharded for one in found), files,
    )  # fmt: skip
    return numbered(mixed)


def numbered(opened: Input) -> Input:
    return replace(opened, pieces=tuple(replace(piece, number=n) for n, piece in enumerate(opened.pieces)))


def sources_of(source: str) -> list[tuple[str, str]]:
    """`a=PATH,b=PATH` -> (name, path) of each; a path alone has no name."""
    words = source.split(",")
    named = [re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]*)=(.+)", word.strip()) for word in words]
    if Path(source).expanduser().exists() or not any(named):
        return [("", source)]
    if not all(named):
        raise DiptychError(f"{source}: name every source, as in a=PATH,b=PATH")
    found = [(match[1], match[2]) for match in named if match]
    repeated = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if repeated:
        raise DiptychError(f'{source}: two sources are called "{repeated[0]}"')
    return found


def together(schemas: Sequence[pa.Schema], where: str) -> pa.Schema:
    """One schema for all. What a column says of itself, as embeddings do of their model, all files must say alike."""
    for name in {one.name for schema in schemas for one in schema if one.metadata}:
        said = {str(schema.field(name).metadata) for schema in schemas if name in schema.names}
        if len(said) > 1:
            raise DiptychError(f'{where}: "{name}" was not made alike in all files: {"; ".join(sorted(said))[:300]}')
    try:
        return pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")
    except pa.ArrowException as error:
        raise DiptychError(f"{where}: a column has not one type in all files: {error}") from error


def _open(source: str, text: Sequence[str], image: str | None) -> Input:
    if source.startswith(("http://", "https://", "s3://", "gs://", "hf://")):
        raise DiptychError(f"{source} is an address: download it, then give the folder or file on this disk")
    paths = [path.absolute() for path in expand(source)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DiptychError(f"{missing[0]}: no such file or folder")
    for path in paths:
        need_finished(path)
    files = [file for path in paths for file in (files_below(path) if path.is_dir() else [path])]
    kinds = {kind: [file for file in files if kind_of(file) == kind] for kind in ("tar", "archive", "parquet", "csv")}
    if kinds["tar"]:
        return _shards(kinds["tar"], source)
    if pictures := [path for path in paths if path.is_dir() and not any(kinds.values())]:
        return _pictures(pictures[0], source)
    if kinds["archive"]:
        names = names_of(kinds["archive"])
        pieces = [Piece(0, "archive", str(path), name) for path, name in zip(kinds["archive"], names, strict=True)]
        schema = pa.schema([("key", pa.string()), ("archive", pa.string())])
        return Input(source, tuple(pieces), schema, files=states_of(kinds["archive"]))
    tables = [*kinds["parquet"], *kinds["csv"]]
    if not tables:
        raise DiptychError(f"{source}: give Parquet, CSV, .tar shards, WAT or WARC archives, or a folder of pictures")
    return _tables(tables, source, text, image)


def files_below(folder: Path) -> list[Path]:
    """Files of a folder and the folders in it, hidden ones left out. Beside shards, their tables of the same name."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()
    )
    if any(path.suffix == ".tar" for path in found):
        return [path for path in found if path.suffix == ".tar"]
    if any(path.suffix.lower() in EXTENSIONS for path in found):
        return []  # a folder of pictures; a table among them describes them
    return [path for path in found if path.name != "removed.parquet"]


def kind_of(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        return "archive"
    return {".tar": "tar", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}.get(path.suffix.lower(), "")


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file, to begin keys with: its own, with its number where two are alike."""
    plain = [re.sub(r"[^\w-]+", "-", path.name.partition(".")[0]) or "rows" for path in paths]
    counted = Counter(plain)
    return [name if counted[name] == 1 else f"{name}-{n:05d}" for n, name in enumerate(plain)]


def states_of(files: Sequence[Path]) -> dict[str, State]:
    """The state of each file, by its path below the folder that holds them all: the same where that was moved."""
    base = os.path.commonpath([path.parent for path in files])
    stats = ((path, path.stat()) for path in files)
    return {os.path.relpath(path, base): (stat.st_size, stat.st_mtime_ns) for path, stat in stats}


# -- tables ------------------------------------------------------------------------------------------------------------


def _tables(paths: list[Path], source: str, text: Sequence[str], image: str | None) -> Input:
    names = names_of(paths)
    pieces: list[Piece] = []
    schemas = []
    for path, name in zip(paths, names, strict=True):
        if kind_of(path) == "csv":
            schemas.append(look_at_csv(path))
            pieces.append(Piece(0, "csv", str(path), name))
        else:
            schema, some = _parquet(path, name)
            schemas.append(schema)
            pieces += some
    schema = together(schemas, source)
    renamed, joined = names_for(schema, source, text, image)
    given = {name: ours for name, ours in renamed if ours != name}
    fields = [pa.field(given.get(f.name, f.name), f.type, metadata=f.metadata) for f in schema if f.name not in joined]
    fields = [pa.field("picture", pa.binary()) if f.name == "picture" and is_inside(f.type) else f for f in fields]
    fields = [pa.field("key", pa.string()), *(f for f in fields if f.name != "key")]
    if joined:
        fields.append(pa.field("texts", pa.list_(pa.string())))
    pictures = ""
    if any(ours == PLACE for _, ours in renamed):
        pictures = "places"
        fields = [f for f in fields if f.name != PLACE]
        fields += [pa.field(PATH, pa.string()), pa.field(PLACE, PLACE_TYPE)]
    elif any(f.name == "picture" for f in fields):
        pictures = "bytes"
    columns = pa.schema(fields)
    return Input(source, tuple(pieces), columns, pictures, (Naming(tuple(renamed), joined),), files=states_of(paths))


def _parquet(path: Path, name: str) -> tuple[pa.Schema, list[Piece]]:
    try:
        with parquet.ParquetFile(path) as file:
            schema, about = file.schema_arrow, file.metadata
            groups = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise DiptychError(f"{path} is not a Parquet file, or is truncated: {error}") from error
    pieces = []
    for n, rows in enumerate(groups):
        size = max(ROWS, -(-rows // SPLITS))
        for start in range(0, rows, size):
            pieces.append(Piece(0, "parquet", str(path), name, start, min(rows, start + size), n))
    return schema, pieces or [Piece(0, "parquet", str(path), name, 0, 0)]


def names_for(
    schema: pa.Schema, where: str, text: Sequence[str], image: str | None
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(column -> our name for those that have one, columns to join as `texts`)."""
    for asked in [*text, *([image] if image else [])]:
        if asked not in schema.names:
            raise DiptychError(f'{where} has no column "{asked}"{nearest(asked, schema.names)}')
    plain = {name.lower(): name for name in reversed(schema.names)}
    renamed = [(plain[ours], ours) for ours in KNOWN if ours in plain and not (text and ours in ("text", "texts"))]
    texts = list(text)
    if not texts and not {"text", "texts"} & set(plain):
        texts = [plain[word] for word in TEXTS.split() if word in plain][:1]
    if len(texts) == 1:
        listed = pa.types.is_list(schema.field(texts[0]).type) or pa.types.is_large_list(schema.field(texts[0]).type)
        renamed.append((texts[0], "texts" if listed else "text"))
    bare = {plainest(name): name for name in reversed(schema.names)}
    for name in [image] if image else [bare[word] for word in PICTURES_CALLED if word in bare]:
        kind = schema.field(name).type
        if is_inside(kind):
            renamed.append((name, "picture"))
            break
        # beside addresses, names of files are no files yet
        known = PATHS_CALLED if "url" in plain else (*PATHS_CALLED, *FILES_CALLED)
        if image or (pa.types.is_string(kind) and plainest(name) in known):
            renamed.append((name, PLACE))
            break
    taken = {PATH if ours == PLACE else ours for name, ours in renamed}
    lost = [n for n in schema.names if n in taken and n not in [t for t, _ in renamed]]
    if lost:
        raise DiptychError(f'{where} has a column "{lost[0]}" beside the one to be called so; rename one of them')
    return renamed, tuple(texts) if len(texts) > 1 else ()


def plainest(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def is_inside(kind: pa.DataType) -> bool:
    """Whether a column of this type holds the bytes of pictures."""
    holds = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return holds or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def with_rows_of_csv(opened: Input, work: Path) -> Input:
    """CSV files cannot be read from the middle: they are streamed once into Arrow files of ROWS rows."""
    pieces: list[Piece] = []
    for n, piece in enumerate(opened.pieces):
        if piece.kind == "csv":
            rows = import_csv(Path(piece.path), work / "csv" / f"{n:05d}", ROWS)
            pieces += [
                replace(piece, kind="arrow", files=(str(file),), start=start, stop=start + count)
                for file, start, count in rows
            ] or [replace(piece, kind="arrow", stop=0)]
        else:
            pieces.append(piece)
    return numbered(replace(opened, pieces=tuple(pieces)))


# -- shards and folders ------------------------------------------------------------------------------------------------


def _shards(paths: list[Path], source: str) -> Input:
    from diptych.curation.read import fields_of_shards, vectors_beside

    names = [""] * len(paths) if are_curated(paths) else names_of(paths)
    pieces = [Piece(0, "tar", str(path), name) for path, name in zip(paths, names, strict=True)]
    many, extra = fields_of_shards(paths, PEEKED)
    text = pa.field("texts", pa.list_(pa.string())) if many else pa.field("text", pa.string())
    vectors = together([pa.schema([]), *map(pa.schema, vectors_beside(paths))], source)
    extra = [one for one in extra if one.name not in vectors.names]
    schema = pa.schema([pa.field("key", pa.string()), text, *extra, *vectors, pa.field(PLACE, PLACE_TYPE)])
    beside = [table for path in paths if (table := path.with_suffix(".parquet")).is_file()]
    return Input(source, tuple(pieces), schema, "places", sharded=True, files=states_of([*paths, *beside]))


def are_curated(shards: Sequence[Path]) -> bool:
    """Whether they are of one result of `curate`, where no key comes twice: they need no name of their shard."""
    about = shards[0].parent / "run.json"
    if len({path.parent for path in shards}) > 1 or not about.is_file():
        return False
    try:
        return "recipe" in json.loads(about.read_text("utf-8"))
    except ValueError:
        return False


def _pictures(folder: Path, source: str) -> Input:
    from diptych.curation.read import lines_beside

    files = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if not files:
        raise DiptychError(f"{source}: no tables, shards, archives or pictures in this folder")
    many = any(len(lines_beside(folder / file)[0]) > 1 for file in files[:PEEKED])
    text = pa.field("texts", pa.list_(pa.string())) if many else pa.field("text", pa.string())
    words = [str(file) for file in files]
    pieces = [
        Piece(0, "pictures", str(folder), "", start, files=tuple(words[start : start + PICTURES]))
        for start in range(0, len(words), PICTURES)
    ]
    schema = pa.schema([pa.field("key", pa.string()), text, pa.field(PLACE, PLACE_TYPE)])
    beside = [text for file in files if (text := (folder / file).with_suffix(".txt")).is_file()]
    states = states_of([*(folder / file for file in files), *beside])
    return Input(source, tuple(pieces), schema, "places", sharded=True, files=states)


def first_rows(opened: Input, rows: int) -> Input:
    """The pieces that hold the first so many rows, the last cut short. Of archives: so many archives."""
    pieces: list[Piece] = []
    left = rows
    for piece in opened.pieces:
        if left <= 0:
            break
        count = rows_of(piece)
        if piece.kind == "pictures":
            piece = replace(piece, files=piece.files[:left])
        elif piece.kind != "archive":
            piece = replace(piece, stop=piece.start + min(count, left))
        pieces.append(piece)
        left -= min(count, left)
    return replace(opened, pieces=tuple(pieces))


def rows_of(piece: Piece) -> int:
    if piece.kind == "tar":
        return len(index_of(Path(piece.path)))
    if piece.kind == "pictures":
        return len(piece.files)
    return 1 if piece.kind == "archive" else (piece.stop or 0) - piece.start
