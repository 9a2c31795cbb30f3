"""The probes on models of which the answer is known: do they find what was planted?

    OMP_NUM_THREADS=1 python benchmarks/probes.py [--only bias,line] [--seeds 0,1,2] [--write]

Each part is measured for each seed (other scenes, other shots, other weights), and kept as it comes. Nothing is chosen
on the pictures that are reported.

- bias: micro fine-tuned on four invented words, where the texture says the word and the shape is chance, or the other
  way round; shape bias on pictures whose shape says one word and whose texture another.
- pose: micro, which was never shown turned things, on scenes of which half are turned; and after a fine-tune with them.
- ood: MCM of micro on shapes that have no name, on another draw of the known ones, and on noise.
- calibration: micro with its logits divided by its best temperature, and three times those.
- photos: mini on photos of PACS (DIPTYCH_TEST_DATA), its sketches as the shift, and all changes of pictures.
- line: micro fine-tuned on one style of scenes (sketches), the line from zero-shot to it, on sketches and on other
  styles, sizes and textures; mildly, harshly, and mildly with one block trained on alone.
- taus: 12 short fine-tunes; does sharpness tell how well the middle of the line does elsewhere?
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diptych
from diptych.core.classifier import Base, Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import TextRows
from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.core.weights import layers
from diptych.data.records import Records
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.support import Support
from diptych.engine.loop import Cosine, Optimiser, train
from diptych.engine.provenance import provenance
from diptych.engine.store import FeatureStore
from diptych.files import write_atomically
from diptych.methods.adapt.parts.adapter import fit_path, last
from diptych.methods.adapt.wise_ft import Config as Tuning
from diptych.methods.adapt.wise_ft import WiSEFT
from diptych.methods.probe.parts import sharpness
from diptych.methods.probe.parts.data import Data, open_pictures, scene_data
from diptych.methods.probe.parts.endpoints import Judged, ends
from diptych.methods.probe.parts.probe import Model, Pieces
from diptych.methods.probe.robustness import Config, Robustness
from diptych.methods.probe.weight_space import (
    Config as Line,
)
from diptych.methods.probe.weight_space import (
    lag,
    moving,
    path,
    pixels_of,
    prune,
    repair,
    stragglers,
    summary,
)  # fmt: skip

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "probes.json"
QUIET = Config(changes="none")
Values = dict[str, float]

# -- the worlds --------------------------------------------------------------------------------------------------------

WORDS = ("blicket", "dax", "wug", "toma")
FORMS, TEXTURES = ("circle", "cross", "triangle", "ring"), ("solid", "striped", "dotted", "checked")
CUES = SceneSpec(counts=(1,), sizes=("large",), shapes=FORMS, textures=TEXTURES)
THINGS = SceneSpec(
    counts=(1,), sizes=("large",), shapes=("circle", "triangle", "star"), colours=("red", "yellow", "blue"),
    styles=("sketch",),
)  # fmt: skip
ELSEWHERE = replace(THINGS, sizes=("medium",), styles=("sketch", "noisy", "pixelated"), textures=("solid", "dotted"))
ALPHAS = tuple(i / 10 for i in range(11))


@cache
def micro() -> CLIP:
    return diptych.load("micro", "cpu")


def labelled(scenes: Scenes, word: Callable[[Any], str]) -> Data:
    """Scenes by a word of ours."""
    data = scene_data(scenes)
    words = [word(data.scenes[r.id]) for r in data.records]
    classes = tuple(sorted(set(words)))
    records = Records(tuple(replace(r, label=w) for r, w in zip(data.records, words, strict=True)), "scenes")
    labels = tuple(classes.index(w) for w in words)
    return replace(data, classes=classes, names=classes, records=records, labels=labels)


def support(data: Data) -> Support:
    store = FeatureStore(data.digests)
    labels = torch.tensor(data.labels)
    return Support(data.names, data.records, labels, store, tuple(range(len(data))))


def tuned(data: Data, name: str, **settings: Any) -> Model:
    fitted = last(fit_path(WiSEFT(), Tuning(alpha=1.0, **settings), micro(), support(data)))
    return Model(name, micro(), fitted)


def figures(model: Model, datasets: dict[str, Any], config: Config = QUIET) -> dict[str, Any]:
    return Robustness(config).measure([model], datasets, Pieces())["models"][model.name]


# -- robustness --------------------------------------------------------------------------------------------------------


def bias(seed: int) -> Values:
    """Each world's own cue decides the word; the other is chance."""
    shape_word = dict(zip(FORMS, WORDS, strict=True))
    texture_word = dict(zip(TEXTURES, WORDS, strict=True))
    found: Values = {}
    cues = Scenes(CUES, 240, 900 + seed)
    conflict = labelled(cues, lambda r: shape_word[r.scene.things[0].shape])
    textures = {one: texture_word[r.scene.things[0].texture] for one, r in conflict.scenes.items()}
    conflict = replace(conflict, textures=textures)
    for world, word in {
        "shape": lambda r: shape_word[r.scene.things[0].shape],
        "texture": lambda r: texture_word[r.scene.things[0].texture],
    }.items():
        fit = labelled(Scenes(CUES, 192, 10 + seed), word)
        model = tuned(fit, f"{world} world", epochs=8, rate=6e-4)
        test = labelled(Scenes(CUES, 120, 500 + seed), word)
        axes = figures(model, {"data": test, "conflict": conflict})
        found[f"{world} world: shape bias"] = 100 * axes["shape"]["bias"][0]
        found[f"{world} world: decided"] = 100 * axes["shape"]["decided"]
        found[f"{world} world: accuracy"] = 100 * axes["plain"]["accuracy"][0]
    return found


