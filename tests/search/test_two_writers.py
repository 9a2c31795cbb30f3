"""Two processes that index into one database at once: nothing is lost, nothing is there twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path

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


def test_the_id_of_another_source_is_left_alone(tmp_path):
    index = Index.create(tmp_path / "x.lance", Model("fake", "a" * 32), 2)
    index.add([{"id": "a", "source": "one", "text": "first"}], np.eye(2)[:1])
    assert index.add([{"id": i, "source": "two", "text": "second"} for i in "ab"], np.eye(2)) == {"a"}
    assert {row["id"]: row["text"] for row in index.rows(["a", "b"])} == {"a": "first", "b": "second"}
    with pytest.raises(DiptychError, match="already holds an index"):
        Index.create(tmp_path / "x.lance", Model("fake", "a" * 32), 2)
