"""Folding of near-duplicates against a plain loop, and what it promises of what is kept."""

import numpy as np
import pytest

from diptych.search import fold as folding
from diptych.search.fold import fold, near_pairs


def units(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors [count, dim], many of them near others."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(2, count // 5), dim))
    rows = centres[generator.integers(len(centres), size=count)] + generator.normal(size=(count, dim)) * 0.22
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plain_components(vectors: np.ndarray, threshold: float) -> list[int]:
    """The first of each row's component, by a walk through the graph."""
    sims = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    leader = [-1] * len(vectors)
    for start in range(len(vectors)):
        if leader[start] >= 0:
            continue
        waiting = [start]
        while waiting:
            row = waiting.pop()
            if leader[row] < 0:
                leader[row] = start
                waiting += [j for j in range(len(vectors)) if j != row and sims[row, j] > threshold]
    return leader


def greedy(vectors: np.ndarray, threshold: float) -> list[int]:
    """Keep a row unless it is near one that is kept."""
    kept: list[int] = []
    leader = []
    for row, vector in enumerate(vectors):
        found = next((k for k in kept if float(vectors[k] @ vector) > threshold), row)
        if found == row:
            kept.append(row)
        leader.append(found)
    return leader


@pytest.mark.parametrize("seed", range(4))
def test_whole_components_are_those_of_a_walk(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folding, "BLOCK", 7)  # several blocks
    vectors = units(60, 8, seed)
    found = fold(vectors, 0.9, reach=-1)
    assert found.tolist() == plain_components(vectors, 0.9)
    assert 5 < len(set(found.tolist())) < 55, "the test has something to fold and something to keep"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reach", [-1.0, 0.8, 0.88, 0.94])
def test_nothing_that_is_kept_is_near_another_and_each_row_is_near_what_stands_for_it(seed: int, reach: float):
    vectors = units(120, 8, seed)
    leader = fold(vectors, 0.94, reach)
    kept = np.flatnonzero(leader == np.arange(120))
    sims = vectors @ vectors.T
    assert (sims[np.ix_(kept, kept)] - 2 * np.eye(len(kept)) <= 0.94).all()
    assert (leader <= np.arange(120)).all(), "the first in the order of rank stands for the others"
    assert (leader[leader] == leader).all()
    if reach > 0:
        assert (sims[np.arange(120), leader] >= reach - 1e-6).all()


def test_a_chain_is_not_folded_into_its_first():
    angles = np.arange(6) * 0.3  # neighbours: cos 0.955; the last is at a right angle to the first
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert fold(vectors, 0.94, reach=-1).tolist() == [0] * 6
    assert fold(vectors, 0.94, reach=0.8).tolist() == [0, 0, 0, 3, 3, 3]
    assert fold(vectors, 0.94, reach=0.94).tolist() == [0, 0, 2, 2, 4, 4]


def test_what_was_shown_stays_and_takes_its_neighbours_from_the_next_page():
    angles = np.array([0.0, 1.0, 0.02, 1.01, 2.0, 2.01])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert fold(vectors, shown=2).tolist() == [0, 1, 0, 1, 4, 4]
    assert fold(vectors[[0, 2, 3]], shown=2).tolist() == [0, 1, 2], "two that were shown are not folded any more"
    # near both that were shown: the better ranked of them stands for it
    angles = np.array([0.0, 0.2, 0.1])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert fold(vectors, shown=2).tolist() == [0, 1, 0]


def test_nothing_and_one():
    assert fold(np.empty((0, 4), np.float32)).tolist() == []
    assert fold(np.eye(4, dtype=np.float32)[:1]).tolist() == [0]


def test_pairs_are_those_of_two_loops(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folding, "BLOCK", 5)
    vectors = units(23, 6)
    first, second = near_pairs(vectors, 0.9)
    expected = [(i, j) for i in range(23) for j in range(i + 1, 23) if float(vectors[i] @ vectors[j]) > 0.9]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert expected


def test_reach_at_the_threshold_is_greedy_on_pairs_and_stars():
    """On a graph whose components are cliques, folding, walking and greedy agree."""
    generator = np.random.default_rng(1)
    centres = np.eye(5)[generator.integers(5, size=40)] + generator.normal(size=(40, 5)) * 0.02
    vectors = (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)
    assert fold(vectors, 0.94, 0.94).tolist() == greedy(vectors, 0.94) == plain_components(vectors, 0.94)
