"""Folders, shards and tables into an index: again and again, changed, moved, killed, broken."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from fakes import COLOURS, colour_clip, colour_folder
from PIL import Image

from diptych.core.clip import CLIP
from diptych.data.pictures import BadPicture
from diptych.errors import DiptychError, TextCut
from diptych.search import embed, sources
from diptych.search.embed import Outcome, update, update_captions
from diptych.search.encoder import Encoder, combined
from diptych.search.index import Index
from diptych.search.sources import open_source, picture_at


class Counted(Encoder):
    """Counts the pictures that the model sees."""

    def __init__(self, clip: CLIP, stop: int = 10**9) -> None:
        super().__init__(clip)
        self.seen, self.stop = 0, stop

    def pictures(self, pixels):
        self.seen += len(pixels)
        if self.seen > self.stop:
            raise KeyboardInterrupt
        return super().pictures(pixels)


@pytest.fixture
def encoder():
    return Counted(colour_clip())


@pytest.fixture
def index(tmp_path, encoder):
    return Index.create(tmp_path / "x.lance", encoder.model, encoder.dim)


@pytest.fixture
def photos(tmp_path):
    return colour_folder(tmp_path / "photos", each=5)


def whole(index):
    """All rows as they are, vectors included, without the time of writing."""
    columns = [*index.columns, "vector"]
    rows = sorted(index.select(None, columns).to_pylist(), key=lambda row: row["id"])
    return [{key: cell for key, cell in row.items() if key != "added"} for row in rows]


def counts(outcome):
    return {key: n for key in ("new", "changed", "gone", "same", "copies") if (n := getattr(outcome, key))}


def test_a_folder_twice_is_the_same(index, encoder, photos):
    (photos / "red" / "0.txt").write_text("the first\n  red one ")
    assert counts(update(index, encoder, open_source(str(photos)))) == {"new": 20}
    before = whole(index)
    assert counts(update(index, encoder, open_source(os.path.relpath(photos)))) == {"same": 20}
    assert whole(index) == before and encoder.seen == 20
    row = next(row for row in before if row["id"] == "red/0.png")
    assert (row["label"], row["text"], row["width"], row["height"]) == ("red", "the first red one", 16, 16)
    assert picture_at(row["path"]) == (photos / "red" / "0.png").read_bytes()
    direct = encoder.clip.encode_image(encoder.clip.preprocess(Image.open(row["path"]))[None])[0].numpy()
    np.testing.assert_allclose(row["vector"], direct / np.linalg.norm(direct), atol=1e-6)
    found = [hit.row["label"] for hit in index.search(encoder.texts(["a blue photo"])[0], 4)]
    assert found.count("blue") >= 3


class Said(Counted):
    """Notes the texts that the model reads, and stops at one."""

    def __init__(self, clip: CLIP, stop_at: str = "") -> None:
        super().__init__(clip)
        self.said, self.stop_at = [], stop_at

    def texts(self, texts):
        if self.stop_at in texts:
            raise KeyboardInterrupt
        self.said += texts
        return super().texts(texts)


def embedded(index, encoder):
    """(how many captions, the texts that the model read for them)."""
    encoder.said, outcome = [], Outcome()
    update_captions(index, encoder, outcome)
    assert outcome.seconds.captions > 0 and outcome.seconds.whole == 0
    return outcome.captions, sorted(encoder.said)


def check_captions(index, encoder):
    """Every row has its own text's vector, or none where it has no text."""
    for row in index.select(None, ["text", "text_vector"]).to_pylist():
        assert (row["text_vector"] is None) == (row["text"] is None)
        if row["text"]:
            np.testing.assert_allclose(row["text_vector"], encoder.texts([row["text"]])[0], atol=1e-6)


def test_captions_are_embedded_once_and_again_when_they_change(index, photos, tmp_path):
    encoder = Said(colour_clip())
    for i in range(3):
        (photos / "red" / f"{i}.txt").write_text(f"red {i}")
    update(index, encoder, open_source(str(photos)))
    assert encoder.said == [], "nobody asked for it"
    index.hold_captions()
    index.hold_captions()
    assert embedded(index, encoder) == (3, ["red 0", "red 1", "red 2"])
    assert embedded(index, encoder) == (0, []) and index.info.captions == 3
    (photos / "red" / "0.txt").write_text("blue now")
    (photos / "red" / "1.txt").unlink()
    (photos / "green" / "0.txt").write_text("a green one")
    os.utime(photos / "red" / "2.png", (2e9, 2e9))  # as it was
    other = shutil.copytree(photos, tmp_path / "backup")
    (other / "red" / "0.txt").write_text("the copy's own")
    assert counts(update(index, encoder, open_source(str(photos)))) == {"changed": 4, "copies": 4, "same": 16}
    assert counts(update(index, encoder, open_source(str(other)))) == {"new": 20, "copies": 20}
    assert encoder.seen == 20
    found = ["a green one", "a green one", "blue now", "red 2", "the copy's own"]
    assert embedded(index, encoder) == (5, found)
    check_captions(index, encoder)
    best = index.search(encoder.texts(["blue"])[0], 1, space="captions")
    assert [hit.id for hit in best] == ["red/0.png"]


