"""The probes on models of which the answer is known: do they find what was planted?

    OMP_NUM_THREADS=1 python benchmarks/probes.py [--only ood,planted] [--seeds 0,1,2] [--write]

Each part is measured for each seed (other scenes, other shots, other weights), and kept as it comes. Nothing is chosen
on the pictures that are reported.

- bias: micro fine-tuned on four invented words, where the texture says the word and the shape is chance, or the other
  way round; shape bias on pictures whose shape says one word and whose texture another.
- pose: micro, which was never shown turned things, on scenes of which half are turned; and after a fine-tune with them.
- ood: MCM of micro on shapes that have no name, on another draw of the known ones, and on noise.
- calibration: micro with its logits divided by its best temperature, and three times those.
- photos: mini on photos of PACS (DIPTYCH_TEST_DATA), its sketches as the shift; and six changes of pictures.
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
from functools import cache, partial
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
ELSEWHERE = replace(THINGS, sizes=("medium",), textures=("solid", "dotted"))  # smaller, half of them textured
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


def bias(cue: str, seed: int) -> Values:
    """A world whose "shape" or "texture" decides the word, the other being chance; then pictures whose cues differ."""
    tables = {"shape": dict(zip(FORMS, WORDS, strict=True)), "texture": dict(zip(TEXTURES, WORDS, strict=True))}

    def word(record: Any, of: str = cue) -> str:
        return tables[of][getattr(record.scene.things[0], of)]

    conflict = labelled(Scenes(CUES, 240, 900 + seed), partial(word, of="shape"))
    textures = {one: word(record, "texture") for one, record in conflict.scenes.items()}
    model = tuned(labelled(Scenes(CUES, 192, 10 + seed), word), f"{cue} world", epochs=8, rate=6e-4)
    test = labelled(Scenes(CUES, 120, 500 + seed), word)
    axes = figures(model, {"data": test, "conflict": replace(conflict, textures=textures)})
    found = {"shape bias": axes["shape"]["bias"][0], "decided": axes["shape"]["decided"]}
    return {name: 100 * value for name, value in (found | {"accuracy": axes["plain"]["accuracy"][0]}).items()}


def pose(shown: str, seed: int) -> Values:
    """micro as it is, or tuned on upright or on turned scenes; tested on both, a half each."""
    forms = ("triangle", "heart", "arrow", "crescent", "drop", "square")
    upright = SceneSpec(
        counts=(1,), shapes=forms, sizes=("medium", "large"), textures=("solid", "solid", "striped", "dotted"), turn=10
    )
    specs = {"upright": upright, "turned": replace(upright, turn=180.0)}
    parts = [scene_data(Scenes(spec, 200, 100 + 10 * seed + i)) for i, spec in enumerate(specs.values())]
    both = {f: {**getattr(parts[0], f), **getattr(parts[1], f)} for f in ("digests", "factors", "scenes")}
    records = Records((*parts[0].records, *parts[1].records), "scenes")
    test = replace(parts[0], records=records, labels=(*parts[0].labels, *parts[1].labels), **both)
    if shown == "nothing":
        model = Model("micro", micro())
    else:
        model = tuned(scene_data(Scenes(specs[shown], 192, 300 + seed)), "tuned", epochs=5, rate=2e-4)
    rows = {row["name"]: row for row in figures(model, {"data": test})["factors"]["rows"]}
    return {
        "accuracy on turned": 100 * rows["pose"]["accuracy"][0],
        "sensitivity to pose": rows["pose"]["sensitivity"],
        "to the next factor": max(row["sensitivity"] for name, row in rows.items() if name != "pose"),
    }


def ood(seed: int) -> Values:
    known = ("circle", "star", "cross", "ring", "arrow", "hexagon", "square", "diamond")
    other = ("heart", "flower", "triangle", "crescent", "drop")
    spec = SceneSpec(counts=(1,), sizes=("large",), shapes=known)
    inside = scene_data(Scenes(spec, 3000, seed))
    sets = {"held-out shapes": (replace(spec, shapes=other), 400), "known shapes again": (spec, 3000)}
    found: Values = {}
    for name, (one, count) in sets.items():
        outside = open_pictures(scene_data(Scenes(one, count, 50 + seed)))
        axes = figures(Model("micro", micro()), {"data": inside, "ood": outside})["ood"]["sets"]
        for score in ("mcm", "msp", "maxlogit"):
            found[f"{name}: {score} AUROC"] = 100 * axes["given"]["scores"][score]["auroc"]
        found[f"{name}: mcm FPR95"] = 100 * axes["given"]["scores"]["mcm"]["fpr95"]
        found["noise: mcm AUROC"] = 100 * axes["noise"]["scores"]["mcm"]["auroc"]
    return found


def calibration(seed: int) -> Values:
    data = scene_data(Scenes(SceneSpec(counts=(1,), sizes=("medium", "large")), 600, seed))
    shifted = scene_data(
        Scenes(SceneSpec(counts=(1,), sizes=("medium", "large"), styles=("noisy", "pixelated")), 240, seed)
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


SOME = "gaussian_noise,jpeg,gaussian_blur,darkness,fog,low_light"


def photos(changes: str, seed: int) -> Values:
    """One run of the command: the pictures are what they are; the seed is that of the changes."""
    root = Path(os.environ["DIPTYCH_TEST_DATA"]) / "pacs"
    settings = {"robustness.pictures": "28", "robustness.seed": str(seed), "robustness.changes": changes}
    others = {"shifted": root / "sketch"} if changes == "none" else {}
    done = diptych.probe("robustness", ["mini"], root / "photo", others=others, settings=settings, keep=False)
    axes = done.figures["models"]["mini"]
    if changes != "none":
        found = {"without a change": 100 * axes["changes"]["clean"]}
        for kind, one in axes["changes"]["kinds"].items():
            found |= {f"{kind} {severity}": 100 * v["accuracy"][0] for severity, v in one.items()}
        return found | {"mean relative drop": 100 * axes["changes"]["relative_drop"]}
    found = {"accuracy": 100 * axes["plain"]["accuracy"][0], "best T": axes["calibration"]["best"]}
    for which, one in axes["calibration"]["sets"].items():
        found |= {f"{which}: ECE": 100 * one["ece"][0], f"{which}: accuracy": 100 * one["accuracy"]}
    found |= {f"{name}: mcm AUROC": 100 * v["scores"]["mcm"]["auroc"] for name, v in axes["ood"]["sets"].items()}
    found["gap"] = axes["modalities"]["gap"]
    return found | {f"{r['name']}: accuracy": 100 * r["accuracy"][0] for r in axes["factors"]["rows"]}


# -- weight space ------------------------------------------------------------------------------------------------------


def pair(record: Any) -> str:
    return f"{record.scene.things[0].colour} {record.scene.things[0].shape}"


def world(seed: int, count: int = 160) -> tuple[Data, Data, Data]:
    """To fit, to choose and judge on (ID), and elsewhere (OOD)."""
    return (
        labelled(Scenes(THINGS, count, 70 + seed), pair),
        labelled(Scenes(THINGS, 600, 170 + seed), pair),
        labelled(Scenes(ELSEWHERE, 400, 270 + seed), pair),
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


TUNING = {"mild": {"epochs": 24, "rate": 1e-4}, "harsh": {"epochs": 6, "rate": 1e-2}}


def scrambled(weights: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The same function by other weights of one block: hidden units in another order, heads with turned signs."""
    made = dict(weights)
    up = next(name for name in names if name.endswith("c_fc.weight"))
    order = torch.randperm(len(made[up]), generator=torch.Generator().manual_seed(0))
    for name, index in ((up, 0), (up.replace("weight", "bias"), 0), (up.replace("c_fc", "c_proj"), 1)):
        made[name] = made[name].index_select(index, order)
    turned = [name for name in names if "in_proj" in name or name.endswith("out_proj.weight")]
    return {**made, **{name: -made[name] for name in turned}}


