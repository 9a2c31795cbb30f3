"""Search among 200,000 real embeddings: ours against numpy, faiss, hnswlib and LanceDB, on one thread.

    python benchmarks/captions.py WORK/captions                                   half an hour, once
    OMP_NUM_THREADS=1 python benchmarks/search.py WORK/captions [--queries 100]   ten minutes, HNSW the most

The rows are the captions' embeddings by `mini` (384 numbers), the queries those of other captions of the same grammar.
recall@10 is against float64 cosines with all rows that pass the filter. Systems take turns query by query, so that
other work on the machine meets all of them; times are medians over queries, of the wall clock and of the processor.
"exact, ours" is `Index.search` as a user calls it, filter and the rows' columns included; numpy's is `matrix @ query`
and `argpartition`. "updates": one picture added to the open index and seen by the next search, and from a cold start.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LANCE_CPU_THREADS"] = "1"

import faiss
import hnswlib
import numpy as np

from diptych.engine.provenance import provenance
from diptych.files import atomic, write_atomically
from diptych.search import lance as sizes
from diptych.search.found import How, Model
from diptych.search.index import Index

RESULTS = Path(__file__).parent.parent / "docs" / "results"
K, LISTS = 10, 450
FILTERS = {"none": "", "half": "width >= 1050", "few": "language = 'de' and width > 1500"}
ASKED = {"recall10": 0.99, "times_numpy": 1.2, "add_one_seconds": 1.0}
Answer = Callable[[np.ndarray], np.ndarray]  # query [D] -> rows [K]


def questions(count: int, known: set[str], cache: Path) -> np.ndarray:
    """Embeddings of captions that are not among the rows."""
    if cache.is_file():
        return np.load(cache)[:count]
    from captions import captions

    import diptych

    texts = [text for text in captions(2 * count, seed=1) if text not in known][:count]
    found = diptych.load("mini", device="cpu").encode_text(texts).float().numpy()[:, :384]
    np.save(cache, found / np.linalg.norm(found, axis=1, keepdims=True))
    return np.load(cache)


def numpy_exact(rows: np.ndarray, allowed: np.ndarray | None) -> Answer:
    """The rows that pass are known to it beforehand."""
    passed = None if allowed is None else np.flatnonzero(allowed)

    def answer(query: np.ndarray) -> np.ndarray:
        scores = rows @ query if passed is None else (rows @ query)[passed]
        best = np.argpartition(scores, -K)[-K:]
        best = best[np.argsort(-scores[best])]
        return best if passed is None else passed[best]

    return answer


def kept(path: Path, make: Callable[[Path], None]) -> float | None:
    """Make what is not there yet; -> the seconds it took, then or now."""
    note = path.with_name(path.name + ".seconds")
    if not note.is_file():
        start = time.perf_counter()
        make(path)
        note.write_text(str(time.perf_counter() - start))
    return float(note.read_text())


def build(rows: np.ndarray, table: list[dict[str, Any]], work: Path) -> dict[str, float | None]:
    """Every index, kept in `work`."""
    dim = rows.shape[1]

    def flat_index(index: Any, path: Path) -> None:
        if not index.is_trained:
            index.train(rows[:: max(1, len(rows) // 50000)])
        index.add(rows)
        faiss.write_index(index, str(path))

    def hnsw(path: Path) -> None:
        index = hnswlib.Index("ip", dim)
        index.init_index(len(rows), ef_construction=100, M=16)
        index.set_num_threads(1)
        index.add_items(rows)
        index.save_index(str(path))

    def ours(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        index = Index.create(path, Model("mini's texts", "0" * 32), dim)
        for start in range(0, len(rows), 20000):
            index.add(table[start : start + 20000], rows[start : start + 20000])
        index.tidy()

    def lance(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(work / "ours.lance", path)
        most = sizes.GRAPH_BYTES
        sizes.GRAPH_BYTES = 0 if path.name.startswith("ivf") else most
        Index.open(path).lance.index_vectors()
        sizes.GRAPH_BYTES = most

    ip = faiss.METRIC_INNER_PRODUCT
    makers: dict[str, Callable[[Path], None]] = {
        "ours.lance": ours,
        "ivf_pq.lance": lance,
        "hnsw.lance": lance,
        "faiss_ivf_flat": lambda path: flat_index(faiss.index_factory(dim, f"IVF{LISTS},Flat", ip), path),
        "faiss_ivf_pq": lambda path: flat_index(faiss.index_factory(dim, f"IVF{LISTS},PQ96,RFlat", ip), path),
        "faiss_hnsw": lambda path: flat_index(faiss_hnsw(dim), path),
        "hnswlib": hnsw,
    }
    found = {}
    for name, make in makers.items():
        found[name] = kept(work / name, make)
        print(f"built {name}: {found[name]:.0f} s", flush=True)
    return found


def faiss_hnsw(dim: int) -> Any:
    index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    return index


def systems(rows: np.ndarray, where: str, allowed: np.ndarray | None, work: Path, loaded: dict[str, Any]) -> dict:
    """(system, setting) -> what answers."""
    index: Index = loaded["ours.lance"]
    place = loaded["place"]
    condition = index.filter(where)

    def ours(query: np.ndarray) -> np.ndarray:
        return np.array([place[hit.id] for hit in index.search(query, K, where=condition)])

    def lance(probes: int, refine: int) -> Answer:
        table = loaded["ivf_pq.lance"].table

        def answer(query: np.ndarray) -> np.ndarray:
            search = table.search(query).distance_type("cosine").select(["id", "_distance"])
            search = search.nprobes(probes).refine_factor(refine) if probes else search.bypass_vector_index()
            if condition is not None:
                search = search.where(condition.sql(), prefilter=True)
            return np.array([place[one] for one in search.limit(K).to_arrow()["id"].to_pylist()])

        return answer

    def graph(ef: int) -> Answer:
        """As a user's `search` asks it beyond the size for exact search."""
        large: Index = loaded["hnsw.lance"]
        how = How("hnsw", ef, len(rows))
        found = partial(large.lance.by_vector, k=K, where=condition, how=how)
        return lambda query: np.array([place[hit.id] for hit in found(query)])

    selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))

    def by_faiss(index: Any, parameters: Any) -> Answer:
        def answer(query: np.ndarray) -> np.ndarray:
            return index.search(query[None], K, params=parameters)[1][0]

        return answer

    def by_hnswlib(ef: int) -> Answer:
        index = loaded["hnswlib"]
        passes = None if allowed is None else lambda label: bool(allowed[label])

        def answer(query: np.ndarray) -> np.ndarray:
            index.set_ef(ef)
            return index.knn_query(query, K, num_threads=1, filter=passes)[0][0].astype(np.int64)

        return answer

    given = {"sel": selector} if selector is not None else {}
    found: dict[tuple[str, str], Answer] = {
        ("numpy exact", ""): numpy_exact(rows, allowed),
        ("exact, ours", ""): ours,
        ("LanceDB flat", ""): lance(0, 0),
        ("faiss flat", ""): by_faiss(loaded["faiss_flat"], faiss.SearchParameters(**given)),
    }
    for probes in (4, 16, 48, 128):
        ivf = faiss.SearchParametersIVF(nprobe=probes, **given)
        found["faiss IVF", f"nprobe {probes}"] = by_faiss(loaded["faiss_ivf_flat"], ivf)
        found["LanceDB IVF_PQ", f"nprobes {probes}, refine 50"] = lance(probes, 50)
        if selector is None:  # its re-ranking takes no selector
            refined = faiss.IndexRefineSearchParameters(k_factor=20, base_index_params=ivf)
            found["faiss IVF_PQ, refined", f"nprobe {probes}"] = by_faiss(loaded["faiss_ivf_pq"], refined)
    for ef in (50, 100, 200, 400):
        found["LanceDB HNSW, ours", f"ef {ef}"] = graph(ef)
    for ef in (16, 64, 200, 600):
        found["faiss HNSW", f"ef {ef}"] = by_faiss(
            loaded["faiss_hnsw"], faiss.SearchParametersHNSW(efSearch=ef, **given)
        )
        found["hnswlib", f"ef {ef}"] = by_hnswlib(ef)
    return found


