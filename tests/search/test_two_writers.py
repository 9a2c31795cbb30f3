"""Two processes that index into one database at once: nothing is lost, nothing is there twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import colour_clip, colour_folder
from search_writers import Writers, writers

from diptych.errors import DiptychError
from diptych.search.embed import update
from diptych.search.encoder import Encoder
from diptych.search.found import Model
from diptych.search.index import Index
from diptych.search.sources import open_source


@pytest.fixture(scope="module")
def two() -> Iterator[Writers]:
    with writers() as made:
        yield made


def say(folder: Path, said: str) -> Path:
    """Gives each picture a caption."""
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"{path.parent.name} {said} {path.stem}")
    return folder


def check(db: Path, folders: list[Path]) -> Index:
    """Each picture of the folders is there once, with its own vector, and can be found."""
    index, encoder = Index.open(db), Encoder(colour_clip())
    rows = index.select(None, ["id", "path", "vector"]).to_pylist()
    paths = sorted(str(path) for folder in folders for path in folder.rglob("*.png"))
    assert sorted(row["path"] for row in rows) == paths and len({row["id"] for row in rows}) == len(rows)
    for row in rows[::7]:
        np.testing.assert_allclose(row["vector"], encoder.picture(Path(row["path"]).read_bytes()), atol=1e-5)
    assert len(index.search(encoder.texts(["red"])[0], 1000)) == len(paths)
    return index


def test_one_folder_into_a_new_database(two, tmp_path):
    photos = colour_folder(tmp_path / "photos", each=10)
    two.start(tmp_path / "x.lance", [photos, photos])
    for done in two.done():
        assert done["new"] + done["same"] == 40 and not done["set_aside"]
    assert check(tmp_path / "x.lance", [photos]).info.measured
    two.start(tmp_path / "x.lance", [photos, photos])
    assert [done["same"] for done in two.done()] == [40, 40]


def test_two_folders_whose_pictures_have_the_same_names(two, tmp_path):
    photos, scans = (colour_folder(tmp_path / name, 10, noise) for name, noise in (("photos", 90), ("scans", 80)))
    two.start(tmp_path / "x.lance", [photos, scans])
    assert [done["new"] for done in two.done()] == [40, 40]
    check(tmp_path / "x.lance", [photos, scans])


def test_one_adds_what_the_other_removes(two, tmp_path):
    """A picture that is moved from one source to another is known by its bytes, unless its row has just gone."""
    old = colour_folder(tmp_path / "old", each=10)
    two.start(tmp_path / "x.lance", [old, old])
    two.done()
    new = shutil.copytree(old, tmp_path / "new")
    for path in [*old.rglob("*.png")][1:]:
        path.unlink()
    two.start(tmp_path / "x.lance", [new, old])
    added, removed = two.done()
    assert (added["new"], removed["gone"], added["set_aside"]) == (40, 39, 0)
    check(tmp_path / "x.lance", [old, new])


def test_a_row_that_goes_between_its_finding_and_its_copying_is_embedded_again(tmp_path, monkeypatch):
    photos, encoder = colour_folder(tmp_path / "photos", each=3), Encoder(colour_clip())
    index = Index.create(tmp_path / "x.lance", encoder.model, encoder.dim)
    update(index, encoder, open_source(str(photos)))
    copies = shutil.copytree(photos, tmp_path / "copies")
    other, fetch = Index.open(index.uri), index.fetch

    def late(ids, columns):
        other.remove([row["id"] for row in other.rows(ids)][:5])
        return fetch(ids, columns)

    monkeypatch.setattr(index, "fetch", late)
    outcome = update(index, encoder, open_source(str(copies)))
    monkeypatch.undo()
    assert (outcome.new, len(index)) == (12, 12 + 12 - 5)
    update(index, encoder, open_source(str(photos)))
    check(tmp_path / "x.lance", [photos, copies])


def test_captions(two, tmp_path):
    """Into a new database, and again when one changes what the other embeds, and removes some of it."""
    photos, scans = (colour_folder(tmp_path / name, 10, noise) for name, noise in (("photos", 90), ("scans", 80)))
    two.start(tmp_path / "x.lance", [say(photos, "seen"), say(scans, "scanned")], captions=True)
    assert [done["new"] for done in two.done()] == [40, 40]
    check_captions(check(tmp_path / "x.lance", [photos, scans]), 80)
    for path in [*photos.rglob("*.png")][::4]:
        path.unlink()
    two.start(tmp_path / "x.lance", [say(photos, "changed"), say(scans, "too")], captions=True)
    first, second = two.done()
    assert (first["changed"], first["gone"], second["changed"]) == (30, 10, 40)
    assert first["captions"] + second["captions"] >= 70
    check_captions(check(tmp_path / "x.lance", [photos, scans]), 70)


def check_captions(index: Index, count: int) -> None:
    """Each row has the vector of the text that it has now."""
    rows, encoder = index.select(None, ["text", "text_vector"]).to_pylist(), Encoder(colour_clip())
    assert len(rows) == count and index.uncaptioned() == []
    expected = encoder.texts([row["text"] for row in rows])
    np.testing.assert_allclose(np.array([row["text_vector"] for row in rows]), expected, atol=1e-6)


def test_a_caption_of_a_row_that_changed_or_went_meanwhile_is_passed_over(tmp_path, monkeypatch):
    index, unit = Index.create(tmp_path / "x.lance", Model("fake", "a" * 32), 4), np.eye(4, dtype=np.float32)
    index.add([{"id": i, "text": "old"} for i in "abcd"], unit)
    index.hold_captions()
    other, todo, latest = Index.open(index.uri), sorted(index.uncaptioned()), index.latest

    def late():
        """The other writes after this one has opened the newest version."""
        table = latest()
        if len(other) == 4:
            other.add([{"id": "a", "text": "new"}], unit[:1])
            other.remove(["b"])
            other.caption([("a", "new"), ("c", "old")], unit[2:])
        return table

    monkeypatch.setattr(index, "latest", late)
    assert index.caption(todo, -unit) == 2
    monkeypatch.undo()
    found = {row["id"]: row["text_vector"] for row in index.select(None, ["id", "text_vector"]).to_pylist()}
    assert found == {"a": unit[2].tolist(), "c": (-unit[2]).tolist(), "d": (-unit[3]).tolist()}


def test_a_column_of_captions_that_comes_during_a_write_leaves_no_text_with_the_vector_of_another(
    tmp_path, monkeypatch
):
    index, unit = Index.create(tmp_path / "x.lance", Model("fake", "a" * 32), 2), np.eye(2, dtype=np.float32)
    index.add([{"id": i, "text": "old"} for i in "ab"], unit)
    other, arrow = Index.open(index.uri), index.arrow

    def late(rows, vectors):
        table = arrow(rows, vectors)
        other.hold_captions()
        other.caption([(i, "old") for i in "ab"], unit)
        return table

    monkeypatch.setattr(index, "arrow", late)
    index.add([{"id": "a", "text": "new"}], unit[:1])
    assert index.uncaptioned() == other.uncaptioned() == [("a", "new")] and index.count("captions") == 1
    index.hold_captions()


def test_two_that_hold_captions_at_once_make_one_column(tmp_path, monkeypatch):
    index = Index.create(tmp_path / "x.lance", Model("fake", "a" * 32), 2)
    other, latest = Index.open(index.uri), index.latest

    def late():
        """The other makes it after this one has looked."""
        monkeypatch.undo()
        names = SimpleNamespace(schema=latest().schema)
        other.hold_captions()
        return names

    monkeypatch.setattr(index, "latest", late)
    index.hold_captions()
    assert index.latest().schema.names.count("text_vector") == 1


def test_the_id_of_another_source_is_left_alone(tmp_path):
    index = Index.create(tmp_path / "x.lance", Model("fake", "a" * 32), 2)
    index.add([{"id": "a", "source": "one", "text": "first"}], np.eye(2)[:1])
    assert index.add([{"id": i, "source": "two", "text": "second"} for i in "ab"], np.eye(2)) == {"a"}
    assert {row["id"]: row["text"] for row in index.rows(["a", "b"])} == {"a": "first", "b": "second"}
    with pytest.raises(DiptychError, match="already holds an index"):
        Index.create(tmp_path / "x.lance", Model("fake", "a" * 32), 2)
