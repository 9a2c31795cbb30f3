"""Pairs from every kind of source, in place, with what cannot be used set aside and counted."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.pairs import BadPair, read_pairs, summary
from diptych.data.pictures import BadPicture
from diptych.errors import DiptychError


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def shade(pair) -> int:
    return int(np.asarray(pair.picture())[0, 0, 0])


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def test_shards_in_a_range_by_number(tmp_path: Path):
    for n in range(3):
        members = [(f"{n}{i}.{end}", data) for i in range(2) for end, data in pair_of(10 * n + i)]
        shard(tmp_path / f"{n:05d}.tar", members)
    for _ in range(2):  # the second time from the kept index
        pairs = read_pairs(f"{tmp_path}/{{00000..00002}}.tar")
        assert len(pairs) == 6
        assert [shade(pairs[i]) for i in (5, 0, 3)] == [21, 0, 11]
        assert pairs[5].texts == ("red 21",) and pairs[5].extra["width"] == 8
        assert pairs[5].id == "00002/21"
    assert [shade(p) for p in read_pairs(tmp_path)] == [0, 1, 10, 11, 20, 21], "a folder of shards"


def pair_of(number: int) -> list[tuple[str, bytes]]:
    about = json.dumps({"caption": "unread", "width": 8}).encode()
    return [("png", png(number)), ("json", about), ("txt", f"red {number}\n".encode())]


def test_several_texts_of_a_member_and_of_its_json(tmp_path: Path):
    lists = json.dumps({"captions": ["one", "two"]}).encode()
    members = [("a.png", png(1)), ("a.0.txt", b"first"), ("a.1.txt", b"second"), ("b.png", png(2)), ("b.json", lists)]
    pairs = read_pairs(shard(tmp_path / "s.tar", members))
    assert pairs[0].texts == ("first", "second")
    assert pairs[1].texts == ("one", "two")


def test_a_hostile_shard_is_set_aside_by_its_members(tmp_path: Path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in [("/etc/x.png", png(1)), ("../y.png", png(1)), ("z.png", png(3)), ("z.txt", b"red")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("d.png")
        info.type = tarfile.CHRTYPE
        archive.addfile(info)
        info = tarfile.TarInfo("big.txt")
        info.size = (1 << 20) + 1
        archive.addfile(info, io.BytesIO(bytes(info.size)))
        info = tarfile.TarInfo("alone.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    pairs = read_pairs(path)
    assert [pair.id for pair in pairs] == ["s/z"]
    reasons = sorted(one.reason for one in pairs.set_aside)
    assert reasons == [
        "a link",
        "a link",
        "a path that leads out of the archive",
        "a path that leads out of the archive",
        "more than 1 MB",
        "no plain file",
        "no text",
    ]
    assert summary(pairs.set_aside).startswith("7 set aside: 2 a ")


@pytest.mark.parametrize("harm", ["cut", "header"])
def test_a_broken_shard_keeps_what_lies_before_the_damage(tmp_path: Path, harm: str):
    members = [(f"{i}.{end}", data) for i in range(3) for end, data in (("png", png(i)), ("txt", b"red"))]
    path = shard(tmp_path / "s.tar", members)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        third = archive.getmembers()[4]
    if harm == "cut":
        del data[third.offset_data + 10 :]
    else:
        data[third.offset : third.offset + 512] = b"\xff" * 512
    path.write_bytes(data)
    other = shard(tmp_path / "t.tar", [("x.png", png(9)), ("x.txt", b"red")])
    (tmp_path / "u.tar").write_bytes(b"no archive" * 100)
    pairs = read_pairs(tmp_path)
    assert [shade(pair) for pair in pairs] == [0, 1, 9]
    assert {one.id for one in pairs.set_aside if "s.tar" in one.id}
    assert any("u.tar" in one.id and "broken" in one.reason for one in pairs.set_aside)
    other.unlink()
    with pytest.raises(BadPicture):
        pairs[2].picture()


def test_broken_pictures_and_empty_texts_say_so_when_asked_for(tmp_path: Path):
    members = [("a.png", png(1)[:40]), ("a.txt", b"red"), ("b.png", png(1)), ("b.txt", b" \n")]
    pairs = read_pairs(shard(tmp_path / "s.tar", members))
    with pytest.raises(BadPicture):
        pairs[0].picture()
    with pytest.raises(BadPair, match="empty"):
        pairs[1]


def test_a_folder_with_texts_beside_pictures(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("a red thing\n\nanother\n")
    (tmp_path / "sub" / "b.png").write_bytes(png(2))
    (tmp_path / "sub" / "b.txt").write_text("two")
    (tmp_path / "c.png").write_bytes(png(3))
    pairs = read_pairs(tmp_path)
    assert [(p.id, p.texts, shade(p)) for p in pairs] == [
        ("a.png", ("a red thing", "another"), 1),
        (os.path.join("sub", "b.png"), ("two",), 2),
    ]
    assert [(one.id, one.reason) for one in pairs.set_aside] == [("c.png", "no text beside it")]


def test_tables_with_one_or_several_captions(tmp_path: Path):
    (tmp_path / "1.png").write_bytes(png(1))
    with open(tmp_path / "t.csv", "w", newline="") as file:
        rows = [["image", "caption_1", "caption_2", "note"], ["1.png", "red", "scarlet", "x"], ["2.png", "", "", "y"]]
        csv.writer(file).writerows([*rows, ["3.png", "gone", "", "z"]])
    pairs = read_pairs(tmp_path / "t.csv")
    assert pairs[0].texts == ("red", "scarlet") and shade(pairs[0]) == 1
    assert [one.reason for one in pairs.set_aside] == ["no text"]
    with pytest.raises(BadPicture):
        pairs[1].picture()
    assert read_pairs(tmp_path / "t.csv", text_columns=["note"])[1].texts == ("y",)
    with pytest.raises(DiptychError, match='no column "notes"; did you mean "note"'):
        read_pairs(tmp_path / "t.csv", text_columns=["notes"])


def test_a_folder_of_tables_is_known_by_what_is_in_it(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    digests = []
    for texts in (["a"], ["a"], ["a", "b"]):
        (tmp_path / "set").mkdir(exist_ok=True)
        table = pa.table({"image": [{"bytes": png(4)}] * len(texts), "caption": texts})
        parquet.write_table(table, tmp_path / "set" / "part.parquet")
        digests.append(read_pairs(tmp_path / "set").digest)
    assert digests[0] == digests[1] != digests[2]


def test_parquet_with_pictures_inside_and_lists(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.table({"image": [{"bytes": png(4)}, {"bytes": png(5)}], "captions": [["a", "b"], []]})
    parquet.write_table(table, tmp_path / "t.parquet")
    pairs = read_pairs(tmp_path / "t.parquet")
    assert len(pairs) == 1 and pairs[0].texts == ("a", "b") and shade(pairs[0]) == 4


def test_a_hugging_face_dataset_reads_its_training_split(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    parts = {
        split: datasets.Dataset.from_dict({"image": [{"bytes": png(n), "path": None}], "text": [split]}, features)
        for n, split in enumerate(("train", "test"), 6)
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    pairs = read_pairs(tmp_path / "set")
    assert [(shade(p), p.texts) for p in pairs] == [(6, ("train",))]


def test_nothing_to_read_is_an_error(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(DiptychError, match=r"no picture with a text \(1 set aside"):
        read_pairs(tmp_path)
    with pytest.raises(DiptychError, match="no such folder"):
        read_pairs(tmp_path / "gone")
    with pytest.raises(DiptychError, match="empty or too long"):
        read_pairs("x{5..2}.tar")


def test_a_real_shard():
    root = os.environ.get("DIPTYCH_TEST_DATA")
    if not root:
        pytest.skip("DIPTYCH_TEST_DATA is not set")
    pairs = read_pairs(Path(root) / "webdataset")
    assert len(pairs) == 32 and not pairs.set_aside
    pair = next(p for p in pairs if p.id.endswith("000000003"))
    assert pair.texts == ("Red Square is a city square in Moscow, Russia.",)
    assert min(pair.picture().size) > 100


def test_drawn_scenes_by_their_number():
    pairs = read_pairs("scenes:7")
    assert len(pairs) == 7 and min(pairs[6].picture().size) >= 32 and pairs[6].texts[0]


def test_scenes_in_a_style_and_a_language():
    plain, german = read_pairs("scenes:5:sketch"), read_pairs("scenes:5:sketch:de")
    assert len(german) == 5 and german[0].extra["style"] == "sketch" and plain.digest != german.digest
    assert german[2].texts == (german[2].extra["scene"].text("short de"),)
    assert plain[0].id != read_pairs("scenes:5:noisy")[0].id, "other scenes for other words"
    for words, said in (("scenes:5:sktech", 'no style or language "sktech"'), ("scenes:5:de:fr", "one language")):
        with pytest.raises(DiptychError, match=said):
            read_pairs(words)
