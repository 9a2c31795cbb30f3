"""Searching captions by their meaning: whether a caption finds its picture by what is shown or by what is said of it.

    python benchmarks/search_captions.py DATA [--rounds 5]                        a minute on two cores

DATA holds COCO's `coco-mini/train2017` and `coco-mini/annotations`: 80 photos of five captions. The first caption of
each is put beside it as its text; the other four are the queries, each of which should find its own photo among the 80
(R@1). Intervals are bootstraps over photos. The cost: seconds of the processor and of the clock for the pictures and
for their captions, each round into a new index; medians over rounds.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.metrics.intervals import mean_interval
from diptych.search.embed import Outcome, update, update_captions
from diptych.search.encoder import Encoder
from diptych.search.index import Index
from diptych.search.sources import open_source

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "search_captions.json"


def photos_of(data: Path, folder: Path) -> dict[str, list[str]]:
    """Each photo with its first caption beside it -> id -> its other captions."""
    said = json.loads((data / "annotations" / "captions_train2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in said["images"]}
    captions: dict[str, list[str]] = {}
    for one in sorted(said["annotations"], key=lambda one: one["id"]):
        captions.setdefault(names[one["image_id"]], []).append(" ".join(one["caption"].split()))
    for name, (first, *_) in captions.items():
        shutil.copy(data / "train2017" / name, folder / name)
        (folder / name).with_suffix(".txt").write_text(first)
    return {name: others for name, (_, *others) in captions.items()}


def indexed(encoder: Encoder, photos: Path, db: Path) -> tuple[Index, dict[str, float]]:
    """-> a new index, and the seconds that its pictures and its captions took, of the processor and of the clock."""
    index, outcome = Index.create(db, encoder.model, encoder.dim), Outcome()
    index.hold_captions()
    clock, processor = [time.perf_counter()], [time.process_time()]
    update(index, encoder, open_source(str(photos)))
    clock.append(time.perf_counter())
    processor.append(time.process_time())
    update_captions(index, encoder, outcome)
    clock.append(time.perf_counter())
    processor.append(time.process_time())
    clocks, processors = np.diff(clock).tolist(), np.diff(processor).tolist()
    names = ("pictures", "captions", "pictures_clock", "captions_clock")
    return index, dict(zip(names, processors + clocks, strict=True))


def recall_at_1(index: Index, encoder: Encoder, queries: dict[str, list[str]], space: str) -> dict[str, float]:
    found = [
        np.mean([index.search(query, 1, space=space)[0].id == name for query in encoder.texts(others)])
        for name, others in queries.items()
    ]
    mean, low, high = mean_interval(found)
    return {"mean": mean, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    encoder = Encoder.open("mini", "cpu")
    with tempfile.TemporaryDirectory() as work:
        photos = Path(work, "photos")
        photos.mkdir()
        queries = photos_of(given.data / "coco-mini", photos)
        both, _ = indexed(encoder, photos, Path(work, "warm.lance"))
        rounds = [indexed(encoder, photos, Path(work, f"{i}.lance"))[1] for i in range(given.rounds)]
        recall = {space: recall_at_1(both, encoder, queries, space) for space in ("pictures", "captions")}
    result = {
        "photos": len(queries),
        "queries": sum(map(len, queries.values())),
        "recall_at_1": recall,
        "seconds": {name: statistics.median(one[name] for one in rounds) for name in rounds[0]},
        "rounds": rounds,
        "provenance": provenance() | {"command": ["search_captions.py", "DATA", *sys.argv[2:]]},
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("rounds", "provenance")}, indent=1))
    write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