def line(how: str, seed: int) -> Values:
    """The line to a mild or a harsh fine-tune."""
    fit, data, other = world(seed)
    zero, model = Model("zero-shot", micro()), tuned(fit, how, **TUNING[how])
    both = ends(zero, model, data)
    sets = {"id": pixels_of(zero, data.halves()[1], Line()), "ood": pixels_of(zero, other, Line())}
    drawn = path(both, sets, ALPHAS)
    told = summary(drawn, ALPHAS)
    near = [
        a for a, i, o in zip(ALPHAS, drawn["id"]["accuracy"], drawn["ood"]["accuracy"], strict=True)
        if 0 < a < 1 and i >= drawn["id"]["accuracy"][-1] - 0.01 and o >= max(told["ood"]["ends"])
    ]  # fmt: skip
    found = {f"{k} at {w}": 100 * told[k]["ends"][i] for k in sets for i, w in enumerate(("0", "1"))}
    found |= {f"{what} {k}": 100 * told[k][what] for k in sets for what in ("gain", "barrier")}
    found |= {f"{k} at {a:g}": 100 * v for k in sets for a, v in zip(ALPHAS, drawn[k]["accuracy"], strict=True)}
    return found | {"shares with both": float(len(near)), "flagged": float(told["failed"])}


def rank(lags: dict[str, float], layer: str) -> float:
    return 1.0 + sum(lag > lags[layer] for lag in lags.values())


