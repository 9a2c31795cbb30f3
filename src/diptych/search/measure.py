"""How good and how fast the search of an index is: recall@10 against all rows, and the time a query takes."""

import json
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.search.exact import first
from diptych.search.found import Measured
from diptych.search.storage import in_turn, open_table, plainly, tables_of

if TYPE_CHECKING:
    from diptych.search.index import Index

TABLE = "measured"
RECALL = 0.99  # recall@10 to reach where Lance's index is probed
QUERIES, NEIGHBOURS = 50, 10
LEAST, MOST = {"hnsw": 50, "ivf_pq": 4}, 4096  # of what a query may spend


def measure(index: "Index", queries: int = QUERIES, seed: int = 0) -> Measured:
    """The queries lie between two rows drawn by chance, so that none finds itself alone.

    Where Lance's index is probed, what a query spends is chosen on as many other queries.
    """
    rng = np.random.default_rng(seed)
    drawn = sample(index, 4 * queries, rng)
    asked = drawn[0::2][: len(drawn) // 2] + drawn[1::2]
    asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    truth = neighbours(index, asked)
    kind, effort, half = index.kind, 0, len(asked) // 2
    if kind in LEAST:
        effort = LEAST[kind]
        while effort < MOST and recall(index, asked[half:], truth[half:], (kind, effort))[0] < RECALL:
            effort *= 2
        effort *= 2  # what suffices for some queries is short for others
    asked, truth = asked[: max(half, 1)], truth[: max(half, 1)]
    share, seconds = recall(index, asked, truth, (kind, effort))
    return Measured(kind, len(index), share, 1000 * seconds, len(asked), effort)


def recall(index: "Index", asked: np.ndarray, truth: list[set[str]], how: tuple[str, int]) -> tuple[float, float]:
    """(recall@10, seconds a query: the median); how: the kind of search and what a query spends."""
    found, times = [], []
    for query, right in zip(asked, truth, strict=True):
        start = time.perf_counter()
        hits = index.by_lance(query, NEIGHBOURS, None, how) if how[1] else index.by_vector(query, NEIGHBOURS, None)
        times.append(time.perf_counter() - start)
        found.append(len({hit.id for hit in hits} & right) / max(len(right), 1))
    return float(np.mean(found)), float(np.median(times))


def neighbours(index: "Index", asked: np.ndarray) -> list[set[str]]:
    """The ids of the nearest rows to each query, by float64 cosines with every row."""
    best: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0, object))] * len(asked)
    for vectors, ids in index.batches():
        scores = asked.astype(np.float64) @ vectors.T.astype(np.float64)  # [Q, N]
        for i, row in enumerate(scores):
            joined, names = np.concatenate([best[i][0], row]), np.concatenate([best[i][1], ids])
            some = first(joined, NEIGHBOURS)
            best[i] = joined[some], names[some]
    return [set(names.tolist()) for _, names in best]


def sample(index: "Index", count: int, rng: np.random.Generator) -> np.ndarray:
    """An even number of vectors drawn by chance, [M, D], M at least 2."""
    rows = len(index)
    places = np.sort(rng.integers(0, rows, max(2, min(count, rows) // 2 * 2)))
    found, seen = [], 0
    for vectors, _ in index.batches():
        inside = places[(places >= seen) & (places < seen + len(vectors))] - seen
        found.append(vectors[inside])
        seen += len(vectors)
    return rng.permutation(np.concatenate(found))


def last_measured(database: Any) -> Measured | None:
    """What was noted last in an index."""
    if TABLE not in tables_of(database):
        return None
    table = in_turn(partial(open_table, database, TABLE))
    with plainly(database.uri):
        rows = table.to_arrow().to_pylist()
    last = max(rows, key=lambda row: row["at"], default=None)
    return last and Measured(**json.loads(last["found"]))


def keep_measured(database: Any, found: Measured) -> None:
    import pyarrow as pa

    schema = pa.schema([("at", pa.int64()), ("found", pa.string())])

    def keep() -> None:
        with plainly(database.uri):
            table = database.create_table(TABLE, schema=schema, exist_ok=True)
            table.add([{"at": time.time_ns(), "found": json.dumps(asdict(found))}])

    in_turn(keep)