def pose(seed: int) -> Values:
    """Half upright, half turned; a third textured; two of three sizes."""
    forms = ("triangle", "heart", "arrow", "crescent", "drop", "square")
    upright = SceneSpec(
        counts=(1,), shapes=forms, sizes=("medium", "large"), textures=("solid", "solid", "striped", "dotted"), turn=10
    )
    turned = replace(upright, turn=180.0)

    def mixed(count: int, first: int) -> Data:
        parts = [scene_data(Scenes(spec, count // 2, first + i)) for i, spec in enumerate((upright, turned))]
        both = {f: {**getattr(parts[0], f), **getattr(parts[1], f)} for f in ("digests", "factors", "scenes")}
        records = Records((*parts[0].records, *parts[1].records), "scenes")
        return replace(parts[0], records=records, labels=(*parts[0].labels, *parts[1].labels), **both)

    test, found = mixed(480, 100 + 10 * seed), {}
    models = [
        Model("as it is", micro()),
        tuned(scene_data(Scenes(upright, 240, 300 + seed)), "tuned on upright", epochs=4, rate=1e-4),
        tuned(scene_data(Scenes(turned, 240, 300 + seed)), "tuned on turned", epochs=4, rate=1e-4),
    ]
    for model in models:
        rows = {row["name"]: row for row in figures(model, {"data": test})["factors"]["rows"]}
        found[f"{model.name}: accuracy on turned"] = 100 * rows["pose"]["accuracy"][0]
        found[f"{model.name}: sensitivity to pose"] = rows["pose"]["sensitivity"]
        found[f"{model.name}: to the next factor"] = max(v["sensitivity"] for n, v in rows.items() if n != "pose")
    return found


def ood(seed: int) -> Values:
    known = ("circle", "star", "cross", "ring", "arrow", "hexagon", "square", "diamond")
    other = ("heart", "flower", "triangle", "crescent", "drop")
    spec = SceneSpec(counts=(1,), sizes=("large",), shapes=known)
    inside = scene_data(Scenes(spec, 500, seed))
    sets = {"held-out shapes": replace(spec, shapes=other), "known shapes again": spec}
    found: Values = {}
    for name, one in sets.items():
        outside = open_pictures(scene_data(Scenes(one, 500, 50 + seed)))
        axes = figures(Model("micro", micro()), {"data": inside, "ood": outside})["ood"]["sets"]
        for score in ("mcm", "msp", "maxlogit"):
            found[f"{name}: {score} AUROC"] = 100 * axes["given"]["scores"][score]["auroc"]
        found[f"{name}: mcm FPR95"] = 100 * axes["given"]["scores"]["mcm"]["fpr95"]
        found["noise: mcm AUROC"] = 100 * axes["noise"]["scores"]["mcm"]["auroc"]
    return found


def calibration(seed: int) -> Values:
    data = scene_data(Scenes(SceneSpec(counts=(1,), sizes=("medium", "large")), 800, seed))
    shifted = scene_data(
        Scenes(SceneSpec(counts=(1,), sizes=("medium", "large"), styles=("noisy", "pixelated")), 400, seed)
    )
    rows = class_rows(micro(), data.names, TextRecipe(ENSEMBLE))
    scale = float(micro().logit_scale)

    def of(factor: float) -> dict[str, Any]:
        head = TextRows(rows, factor * scale)
        fitted = Classifier("made", {}, data.classes, data.classes, head, Base.of(micro()))
        return figures(Model("made", micro(), fitted), {"data": data, "shifted": shifted})["calibration"]

    best = of(1.0)["best"]
    good, bad = of(1 / best), of(3 / best)
    found = {"best T of micro": best, "T of tripled / T": bad["best"] / good["best"]}
    for name, axes in {"at its best T": good, "tripled": bad}.items():
        for which in ("before", "after", "shifted before", "shifted after"):
            found[f"{name}, {which}: ECE"] = 100 * axes["sets"][which]["ece"][0]
    found["accuracy that the temperature changed"] = 100 * abs(
        bad["sets"]["before"]["accuracy"] - bad["sets"]["after"]["accuracy"]
    )
    return found


def photos(seed: int) -> Values:
    """One run of the command: the pictures are what they are; the seed is that of the changes."""
    root = Path(os.environ["DIPTYCH_TEST_DATA"]) / "pacs"
    settings = {"robustness.pictures": "40", "robustness.seed": str(seed), "robustness.severities": "1,3,5"}
    start = time.process_time()
    done = diptych.probe("robustness", ["mini"], root / "photo", others={"shifted": root / "sketch"},
                         settings=settings, keep=False)  # fmt: skip
    axes = done.figures["models"]["mini"]
    found = {"accuracy": 100 * axes["plain"]["accuracy"][0], "cpu seconds": time.process_time() - start}
    for which, one in axes["calibration"]["sets"].items():
        found[f"{which}: ECE"] = 100 * one["ece"][0]
        found[f"{which}: accuracy"] = 100 * one["accuracy"]
    found["best T"] = axes["calibration"]["best"]
    for name, one in axes["ood"]["sets"].items():
        found[f"{name}: mcm AUROC"] = 100 * one["scores"]["mcm"]["auroc"]
    found["gap"] = axes["modalities"]["gap"]
    kinds = axes["changes"]["kinds"]
    found["mean relative drop"] = 100 * axes["changes"]["relative_drop"]
    for kind, one in kinds.items():
        found |= {f"{kind} {severity}": 100 * v["accuracy"][0] for severity, v in one.items()}
    for row in axes["factors"]["rows"]:
        found[f"factor {row['name']}: accuracy"] = 100 * row["accuracy"][0]
    return found


# -- weight space ------------------------------------------------------------------------------------------------------


def pair(record: Any) -> str:
    return f"{record.scene.things[0].colour} {record.scene.things[0].shape}"


def world(seed: int, count: int = 216) -> tuple[Data, Data, Data]:
    """To fit, to choose and judge on (ID), and elsewhere (OOD)."""
    return (
        labelled(Scenes(THINGS, count, 70 + seed), pair),
        labelled(Scenes(THINGS, 400, 170 + seed), pair),
        labelled(Scenes(ELSEWHERE, 300, 270 + seed), pair),
    )


def one_block(
    judged: Judged, weights: dict[str, Tensor], names: Sequence[str], rate: float, steps: int
) -> dict[str, Tensor]:
    """The same weights after further training of these alone."""
    own = {name: weights[name].clone().requires_grad_() for name in moving(weights, names, judged)}
    order = torch.Generator().manual_seed(0)

    def loss(step: int) -> Tensor:
        rows = torch.randperm(len(judged), generator=order)[:16]
        some = Judged(judged.tower, judged.pixels[rows], judged.labels[rows])
        return some.loss({**weights, **own})

    train(own, loss, Optimiser("adamw", rate, 0.0), steps, schedule=Cosine(warmup=1), clip=1.0)
    return {**weights, **{name: tensor.detach() for name, tensor in own.items()}}


def line(seed: int) -> Values:
    fit, data, other = world(seed)
    choose, test = data.halves()
    zero, config = Model("zero-shot", micro()), Line(alphas=ALPHAS, sparsities=(0.1, 0.3, 0.5, 0.7, 0.9))
    sets = {"id": pixels_of(zero, test, config), "ood": pixels_of(zero, other, config)}
    chosen, fitted = pixels_of(zero, choose, config), pixels_of(zero, fit, config)
    found: Values = {}
    mild = tuned(fit, "mild", epochs=8, rate=1e-4)
    harsh = tuned(fit, "harsh", epochs=20, rate=2e-3)
    for model in (mild, harsh):
        both = ends(zero, model, data)
        drawn = path(both, sets, ALPHAS)
        told = summary(drawn, ALPHAS)
        near = [
            a for a, i, o in zip(ALPHAS, drawn["id"]["accuracy"], drawn["ood"]["accuracy"], strict=True)
            if 0 < a < 1 and i >= drawn["id"]["accuracy"][-1] - 0.01 and o >= max(told["ood"]["ends"])
        ]  # fmt: skip
        name = model.name
        found |= {f"{name}: {k} at {w}": 100 * told[k]["ends"][i] for k in sets for i, w in enumerate(("0", "1"))}
        found |= {f"{name}: gain {k}": 100 * told[k]["gain"] for k in sets}
        found |= {f"{name}: barrier {k}": 100 * told[k]["barrier"] for k in sets}
        found |= {f"{name}: shares with both": float(len(near)), f"{name}: flagged": float(told["failed"])}
    both = ends(zero, mild, data)
    groups = layers(both[0])
    blocks = [layer for layer in groups if "resblocks" in layer]
    planted = blocks[1 + seed % 3]
    second = one_block(fitted, both[1], groups[planted], rate=3e-3, steps=60)
    lags = {
        layer: lag((both[0], second), own, chosen.some(slice(0, 100)), ALPHAS[::2]) for layer, own in groups.items()
    }
    order = stragglers(lags, len(lags))
    plain = path((both[0], second), sets, ALPHAS)
    mended = repair((both[0], second), groups[planted], chosen, sets, config)
    other_block = next(layer for layer in blocks if layer != planted)
    beside = repair((both[0], second), groups[other_block], chosen, sets, config)
    found |= {
        "planted: rank by lag": float(1 + order.index(planted)),
        "planted: id at 1": 100 * plain["id"]["accuracy"][-1],
        "planted: best ood": 100 * max(plain["ood"]["accuracy"]),
        "planted: best ood after pruning it": 100 * max(mended["path"]["ood"]["accuracy"]),
        "planted: best ood after pruning another": 100 * max(beside["path"]["ood"]["accuracy"]),
        "planted: sparsity chosen": mended["sparsity"],
    }
    for sparsity in (0.5, 0.9):
        pruned = prune(second, sparsity, groups[planted], both[0])
        drawn = path((both[0], pruned), sets, ALPHAS[::2])
        found[f"planted: best ood, {sparsity:g} pruned"] = 100 * max(drawn["ood"]["accuracy"])
    return found


GRID = list(itertools.product((1e-4, 4e-4, 1e-3), (3, 8), (0, 1)))  # rate, epochs, draw


def taus(number: int) -> Values:
    """One of the 12 short fine-tunes: sharpness of all weights, of the stragglers, and what the middle is worth."""
    rate, epochs, draw = GRID[number]
    fit, data, other = world(draw, 108)
    zero, model = Model("zero-shot", micro()), tuned(fit, "tuned", epochs=epochs, rate=rate)
    both = ends(zero, model, data)
    judged, elsewhere = pixels_of(zero, fit, Line(pictures=96)), pixels_of(zero, other, Line())
    groups = layers(both[0])
    some = judged.some(slice(0, 32))
    lags = {layer: lag(both, own, some, (0.0, 0.5, 1.0)) for layer, own in groups.items()}
    worst = stragglers(lags, 3)
    whole = moving(both[1], list(both[1]), judged)
    own = moving(both[1], [name for layer in worst for name in groups[layer]], judged)

    def rise(names: Sequence[str]) -> float:
        parts = [judged.some(slice(start, start + 32)) for start in (0, 32, 64)]
        return statistics.mean(sharpness.worst(p.loss, both[1], names, 0.02, iterations=8)[0] for p in parts)

    middle = path(both, {"ood": elsewhere}, (0.0, 0.5, 1.0))["ood"]["accuracy"]
    return {
        "sharpness of all": rise(whole), "sharpness of the stragglers": rise(own),
        "ood at 0.5": 100 * middle[1], "ood at 1": 100 * middle[2], "lag": sum(lags[layer] for layer in worst),
    }  # fmt: skip


def kendall(rows: list[Values], x: str, y: str = "ood at 0.5", rounds: int = 1000) -> list[float]:
    """tau-b with its bootstrap interval over runs."""
    from scipy.stats import kendalltau

    a, b = (np.array([row[name] for row in rows]) for name in (x, y))
    rng = np.random.default_rng(0)
    draws = [kendalltau(a[i], b[i])[0] for i in (rng.integers(0, len(a), len(a)) for _ in range(rounds))]
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return [round(float(v), 2) for v in (kendalltau(a, b)[0], low, high)]


PARTS: dict[str, Callable[[int], Values]] = {
    "bias": bias, "pose": pose, "ood": ood, "calibration": calibration, "photos": photos, "line": line, "taus": taus,
}  # fmt: skip


def claims(parts: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What the probes must find, in every seed."""

    def all_of(part: str, holds: Callable[[Values], bool]) -> bool:
        return all(holds(row) for row in parts[part]["seeds"].values())

    if "bias" in parts:
        yield "texture world: shape bias below 30", all_of("bias", lambda v: v["texture world: shape bias"] < 30)
        yield "shape world: shape bias above 70", all_of("bias", lambda v: v["shape world: shape bias"] > 70)
    if "pose" in parts:
        for name in ("as it is", "tuned on upright"):
            yield (
                f"micro, {name}: pose is the most sensitive factor",
                all_of("pose", lambda v, n=name: v[f"{n}: sensitivity to pose"] > v[f"{n}: to the next factor"]),
            )
    if "ood" in parts:
        yield "held-out shapes: AUROC of MCM above 60", all_of("ood", lambda v: v["held-out shapes: mcm AUROC"] > 60)
        yield (
            "known shapes again: 50 within 3",
            all_of("ood", lambda v: abs(v["known shapes again: mcm AUROC"] - 50) < 3),
        )
    if "calibration" in parts:
        yield (
            "tripled logits: ECE at least doubles",
            all_of("calibration", lambda v: v["tripled, before: ECE"] >= 2 * v["at its best T, before: ECE"]),
        )
        yield (
            "tripled logits: T is three times as large within 2%",
            all_of("calibration", lambda v: abs(v["T of tripled / T"] - 3) < 0.06),
        )
        yield (
            "tripled logits: the best T restores ECE within half a point",
            all_of("calibration", lambda v: abs(v["tripled, after: ECE"] - v["at its best T, after: ECE"]) < 0.5),
        )
        yield (
            "tripled logits: the same T lowers ECE on shifted pictures",
            all_of("calibration", lambda v: v["tripled, shifted after: ECE"] < v["tripled, shifted before: ECE"]),
        )
    if "line" in parts:
        yield (
            "mild: some share has OOD of both ends and ID within a point",
            all_of("line", lambda v: v["mild: shares with both"] > 0),
        )
        yield "mild is not flagged", all_of("line", lambda v: not v["mild: flagged"])
        yield (
            "harsh is flagged, or has a barrier of 5 points",
            all_of("line", lambda v: bool(v["harsh: flagged"]) or v["harsh: barrier ood"] > 5),
        )
        yield "planted straggler is first", all_of("line", lambda v: v["planted: rank by lag"] == 1)
        yield (
            "pruning it does better elsewhere than plain",
            all_of("line", lambda v: v["planted: best ood after pruning it"] > v["planted: best ood"]),
        )


def together(name: str, rows: list[Values]) -> dict[str, Any]:
    """Mean and deviation over seeds; of the fine-tunes, the rank correlations."""
    if name == "taus":
        return {"kendall": {x: kendall(rows, x) for x in rows[0] if not x.startswith("ood")}} if len(rows) > 3 else {}
    each = {key: [row[key] for row in rows if key in row] for key in rows[0]}
    return {"figures": {k: [round(statistics.mean(v), 2), round(statistics.pstdev(v), 2)] for k, v in each.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", default="0,1,2", help="for taus: numbers of runs, 0 to 11")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"parts": {}}
    for name, part in PARTS.items():
        if given.only and name not in given.only.split(","):
            continue
        for seed in given.seeds.split(","):
            start = time.process_time()
            row = {key: round(float(value), 3) for key, value in part(int(seed)).items()}
            seconds = round(time.process_time() - start, 1)
            print(name, seed, row, seconds, file=sys.stderr, flush=True)
            if given.write and RESULTS.exists():  # another process may have added its own
                result = json.loads(RESULTS.read_text())
            kept = result["parts"].setdefault(name, {"seeds": {}, "cpu_seconds": {}})
            kept["seeds"][seed], kept["cpu_seconds"][seed] = row, seconds
            kept |= together(name, list(kept["seeds"].values()))
            result["checks"] = dict(claims(result["parts"]))
            result["provenance"] = provenance() | {"threads": 1}
            if given.write:
                write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result.get("checks", {}), indent=1))
    return 0 if all(result.get("checks", {}).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