def planted(seed: int) -> Values:
    """A mild fine-tune, then one block trained on alone: is it found, and does going back on it help elsewhere?"""
    fit, data, other = world(seed)
    choose, test = data.halves()
    zero, few = Model("zero-shot", micro()), ALPHAS[::2]
    both = ends(zero, tuned(fit, "mild", epochs=6, rate=1e-4), data)
    config = Line(alphas=few, sparsities=(0.5, 0.9))
    sets = {"id": pixels_of(zero, test.at_most(120), config), "ood": pixels_of(zero, other.at_most(300), config)}
    chosen, fitted = pixels_of(zero, choose.at_most(150), config), pixels_of(zero, fit, config)
    groups = layers(both[0])
    blocks = [layer for layer in groups if "resblocks" in layer]
    bad = blocks[1 + seed % 3]
    another = next(layer for layer in blocks if layer != bad)
    second = one_block(fitted, both[1], groups[bad], rate=5e-3, steps=40)
    lags = {layer: lag((both[0], second), own, chosen, (0.0, 0.5, 1.0)) for layer, own in groups.items()}
    plain = path((both[0], second), sets, few)
    pruned = {
        name: max(repair((both[0], second), groups[layer], chosen, sets, config)["path"]["ood"]["accuracy"])
        for name, layer in {"it": bad, "another": another}.items()
    }
    back, other_back = (
        path((both[0], prune(second, 0.9, groups[name], both[0])), {"ood": sets["ood"]}, few) for name in (bad, another)
    )
    turned = scrambled(both[1], groups[bad])
    far = {layer: lag((both[0], turned), own, chosen, (0.0, 0.5, 1.0)) for layer, own in groups.items()}
    return {
        "trained alone: rank by lag": rank(lags, bad),
        "scrambled: rank by lag": rank(far, bad),
        "inside, planted": 100 * max(plain["ood"]["accuracy"][1:-1]),
        "inside, 0.9 of it pruned": 100 * max(back["ood"]["accuracy"][1:-1]),
        "id before and after": 100 * (sets["id"].score(second)["accuracy"] - sets["id"].score(both[1])["accuracy"]),
        "best ood, block as it was": 100 * max(path(both, {"ood": sets["ood"]}, few)["ood"]["accuracy"]),
        "best ood, planted": 100 * max(plain["ood"]["accuracy"]),
        "ood at 1, planted": 100 * plain["ood"]["accuracy"][-1],
        "best ood, it pruned": 100 * pruned["it"],
        "best ood, another pruned": 100 * pruned["another"],
        "best ood, 0.9 of it pruned": 100 * max(back["ood"]["accuracy"]),
        "best ood, 0.9 of another pruned": 100 * max(other_back["ood"]["accuracy"]),
        "ood at 1, 0.9 of it pruned": 100 * back["ood"]["accuracy"][-1],
    }