def test_captions_go_on_where_they_were_stopped(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(embed, "COMMIT", 3)
    for i in range(5):
        for colour in COLOURS:
            (photos / colour / f"{i}.txt").write_text(f"{colour} number {i}")
    encoder = Said(colour_clip())
    index = Index.create(tmp_path / "stopped.lance", encoder.model, encoder.dim)
    update(index, encoder, open_source(str(photos)))
    index.hold_captions()
    stopping = Said(colour_clip(), index.uncaptioned()[10][1])
    with pytest.raises(KeyboardInterrupt):
        update_captions(index, stopping, Outcome())
    again = Index.open(index.uri)
    assert again.info.captions == 9 and len(again.search(encoder.texts(["red"])[0], 20, space="captions")) == 9
    done, read = embedded(again, encoder)
    assert done == 11 and not set(read) & set(stopping.said)
    assert counts(update(again, encoder, open_source(str(photos)))) == {"same": 20}
    check_captions(again, encoder)


def test_captions_that_are_cut_are_counted_and_said_once(index, photos, monkeypatch):
    monkeypatch.setattr(embed, "COMMIT", 1)
    for i in range(3):
        (photos / "red" / f"{i}.txt").write_text(f"{'red ' * 40 * (i % 2 == 0)}{i}")
    encoder = Said(colour_clip())
    update(index, encoder, open_source(str(photos)))
    index.hold_captions()
    with pytest.warns(TextCut, match="2 different captions are longer than the 32 tokens that colours reads") as said:
        update_captions(index, encoder, Outcome())
    assert len(said) == 1


def test_new_changed_and_gone(index, encoder, photos):
    update(index, encoder, open_source(str(photos)))
    (photos / "red" / "1.png").unlink()
    shutil.rmtree(photos / "green")
    Image.new("RGB", (30, 20), COLOURS["blue"]).save(photos / "red" / "2.png")
    (photos / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (8, 8), "white").save(photos / "deep" / "er" / "new.png")
    assert counts(update(index, encoder, open_source(str(photos)))) == {"new": 1, "changed": 1, "gone": 6, "same": 13}
    rows = {row["id"]: row for row in whole(index)}
    assert len(rows) == 15 and "red/1.png" not in rows and rows["deep/er/new.png"]["label"] == "er"
    assert rows["red/2.png"]["width"] == 30
    assert index.search(encoder.texts(["blue"])[0], 3)[0].id == "red/2.png"
    assert encoder.seen == 22


def test_what_was_only_touched_or_moved_is_known_by_its_bytes(index, encoder, photos):
    update(index, encoder, open_source(str(photos)))
    before = {row["id"]: row for row in whole(index)}
    os.utime(photos / "red" / "0.png", (1, 1))
    (photos / "moved").mkdir()
    (photos / "blue" / "3.png").rename(photos / "moved" / "3.png")
    assert counts(update(index, encoder, open_source(str(photos)))) == {
        "new": 1, "changed": 1, "gone": 1, "same": 18, "copies": 2
    }  # fmt: skip
    after = {row["id"]: row for row in whole(index)}
    assert encoder.seen == 20
    assert after["moved/3.png"]["vector"] == before["blue/3.png"]["vector"] and after["moved/3.png"]["label"] == "moved"
    assert after["red/0.png"]["vector"] == before["red/0.png"]["vector"] and after["red/0.png"]["mtime"] == 10**9
    assert after["moved/3.png"]["width"] == 16


@pytest.mark.parametrize("commit", [1, 100])
def test_contents_that_change_places_take_their_vectors_along(index, encoder, photos, monkeypatch, commit):
    monkeypatch.setattr(embed, "COMMIT", commit)
    monkeypatch.setattr(embed, "BATCH", commit)
    update(index, encoder, open_source(str(photos)))
    red, blue = (photos / colour / "0.png" for colour in ("red", "blue"))
    one, other = red.read_bytes(), blue.read_bytes()
    before = {row["id"]: row["vector"] for row in whole(index)}
    red.write_bytes(other)
    os.utime(red, (5, 5))
    blue.write_bytes(one)
    os.utime(blue, (5, 5))
    update(index, encoder, open_source(str(photos)))
    after = {row["id"]: row["vector"] for row in whole(index)}
    np.testing.assert_allclose(after["red/0.png"], before["blue/0.png"], atol=1e-6)
    np.testing.assert_allclose(after["blue/0.png"], before["red/0.png"], atol=1e-6)


def test_copies_in_two_folders_are_two_rows_and_one_embedding(index, encoder, photos, tmp_path):
    update(index, encoder, open_source(str(photos)))
    other = shutil.copytree(photos, tmp_path / "backup")
    assert counts(update(index, encoder, open_source(str(other)))) == {"new": 20, "copies": 20}
    ids = {row["id"] for row in whole(index)}
    assert len(ids) == 40 and {"red/0.png", "backup/red/0.png"} <= ids and encoder.seen == 20
    assert counts(update(index, encoder, open_source(str(photos)))) == {"same": 20}
    (other / "red" / "0.png").unlink()
    assert counts(update(index, encoder, open_source(str(other)))) == {"gone": 1, "same": 19}
    left = {row["id"] for row in whole(index)}
    assert ids - left == {"backup/red/0.png"}  # the other folder's rows stay


def test_stopped_and_started_again_it_is_as_if_never_stopped(tmp_path, encoder, photos, monkeypatch):
    monkeypatch.setattr(embed, "COMMIT", 4)
    monkeypatch.setattr(embed, "BATCH", 2)
    index = Index.create(tmp_path / "stopped.lance", encoder.model, encoder.dim)
    stopping = Counted(colour_clip(), stop=11)
    with pytest.raises(KeyboardInterrupt):
        update(index, stopping, open_source(str(photos)))
    there = len(Index.open(index.uri))
    assert 4 <= there < 20
    outcome = update(Index.open(index.uri), encoder, open_source(str(photos)))
    assert counts(outcome) == {"new": 20 - there, "same": there} and encoder.seen == 20 - there
    straight = Index.create(tmp_path / "straight.lance", encoder.model, encoder.dim)
    update(straight, encoder, open_source(str(photos)))
    one, other = whole(Index.open(index.uri)), whole(straight)
    for left, right in zip(one, other, strict=True):  # a batch of another size rounds otherwise
        np.testing.assert_allclose(left.pop("vector"), right.pop("vector"), atol=1e-6)
    assert one == other


def test_bad_pictures_are_set_aside_and_counted_and_tried_again(index, encoder, photos):
    (photos / "red" / "empty.jpg").write_bytes(b"")
    good = (photos / "red" / "0.png").read_bytes()
    (photos / "red" / "cut.png").write_bytes(good[: len(good) // 2])
    (photos / "red" / "page.jpg").write_text("<!doctype html>")
    (photos / "red" / "bomb.png").write_bytes(bomb())
    (photos / "red" / "odd.txt").write_bytes(b"\xff\xfe")
    Image.new("RGB", (9, 9)).save(photos / "red" / "odd.png")
    outcome = update(index, encoder, open_source(str(photos)))
    assert counts(outcome) == {"new": 20}
    reasons = {one.id: one.reason for one in outcome.set_aside}
    assert reasons["red/empty.jpg"] == "the file is empty" and "web page" in reasons["red/page.jpg"]
    assert reasons["red/cut.png"].startswith(("truncated", "corrupt")) and "limit" in reasons["red/bomb.png"]
    assert "not UTF-8" in reasons["red/odd.png"] and len(reasons) == 5
    (photos / "red" / "empty.jpg").write_bytes(good)
    (photos / "blue" / "0.png").write_bytes(b"broken now")
    outcome = update(index, encoder, open_source(str(photos)))
    assert counts(outcome) == {"new": 1, "gone": 1, "same": 19, "copies": 1} and len(outcome.set_aside) == 5
    assert len(index) == 20


def bomb() -> bytes:
    """The header of a PNG of 60,000 x 60,000 pixels."""
    out = io.BytesIO()
    Image.new("1", (8, 8)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_another_model_is_refused_before_anything_is_read(index, photos):
    changed = colour_clip("other")
    changed.text.table.data += 1
    with pytest.raises(DiptychError, match=r'by the model "colours".*, but was asked with "other"'):
        update(index, Encoder(changed), open_source(str(photos)))
    assert len(index) == 0


def shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(colour) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), COLOURS[colour]).save(out, "PNG")
    return out.getvalue()


def test_shards_with_their_json(index, encoder, tmp_path):
    about = {"punsafe": 0.25, "caption": "not this", "WIDTH": 999, "url": "http://x", "nested": {"a": 1}, "id": "no"}
    shard(
        tmp_path / "00000.tar",
        [
            ("a.png", png("red")),
            ("a.txt", b"a red one"),
            ("a.json", json.dumps(about | {"odd name!": 3}).encode()),
            ("b.png", png("blue")),
            ("b.cls", b"7\n"),
            ("c.json", json.dumps({"punsafe": "high"}).encode()),
            ("c.png", png("green")),
            ("d.txt", b"no picture"),
            ("../e.png", png("red")),
            ("f.png", b"broken"),
        ],
    )
    outcome = update(index, encoder, open_source(str(tmp_path)))
    rows = {row["id"]: row for row in whole(index)}
    assert set(rows) == {"00000/a", "00000/b", "00000/c"}
    first = rows["00000/a"]
    assert (first["text"], first["punsafe"], first["width"], first["url"]) == ("a red one", 0.25, 16, "http://x")
    assert first["odd_name"] == 3 and "nested" not in first and rows["00000/b"]["label"] == "7"
    assert rows["00000/c"]["punsafe"] is None and outcome.misfits == {"punsafe": 1}
    assert {one.reason for one in outcome.set_aside} >= {"no picture", "a path that leads out of the archive"}
    assert picture_at(rows["00000/b"]["path"]) == png("blue")
    assert counts(update(index, encoder, open_source(str(tmp_path)))) == {"same": 3}
    assert counts(update(index, encoder, open_source(str(tmp_path / "00000.tar")))) == {"new": 3, "copies": 3}


@pytest.mark.parametrize("kind", ["csv", "parquet", "inside"])
def test_tables_with_columns_of_their_own(index, encoder, tmp_path, kind):
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    names, captions = [*COLOURS, "lost"], ["a red one", "it's green", "", "yellow", "gone"]
    columns = {"image": [f"{n}.png" for n in names], "Caption": captions, "price": [1.5, 2, None, 4, 5]}
    if kind == "csv":
        path = tmp_path / "t.csv"
        lines = [",".join("" if c is None else str(c) for c in row) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join([",".join(columns), *lines]))
    else:
        path = tmp_path / "t.parquet"
        if kind == "inside":
            columns["image"] = [*(png(c) for c in COLOURS), b""]
        parquet.write_table(pa.table(columns | {"AESTHETIC": [5.0, 6.0, 7.0, 8.0, 9.0]}), path)
    outcome = update(index, encoder, open_source(str(path)))
    assert counts(outcome) == {"new": 4} and len(outcome.set_aside) == 1
    cheap = index.filter("price < 3" + ("" if kind == "csv" else " and aesthetic >= 6"))
    hits = index.search(encoder.texts(["green"])[0], 5, where=cheap)
    assert hits[0].row["text"] == "it's green" and hits[0].row["price"] == 2
    assert hits[0].id == ("t.parquet/00000002" if kind == "inside" else "green.png")
    assert picture_at(hits[0].row["path"]) == png("green")
    assert counts(update(index, encoder, open_source(str(path)))) == {"same": 4}
    if kind == "csv":
        path.write_text(path.read_text().replace("it's green,2", "a lime,9"))
        os.utime(path, (2e9, 2e9))
        assert counts(update(index, encoder, open_source(str(path)))) == {"changed": 4, "copies": 4}
        assert index.rows(["green.png"])[0]["price"] == 9 and encoder.seen == 4


def test_paths_that_are_no_longer_there_say_so(tmp_path):
    path = shard(tmp_path / "s.tar", [("a.png", png("red"))])
    for one in (f"{path}!0+99999999", str(tmp_path / "none.png"), str(tmp_path), "", f"{tmp_path}/t.parquet!image!0"):
        with pytest.raises(BadPicture):
            picture_at(one)


def test_sources_without_pictures(tmp_path):
    with pytest.raises(DiptychError, match="no such folder"):
        open_source(str(tmp_path / "none"))
    (tmp_path / "x.doc").write_text("hello")
    with pytest.raises(DiptychError, match="neither a folder, a table"):
        open_source(str(tmp_path / "x.doc"))
    assert open_source(str(tmp_path)).items == []


def test_names_of_columns():
    names = ("WIDTH", "Caption", "my score (2)", "vector", "text-vector", "id", "_x", "9", "né")
    found = [sources.column_name(one) for one in names]
    assert found == ["width", "text", "my_score_2", None, None, None, "x", None, "n"]


def test_what_is_not_wanted_goes_down_and_what_is_wanted_stays_up(encoder):
    red, yellow, green = encoder.texts(["red", "yellow", "green"])
    query = combined([yellow], [red])
    assert query @ red < yellow @ red - 0.05 and query @ yellow > 0.7
    np.testing.assert_allclose(np.linalg.norm(query), 1, atol=1e-6)
    np.testing.assert_allclose(combined([red]), red, atol=1e-6)
    np.testing.assert_allclose(combined([red], [red]), red, atol=1e-5)  # what is wanted too is not taken off
    both = combined([red, green])
    assert both @ red == pytest.approx(both @ green, abs=1e-6)
