"""The explorer of an index too large for memory: what it answers through Lance is what it answers from memory."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as parquet
import pytest
from web_world import make_index, served

from diptych.search import lance
from diptych.search.found import Model
from diptych.search.index import Index
from diptych.search.measure import measure
from diptych.search.web.reading import Reading

FILTERS = [{"column": "width", "least": 50}, {"column": "label", "among": ["red", "blue"]}]
COUNT = 320


class Large(Index):
    is_large = True  # type: ignore[assignment]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("lance")
    index, encoder = make_index(root, COUNT // 4, captions=True)
    index.tidy()
    with served(root, index, encoder) as address, httpx.Client(base_url=address) as client:
        yield root, index.uri, encoder, client


@pytest.fixture(scope="module", params=[("hnsw", 1 << 30), ("ivf_pq", 0)], ids=["hnsw", "ivf_pq"])
def both(request: pytest.FixtureRequest, small) -> Iterator["tuple[Client, Client, Index]"]:
    """(through Lance, from memory, the index)"""
    root, uri, encoder, client = small
    index = Large.open(uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance, "GRAPH_BYTES", request.param[1])
        for space in ("pictures", "captions"):
            index.lance.index_vectors(space)
            index.lance.note(measure(index, space))
            assert index.kind(space) == request.param[0]
    with served(root, index, encoder) as address, httpx.Client(base_url=address, timeout=30) as large:
        yield Client(large), Client(client), index
        assert index.memory.exact is None, "nothing was read into memory"


class Client:
    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def ask(self, **question: Any) -> dict[str, Any]:
        done = self.client.post("/api/search", json={"fold": False, "safe": False, **question})
        assert done.status_code == 200, done.text
        return done.json()

    def export(self, **wish: Any) -> Any:
        ready = self.client.post("/api/export", json={"format": "parquet", **wish})
        assert ready.status_code == 200, ready.text
        return parquet.read_table(io.BytesIO(self.client.get(f"/api/export/{ready.json()['token']}").content))


def ids(answer: dict[str, Any]) -> list[str]:
    return [one["id"] for one in answer["results"]]


QUESTIONS: dict[str, dict[str, Any]] = {
    "near": {"text": "a red thing"}, "filters": {"text": "blue", "filters": FILTERS},
    "condition": {"text": "blue", "where": "width > 50 or aesthetic = 3"}, 
    "without": {"text": "red", "without": "blue"},
    "alone": {"without": "red"}, "like": {"like": ["pictures/017.jpg"]},
    "two": {"like": ["pictures/017.jpg", "pictures/002.jpg"], "text": "green"}, "safe": {"text": "green", "safe": True},
    "browse": {}, "browse filters": {"filters": FILTERS}, "words": {"text": "yellow", "space": "words"},
    "captions": {"text": "a red thing", "space": "captions"},
    "captions filters": {"text": "blue", "space": "captions", "filters": FILTERS},
    "words filters": {"text": "thing", "space": "words", "filters": FILTERS},
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_page_and_the_next(both, name):
    large, small, _ = both
    question = QUESTIONS[name]
    for page in ({"limit": 50}, {"limit": 50, "offset": 50}):
        one, other = (client.ask(**question, **page) for client in (large, small))
        assert len(set(ids(one))) == len(ids(one)) == len(ids(other))
        assert (one["matching"], one["next"]) == (other["matching"], other["next"])
        assert len({*ids(one)} & {*ids(other)}) >= 0.94 * len(ids(other))
        rows = {found["id"]: found for found in other["results"]}
        for found in one["results"]:
            if known := rows.get(found["id"]):
                assert (found["row"], found["version"]) == (known["row"], known["version"])
                assert found["score"] is None or found["score"] == pytest.approx(known["score"], abs=2e-4)


@pytest.mark.parametrize("name", ["near", "filters", "browse", "words", "captions"])
def test_scrolled_to_its_end_nothing_is_there_twice(both, name):
    large, small, _ = both
    found, at = [], 0
    while at is not None:
        answer = large.ask(**QUESTIONS[name], limit=90, offset=at)
        found += ids(answer)
        at = answer["next"]
    whole = ids(small.ask(**QUESTIONS[name], limit=200)) + ids(small.ask(**QUESTIONS[name], limit=200, offset=200))
    assert len(found) == len(set(found)) and set(found) == set(whole)


@pytest.mark.parametrize("name", ["near", "browse", "words", "captions"])
def test_folded(both, name):
    large, small, index = both
    one, other = (client.ask(**QUESTIONS[name], fold=True, limit=100) for client in (large, small))
    shown = ids(one)
    under = [below for found in one["results"] for below in found["folded"]]
    assert len({*shown, *under}) == len(shown) + len(under) and under
    vectors = index.vectors(shown)
    assert (vectors @ vectors.T - np.eye(len(shown)) <= 0.94).all()
    assert len({*shown} & {*ids(other)}) >= 0.9 * len(ids(other))


@pytest.mark.parametrize("name", ["near", "filters", "browse", "words", "like", "captions"])
def test_exported(both, name):
    large, small, _ = both
    question = {"fold": name == "near", "safe": False, **QUESTIONS[name]}
    one, other = (client.export(question=question, most=30) for client in (large, small))
    assert one.schema.names == other.schema.names and len(one) == len(other) > 1
    keys, expected = one["key"].to_pylist(), other["key"].to_pylist()
    assert len({*keys} & {*expected}) >= 0.9 * len(expected)
    assert one["score"].null_count == other["score"].null_count
    assert {*large.export(ids=expected)["key"].to_pylist()} == {*expected}


def test_what_it_says_of_itself(both):
    large, small, _ = both
    one, other = (client.client.get("/api/about").json() for client in (large, small))
    assert one == other and one["rows"] == COUNT
    for path in ("/thumb", "/original"):
        assert large.client.get(path, params={"id": "pictures/003.jpg"}).status_code == 200
    picture = small.client.get("/original", params={"id": "pictures/013.jpg"}).content
    token = large.client.post("/api/picture", content=picture, headers={"content-type": "image/jpeg"}).json()["picture"]
    assert ids(large.ask(picture=token, limit=1)) == ["pictures/013.jpg"]
    refused = large.client.post("/api/search", json={"like": ["nothing"]})
    assert refused.status_code == 410 and "not in the index" in refused.json()["error"]


@pytest.mark.parametrize("graph_bytes", [1 << 30, 0], ids=["hnsw", "ivf_pq"])
@pytest.mark.parametrize("where", [None, "width >= 3000", "width >= 3850", "width >= 3995", "width < 0"])
def test_scrolled_deep_it_goes_on_and_brings_nothing_twice(many, monkeypatch, graph_bytes, where):
    index, large, queries = many
    if large.kind() != ("ivf_pq", "hnsw")[graph_bytes > 0]:
        monkeypatch.setattr(lance, "GRAPH_BYTES", graph_bytes)
        large.lance.index_vectors()
        large.lance.note(measure(large))
    small, reading, passes = Reading(index), Reading(large), index.filter(where)
    for query in queries:
        found, expected = [], []
        for start, stop in itertools.pairwise((0, 120, 360, 840, 1800)):
            found += reading.nearest(query[None], passes, start, stop)[0].rows["id"].to_pylist()
            expected += small.nearest(query[None], passes, start, stop)[0].rows["id"].to_pylist()
        assert len(found) == len(set(found)) == len(expected)
        assert len({*found} & {*expected}) >= 0.97 * len(expected)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory):
    """4000 rows round 40 centres, and queries."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16)).astype(np.float32)
    uri = tmp_path_factory.mktemp("many") / "x.lance"
    index = Index.create(uri, Model("fake", "a" * 32), 16)
    vectors = centres[np.arange(4000) % 40] + 0.5 * rng.normal(size=(4000, 16))
    index.add([{"id": f"{i:04d}", "width": i} for i in range(4000)], vectors)
    return index, Large.open(uri), centres[:4] / np.linalg.norm(centres[:4], axis=1, keepdims=True)
