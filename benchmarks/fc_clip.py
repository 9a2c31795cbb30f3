"""FC-CLIP on classes that it never saw masks of: beside the untrained segmenter, and its two classifiers alone.

    python benchmarks/conv_scenes.py CONV                                    # first: the ConvNet-CLIP that knows scenes
    python benchmarks/fc_clip.py DATA CONV --out OUT [--parts "camvid 0;scenes 0"] [--write]

DATA holds camvid/. A part is 1 (scenes) to 2 CPU minutes; parts that are in OUT are
kept, a fit that was stopped goes on.

- camvid: `mini`, fitted to the 40 training frames without the classes in LEFT, tested on the 20 test frames by all 11
  names. A seed is of weights, order and points.
- scenes: the ConvNet of conv_scenes.py, fitted to scenes of 13 of the 16 colour-shape combinations of THINGS, tested on
  other scenes of those ("seen") and on scenes of the three others ("unseen"), by all 16 names and 4 grounds. A seed is
  of training scenes, test scenes and all of the above.

Each fit is tested as published (alpha 0.4, beta 0.8), in-vocabulary alone (0, 0), out-of-vocabulary alone (1, 1), with
more of the latter (0.7, 1), and beside `dense_clip` with the same CLIP and templates. On scenes at the CLIP's own scale
of cosines, and at that of published CLIPs (SCALE), which the fit does not see. Settings were chosen on a part of the
training frames and on other scenes.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from conv_scenes import APART, SOME

import diptych
from diptych.core.clip import CLIP
from diptych.data.scenes import Scenes
from diptych.data.segments import SegmentRecords, index_folder, scene_segments
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.dense.dense_clip import Config as DenseConfig
from diptych.methods.dense.dense_clip import DenseCLIP
from diptych.methods.dense.fc_clip import Config, FCClip
from diptych.methods.dense.parts.evaluate import true_segments
from diptych.methods.dense.parts.segmenter import Segmenter
from diptych.metrics.segmentation import PanopticScores, SemanticScores

THINGS, UNSEEN = SOME, replace(APART, counts=(1, 2))
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "fc_clip.json"
SEEDS = (0, 1, 2)
LEFT = ("car", "bicyclist", "fence")  # what mini names best, but for road and building, which are most of a street
SCALE = 100.0  # of cosines, where published CLIPs end; that of conv_scenes.py has one of 39
SHARES = {
    "ensemble": (0.4, 0.8),
    "in-vocabulary": (0.0, 0.0),
    "out-of-vocabulary": (1.0, 1.0),
    "more out-of-vocabulary": (0.7, 1.0),
}
SMALL = Config(
    crop=0,
    width=64,
    heads=4,
    layers=3,
    inner=256,
    encoder_layers=1,
    encoder_inner=128,
    samples=512,
    rate=1e-3,
    clip=1.0,
)
CAMVID = replace(SMALL, size=240, longest=320, queries=30, batch=2, steps=400, unnamed=True)
SCENES = replace(
    SMALL, size=192, longest=192, flip=False, queries=12, width=48, layers=2, inner=96, encoder_inner=96, samples=256,
    batch=2, steps=400, templates="a {}",
)  # fmt: skip
DENSE = {"camvid": DenseConfig(size=320), "scenes": DenseConfig(size=192, templates="a {}")}


def camvid(data: Path, split: str) -> SegmentRecords:
    root = data / "camvid"
    return index_folder(root / split, root / f"{split}annot", root / "classes.txt")


def judged(segmenter: Segmenter, records: SegmentRecords, groups: dict[str, Sequence[str]]) -> dict[str, float]:
    """mIoU and PQ in percent over each group of classes, by all names."""
    count = len(records.names)
    semantic, panoptic = SemanticScores(count), PanopticScores(count)
    things = [name for name, thing in zip(records.names, records.things, strict=True) if thing]
    for record in records:
        truth = record.segments()
        guess = segmenter.segment(record.picture(), records.names, things)
        semantic.add(guess.semantic(), torch.from_numpy(truth.semantic()))
        ids, segments = guess.panoptic()
        panoptic.add(ids, [segment.label for segment in segments], *true_segments(truth))
    found = {}
    for group, names in groups.items():
        rows = [records.names.index(name) for name in names]
        for what, values in (("mIoU", semantic.iou), ("PQ", panoptic.pq)):
            known = values[rows][~values[rows].isnan()]
            found[f"{what} {group}"] = round(100 * float(known.mean()), 2)
    return found


def arms(
    fitted: FCClip, dense: DenseConfig, tests: Sequence[tuple[SegmentRecords, dict[str, Sequence[str]]]]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    settled = fitted.config
    for name, (alpha, beta) in SHARES.items():
        fitted.config = replace(settled, alpha=alpha, beta=beta)
        found[name] = {k: v for records, groups in tests for k, v in judged(fitted, records, groups).items()}
    baseline = DenseCLIP(dense).fit(fitted.clip)
    found["dense_clip"] = {k: v for records, groups in tests for k, v in judged(baseline, records, groups).items()}
    return found


def on_camvid(
    clip: CLIP,
    train: SegmentRecords,
    test: SegmentRecords,
    seed: int,
    config: Config = CAMVID,
    keep: Path | None = None,
) -> dict:
    fitted = FCClip(config).fit(clip, train.without(LEFT), seed=seed, keep=keep)
    fitted.config = replace(fitted.config, size=320, longest=448)
    seen = [name for name in test.names if name not in LEFT]
    return arms(fitted, DENSE["camvid"], [(test, {"seen": seen, "unseen": LEFT})])


def on_scenes(
    clip: CLIP, seed: int, config: Config = SCENES, pictures: int = 200, tests: int = 32, keep: Path | None = None
) -> dict:
    fitted = FCClip(config).fit(clip, scene_segments(Scenes(THINGS, pictures, 10 + seed)), seed=seed, keep=keep)
    both = [scene_segments(Scenes(spec, tests, 20 + seed)) for spec in (THINGS, UNSEEN)]
    grounds = set(THINGS.backgrounds)
    groups: list[dict[str, Sequence[str]]] = [
        {group: [both[0].names[k] for k in sorted({k for r in records for k in r.segments().labels})
                 if both[0].names[k] not in grounds]}
        for group, records in zip(("seen", "unseen"), both, strict=True)
    ]  # fmt: skip
    sets = list(zip(both, groups, strict=True))
    found = {f"{arm}, own scale": figures for arm, figures in arms(fitted, DENSE["scenes"], sets).items()}
    clip.log_scale.data.fill_(math.log(SCALE))
    return arms(fitted, DENSE["scenes"], sets) | found


def summary(runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    return {
        arm: {
            figure: {
                "mean": round(statistics.mean(run[arm][figure] for run in runs), 2),
                "sd": round(statistics.stdev(run[arm][figure] for run in runs), 2) if len(runs) > 1 else 0.0,
                "values": [run[arm][figure] for run in runs],
            }
            for figure in runs[0][arm]
        }
        for arm in runs[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("conv", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where each part is kept")
    parser.add_argument("--parts", help="some of them, with ; between")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = (
        given.parts.split(";") if given.parts else [f"{kind} {seed}" for kind in ("camvid", "scenes") for seed in SEEDS]
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        kept = given.out / f"{name.replace(' ', '_')}.json"
        kind, seed = name.split()
        if not kept.is_file():
            start = time.process_time()
            kept.parent.mkdir(parents=True, exist_ok=True)
            state = kept.with_suffix(".partial")
            if kind == "camvid":
                train, test = (camvid(given.data, split) for split in ("train", "test"))
                made = on_camvid(diptych.load("mini"), train, test, int(seed), keep=state)
            else:
                made = on_scenes(diptych.load(str(given.conv / "regions" / "model")), int(seed), keep=state)
            minutes = round((time.process_time() - start) / 60, 1)
            write_atomically(kept, json.dumps({"arms": made, "cpu_minutes": minutes}, indent=1).encode())
            state.unlink(missing_ok=True)
        part = json.loads(kept.read_text())
        print(name, json.dumps(part), flush=True)
        found.setdefault(kind, []).append(part)
    if given.write:
        result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        for kind, parts in found.items():
            result[kind] = {
                "config": asdict(SCENES if kind == "scenes" else CAMVID),
                "dense_clip": asdict(DENSE[kind]),
                "arms": summary([part["arms"] for part in parts]),
                "cpu_minutes": [part["cpu_minutes"] for part in parts],
                "provenance": provenance(),
            }
        result["left out of camvid"] = LEFT
        write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