GRID = list(itertools.product((1e-4, 4e-4, 1e-3), (3, 6), (0, 1)))  # rate, epochs, draw


def taus(number: int) -> Values:
    """One of the 12 short fine-tunes: sharpness of all weights, of the stragglers, and what the middle is worth."""
    rate, epochs, draw = GRID[number]
    fit, data, other = world(draw, 64)
    zero, model = Model("zero-shot", micro()), tuned(fit, "tuned", epochs=epochs, rate=rate)
    both = ends(zero, model, data)
    judged, elsewhere = pixels_of(zero, fit, Line(pictures=64)), pixels_of(zero, other, Line())
    groups = layers(both[0])
    some = judged.some(slice(0, 24))
    lags = {layer: lag(both, own, some, (0.0, 0.5, 1.0)) for layer, own in groups.items()}
    worst = sorted(lags, key=lambda layer: -lags[layer])[:3]
    whole = moving(both[1], list(both[1]), judged)
    own = moving(both[1], [name for layer in worst for name in groups[layer]], judged)

    def rise(names: Sequence[str]) -> float:
        parts = [judged.some(slice(start, start + 32)) for start in (0, 32)]
        return statistics.mean(sharpness.worst(p.loss, both[1], names, 0.02, iterations=6)[0] for p in parts)

    middle = path(both, {"ood": elsewhere}, (0.5, 1.0))["ood"]["accuracy"]
    return {
        "sharpness of all": rise(whole), "sharpness of the stragglers": rise(own),
        "ood at 0.5": 100 * middle[0], "ood at 1": 100 * middle[1], "lag": sum(lags[layer] for layer in worst),
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
    **{f"bias {cue}": partial(bias, cue) for cue in ("shape", "texture")},
    **{f"pose {shown}": partial(pose, shown) for shown in ("nothing", "upright", "turned")},
    "ood": ood, "calibration": calibration, "photos": partial(photos, "none"), "photos changed": partial(photos, SOME),
    **{f"line {how}": partial(line, how) for how in TUNING},
    "planted": planted, "taus": taus,
}  # fmt: skip


def claims(parts: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What the probes must find, in every seed."""

    def all_of(part: str, holds: Callable[[Values], bool]) -> bool:
        return all(holds(row) for row in parts[part]["seeds"].values())

    if "bias texture" in parts:
        yield "texture world: shape bias below 30", all_of("bias texture", lambda v: v["shape bias"] < 30)
    if "bias shape" in parts:
        yield "shape world: shape bias above 70", all_of("bias shape", lambda v: v["shape bias"] > 70)
    for shown in ("nothing", "upright"):
        if f"pose {shown}" in parts:
            yield (
                f"shown {shown} turned: pose is the most sensitive factor",
                all_of(f"pose {shown}", lambda v: v["sensitivity to pose"] > v["to the next factor"]),
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
    if "line mild" in parts:
        yield (
            "mild: some share has OOD of both ends and ID within a point",
            all_of("line mild", lambda v: v["shares with both"] > 0),
        )
        yield "mild is not flagged", all_of("line mild", lambda v: not v["flagged"])
    if "line harsh" in parts:
        yield (
            "harsh is flagged, or has a barrier of 5 points",
            all_of("line harsh", lambda v: bool(v["flagged"]) or v["barrier ood"] > 5),
        )
    if "planted" in parts:
        yield "scrambled block is the first straggler", all_of("planted", lambda v: v["scrambled: rank by lag"] == 1)
        yield (
            "0.9 of its changes taken back: better elsewhere than plain by 1 point at least",
            all_of("planted", lambda v: v["best ood, 0.9 of it pruned"] >= v["best ood, planted"] + 1),
        )
        yield (
            "... of another block: by less than 1 point",
            all_of("planted", lambda v: v["best ood, 0.9 of another pruned"] < v["best ood, planted"] + 1),
        )
        yield (
            "as much of it as does best on ID: better elsewhere than plain",
            all_of("planted", lambda v: v["best ood, it pruned"] > v["best ood, planted"]),
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