def measure(answers: dict[tuple[str, str], Answer], queries: np.ndarray, truth: list[set[int]]) -> list[dict[str, Any]]:
    """Query by query, every system in turn."""
    wall: dict[Any, list[float]] = {one: [] for one in answers}
    cpu: dict[Any, list[float]] = {one: [] for one in answers}
    right: dict[Any, list[float]] = {one: [] for one in answers}
    for number, query in enumerate(queries):
        for one, answer in answers.items():
            start, used = time.perf_counter(), time.process_time()
            found = answer(query)
            wall[one].append(time.perf_counter() - start)
            cpu[one].append(time.process_time() - used)
            right[one].append(len({int(row) for row in found} & truth[number]) / max(len(truth[number]), 1))
    base = cpu["numpy exact", ""], wall["numpy exact", ""]
    return [
        {
            "system": one[0],
            "setting": one[1],
            "recall10": statistics.mean(right[one]),
            "milliseconds": 1000 * statistics.median(wall[one]),
            "milliseconds_p95": 1000 * float(np.quantile(wall[one], 0.95)),
            "cpu_milliseconds": 1000 * statistics.median(cpu[one]),
            "times_numpy": ratio(wall[one], base[1]),
            "cpu_times_numpy": ratio(cpu[one], base[0]),
        }
        for one in answers
    ]


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The median over queries of the ratio of two that were asked one after the other, with its quartiles."""
    low, middle, high = np.quantile(np.array(ours) / np.maximum(theirs, 1e-9), [0.25, 0.5, 0.75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


def updates(work: Path, rows: np.ndarray) -> dict[str, Any]:
    """Seconds to add one picture to the index of all rows: in an open index, and with opening it."""
    copy = work / "updates.lance"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(work / "ours.lance", copy)
    index, times = Index.open(copy), {"warm": [], "warm_and_found": [], "cold": []}
    index.search(rows[0], 1)
    rng = np.random.default_rng(0)
    for i in range(7):
        vector = rng.standard_normal((1, rows.shape[1])).astype(np.float32)
        start = time.perf_counter()
        index.add([{"id": f"warm {i}"}], vector)
        times["warm"].append(time.perf_counter() - start)
        assert index.search(vector[0], 1)[0].id == f"warm {i}"
        times["warm_and_found"].append(time.perf_counter() - start)
        start = time.perf_counter()
        Index.open(copy).add([{"id": f"cold {i}"}], vector)
        times["cold"].append(time.perf_counter() - start)
    shutil.rmtree(copy)
    return {name: {"median": statistics.median(some), "max": max(some)} for name, some in times.items()}


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from diptych.report.svg import COLOURS, MARKERS

    figure, axes = plt.subplots(1, 3, figsize=(14, 5.2), sharey=True)
    names = list(dict.fromkeys(point["system"] for point in found["none"]["points"]))
    for axis, (name, one) in zip(axes, found.items(), strict=True):
        for i, system in enumerate(names):
            some = [p for p in one["points"] if p["system"] == system]
            if some:
                x, y = [p["recall10"] for p in some], [p["milliseconds"] for p in some]
                axis.plot(
                    x, y, marker=MARKERS[i], color=COLOURS[i], label=system, ms=9 if system == "exact, ours" else 6
                )
        axis.axvline(0.99, color="#999999", lw=0.8, ls=":")
        passed = f"{one['share']:.1%} of the rows pass"
        axis.set(yscale="log", xlabel="recall@10", title="no filter" if name == "none" else passed)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds a query, one thread")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="what benchmarks/captions.py wrote, without .npy")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--build", action="store_true", help="build the indices and stop")
    parser.add_argument("--draw", action="store_true", help="draw what was measured last")
    given = parser.parse_args()
    if given.draw:
        draw(json.loads((RESULTS / "search.json").read_text())["filters"], RESULTS / "search.png")
        return
    sys.path.insert(0, str(Path(__file__).parent))
    faiss.omp_set_num_threads(1)
    rows = np.load(f"{given.captions}.npy")
    table = [json.loads(line) for line in Path(f"{given.captions}.jsonl").read_text().splitlines()]
    work = Path(f"{given.captions}_indices")
    work.mkdir(exist_ok=True)
    seconds = build(rows, table, work)
    if given.build:
        return
    queries = questions(given.queries, {row["text"] for row in table}, work / "queries.npy")
    loaded: dict[str, Any] = {"place": {row["id"]: i for i, row in enumerate(table)}}
    loaded |= {name: Index.open(work / name) for name in ("ours.lance", "ivf_pq.lance", "hnsw.lance")}
    loaded |= {n: faiss.read_index(str(work / n)) for n in ("faiss_ivf_flat", "faiss_ivf_pq", "faiss_hnsw")}
    loaded["faiss_flat"] = faiss.IndexFlatIP(rows.shape[1])
    loaded["faiss_flat"].add(rows)
    loaded["hnswlib"] = hnswlib.Index("ip", rows.shape[1])
    loaded["hnswlib"].load_index(str(work / "hnswlib"))
    found = {}
    for name, where in FILTERS.items():
        condition = loaded["ours.lance"].filter(where)
        allowed = None if condition is None else condition.mask(loaded["ours.lance"].memory.refresh().rows)
        ids = loaded["ours.lance"].memory.refresh().rows["id"].to_pylist()
        if allowed is not None:  # in the order of the rows
            order = np.array([loaded["place"][one] for one in ids])
            passed = np.zeros(len(rows), bool)
            passed[order] = allowed
            allowed = passed
        scores = queries.astype(np.float64) @ rows.T.astype(np.float64)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        truth = [set(np.argsort(-one)[:K].tolist()) for one in scores]
        del scores
        answers = systems(rows, where, allowed, work, loaded)
        for answer in answers.values():  # what is read at the first query is not the query's time
            answer(queries[0])
        share = 1.0 if allowed is None else float(allowed.mean())
        found[name] = {"where": where, "share": share, "points": measure(answers, queries, truth)}
        print(name, f"{share:.3f}")
        for p in found[name]["points"]:
            print(
                f"  {p['system']:<22} {p['setting']:<24} recall {p['recall10']:.3f}  {p['milliseconds']:8.2f} ms "
                f"cpu {p['cpu_milliseconds']:8.2f}  {p['times_numpy']['median']:.2f} x numpy",
                flush=True,
            )
    result = {
        "rows": len(rows),
        "dim": rows.shape[1],
        "queries": len(queries),
        "asked": ASKED,
        "build_seconds": seconds,
        "filters": found,
        "updates": updates(work, rows),
        "provenance": provenance() | {"command": ["search.py", "WORK/captions", *sys.argv[2:]]},
    }
    print(json.dumps(result["updates"], indent=1))
    write_atomically(RESULTS / "search.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(found, RESULTS / "search.png")


if __name__ == "__main__":
    main()
