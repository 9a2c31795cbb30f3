"""An index: what is added is found, once; filters, words, removal, other processes, a killed writer, other models."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from diptych.errors import DiptychError
from diptych.search import index as module
from diptych.search import lance
from diptych.search.found import Model
from diptych.search.index import Index

MODEL, DIM = Model("fake", "a" * 32, "fake"), 8


def vectors_of(count, seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((count, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def rows_of(count):
    words = ("red", "green", "blue", "yellow")
    return [
        {"id": f"p/{i}.jpg", "text": f"a {words[i % 4]} thing", "width": 10 * i, "label": words[i % 4]}
        for i in range(count)
    ]


@pytest.fixture
def made(tmp_path):
    index = Index.create(tmp_path / "x.lance", MODEL, DIM)
    index.add(rows_of(40), vectors_of(40))
    return index


def test_what_is_added_is_found_by_its_cosine(made):
    vectors = vectors_of(40)
    query = vectors[3] * 7  # its length does not matter
    hits = made.search(query, 5)
    expected = np.argsort(-(vectors @ vectors[3]))[:5]
    assert [hit.id for hit in hits] == [f"p/{i}.jpg" for i in expected]
    assert [hit.score for hit in hits] == pytest.approx((vectors @ vectors[3])[expected].tolist(), abs=1e-5)
    assert hits[0].row["text"] == "a yellow thing" and hits[0].row["width"] == 30 and "vector" not in hits[0].row
    assert made.search(query, 100)[0].id == "p/3.jpg" and len(made.search(query, 100)) == 40


def test_a_filter_holds_before_the_nearest_are_chosen(made):
    where = made.filter("label = 'red' and width >= 200")
    hits = made.search(vectors_of(40)[3], 3, where=where)
    assert {hit.row["label"] for hit in hits} == {"red"} and all(hit.row["width"] >= 200 for hit in hits)
    right = [i for i in np.argsort(-(vectors_of(40) @ vectors_of(40)[3])) if i % 4 == 0 and i >= 20][:3]
    assert [hit.id for hit in hits] == [f"p/{i}.jpg" for i in right]
    assert made.search(vectors_of(1)[0], 3, where=made.filter("width > 5000")) == []


def test_an_id_that_is_there_is_replaced_never_doubled(made):
    other = vectors_of(1, seed=9)
    made.search(other[0], 1)
    made.add([{"id": "p/3.jpg", "text": "changed"}], other)
    hit = made.search(other[0], 1)[0]
    assert (hit.id, hit.row["text"], hit.row["width"], len(made)) == ("p/3.jpg", "changed", None, 40)
    assert len(Index.open(made.uri)) == 40


def test_removed_rows_are_found_no_more_and_may_come_back(made):
    vector = vectors_of(40)[3]
    assert made.search(vector, 1)[0].id == "p/3.jpg"
    made.remove(["p/3.jpg", "unknown", "' OR '1'='1"])
    assert "p/3.jpg" not in {hit.id for hit in made.search(vector, 100)}
    assert len(made) == 39 and made.rows(["p/3.jpg"]) == []
    made.add(rows_of(4)[3:], vector[None])
    assert made.search(vector, 1)[0].score == pytest.approx(1, abs=1e-5)


def test_another_handle_sees_what_was_written(made):
    reader = Index.open(made.uri)
    new = vectors_of(3, seed=4)
    assert len(reader.search(new[0], 100)) == 40
    made.add([{"id": f"n{i}"} for i in range(3)], new)
    made.remove(["p/0.jpg"])
    made.add([{"id": "p/1.jpg", "text": "other"}], new[:1])
    found = {hit.id: hit for hit in reader.search(new[0], 100)}
    assert len(found) == 42 and "n2" in found and "p/0.jpg" not in found and found["p/1.jpg"].row["text"] == "other"
    made.add([{"id": "n9", "mine": 4.5}], new[1:2])  # a new column
    assert {hit.id: hit.row for hit in reader.search(new[1], 100)}["n9"]["mine"] == 4.5
    made.add([{"id": f"m{i}"} for i in range(200)], vectors_of(200, seed=5))
    assert len(reader.search(new[0], 1000)) == 243


def test_own_columns_are_made_and_filtered_by(made):
    made.add([{"id": "q", "price": 3, "sold": True, "maker": "it's"}], vectors_of(1))
    made.add([{"id": "r", "price": 5, "sold": False}], vectors_of(1, seed=3))
    assert {made.columns[name] for name in ("price", "sold", "maker")} == {"number", "yes/no", "text"}
    ids = made.select(made.filter("price >= 3 and sold = true"), ["id"])["id"].to_pylist()
    assert ids == ["q"] and made.rows(["r", "q"])[0]["price"] == 5
    with pytest.raises(DiptychError, match='column "price"'):
        made.add([{"id": "s", "price": "cheap"}], vectors_of(1))
    with pytest.raises(DiptychError, match="cannot name a column"):
        made.add([{"id": "s", "a b; --": 1}], vectors_of(1))
    with pytest.raises(DiptychError, match='no column "prize"; did you mean "price"'):
        made.filter("prize > 3")


def test_full_text_and_vectors_are_one_ranking(made):
    vectors = vectors_of(40)
    made.add([{"id": "harbour", "text": "the harbour of Hamburg at night"}], -vectors[3:4])
    plain = [hit.id for hit in made.search(vectors[3], 41)]
    assert plain[-1] == "harbour"
    hits = made.search(vectors[3], 5, text="hamburg harbour")
    assert "harbour" in [hit.id for hit in hits][:2]  # first by words, last by vector
    assert {hit.id: hit.score for hit in hits}["harbour"] == pytest.approx(-1, abs=1e-5)
    assert "harbour" not in [h.id for h in made.search(vectors[3], 5, text="hamburg", where=made.filter("width > 0"))]
    made.add([{"id": "later", "text": "Hamburg again"}], -vectors[4:5])  # after the index of words was made
    assert "later" in [hit.id for hit in made.search(vectors[3], 5, text="hamburg")]
    red = made.search(vectors[3], 10, text="red")
    assert sum(hit.row["label"] == "red" for hit in red[:5]) >= 3
    for hostile in ('"', "text:* OR id:*", "' OR 1=1 --", "(((", "+-&&"):
        assert len(made.search(vectors[3], 5, text=hostile)) == 5


def test_words_that_only_the_other_ranking_would_cut_off_come_with_their_rows(made, monkeypatch):
    monkeypatch.setattr(module, "DEEP", 5)
    vectors = vectors_of(40)
    made.add([{"id": "far", "text": "zebra"}], -vectors[3:4])
    hits = made.search(vectors[3], 3, text="zebra")
    far = {hit.id: hit for hit in hits}["far"]
    assert far.row["text"] == "zebra" and far.score == pytest.approx(-1, abs=1e-5) and "vector" not in far.row


# -- captions ----------------------------------------------------------------------------------------------------------


def captioned(index, seed=50):
    """Every row but each third has a caption's vector; -> id -> it, unit."""
    index.hold_captions()
    ids = [f"p/{i}.jpg" for i in range(40) if i % 3]
    vectors = vectors_of(len(ids), seed)
    texts = [(row["id"], row["text"]) for row in index.rows(ids)]
    assert index.caption(texts, vectors * 3) == len(ids)  # their length does not matter
    return dict(zip(ids, vectors, strict=True))


