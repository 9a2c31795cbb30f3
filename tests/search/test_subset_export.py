"""Subsets to files: what is read back is what was there, formulas do nothing, a failure leaves nothing."""

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from diptych.data.pairs import read_pairs
from diptych.data.pictures import BadPicture
from diptych.errors import DiptychError
from diptych.search.export import defused, extension, write_csv, write_parquet, write_webdataset


def picture(i: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (12, 8), (i * 20 % 256, 90, 40)).save(out, kind)
    return out.getvalue()


def some(count: int = 5, **columns: list) -> pa.Table:
    rows = {
        "key": [f"photos/{i}.jpg" for i in range(count)],
        "text": [f"picture {i}" for i in range(count)],
        "width": [12] * count,
        "height": [8] * count,
        "punsafe": [i / 10 for i in range(count)],
        "tags": [["a", "b"]] * count,
        "picture": [picture(i) for i in range(count)],
        "embedding": pa.array([[0.5, -0.25]] * count, pa.list_(pa.float32(), 2)),
    }
    return pa.table(rows | columns)


def test_parquet_keeps_every_column_and_value(tmp_path: Path):
    table = some()
    done = write_parquet(table.to_batches(max_chunksize=2), tmp_path / "a.parquet")
    assert parquet.read_table(tmp_path / "a.parquet").equals(table)
    assert done.rows == 5 and done.files == (tmp_path / "a.parquet",)


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =cmd|' /C calc'!A0", "＝1+1", "＋1", "－1", "＠x", "\n=1"],
)
def test_a_formula_in_a_text_or_a_name_is_defused(cell: str, tmp_path: Path):
    table = some(2, text=[cell, "a=1"], **{"=evil()": ["x", "y"]})
    write_csv(table.to_batches(), tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["text"] == f"'{cell}" and rows[1]["text"] == "a=1"
    assert "'=evil()" in rows[0] and "=evil()" not in rows[0]


def test_csv_has_numbers_as_numbers_lists_as_json_and_no_pictures(tmp_path: Path):
    table = some(3, punsafe=[-0.5, None, 0.1], text=['say "x", y', "two\nlines", None])
    write_csv(table.to_batches(max_chunksize=1), tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["punsafe"] for row in rows] == ["-0.5", "", "0.1"], "a number is no formula"
    assert [row["text"] for row in rows] == ['say "x", y', "two\nlines", ""]
    assert json.loads(rows[0]["tags"]) == ["a", "b"]
    assert not {"picture", "embedding"} & set(rows[0])
    assert defused(table).num_rows == 3


def test_shards_have_the_layout_of_img2dataset_and_the_bytes_of_the_pictures(tmp_path: Path):
    pictures = [picture(0), picture(1, "PNG"), picture(2), picture(3, "WEBP"), picture(4)]
    table = some(picture=pictures, text=["one", "zwei – drei", None, "vier", "fünf"])
    done = write_webdataset(table.to_batches(max_chunksize=2), tmp_path / "out", per_shard=3)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet", "00001.tar", "00001_stats.json",
    ]  # fmt: skip
    assert done.rows == 5 and not done.failed and sorted(p.name for p in done.files) == names
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(members) == [
        "000000000.jpg", "000000000.txt", "000000000.json",
        "000000001.png", "000000001.txt", "000000001.json",
        "000000002.jpg", "000000002.txt", "000000002.json",
    ]  # fmt: skip
    assert members["000000000.jpg"] == pictures[0] and members["000000001.png"] == pictures[1]
    assert members["000000001.txt"].decode() == "zwei – drei"
    about = json.loads(members["000000001.json"])
    assert about["caption"] == "zwei – drei" and about["key"] == "000000001" and about["status"] == "success"
    assert about["source_key"] == "photos/1.jpg" and about["sha256"] == hashlib.sha256(pictures[1]).hexdigest()
    assert (about["width"], about["original_height"], about["tags"]) == (12, 8, ["a", "b"])
    assert not {"embedding", "picture"} & set(about)
    lines = parquet.read_table(tmp_path / "out" / "00001.parquet").to_pylist()
    assert [line["key"] for line in lines] == ["000010000", "000010001"]
    assert lines[0]["embedding"] == [0.5, -0.25] and "picture" not in lines[0]
    stats = json.loads((tmp_path / "out" / "00001_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (2, 2, 0)
    assert stats["status_dict"] == {"success": 2}


def test_our_own_reader_reads_the_shards(tmp_path: Path):
    write_webdataset(some(4).to_batches(), tmp_path / "out")
    pairs = read_pairs(tmp_path / "out" / "00000.tar")
    assert [pairs[i].texts for i in range(4)] == [(f"picture {i}",) for i in range(4)]


def test_equal_rows_make_equal_shards(tmp_path: Path):
    for name in ("a", "b"):
        write_webdataset(some().to_batches(), tmp_path / name)
    assert (tmp_path / "a" / "00000.tar").read_bytes() == (tmp_path / "b" / "00000.tar").read_bytes()


def test_a_picture_that_cannot_be_read_is_in_the_table_with_its_reason(tmp_path: Path):
    def read(row) -> bytes:
        if row["key"] == "photos/1.jpg":
            raise BadPicture("no such file or directory")
        return b"<html>" if row["key"] == "photos/2.jpg" else row["picture"]

    done = write_webdataset(some().to_batches(), tmp_path / "out", read)
    assert done.failed == {"no such file or directory": 1, "not a picture of a known kind": 1} and done.rows == 5
    lines = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert [line["status"] for line in lines] == ["success", "failed_to_download", "failed_to_download"] + [
        "success"
    ] * 2
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert len(tar.getnames()) == 9
    stats = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert (stats["successes"], stats["failed_to_download"]) == (3, 2)


def test_a_failure_in_the_middle_leaves_no_file(tmp_path: Path):
    def batches():
        yield from some(3).to_batches()
        raise RuntimeError("power cut")

    for write, name in ((write_parquet, "a.parquet"), (write_csv, "a.csv"), (write_webdataset, "shards")):
        with pytest.raises(RuntimeError):
            write(batches(), tmp_path / name)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


def test_what_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(DiptychError, match="not an empty folder"):
        write_webdataset(some().to_batches(), tmp_path / "full")
    with pytest.raises(DiptychError, match="four digits"):
        write_webdataset(some().to_batches(), tmp_path / "out", per_shard=20_000)
    with pytest.raises(DiptychError, match="no rows"):
        write_csv([], tmp_path / "a.csv")


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "jpg"), ("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp"),
    ("BMP", "bmp"), ("TIFF", "tif"), ("PPM", "ppm"), ("JPEG2000", "jp2")])  # fmt: skip
def test_the_ending_is_said_by_the_first_bytes(kind: str, name: str):
    assert extension(picture(1, kind)) == name


def test_numbers_survive(tmp_path: Path):
    table = pa.table({"key": ["a"], "score": pa.array([np.float32(0.1)], pa.float32()), "n": [2**53 + 1]})
    write_csv(table.to_batches(), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == f'"a",0.1,{2**53 + 1}'
