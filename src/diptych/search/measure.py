"""How good and how fast the search of an index is: recall@10 against all rows, and the time a query takes."""

import json
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.search.exact import first
from diptych.search.found import How, Measured
from diptych.search.storage import in_turn, open_table, plainly, tables_of

if TYPE_CHECKING:
    from diptych.search.index import Index

MEASURED = "measured"  # a table of the database
RECALL = 0.99  # recall@10 to reach where Lance's index is probed
QUERIES, NEIGHBOURS = 50, 10
LEAST, MOST = {"hnsw": 50, "ivf_pq": 4}, 4096  # of what a query may spend


def measure(index: "Index", space: str = "pictures", queries: int = QUERIES, seed: int = 0) -> Measured:
    """The queries lie between two rows drawn by chance, so that none finds itself alone.

    Where Lance's index is probed, what a query spends is chosen on as many other queries.
    """
    rng = np.random.default_rng(seed)
    drawn = sample(index, space, 4 * queries, rng)
    asked = drawn[0::2][: len(drawn) // 2] + drawn[1::2]
    asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    truth = neighbours(index, space, asked)
    kind, rows, effort, half = index.kind(space), index.count(space), 0, len(asked) // 2
    if kind in LEAST:
        effort = LEAST[kind]
        while effort < MOST and recall(index, space, asked[half:], truth[half:], How(kind, effort, rows))[0] < RECALL:
            effort *= 2
        effort *= 2  # what suffices for some queries is short for others
    asked, truth = asked[: max(half, 1)], truth[: max(half, 1)]
    share, seconds = recall(index, space, asked, truth, How(kind, effort, rows))
    return Measured(kind, rows, share, 1000 * seconds, len(asked), effort, space)


def recall(index: "Index", space: str, asked: np.ndarray, truth: list[set[str]], how: How) -> tuple[float, float]:
    """(recall@10, seconds a query: the median)."""
    found, times = [], []
    for query, right in zip(asked, truth, strict=True):
        start = time.perf_counter()
        if how.effort:
            hits = index.lance.by_vector(query, NEIGHBOURS, None, space, how)
        else:
            hits = index.by_vector(query, NEIGHBOURS, None, space)
        times.append(time.perf_counter() - start)
        found.append(len({hit.id for hit in hits} & right) / max(len(right), 1))
    return float(np.mean(found)), float(np.median(times))


def neighbours(index: "Index", space: str, asked: np.ndarray) -> list[set[str]]:
    """The ids of the nearest rows to each query, by float64 cosines with every row."""
    best: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0, object))] * len(asked)
    for vectors, ids in index.batches(space):
        scores = asked.astype(np.float64) @ vectors.T.astype(np.float64)  # [Q, N]
        for i, row in enumerate(scores):
            joined, names = np.concatenate([best[i][0], row]), np.concatenate([best[i][1], ids])
            some = first(joined, NEIGHBOURS)
            best[i] = joined[some], names[some]
    return [set(names.tolist()) for _, names in best]


def sample(index: "Index", space: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """An even number of vectors drawn by chance, [M, D], M at least 2."""
    rows = index.count(space)
    places = np.sort(rng.integers(0, rows, max(2, min(count, rows) // 2 * 2)))
    found, seen = [], 0
    for vectors, _ in index.batches(space):
        inside = places[(places >= seen) & (places < seen + len(vectors))] - seen
        found.append(vectors[inside])
        seen += len(vectors)
    return rng.permutation(np.concatenate(found))


def last_measured(database: Any, space: str) -> Measured | None:
    """What was noted last."""
    if MEASURED not in tables_of(database):
        return None
    table = in_turn(partial(open_table, database, MEASURED))
    with plainly(database.uri):
        rows = sorted(table.to_arrow().to_pylist(), key=lambda row: -row["at"])
    found = (Measured(**json.loads(row["found"])) for row in rows)
    return next((one for one in found if one.space == space), None)


def keep_measured(database: Any, found: Measured) -> None:
    import pyarrow as pa

    schema = pa.schema([("at", pa.int64()), ("found", pa.string())])

    def keep() -> None:
        with plainly(database.uri):
            table = database.create_table(MEASURED, schema=schema, exist_ok=True)
            table.add([{"at": time.time_ns(), "found": json.dumps(asdict(found))}])

    in_turn(keep)