def by_loop(said, query, k, allowed=lambda one: True):
    scores = {one: sum(float(a) * float(b) for a, b in zip(v, query, strict=True)) for one, v in said.items()}
    return sorted((one for one in scores if allowed(one)), key=lambda one: -scores[one])[:k], scores


def test_captions_are_found_by_their_cosine_and_rows_without_one_are_not(made):
    before = [hit.id for hit in made.search(vectors_of(40)[3], 40)]
    said, query = captioned(made), vectors_of(1, seed=77)[0]
    assert made.memory.exact and made.memory.exact.captions is None, "no memory is taken before they are asked for"
    expected, scores = by_loop(said, query, 100)
    hits = made.search(query, 100, space="captions")
    assert [hit.id for hit in hits] == expected and len(expected) == 26
    assert [hit.score for hit in hits] == pytest.approx([scores[one] for one in expected], abs=1e-6)
    assert "text_vector" not in hits[0].row and "text_vector" not in made.columns
    large = by_loop(said, query, 5, lambda one: int(one[2:-4]) >= 20)[0]
    assert [hit.id for hit in made.search(query, 5, where=made.filter("width >= 200"), space="captions")] == large
    assert [hit.id for hit in made.search(vectors_of(40)[3], 40)] == before, "pictures are found as ever"
    assert (made.info.captions, made.count("captions"), made.info.rows) == (26, 26, 40)


