"""The main job, as a user starts it: time, memory, and the same again.

    python benchmarks/compare.py PHOTOS [--methods all] [--write]

PHOTOS: a folder of class folders; 7 classes of 60 pictures is what the published figures use. Runs `diptych compare
--shots 1,4,16 --seeds 3` in a process of its own with an empty cache, then again. Prints JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diptych.engine.provenance import provenance

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def timed(words: list[str], environment: dict[str, str]) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--methods", default=None)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        words = [sys.executable, "-m", "diptych", "compare", str(options.photos), "--shots", "1,4,16", "--seeds", "3"]
        words += ["--out", str(out), "--json"] + (["--methods", options.methods] if options.methods else [])
        environment = {**os.environ, "DIPTYCH_CACHE": str(Path(scratch) / "cache")}
        first = timed(words, environment)
        again = timed(words, environment)
        results = json.loads((out / "results.json").read_text())
    rows = [row for row in results["rows"] if "skipped" not in row]
    per_method = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        per_method[method] = {
            "fit_seconds": round(sum(row["fit_seconds"] for row in own), 2),
            "peak_mb": max(row["peak_mb"] for row in own),
            "accuracy_at_16": round(sum(r["accuracy"] for r in own if r["shots"] == 16) / 3, 4),
        }
    result = {
        "what": "diptych compare --shots 1,4,16 --seeds 3 with mini, empty cache; then the same again",
        "first": first,
        "again": again,
        "fit_seconds_together": round(sum(m["fit_seconds"] for m in per_method.values()), 1),
        "peak_mb": max(m["peak_mb"] for m in per_method.values()),
        "methods": per_method,
        "skipped": sorted({f"{r['method']}: {r['skipped']}" for r in results["rows"] if "skipped" in r}),
        "provenance": provenance(),
    }
    print(json.dumps(result, indent=1))
    if options.write:
        name = f"compare_{options.methods or 'default'}.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
