"""Exact search: against a plain loop in float64, through additions, removals and masks."""

import numpy as np
import pyarrow as pa
import pytest

from diptych.search.exact import Exact, Room, first, fused


def rows_of(ids):
    return pa.table({"id": pa.array(list(ids), pa.string())})


def exact_of(vectors, ids=None):
    rows = rows_of(map(str, range(len(vectors))) if ids is None else ids)
    return Exact.empty(vectors.shape[1], rows, len(vectors)).added(vectors, rows)


def by_loop(vectors, query, k, allowed):
    scores = [(sum(float(a) * float(b) for a, b in zip(v, query, strict=True)), -i) for i, v in enumerate(vectors)]
    return [-i for _, i in sorted((s for s in scores if allowed[-s[1]]), reverse=True)[:k]]


@pytest.mark.parametrize("share", [1.0, 0.6, 0.05])
def test_it_finds_what_a_plain_loop_finds(share):
    rng = np.random.default_rng(0)
    vectors, query = rng.standard_normal((200, 7)).astype(np.float32), rng.standard_normal(7).astype(np.float32)
    allowed = rng.random(200) < share
    places, scores = exact_of(vectors).top(query, 10, None if share == 1 else allowed)
    assert places.tolist() == by_loop(vectors, query, 10, allowed)
    np.testing.assert_allclose(scores, vectors[places] @ query, rtol=1e-5)


def test_of_equal_scores_the_earlier_comes_first_and_k_may_exceed_the_rows():
    vectors = np.ones((5, 3), np.float32)
    assert exact_of(vectors).top(vectors[0], 2)[0].tolist() == [0, 1]
    assert exact_of(vectors).top(vectors[0], 50)[0].tolist() == [0, 1, 2, 3, 4]
    assert first(np.array([1.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 3, 2]
    assert first(np.empty(0), 3).tolist() == []


def test_adding_copies_no_matrix_and_leaves_searches_under_way_as_they_are():
    vectors = np.eye(4, dtype=np.float32)
    before = exact_of(vectors[:2])
    after = before.added(vectors[2:], rows_of(["2", "3"]))
    assert after.pictures.store is before.pictures.store
    assert len(before) == 2 and len(after) == 4
    assert before.top(vectors[3], 1)[1].tolist() == [0.0]
    assert after.top(vectors[3], 1)[0].tolist() == [3]
    many = after.added(np.zeros((5000, 4), np.float32), rows_of(str(i) for i in range(4, 5004)))
    assert len(many) == 5004 and many.top(vectors[1], 1)[0].tolist() == [1]


def test_removal_is_a_mark_until_half_are_gone():
    vectors = np.eye(8, dtype=np.float32)
    exact = exact_of(vectors)
    fewer = exact.without(["1", "6", "unknown"])
    assert fewer.pictures.store is exact.pictures.store and len(fewer) == 6 and len(exact) == 8
    assert fewer.top(vectors[1], 8)[0].tolist() == [0, 2, 3, 4, 5, 7]
    assert fewer.positions(["1", "2"]).tolist() == [2]
    assert fewer.living["id"].to_pylist() == ["0", "2", "3", "4", "5", "7"]
    back = fewer.added(vectors[1:2], rows_of(["1"]))
    assert back.top(vectors[1], 1)[0].tolist() == [8] and back.positions(["1"]).tolist() == [8]
    few = fewer.without(["0", "2", "3", "4"])
    assert few.alive is None and few.rows["id"].to_pylist() == ["5", "7"]
    assert few.top(vectors[7], 1)[0].tolist() == [1]


def test_captions_lie_beside_their_rows_through_additions_and_removals():
    rng = np.random.default_rng(1)
    said, there = rng.standard_normal((40, 5)).astype(np.float32), rng.random(40) < 0.6
    said[~there] = 0
    exact = exact_of(rng.standard_normal((20, 5)).astype(np.float32))
    store = np.zeros((30, 5), np.float32)
    store[:20] = said[:20]
    exact.captions = Room(store, 20, there[:20])

    def check(exact, left, share=1.0):
        query, allowed = rng.standard_normal(5).astype(np.float32), rng.random(len(left)) < share
        expected = by_loop(said[left], query, 7, there[left] & allowed)
        of_rows = np.flatnonzero(exact.alive) if exact.alive is not None else np.arange(exact.count)
        mask = np.zeros(exact.count, bool)
        mask[of_rows] = allowed
        places, scores = exact.top(query, 7, mask, exact.captions)
        assert exact.rows["id"].take(places).to_pylist() == [str(left[i]) for i in expected]
        np.testing.assert_allclose(scores, said[[left[i] for i in expected]] @ query, rtol=1e-5, atol=1e-6)

    check(exact, np.arange(20))
    more = exact.added(np.ones((20, 5), np.float32), rows_of(map(str, range(20, 40))), (said[20:], there[20:]))
    assert more.captions.store is not store, "no room was left"
    check(more, np.arange(40))
    check(more, np.arange(40), 0.2)
    check(more.without(["3", "30"]), np.array([i for i in range(40) if i not in (3, 30)]))
    few = more.without([str(i) for i in range(5, 38)])
    assert few.alive is None and few.captions.count == 7
    check(few, np.array([0, 1, 2, 3, 4, 38, 39]))


def test_reciprocal_rank_fusion_is_the_paper_s():
    found = fused(["a", "b", "c"], ["c", "a", "d"])
    assert list(found) == ["a", "c", "b", "d"]
    assert found["a"] == pytest.approx(1 / 61 + 1 / 62)
    assert found["c"] == pytest.approx(1 / 63 + 1 / 61)
    assert found["d"] == pytest.approx(1 / 63)


def test_rows_come_from_any_piece_in_the_order_asked():
    exact = exact_of(np.eye(3, dtype=np.float32))
    for i in range(3, 150):  # pieces are joined on the way
        exact = exact.added(np.zeros((1, 3), np.float32), rows_of([str(i)]))
    places = np.array([149, 0, 77, 2, 140])
    assert [row["id"] for row in exact.cells(places)] == ["149", "0", "77", "2", "140"]
    assert 1 < len(exact.pieces) < 100 and exact.cells(np.empty(0, np.int64)) == []