def test_captions_and_words_are_one_ranking(made, monkeypatch):
    monkeypatch.setattr(module, "DEEP", 3)
    said = captioned(made)
    made.add(
        [{"id": "harbour", "text": "the harbour of Hamburg"}, {"id": "later", "text": "Hamburg"}], vectors_of(2, 9)
    )
    made.caption([("harbour", "the harbour of Hamburg")], -said["p/4.jpg"][None])
    hits = {hit.id: hit for hit in made.search(said["p/4.jpg"], 3, text="hamburg", space="captions")}
    assert "p/4.jpg" in hits and hits["harbour"].score == pytest.approx(-1, abs=1e-5)
    assert "later" not in hits and "text_vector" not in hits["harbour"].row


def test_an_index_without_captions_says_how_to_get_them(made):
    assert made.info.captions is None
    with pytest.raises(DiptychError, match=r"diptych index \.\.\. --db .*x\.lance --captions"):
        made.search(vectors_of(1)[0], space="captions")
    with pytest.raises(DiptychError, match='not in "caption"; did you mean "captions"'):
        made.search(vectors_of(1)[0], space="caption")
    with pytest.raises(DiptychError, match="cannot name a column"):
        made.add([{"id": "s", "text_vector": "mine"}], vectors_of(1))
    made.hold_captions()
    assert made.search(vectors_of(1)[0], space="captions") == [] and made.info.captions == 0
    with pytest.raises(DiptychError, match=r"the vector of p/1\.jpg has no direction"):
        made.caption([("p/1.jpg", "a green thing")], np.zeros((1, DIM)))


def test_a_row_keeps_the_vector_of_its_text_and_of_no_other(made):
    said, other = captioned(made), vectors_of(1, seed=9)
    made.search(other[0], space="captions")
    made.add([{"id": "p/1.jpg", "text": "a green thing"}, {"id": "p/2.jpg", "text": "changed"}], vectors_of(2, seed=5))
    made.add([{"id": "p/4.jpg"}, {"id": "new", "text": "new"}], vectors_of(2, seed=6))
    assert sorted(made.uncaptioned())[:2] == [("new", "new"), ("p/0.jpg", "a red thing")]
    assert ("p/2.jpg", "changed") in made.uncaptioned() and len(made.uncaptioned()) == 14 + 2
    del said["p/2.jpg"], said["p/4.jpg"]
    for index in (made, Index.open(made.uri)):
        assert [hit.id for hit in index.search(other[0], 100, space="captions")] == by_loop(said, other[0], 100)[0]
    made.add([{"id": "blank", "text": " \n"}, {"id": "p/2.jpg"}, {"id": "new"}], vectors_of(3, seed=8))
    assert len(made.uncaptioned()) == 14, "a blank is no caption"


def test_another_handle_sees_captions_as_they_come(made):
    reader, query = Index.open(made.uri), vectors_of(1, seed=77)[0]
    assert len(reader.search(query, 100)) == 40
    said = captioned(made)
    assert [hit.id for hit in reader.search(query, 100, space="captions")] == by_loop(said, query, 100)[0]
    room = reader.memory.exact.captions
    said["p/0.jpg"] = vectors_of(1, seed=78)[0]
    texts = [("p/0.jpg", "a red thing"), ("unknown", "who?")]
    assert made.caption(texts, np.stack([said["p/0.jpg"], query])) == 1
    made.add([{"id": "p/2.jpg", "text": "changed"}], vectors_of(1, seed=5))
    del said["p/2.jpg"]
    assert [hit.id for hit in reader.search(query, 100, space="captions")] == by_loop(said, query, 100)[0]
    assert reader.memory.exact.captions.store is room.store, "only what changed was read"
    assert len(made) == 40


