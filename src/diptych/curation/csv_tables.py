"""CSV and TSV as Arrow: the types of the columns, and one streamed pass into files that can be read from the middle."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, ipc

from diptych.data.pairs import TEXTS
from diptych.errors import DiptychError
from diptych.files import atomic, write_atomically

BLOCK = 1 << 22
# Their cells are words even where they look like numbers.
WORDS = {"key", "url", "page_url", "language", "image", "picture", *TEXTS.split()}


def look_at_csv(path: Path) -> pa.Schema:
    """Names and types of the columns, by the first block. Raises DiptychError for what is no table."""
    with open_csv(path) as reader:
        return reader.schema


def open_csv(path: Path, words: bool = False) -> csv.CSVStreamingReader:
    """words: every column as words, for numbers that turn out to be none further down."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            head = file.readline()
    except UnicodeDecodeError as error:
        raise DiptychError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV UTF-8") from error
    if not head.strip():
        raise DiptychError(f"{path} is empty: its first line should name the columns, such as url,caption")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    names = [name.strip().strip('"') for name in head.strip().split(delimiter)]
    typed = {name: pa.string() for name in names if words or name.lower() in WORDS}
    try:
        return csv.open_csv(
            path,
            csv.ReadOptions(block_size=BLOCK),
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            csv.ConvertOptions(column_types=typed),
        )
    except pa.ArrowException as error:
        raise DiptychError(f"{path} is not a table: {error}") from error


def import_csv(path: Path, folder: Path, rows: int) -> list[tuple[Path, int, int]]:
    """(Arrow file, first row, rows) of so many rows each. What was finished before is not read again."""
    done = folder / "rows.json"
    if done.exists():
        counts = json.loads(done.read_text())
    else:
        try:
            counts = _import(path, folder, rows, words=False)
        except pa.ArrowInvalid:
            try:
                counts = _import(path, folder, rows, words=True)
            except pa.ArrowException as error:
                raise DiptychError(f"{path} is not a table: {error}") from error
        write_atomically(done, json.dumps(counts).encode())
    files = [folder / f"{n:06d}.arrow" for n in range(len(counts))]
    starts = [sum(counts[:n]) for n in range(len(counts))]
    return list(zip(files, starts, counts, strict=True))


def _import(path: Path, folder: Path, rows: int, words: bool) -> list[int]:
    counts = []
    with open_csv(path, words) as reader:
        for table in cut(reader, rows):
            with atomic(folder / f"{len(counts):06d}.arrow") as place, ipc.new_file(str(place), table.schema) as file:
                file.write_table(table)
            counts.append(table.num_rows)
    return counts


def cut(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows`, the last one of what is left."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            taken = batch.slice(0, rows - count)
            held.append(taken)
            count += taken.num_rows
            batch = batch.slice(taken.num_rows)
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)
