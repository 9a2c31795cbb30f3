"""The explorer's API over a real server: what it finds, folds, pages, filters, shows and exports."""

import csv
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as parquet
import pytest
from fakes import COLOURS
from PIL import Image
from web_world import NAMES, make_index, picture, served

from diptych.search import index as indexing
from diptych.search.embed import Outcome, update_captions
from diptych.search.web import explorer as exploring
from diptych.search.web.explorer import Explorer
from diptych.search.web.schema import Ask
from diptych.search.web.thumbs import Thumbs, make


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Any, Any, Path]]:
    root = tmp_path_factory.mktemp("explorer")
    index, encoder = make_index(root)
    with served(root, index, encoder) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client, index, encoder, root


@pytest.fixture
def ask(world):
    client = world[0]

    def search(**question: Any) -> dict[str, Any]:
        done = client.post("/api/search", json={"fold": False, "safe": False, **question})
        assert done.status_code == 200, done.text
        return done.json()

    return search


def ids(answer: dict[str, Any]) -> list[str]:
    return [one["id"] for one in answer["results"]]


# -- finding ---------------------------------------------------------------------------------------------------------


def test_a_text_finds_in_the_order_of_a_plain_product(world, ask):
    _, index, encoder, _ = world
    query = encoder.texts(["a blue thing"])[0].astype(np.float64)
    rows = index.select(None, ["id", "vector"])
    scores = {
        i: float(np.dot(v, query)) for i, v in zip(rows["id"].to_pylist(), rows["vector"].to_pylist(), strict=True)
    }
    expected = sorted(scores, key=lambda i: -scores[i])
    answer = ask(text="a blue thing", limit=40)
    assert ids(answer) == expected and answer["matching"] == 40 and answer["next"] is None
    assert answer["results"][0]["score"] == pytest.approx(max(scores.values()), abs=1e-4)
    assert all(one["row"]["label"] == "blue" for one in answer["results"][:10])


def test_pages_join_to_the_whole_and_end(ask):
    whole = ids(ask(text="green", limit=40))
    found, at = [], 0
    while at is not None:
        page = ask(text="green", limit=7, offset=at)
        found += ids(page)
        at = page["next"]
    assert found == whole and len(set(found)) == 40


