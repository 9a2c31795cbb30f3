"""How the methods on features grow with pictures, classes and shots, to 50,000 pictures.

    python benchmarks/growth.py PHOTOS [--write]

Features are made up from real ones: those of PHOTOS with `mini`, each copied with noise of their own spread (a class
in excess of the real ones is a real one turned by a fixed rotation). Times a whole `select`: folds, grid, last fit, on
one thread.
Prints JSON; with --write also a plot beside it.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.core.clip import CLIP
from diptych.data.records import Record, Records
from diptych.data.support import CROP, Support
from diptych.engine.isolate import hold_to_one_thread, peak_mb, run_forked
from diptych.engine.provenance import provenance
from diptych.engine.store import FeatureStore
from diptych.methods.adapt.parts.adapter import select
from diptych.methods.discover import find, systems

RESULTS = Path(__file__).parents[1] / "docs" / "results"
GRID = [  # (classes, pictures a class)
    *((7, n) for n in (1, 4, 16, 71, 714, 7142)),
    *((c, 16) for c in (20, 100, 400, 1000)),
    (500, 100),
]
LIMIT = 400  # seconds: what is slower is not tried larger


@dataclass
class MadeUp:
    """A `FeatureSource` of features drawn around real ones."""

    real: Tensor  # [C, D] class means, unit
    spread: Tensor  # [D]
    rows: Tensor  # [C, D] text rows

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> Tensor:
        index = torch.tensor([int(r.id) for r in records])
        classes = torch.tensor([int(r.label or 0) for r in records])
        own = self.noise(index) + self.real[classes]
        if not views:
            return F.normalize(own, dim=-1)
        jitter = torch.randn(len(own), views, own.shape[1], generator=torch.Generator().manual_seed(1)) * 0.3
        return F.normalize(own[:, None] + jitter * self.spread, dim=-1)

    def noise(self, index: Tensor) -> Tensor:
        table = torch.randn(4096, self.real.shape[1], generator=torch.Generator().manual_seed(0))
        return (table[index % 4096] + table[(index * 7 + 1) % 4096]) / 2**0.5 * self.spread

    def texts(self, clip: CLIP, texts):
        return self.rows[torch.tensor([int(t.rstrip(".").rpartition(" ")[2]) for t in texts])]

    def pixels(self, clip, records, *, rng=None, crop=CROP):
        raise NotImplementedError("features only")


def made_up(clip: CLIP, task, classes: int) -> MadeUp:
    features = FeatureStore(task.digests).images(clip, task.pool)
    labels = torch.tensor(task.labels(task.pool))
    means = torch.stack([features[labels == c].mean(0) for c in range(len(task.classes))])
    spread = torch.cat([features[labels == c] - means[c] for c in range(len(means))]).std(0)
    texts = F.normalize(clip.encode_text([f"a photo of a {n}." for n in task.names]), dim=-1)
    rotation = torch.linalg.qr(torch.randn(means.shape[1], means.shape[1], generator=torch.Generator().manual_seed(2)))[
        0
    ]
    real, rows = [means], [texts]
    while sum(map(len, real)) < classes:
        real.append(real[-1] @ rotation)
        rows.append(rows[-1] @ rotation)
    return MadeUp(torch.cat(real)[:classes], spread, torch.cat(rows)[:classes])


def measure(name: str, clip: CLIP, source: MadeUp, classes: int, each: int) -> dict[str, float]:
    items = tuple(Record(str(i), None, str(i % classes)) for i in range(classes * each))
    labels = torch.arange(classes * each) % classes
    names = tuple(f"class {c}" for c in range(classes))
    support = Support(names, Records(items, "made up"), labels, source, tuple(range(len(items))), templates=("a {}.",))
    before = peak_mb()
    start = time.perf_counter()
    chosen = select(find("adapt", name)(), clip, support)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 3), "extra_mb": round(peak_mb() - before), "validation": chosen.validation or 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    hold_to_one_thread()
    clip, task = diptych.load("mini"), diptych.task(options.photos)
    methods = [n for n in systems("adapt") if find("adapt", n).cost == "features" and not find("adapt", n).needs.pool]
    rows = []
    for classes, each in GRID:
        source = made_up(clip, task, classes)
        for name in methods:
            if find("adapt", name)().refusal(clip) or name == "dclip":
                continue
            slow = [r for r in rows if r["method"] == name and r.get("seconds", 0) > LIMIT]
            if any(r["classes"] <= classes and r["pictures"] <= classes * each for r in slow):
                continue
            outcome = run_forked(
                lambda tell, n=name, s=source, c=classes, e=each: measure(n, clip, s, c, e), print, lambda: None
            )
            row = {"method": name, "classes": classes, "each": each, "pictures": classes * each}
            rows.append({**row, **(outcome.value or {"error": outcome.error})})
            print(json.dumps(rows[-1]), flush=True)
    if options.write:
        (RESULTS / "growth.json").write_text(json.dumps({"rows": rows, "provenance": provenance()}, indent=1) + "\n")
        plot(rows, RESULTS / "growth.png")


def plot(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    done = [r for r in rows if "seconds" in r]
    parts = [
        ("pictures, 7 classes of as many shots", "pictures", lambda r: r["classes"] == 7),
        ("classes, 16 shots", "classes", lambda r: r["each"] == 16),
    ]
    for axes, (title, key, keep) in zip(figure.subplots(1, 2, sharey=True), parts, strict=True):
        for name in dict.fromkeys(r["method"] for r in done):
            own = sorted((r[key], r["seconds"]) for r in done if r["method"] == name and keep(r))
            axes.loglog(*np.array(own).T, marker="o", label=name)
        axes.set(xlabel=title, ylabel="seconds to choose and fit")
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
