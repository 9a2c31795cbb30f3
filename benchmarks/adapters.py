"""Every adapter that works on features, on real pictures, with the embedded model: accuracy, spread and time.

    python benchmarks/adapters.py DATA [--write] [--shots 1,4,16] [--seeds 3] [--methods gda,knn]

DATA holds cifar10/{train,test}/<class>/* and pacs/{photo,sketch}/<class>/*. Accuracy is on test pictures that no method
has met; the spread is the standard deviation over seeds. Pictures of the pool that are not drawn serve, without their
labels, as the unlabelled pool. The checks at the end are what the methods must reach.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from diptych.comparison.cell import draw, run_cell
from diptych.comparison.plan import Cell
from diptych.core.mini import mini
from diptych.data.task import Task, make_task
from diptych.engine.provenance import provenance
from diptych.engine.store import FeatureStore
from diptych.errors import Unsupported
from diptych.files import atomic
from diptych.methods.adapt.parts.adapter import configure, fit_path, last
from diptych.methods.discover import find, systems

SETS = ("cifar10", "pacs/photo", "pacs/sketch")
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "adapters.json"
FEW_SHOT = ("gda", "linear_probe", "tip_adapter", "tip_adapter_f", "knn")


def measure(data: Path, methods: list[str], shots: list[int], seeds: int) -> list[dict[str, Any]]:
    """One row a data set, method, shots and seed."""
    clip, rows = mini(), []
    adapters = [configure(find("adapt", name), {}) for name in methods]
    for name in SETS:
        task = make_task(data / name)
        store = FeatureStore(task.digests)
        store.fill(clip, task.pool)
        store.fill(clip, task.test)
        for adapter in adapters:
            for k in shots:
                for seed in range(seeds):
                    start = time.process_time()
                    try:
                        row, _ = run_cell(Cell(adapter, k, seed), clip, with_pool(task, k, seed), store)
                    except Unsupported as reason:
                        row = {"method": adapter.system(), "shots": k, "seed": seed, "skipped": str(reason)}
                    seconds = time.process_time() - start
                    rows.append({"data": name, **row, "cpu_seconds": seconds})
                    found = row.get("accuracy", row.get("skipped"))
                    print(
                        f"{name} {adapter.system()} {k} shots, seed {seed}: {found}, {seconds:.1f} s", file=sys.stderr
                    )
    return rows


def with_pool(task: Task, shots: int, seed: int) -> Task:
    """The labelled pictures that are not drawn, without their labels."""
    drawn = set(task.draw(shots, seed).ids)
    return replace(task, unlabelled=task.pool.filter(lambda record: record.id not in drawn))


def descriptors(data: Path) -> dict[str, dict[str, float]]:
    """What descriptors add: bare names, descriptors, and the controls (mean of three seeds), accuracy in percent."""
    clip, found = mini(), {}
    system = find("adapt", "dclip")
    for name in SETS:
        task = make_task(data / name)
        store = FeatureStore(task.digests)
        test, truth = store.images(clip, task.test), torch.tensor(task.labels(task.test))

        def accuracy(logits: torch.Tensor, truth: torch.Tensor = truth) -> float:
            return 100 * (logits.argmax(1) == truth).float().mean().item()

        bare = F.normalize(store.texts(clip, list(task.names)), dim=-1)
        found[name] = {"bare name": round(accuracy(test @ bare.T), 1)}
        for kind in ("own", "shuffled", "random"):
            adapter = configure(system, {"descriptors": kind})
            fits = [last(fit_path(adapter, adapter.config, clip, draw(task, 1, seed, store))) for seed in range(3)]
            found[name][kind] = round(statistics.mean(accuracy(fit.logits(test)) for fit in fits), 1)
    return found


def table(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """data set -> method -> shots -> mean, standard deviation and cost."""
    cells = defaultdict(list)
    for row in rows:
        if "skipped" not in row:
            cells[row["data"], row["method"], str(row["shots"])].append(row)
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for (data, method, shots), group in cells.items():
        accuracies = [100 * row["accuracy"] for row in group]
        validation = [100 * row["validation"] for row in group if row["validation"] is not None]
        lost = [100 * (row["new_class_after"] - row["new_class_before"]) for row in group if row["new_class_after"]]
        found[data][method][shots] = {
            "accuracy": round(statistics.mean(accuracies), 1),
            "spread": round(statistics.pstdev(accuracies), 1),
            "validation": round(statistics.mean(validation), 1) if validation else None,
            "ece": round(statistics.mean(row["ece"] for row in group), 3),
            "fit_seconds": round(statistics.mean(row["fit_seconds"] for row in group), 2),
            "cpu_seconds": round(statistics.mean(row["cpu_seconds"] for row in group), 2),
            "new_class_change": round(statistics.mean(lost), 1) if lost else None,
            "chosen": [row["config"] for row in group],
        }
    return found


def checks(found: dict[str, dict[str, dict[str, Any]]], shots: str = "16") -> dict[str, bool]:
    """What is claimed: everything few-shot beats zero-shot; GDA and both Tip-Adapters beat kNN."""
    claims = {}
    for data, methods in found.items():
        accuracy = {m: by[shots]["accuracy"] for m, by in methods.items() if shots in by}
        for name in FEW_SHOT:
            if name in accuracy and "zero_shot" in accuracy:
                claims[f"{data}: {name} above zero_shot"] = accuracy[name] > accuracy["zero_shot"]
        for name in ("gda", "tip_adapter", "tip_adapter_f"):
            if name in accuracy and "knn" in accuracy:
                claims[f"{data}: {name} above knn"] = accuracy[name] > accuracy["knn"]
    return claims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}")
    parser.add_argument("--shots", default="1,4,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--methods", default=",".join(s for s in systems("adapt") if find("adapt", s).cost == "features")
    )
    given = parser.parse_args()
    torch.set_num_threads(1)  # figures are CPU seconds; threads that wait for each other would count twice
    shots = [int(s) for s in given.shots.split(",")]
    start = time.process_time()
    rows = measure(given.data, given.methods.split(","), shots, given.seeds)
    found = table(rows)
    for data, methods in found.items():
        print(f"\n{data}")
        for method, by in methods.items():
            cells = "  ".join(
                f"{k:>2}: {c['accuracy']:5.1f} ±{c['spread']:3.1f} (val {c['validation']}, ece {c['ece']}, "
                f"new {c['new_class_change']}, {c['cpu_seconds']}s)"
                for k, c in by.items()
            )
            print(f"  {method:18} {cells}")
    controls = descriptors(given.data)
    print("\n" + "\n".join(f"dclip on {data}: {by}" for data, by in controls.items()))
    claims = checks(found)
    print("\n" + "\n".join(f"{'yes' if holds else 'NO '}  {claim}" for claim, holds in claims.items()))
    print(f"{time.process_time() - start:.0f} CPU seconds")
    if given.write:
        with atomic(RESULTS) as path:
            path.write_text(
                json.dumps(
                    {"table": found, "descriptors": controls, "checks": claims, "provenance": provenance()}, indent=1
                )
                + "\n"
            )
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
