"""Weight space: the line between two models, when it helps beyond both ends, and which layers stand in its way.

Use it after a fine-tuning, to see whether weights between zero-shot and fine-tuned (WiSE-FT) are worth having, how
sharp the minimum is, which layers are to blame where the line fails, and whether going back on their smallest changes
mends it. Not a way to choose on the test: shares and sparsity are chosen on one half, the other is judged.

Wortsman et al., CVPR 2022, arXiv 2109.01903 (the line: 0 is zero-shot, 1 fine-tuned, tower and head, steps of 0.1);
In Search of the Successful Interpolation, NeurIPS 2024 workshop, arXiv 2410.16476 (sharpness, straggler layers, their
sparsity: its ideas; the formulas of lag and of pruning by change are ours); sharpness as in arXiv 2302.07011: 1,024
points in batches of 128, 20 steps of APGD, adaptive. Published: 4 to 6 points under five shifts of ImageNet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.weights import interpolate, layers, prune
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError
from diptych.methods.probe.parts import sharpness
from diptych.methods.probe.parts.data import Data
from diptych.methods.probe.parts.endpoints import Judged, ends, tower_of
from diptych.methods.probe.parts.lines import weight_report
from diptych.methods.probe.parts.probe import Model, Pieces, Probe, Role
from diptych.report import Report

Figures = dict[str, Any]
Ends = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Config:
    """alphas: shares of the second model. pictures: at most so many of each set (0: all). points, batch, iterations,
    rho, adaptive, logit_norm: of the sharpness; layer_points: for a layer by itself; draws: of the average case; all
    with layers=false leaves the layers' own out. rhos: radii of the whole model's curve. stragglers: how many layers
    (0: those whose lag is beyond the median by two median deviations). mode: delta (back to the first model) or weights
    (to zero); sparsities: tried on the choosing half."""

    alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    pictures: int = 1000
    points: int = 1024
    batch: int = 128
    iterations: int = 20
    rho: float = 0.1
    rhos: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1)
    adaptive: bool = True
    logit_norm: float = 0.0
    draws: int = 10
    layers: bool = True
    layer_points: int = 128
    stragglers: int = 3
    mode: str = "delta"
    sparsities: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


class WeightSpace(Probe):
    Config = Config
    takes = (2, 2)
    needs = "two models of one shape, labelled pictures"
    roles = {  # noqa: RUF012
        "data": Role("classes", "labelled pictures of the fine-tuning's kind", needed=True),
        "ood": Role("classes", "pictures of the same classes as they come elsewhere"),
    }

    def measure(self, models: Sequence[Model], datasets: Mapping[str, Any], pieces: Pieces) -> Figures:
        config, data = self.config, datasets["data"]
        both = ends(models[0], models[1], data)
        if all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items()):
            raise DiptychError(
                f"{models[0].name} and {models[1].name} have the same weights, so there is no line between them; the "
                "second is to be fine-tuned, such as the winner of `diptych compare --methods wise_ft`"
            )
        choose, test = (pixels_of(models[0], half, config) for half in data.halves())
        sets = {"id": test}
        if "ood" in datasets:
            sets["ood"] = pixels_of(models[0], datasets["ood"], config)
        groups = layers(both[0])
        found: Figures = {"system": self.system(), "config": asdict(config)}
        found["models"] = [model.name for model in models]
        found["data"] = {"source": data.records.source, "pictures": {k: len(v) for k, v in sets.items()}}
        found["data"] |= {"choosing": len(choose), "classes": list(data.classes), "hash": data.hash}
        found["path"] = pieces("path", lambda: path(both, sets, config.alphas))
        line = pieces("choice", lambda: path(both, {"id": choose}, config.alphas))
        found["summary"] = summary(found["path"], config.alphas)
        found["summary"]["chosen"] = config.alphas[int(np.argmax(line["id"]["accuracy"]))]
        found["sharpness"] = {}
        for name, weights in zip(("first", "second"), both, strict=True):
            work = lambda weights=weights: sharp(choose, weights, config)  # noqa: E731
            found["sharpness"][name] = pieces(f"sharpness {name}", work)
        found["layers"] = {
            layer: pieces(f"layer {layer}", lambda own=own: one_layer(both, own, choose, config))
            for layer, own in groups.items()
        }
        found["stragglers"] = stragglers({k: v["lag"] for k, v in found["layers"].items()}, config.stragglers)
        own = [name for layer in found["stragglers"] for name in groups[layer]]
        found["repair"] = pieces("repair", lambda: repair(both, own, choose, sets, config))
        return found

    def report(self, figures: Mapping[str, Any]) -> Report:
        return weight_report(figures)


def pixels_of(model: Model, data: Data, config: Config) -> Judged:
    some = data.at_most(config.pictures) if config.pictures else data
    pixels = FeatureStore(some.digests).pixels(model.clip, some.records).to(model.clip.device)
    labels = torch.tensor(some.labels, device=pixels.device)
    return Judged(tower_of(model.clip), pixels, labels, config.logit_norm)


# -- C, D. the line ----------------------------------------------------------------------------------------------------


def path(both: Ends, sets: Mapping[str, Judged], alphas: Sequence[float]) -> Figures:
    """Accuracy and loss of each set at (1 - alpha) first + alpha second, tower and head."""
    rows = []
    for alpha in alphas:
        weights = interpolate(*both, alpha)
        rows.append({name: judged.score(weights) for name, judged in sets.items()})
    return {name: {k: [row[name][k] for row in rows] for k in ("accuracy", "loss")} for name in sets}


def gain(accuracies: Sequence[float]) -> float:
    """The best on the line less the better of its ends."""
    return max(accuracies) - max(accuracies[0], accuracies[-1])


def barrier(errors: Sequence[float], alphas: Sequence[float]) -> float:
    """How far the error rises above the straight line between its ends."""
    a, e = np.asarray(alphas), np.asarray(errors)
    return float((e - ((1 - a) * e[0] + a * e[-1])).max())


def summary(found: Mapping[str, Any], alphas: Sequence[float]) -> Figures:
    """Gain, barrier and best share of each set; failed: the line gives nothing that an end has not, on pictures as they
    come elsewhere (gain <= 0)."""
    rows: Figures = {}
    for name, one in found.items():
        accuracies = one["accuracy"]
        rows[name] = {
            "gain": gain(accuracies), "barrier": barrier([1 - a for a in accuracies], alphas),
            "best": alphas[int(np.argmax(accuracies))], "ends": [accuracies[0], accuracies[-1]],
        }  # fmt: skip
    if "ood" in rows:
        rows["failed"] = rows["ood"]["gain"] <= 0
    return rows


# -- E. sharpness ------------------------------------------------------------------------------------------------------


def parts(judged: Judged, points: int, batch: int) -> list[Judged]:
    count = min(points, len(judged))
    return [judged.some(slice(start, min(start + batch, count))) for start in range(0, count, batch)]


def moving(weights: Mapping[str, Tensor], names: Sequence[str], judged: Judged) -> list[str]:
    """Those that a gradient moves: no buffers."""
    trained = {f"image.{name}" for name, _ in judged.tower.named_parameters()} | {"head.weight", "head.bias"}
    return [name for name in names if name in trained and weights[name].is_floating_point()]


def sharp(judged: Judged, weights: dict[str, Tensor], config: Config, names: Sequence[str] = ()) -> Figures:
    """Worst and average case over batches, each by itself; and by how much the error rises at the worst."""
    own = moving(weights, names or list(weights), judged)
    points = config.layer_points if names else config.points
    batches = parts(judged, points, config.batch)
    rows: dict[str, list[float]] = {"worst": [], "average": [], "error": []}
    for batch in batches:
        rise, change = sharpness.worst(
            batch.loss, weights, own, config.rho, adaptive=config.adaptive, iterations=config.iterations
        )
        rows["worst"].append(rise)
        rows["average"].append(
            sharpness.average(batch.loss, weights, own, config.rho, adaptive=config.adaptive, draws=config.draws)
        )
        errors = [1 - batch.score(w)["accuracy"] for w in (weights, sharpness.moved(weights, change))]
        rows["error"].append(errors[1] - errors[0])
    found: Figures = {name: float(np.mean(values)) for name, values in rows.items()}
    if not names:
        found["curve"] = {
            f"{rho:g}": float(np.mean([
                sharpness.worst(b.loss, weights, own, rho, adaptive=config.adaptive, iterations=config.iterations)[0]
                for b in batches
            ])) if rho != config.rho else found["worst"]
            for rho in config.rhos
        }  # fmt: skip
    return found


# -- F. layer by layer -------------------------------------------------------------------------------------------------


def lag(both: Ends, names: Sequence[str], judged: Judged, alphas: Sequence[float]) -> float:
    """mean over alpha of [loss(this layer at alpha, all others of the second model) - loss(second)]_+"""
    first, second = both
    base = judged.score(second)["loss"]
    rises = []
    for alpha in alphas:
        if alpha < 1:
            own = interpolate({n: first[n] for n in names}, {n: second[n] for n in names}, alpha)
            rises.append(max(judged.score({**second, **own})["loss"] - base, 0.0))
    return float(np.mean([*rises, 0.0]))


def one_layer(both: Ends, names: Sequence[str], judged: Judged, config: Config) -> Figures:
    some = judged.some(slice(0, config.layer_points))
    moved = sum(float((both[1][n] - both[0][n]).double().square().sum()) for n in names) ** 0.5
    found: Figures = {"lag": lag(both, names, some, config.alphas[::2]), "moved": moved, "tensors": list(names)}
    if config.layers and moving(both[1], names, judged):
        found["sharpness"] = sharp(judged, both[1], config, names)
    return found


def stragglers(lags: Mapping[str, float], most: int) -> list[str]:
    """The layers that stay bad while the others have recovered: the `most` with the largest lag, or all beyond the
    median by two median absolute deviations. A layer without a lag is none."""
    order = sorted((layer for layer in lags if lags[layer] > 0), key=lambda layer: -lags[layer])
    if most:
        return order[:most]
    values = np.array([*lags.values()])
    deviation = np.median(np.abs(values - np.median(values)))
    return [layer for layer in order if lags[layer] > np.median(values) + 2 * deviation]


# -- G. repair ---------------------------------------------------------------------------------------------------------


def repair(both: Ends, names: Sequence[str], choose: Judged, sets: Mapping[str, Judged], config: Config) -> Figures:
    """Prune the stragglers, then draw the line again; the sparsity is that of the best accuracy on the choosing half,
    over the line, and of equal ones the larger."""
    first, second = both
    base = first if config.mode == "delta" else None
    scanned = {}
    for sparsity in (0.0, *config.sparsities):
        line = path((first, prune(second, sparsity, names, base)), {"id": choose}, config.alphas[::2])
        scanned[sparsity] = max(line["id"]["accuracy"])
    chosen = max(scanned, key=lambda s: (scanned[s], s))
    line = path((first, prune(second, chosen, names, base)), sets, config.alphas)
    scan = {f"{s:g}": accuracy for s, accuracy in scanned.items()}
    return {"scan": scan, "sparsity": chosen, "path": line, "summary": summary(line, config.alphas)}
