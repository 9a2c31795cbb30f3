"""Near-duplicates folded under the best of them: what is shown has no two pictures that are almost the same.

Beaumont, clip-retrieval: the graph of pairs with a cosine above 0.94, of which the first of each connected component
is kept. Components chain: in a film, each frame is near the next, and the last is another picture. So a row is folded
only where it is itself near the one that stands for it; what lies further away stands for itself.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THRESHOLD, REACH = 0.94, 0.88
BLOCK = 2048  # rows of the similarity matrix at a time


def fold(
    vectors: NDArray[np.float32], threshold: float = THRESHOLD, reach: float = REACH, shown: int = 0
) -> NDArray[np.int64]:
    """For each row the row that stands for it, itself where it is kept.

    vectors [N, D], unit, in the order of rank. An edge joins rows with a cosine above `threshold`; in each component
    the first stands for all with a cosine of at least `reach` to it, and the others are gone through again. reach -1:
    whole components; reach = threshold: no row is folded that is not a neighbour of the one kept. The first `shown`
    rows are kept whatever they are like, and take their neighbours with them: they have been seen. No two rows kept
    beyond them have a cosine above `threshold`, nor has one of them to one of the `shown`. -> [N].
    """
    rows = len(vectors)
    leader = np.full(rows, -1, dtype=np.int64)
    leader[:shown] = np.arange(shown)
    first, second = near_pairs(vectors, threshold)
    old = (first < shown) & (second >= shown)
    # the best-ranked of those seen: pairs come in the order of `first`, and the earliest assignment must win
    leader[second[old][::-1]] = first[old][::-1]
    left = np.flatnonzero(leader < 0)
    while len(left):
        place = np.full(rows, -1)
        place[left] = np.arange(len(left))
        inside = (place[first] >= 0) & (place[second] >= 0)
        ends = place[first[inside]], place[second[inside]]
        graph = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(len(left), len(left)))
        _, component = connected_components(graph, directed=False)
        _, start = np.unique(component, return_index=True)  # rows are in the order of rank: the best of each
        best = left[start[component]]
        near = np.einsum("nd,nd->n", vectors[left], vectors[best]) >= reach
        near |= best == left
        leader[left[near]] = best[near]
        left = left[~near]
    return leader


def near_pairs(vectors: NDArray[np.float32], threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(i, j) of all rows [N, D] with i < j and a cosine above `threshold`, in the order of i, then j."""
    first, second = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK] @ vectors[start:].T
        i, j = np.nonzero(block > threshold)
        later = j > i
        first.append(i[later] + start)
        second.append(j[later] + start)
    return np.concatenate(first), np.concatenate(second)