def test_captions_beyond_the_size_for_exact_search(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXACT_BYTES", 10_000)
    index = Index.create(tmp_path / "large.lance", MODEL, 16)
    centres = vectors_of(30, dim=16)
    said = centres[np.arange(3000) % 30] + 0.3 * vectors_of(3000, seed=1, dim=16)
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    index.add([{"id": str(i), "text": "t" if i % 2 else None} for i in range(3000)], vectors_of(3000, seed=2, dim=16))
    index.hold_captions()
    todo = index.uncaptioned()
    index.caption(todo[:100], said[[int(one) for one, _ in todo[:100]]])
    index.tidy()
    assert index.kind("captions") == "" and index.kind() == "hnsw", "so few need no graph"
    assert index.search(said[int(todo[3][0])], 1, space="captions")[0].id == todo[3][0]
    index.caption(todo[100:], said[[int(one) for one, _ in todo[100:]]])
    index.tidy()
    assert index.kind("captions") == "hnsw" and index.memory.exact is None
    for query in said[:6]:
        right = {str(i) for i in np.argsort(-np.where(np.arange(3000) % 2, said @ query, -9))[:10]}
        hits = index.search(query, 10, space="captions")
        assert len({hit.id for hit in hits} & right) >= 9
        assert hits[0].score == pytest.approx(float(said[int(hits[0].id)] @ query), abs=1e-4)
    assert len(index.search(said[0], 2500, space="captions")) == 1500


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_another_model_is_refused_by_name(made):
    made.check(MODEL)
    with pytest.raises(DiptychError, match=r'by the model "fake" \(aaaaaaaaaaaa\), but was asked with "other" \(bbb'):
        made.search(vectors_of(1)[0], model=Model("other", "b" * 32, "other"))
    with pytest.raises(DiptychError, match="has changed since"):
        made.check(Model("fake", "b" * 32, "fake"))
    with pytest.raises(DiptychError, match="one vector of 8 numbers"):
        made.search(np.ones(9))


@pytest.mark.parametrize("vector", [np.zeros(DIM), np.full(DIM, np.nan), np.full(DIM, np.inf)])
def test_vectors_without_direction_are_refused(made, vector):
    with pytest.raises(DiptychError, match="the vector of z has no direction"):
        made.add([{"id": "z"}], vector[None])
    with pytest.raises(DiptychError, match="not all 0"):
        made.search(vector)


def test_ids_are_needed_and_different(made):
    for rows in ([{"text": "no id"}] * 2, [{"id": "a"}, {"id": "a"}], [{"id": ""}, {"id": "b"}]):
        with pytest.raises(DiptychError, match="an id each"):
            made.add(rows, vectors_of(2))
    assert len(made) == 40


def test_vectors_and_rows_come_in_the_order_asked(made):
    ids = ["p/7.jpg", "p/2.jpg", "p/30.jpg"]
    np.testing.assert_allclose(made.vectors(ids), vectors_of(40)[[7, 2, 30]], atol=1e-6)
    assert [row["id"] for row in made.rows(ids)] == ids
    with pytest.raises(DiptychError, match="no picture with the id"):
        made.vectors(["p/2.jpg", "p/200.jpg"])


def test_opening_what_is_not_there(tmp_path, made):
    with pytest.raises(DiptychError, match="no index at"):
        Index.open(tmp_path / "none")
    with pytest.raises(DiptychError, match=r'did you mean "x\.lance"'):
        Index.open(tmp_path / "y.lance")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiptychError, match="holds no index"):
        Index.open(tmp_path / "empty")
    import lancedb

    lancedb.connect(tmp_path / "other").create_table("pictures", [{"a": 1}])
    with pytest.raises(DiptychError, match="was not made by diptych"):
        Index.open(tmp_path / "other")
    for path in Path(made.uri, "pictures.lance", "_versions").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DiptychError, match="is damaged"):
        Index.open(made.uri)
    with pytest.raises(DiptychError, match="already holds an index"):
        Index.create(made.uri, MODEL, DIM)


def test_tidy_measures_and_keeps_everything(made):
    for i in range(25):
        made.add([{"id": f"n{i}", "text": "new"}], vectors_of(1, seed=100 + i))
    before = [hit.id for hit in made.search(vectors_of(1)[0], 100)]
    assert made.info.measured is None
    made.tidy()
    info = Index.open(made.uri).info
    assert (info.rows, info.dim, info.model) == (65, DIM, MODEL)
    assert info.measured and (info.measured.kind, info.measured.recall10, info.measured.rows) == ("exact", 1.0, 65)
    assert made.table.stats()["fragment_stats"]["num_fragments"] == 1
    assert info.measured.milliseconds > 0
    assert [hit.id for hit in made.search(vectors_of(1)[0], 100)] == before
    old = sorted(Path(made.uri, "pictures.lance", "data").iterdir())
    made.add([{"id": "one more", "text": "new"}], vectors_of(1, seed=99))
    made.tidy()
    assert (
        len([p for p in Path(made.uri, "pictures.lance", "data").iterdir() if p not in old]) == 1
    )  # no other is written