def test_a_picture_that_is_handed_in_finds_itself(world, ask):
    client, _, _, root = world
    data = (root / "013.jpg").read_bytes()
    done = client.post("/api/picture", content=data, headers={"content-type": "image/jpeg"}).json()
    assert (done["width"], done["height"]) == (64, 48)
    answer = ask(picture=done["picture"], limit=1)
    assert ids(answer) == ["pictures/013.jpg"] and answer["results"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_more_like_these_is_between_them(ask):
    answer = ask(like=["pictures/000.jpg"], limit=3)
    assert ids(answer)[0] == "pictures/000.jpg"
    both = ask(like=["pictures/000.jpg", "pictures/002.jpg"], limit=40)
    first = [one["row"]["label"] for one in both["results"][:20]]
    assert set(first) == {"red", "blue"}


def test_what_is_not_wanted_goes_down(ask):
    plain = ids(ask(text="red blue", limit=40))
    without = ids(ask(text="red blue", without="blue", limit=40))
    blue = [f"pictures/{i:03d}.jpg" for i in range(2, 40, 4)]
    assert np.mean([without.index(i) for i in blue]) > np.mean([plain.index(i) for i in blue]) + 5
    alone = ask(without="yellow", limit=40)
    assert {one["row"]["label"] for one in alone["results"][-10:]} == {"yellow"}


def test_words_are_found_as_words(ask):
    assert ids(ask(text="17", space="words")) == ["pictures/017.jpg"]
    assert ids(ask(text="nowhere", space="words")) == []


def test_without_a_question_it_browses(ask):
    assert ids(ask(limit=5)) == [f"pictures/{i:03d}.jpg" for i in range(5)]


# -- captions --------------------------------------------------------------------------------------------------------

# Captions that say another colour than the picture has; every seventh picture has none.
SAID = {i: {"text": f"{NAMES[(i + 1) % 4]} number {i}" if i % 7 else None} for i in range(40)}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return make_index(tmp_path_factory.mktemp("captions"), 10, SAID, captions=True)


def answers(world: tuple[Any, Any], *questions: dict[str, Any]) -> list[Any]:
    return Explorer(*world).answer([Ask.model_validate({"fold": False, "safe": False, **one}) for one in questions])


def by_caption(world: tuple[Any, Any], query: Any) -> list[str]:
    """Ids by the cosine of a plain loop, of the rows that have a caption."""
    rows = world[0].select(None, ["id", "text"]).to_pylist()
    vectors = {row["id"]: world[1].texts([row["text"]])[0].astype(np.float64) for row in rows if row["text"]}
    return sorted(vectors, key=lambda one: -float(vectors[one] @ query))


def test_captions_are_compared_by_what_they_mean(said):
    index, encoder = said
    (found,) = answers(said, {"text": "a red thing", "space": "captions", "limit": 40})
    expected = by_caption(said, encoder.texts(["a red thing"])[0])
    assert [one.id for one in found.results] == expected and len(expected) == 34
    assert {one.row["label"] for one in found.results[:8]} == {"yellow"}, "what is said, not what is seen"
    assert not {"vector", "text_vector"} & set(found.results[0].row)
    hits = index.search(encoder.texts(["a red thing"])[0], 40, space="captions")
    assert [round(hit.score, 4) for hit in hits] == [one.score for one in found.results]


@pytest.mark.parametrize("large", [False, True])
def test_captions_are_filtered_folded_paged_and_asked_by_a_picture(said, large, monkeypatch: pytest.MonkeyPatch):
    if large:
        monkeypatch.setattr(indexing, "EXACT_BYTES", 0)
        said = indexing.Index.open(said[0].uri), said[1]
    space = {"space": "captions"}
    like = by_caption(said, said[0].vectors(["pictures/001.jpg"])[0])
    plain, first, second, filtered, safe, near, folded = answers(
        said, {"text": "green", **space, "limit": 40}, {"text": "green", **space, "limit": 20},
        {"text": "green", **space, "limit": 20, "offset": 20},
        {"text": "green", **space, "filters": [{"column": "width", "least": 50}], "limit": 40},
        {"text": "green", **space, "safe": True, "limit": 40}, {"like": ["pictures/001.jpg"], **space, "limit": 40},
        {"text": "green", **space, "fold": True, "limit": 40},
    )  # fmt: skip
    order = [one.id for one in plain.results]
    assert [one.id for one in first.results + second.results] == order and second.next is None and len(order) == 34
    wide = [one.id for one in plain.results if one.row["width"] >= 50]
    assert [one.id for one in filtered.results] == wide and 0 < len(wide) < 34
    assert [one.id for one in safe.results] == [one.id for one in plain.results if one.row["punsafe"] <= 0.5]
    assert [one.id for one in near.results] == like
    shown = [one.id for one in folded.results]
    vectors = said[0].vectors(shown)
    assert sorted(shown + [one for below in folded.results for one in below.folded]) == sorted(order)
    assert len(shown) < 34 and (vectors @ vectors.T - np.eye(len(shown)) <= 0.94).all(), "pictures are folded"


def test_questions_of_both_spaces_at_once_get_what_each_gets_alone(said):
    asks = [{"text": "red"}, {"text": "red", "space": "captions"}, {"text": "blue", "space": "captions"},
            {"space": "captions"}, {"text": "3", "space": "words"}]  # fmt: skip
    together, alone = answers(said, *asks), [answers(said, one)[0] for one in asks]
    for one, other in zip(together, alone, strict=True):
        assert [r.__dict__ for r in one.results] == [r.__dict__ for r in other.results]
    assert [r.id for r in together[0].results[:5]] != [r.id for r in together[1].results[:5]]


def test_a_subset_by_captions_is_what_the_page_shows(tmp_path: Path):
    index, encoder = make_index(tmp_path, 5, {0: {"text": None}}, captions=True)
    with served(tmp_path, index, encoder) as address, httpx.Client(base_url=address, timeout=60) as client:
        about = client.get("/api/about").json()
        assert about["spaces"] == ["pictures", "captions", "words"] and "text_vector" not in about["columns"]
        for fold in (False, True):
            question = {"text": "red", "space": "captions", "fold": fold, "safe": False}
            page = client.post("/api/search", json={**question, "limit": 6}).json()
            _, data = fetch(client, format="parquet", question=question, most=6)
            table = parquet.read_table(io.BytesIO(data))
            assert table["key"].to_pylist() == ids(page) and len(table) > 1
            assert table["score"].to_pylist() == pytest.approx([one["score"] for one in page["results"]], abs=1e-4)
            assert not {"vector", "text_vector"} & set(table.column_names)
        _, data = fetch(client, format="csv", question={"text": "red", "space": "captions", "safe": False}, least=0.9)
        assert {row["label"] for row in csv.DictReader(io.StringIO(data.decode()))} == {"red"}


def test_captions_that_are_not_held_are_refused_and_seen_when_they_come(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(exploring, "FRESH", 0)
    index, encoder = make_index(tmp_path, 2)
    explorer = Explorer(index, encoder)
    ask = Ask.model_validate({"text": "red", "space": "captions", "safe": False, "fold": False})
    refused, fine = explorer.answer([ask, Ask(text="red", safe=False)])
    assert "--captions" in str(refused) and not isinstance(fine, Exception)
    assert explorer.about().spaces == ["pictures", "words"]
    other = type(index).open(index.uri)
    other.hold_captions()
    update_captions(other, encoder, Outcome())
    (found,) = explorer.answer([ask])
    assert found.results[0].row["label"] == "red" and len(found.results) == 8
    assert explorer.about().spaces == ["pictures", "captions", "words"]


# -- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ([{"column": "width", "least": 50}], lambda r: r["width"] >= 50),
        ([{"column": "width", "most": 50}], lambda r: r["width"] <= 50),
        ([{"column": "label", "among": ["red", "blue"]}], lambda r: r["label"] in ("red", "blue")),
        ([{"column": "aesthetic", "least": 2, "most": 4}, {"column": "language", "among": ["en"]}],
         lambda r: 2 <= r["aesthetic"] <= 4 and r["language"] == "en"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", [{}, {"text": "a red thing"}, {"text": "thing", "space": "words"}])
def test_filters_leave_what_passes_and_nothing_else(ask, filters, passes, how):
    expected = {one["id"] for one in ask(limit=40)["results"] if passes(one["row"])}
    answer = ask(filters=filters, limit=40, **how)
    assert set(ids(answer)) == expected and answer["matching"] == len(expected) and 0 < len(expected) < 40


def test_a_condition_in_words_joins_the_filters(ask):
    answer = ask(where="width > 50 or height > 60", filters=[{"column": "label", "among": ["green"]}], limit=40)
    assert len(ids(answer)) == 10, "the or does not reach out of the condition"


def test_safe_mode_hides_what_is_not_known_to_be_safe(tmp_path: Path):
    index, encoder = make_index(tmp_path, 2, {0: {"punsafe": None}, 1: {"punsafe": 0.5}, 2: {"punsafe": 0.51}})
    explorer = Explorer(index, encoder)
    (safe, every) = explorer.answer([Ask(safe=True, fold=False), Ask(safe=False, fold=False)])
    assert [one.id for one in safe.results] == [f"pictures/{i:03d}.jpg" for i in (1, 3, 5, 6, 7)]
    assert len(every.results) == 8


def test_without_any_score_safe_mode_hides_nothing_and_says_that_it_cannot(tmp_path: Path):
    index, encoder = make_index(tmp_path, 1, {i: {"punsafe": None} for i in range(4)})
    explorer = Explorer(index, encoder)
    (answer,) = explorer.answer([Ask(safe=True, fold=False)])
    assert len(answer.results) == 4 and not explorer.about().has_safety  # type: ignore[union-attr]


# -- folding ---------------------------------------------------------------------------------------------------------


def test_near_duplicates_lie_under_the_best_ranked_of_them(world, ask):
    index = world[1]
    folded = ask(text="a red thing", fold=True, limit=40)
    plain = ids(ask(text="a red thing", limit=40))
    shown = ids(folded)
    under = [i for one in folded["results"] for i in one["folded"]]
    assert sorted(shown + under) == sorted(plain), "nothing is lost"
    assert [i for i in plain if i in set(shown)] == shown, "the order of rank stays"
    assert 4 <= len(shown) < 30
    vectors = index.vectors(shown)
    assert (vectors @ vectors.T - np.eye(len(shown)) <= 0.94).all()
    for one in folded["results"]:
        assert all(plain.index(one["id"]) < plain.index(below) for below in one["folded"])


def test_folding_is_the_same_whatever_the_size_of_a_page(world, monkeypatch: pytest.MonkeyPatch):
    _, index, encoder, _ = world
    monkeypatch.setattr(exploring, "WINDOWS", (6, 14, 30, 100))
    pages: list[list[tuple[str, list[str]]]] = []
    for limit in (3, 40):
        explorer, found, at = Explorer(index, encoder), [], 0
        while at is not None:
            (answer,) = explorer.answer([Ask(text="a green thing", limit=limit, offset=at, safe=False)])
            assert not isinstance(answer, Exception)
            found += [one.id for one in answer.results]
            at = answer.next
        pages.append(found)
    assert pages[0] == pages[1] and len(pages[0]) > 3
    vectors = index.vectors(pages[0])
    assert (vectors @ vectors.T - np.eye(len(vectors)) <= 0.94).all(), "over the windows, too"


# -- many at once ----------------------------------------------------------------------------------------------------


def test_many_questions_at_once_get_what_each_gets_alone(world):
    _, index, encoder, _ = world
    narrow, unknown = {"column": "width", "most": 50}, {"column": "no", "least": 1}
    words = [
        {"text": "red", "safe": False}, {"text": "blue", "filters": [narrow]}, {}, {"text": "red"},
        {"text": "4", "space": "words"}, {"like": ["pictures/003.jpg"]}, {"text": "red", "safe": False},
        {"text": "red", "offset": 5, "limit": 2},
        {"where": "width >"}, {"like": ["nothing"]}, {"picture": "0" * 32}, {"filters": [unknown]},
    ]  # fmt: skip
    asks = [Ask.model_validate(one) for one in words]
    calls = []
    texts = encoder.texts
    together = Explorer(index, encoder)
    together.encoder = type("Counted", (), {"texts": lambda _, t: calls.append(t) or texts(t)})()
    found = together.answer(asks)
    alone = [Explorer(index, encoder).answer([one])[0] for one in asks]
    assert len(calls) == 1 and sorted(calls[0]) == ["blue", "red"], "one call of the model, each text once"
    for one, other in zip(found, alone, strict=True):
        if isinstance(other, Exception):
            assert type(one) is type(other) and str(one) == str(other)
        else:
            assert [r.__dict__ for r in one.results] == [r.__dict__ for r in other.results]  # type: ignore[union-attr]
    assert [isinstance(one, Exception) for one in found] == [False] * 8 + [True] * 4


def test_a_change_of_the_index_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exploring, "FRESH", 0)
    index, encoder = make_index(tmp_path, 2)
    explorer = Explorer(index, encoder)
    (before,) = explorer.answer([Ask(text="red", safe=False, fold=False)])
    other = type(index).open(index.uri)
    other.remove([before.results[0].id])  # type: ignore[union-attr]
    (after,) = explorer.answer([Ask(text="red", safe=False, fold=False)])
    assert [one.id for one in after.results] == [one.id for one in before.results[1:]]  # type: ignore[union-attr]
    assert explorer.about().rows == 7


# -- pictures --------------------------------------------------------------------------------------------------------


def test_a_thumbnail_is_small_upright_without_exif_and_kept(world, monkeypatch: pytest.MonkeyPatch):
    client, _, _, root = world
    first = client.post("/api/search", json={"limit": 1}).json()["results"][0]
    where = {"id": first["id"], "side": 320, "v": first["version"]}
    done = client.get("/thumb", params=where)
    assert done.headers["content-type"] == "image/jpeg" and "immutable" in done.headers["cache-control"]
    assert Image.open(io.BytesIO(done.content)).size == (48, 72)
    assert len(list((root / "thumbs").glob("??/*.jpg"))) >= 1
    again = client.get("/thumb", params=where, headers={"if-none-match": done.headers["etag"]})
    assert again.status_code == 304 and not again.content
    stale = client.get("/thumb", params=where | {"v": "0" * 16})
    assert "immutable" not in stale.headers["cache-control"]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010F] = "a camera"
    out = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(out, "JPEG", exif=exif)
    small = Image.open(io.BytesIO(make(out.getvalue(), 320)))
    assert small.size == (160, 320) and not small.getexif()


def test_thumbnails_stay_within_their_bounds(tmp_path: Path):
    one = make(picture((200, 30, 30), (320, 320)), 320)
    thumbs = Thumbs(tmp_path, limit=len(one) * 10)
    for i in range(40):
        thumbs.get(f"{i:016x}", 320, lambda: picture((200, 30, 30), (320, 320)))
    kept = list(tmp_path.glob("??/*.jpg"))
    assert sum(path.stat().st_size for path in kept) <= len(one) * 10
    assert any("27-320" in path.name for path in kept), "the newest is there"


def test_the_original_comes_byte_for_byte_as_a_download(world):
    client, _, _, root = world
    done = client.get("/original", params={"id": "pictures/007.jpg"})
    assert done.content == (root / "007.jpg").read_bytes()
    assert done.headers["content-disposition"].startswith("attachment")


def test_a_picture_that_is_gone_says_so(tmp_path: Path):
    index, encoder = make_index(tmp_path, 1)
    (tmp_path / "001.jpg").unlink()
    with served(tmp_path, index, encoder) as address:
        for path in ("/thumb", "/original"):
            done = httpx.get(address + path, params={"id": "pictures/001.jpg"})
            assert done.status_code == 422 and "no such file" in done.json()["error"]


# -- subsets ---------------------------------------------------------------------------------------------------------


def fetch(client: httpx.Client, **wish: Any) -> tuple[dict[str, Any], bytes]:
    ready = client.post("/api/export", json=wish)
    assert ready.status_code == 200, ready.text
    done = client.get(f"/api/export/{ready.json()['token']}")
    assert done.status_code == 200 and done.headers["content-disposition"].startswith("attachment")
    assert len(done.content) == ready.json()["bytes"]
    return ready.json(), done.content


def test_a_selection_is_exported_as_it_was_chosen(world):
    client = world[0]
    chosen = ["pictures/011.jpg", "pictures/002.jpg", "pictures/030.jpg"]
    ready, data = fetch(client, format="csv", ids=chosen)
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert [row["key"] for row in rows] == chosen and ready["rows"] == 3
    _, data = fetch(client, format="parquet", ids=chosen)
    assert parquet.read_table(io.BytesIO(data))["text"].to_pylist()[1] == "a blue thing, number 2"


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("how", [{}, {"text": "red"}, {"text": "thing", "space": "words"}])
def test_a_subset_is_what_the_page_shows(world, fold, how):
    client = world[0]
    question = {"fold": fold, "safe": True, "filters": [{"column": "width", "least": 50}], **how}
    shown = ids(client.post("/api/search", json={**question, "limit": 6}).json())
    _, data = fetch(client, format="parquet", question=question, most=6)
    table = parquet.read_table(io.BytesIO(data))
    assert table["key"].to_pylist() == shown and len(shown) > 1
    assert table["score"].null_count == (0 if how == {"text": "red"} else len(shown))


def test_a_subset_ends_at_the_least_score(world, ask):
    client = world[0]
    scores = [one["score"] for one in ask(text="red", limit=40)["results"]]
    least = (scores[8] + scores[9]) / 2
    _, data = fetch(client, format="parquet", question={"text": "red", "fold": False, "safe": False}, least=least)
    assert parquet.read_table(io.BytesIO(data)).num_rows == sum(score >= least for score in scores)


def test_shards_hold_the_pictures(world):
    client, _, _, root = world
    (root / "gone.jpg").write_bytes(b"")
    ready, data = fetch(client, format="webdataset", ids=["pictures/011.jpg", "pictures/002.jpg"])
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert sorted(archive.namelist()) == ["00000.parquet", "00000.tar", "00000_stats.json"] and not ready["failed"]
    with tarfile.open(fileobj=io.BytesIO(archive.read("00000.tar"))) as tar:
        assert tar.extractfile("000000001.jpg").read() == (root / "002.jpg").read_bytes()  # type: ignore[union-attr]


def test_old_subsets_go_and_nothing_is_nothing(world):
    client = world[0]
    first = client.post("/api/export", json={"format": "csv", "ids": ["pictures/000.jpg"]}).json()["token"]
    for _ in range(4):
        client.post("/api/export", json={"format": "csv", "ids": ["pictures/000.jpg"]})
    assert client.get(f"/api/export/{first}").status_code == 410
    done = client.post("/api/export", json={"format": "csv", "ids": ["nothing"]})
    assert done.status_code == 400 and "nothing to export" in done.json()["error"]


# -- what it says of itself ------------------------------------------------------------------------------------------


def test_about_and_openapi_describe_it(world):
    client = world[0]
    about = client.get("/api/about").json()
    assert about["rows"] == 40 and about["has_safety"] and not about["always_safe"]
    assert about["spaces"] == ["pictures", "words"]
    facets = {facet["column"]: facet for facet in about["facets"]}
    assert dict(facets["label"]["values"]) == dict.fromkeys(NAMES, 10)
    assert sum(facets["aesthetic"]["counts"]) == 40 and facets["width"]["most"] == 64
    assert not {"path", "digest", "mtime", "id", "text"} & set(facets)
    described = client.get("/openapi.json").json()
    assert {"/api/search", "/api/picture", "/thumb", "/api/export"} <= set(described["paths"])
    for page in ("/", "/docs"):
        html = client.get(page).text
        assert "//" not in html.replace("<!doctype html>", "").replace("http://www.w3.org", ""), (
            "nothing from elsewhere"
        )
    assert set(COLOURS) == set(NAMES)