@pytest.mark.parametrize(("kind", "graph_bytes"), [("hnsw", 1 << 30), ("ivf_pq", 10_000)])
def test_beyond_the_size_for_exact_search_lance_is_probed_and_recall_measured(tmp_path, monkeypatch, kind, graph_bytes):
    monkeypatch.setattr(module, "EXACT_BYTES", 10_000)
    monkeypatch.setattr(lance, "GRAPH_BYTES", graph_bytes)
    index = Index.create(tmp_path / "large.lance", MODEL, 16)
    centres = vectors_of(30, dim=16)
    vectors = centres[np.arange(3000) % 30] + 0.3 * vectors_of(3000, seed=1, dim=16)
    index.add([{"id": str(i), "width": i} for i in range(3000)], vectors)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert index.search(vectors[7], 1)[0].id == "7"  # before there is an index of vectors
    index.tidy()
    measured = index.info.measured
    assert measured and measured.kind == kind and measured.effort > 0
    assert 0.95 <= measured.recall10 <= 1
    assert index.memory.exact is None  # nothing of it was read into memory
    found = {hit.id for hit in index.search(vectors[7], 10, where=index.filter("width >= 1000"))}
    scores = vectors[1000:] @ vectors[7]
    assert len(found & {str(1000 + i) for i in np.argsort(-scores)[:10]}) >= 8
    hits = index.search(vectors[7], 3)
    assert hits[0].score == pytest.approx(1, abs=1e-4) and "_distance" not in hits[0].row
    index.add([{"id": "new"}], -vectors[7:8])
    assert index.search(-vectors[7], 1)[0].id == "new"
    index.remove(["new"])
    assert index.search(-vectors[7], 1)[0].id != "new"


WRITER = """
import sys
import numpy as np
from diptych.search.index import Index
index, rng = Index.open(sys.argv[1]), np.random.default_rng(1)
for batch in range(10_000):
    rows = [{"id": f"b{batch}/{i}", "text": "x" * 2000} for i in range(50)]
    index.add(rows, rng.standard_normal((50, 8)))
    print(batch, flush=True)
"""


@pytest.mark.parametrize("after", [2, 5])
def test_kill_9_during_an_add_leaves_all_finished_rows(made, after):
    path = [str(Path(module.__file__).parents[2]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    words = [sys.executable, "-c", textwrap.dedent(WRITER), made.uri]
    writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout
    finished = -1
    while finished < after:
        finished = int(writer.stdout.readline())
    time.sleep(0.007 * after)  # somewhere within the next ones
    os.kill(writer.pid, signal.SIGKILL)
    finished += len(writer.stdout.read().split())
    writer.wait()
    index = Index.open(made.uri)
    ids = set(index.select(None, ["id"])["id"].to_pylist())
    assert {f"b{b}/{i}" for b in range(finished + 1) for i in range(50)} <= ids
    assert (len(ids) - 40) % 50 == 0  # batches are whole
    assert len(index.search(vectors_of(1)[0], 10_000)) == len(ids)
    index.add([{"id": "after"}], vectors_of(1))
    index.tidy()
    assert len(index) == len(ids) + 1


def test_threads_search_while_another_writes(made):
    vectors, wrong = vectors_of(40), []
    done = threading.Event()

    def ask(number):
        while not done.is_set():
            hits = made.search(vectors[number], 5, where=made.filter("width >= 0") if number % 2 else None)
            ids = [hit.id for hit in hits]
            if hits[0].id != f"p/{number}.jpg" or len(set(ids)) < 5 or hits[0].score < 0.999:
                wrong.append(ids)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (1, 2, 5)]
    for thread in threads:
        thread.start()
    for i in range(15):
        made.add([{"id": f"n{i}/{j}", "width": 1} for j in range(40)], vectors_of(40, seed=1000 + i))
        made.remove([f"n{i}/{j}" for j in range(30)])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(made) == 40 + 15 * 10
