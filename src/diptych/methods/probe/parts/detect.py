"""Out-of-distribution detection of one model: what it is told from, how well, and the curve."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diptych.methods.probe.parts.answers import Answers, Judge
from diptych.methods.probe.parts.data import Data, Pictures, noise_pictures
from diptych.metrics.ood import auroc, detection, roc, scores

Figures = dict[str, Any]
NOISE = 100  # pictures of noise, for the farthest of what is not in distribution
HISTOGRAM = 30  # bins


def detect(
    asked: Judge, plain: Answers, data: Data, ood: Pictures | None, temperature: float, seed: int = 0
) -> Figures:
    """Against the given pictures, or each third of the classes held out in turn; and against noise.

    The score by default is MCM for zero-shot and MSP for classifiers; the others stand beside it.
    """
    best = "mcm" if plain.cosines is not None and asked.model.classifier is None else "msp"
    kept = scores(plain.logits, plain.cosines, temperature)
    found: Figures = {"score": best, "sets": {}}

    def against(name: str, inside: Mapping[str, torch.Tensor], outside: Mapping[str, torch.Tensor]) -> None:
        rows = {score: detection(inside[score], outside[score]) for score in inside}
        i, o = (side[best].numpy() for side in (inside, outside))
        rng = np.random.default_rng(0)
        draws = [auroc(rng.choice(i, len(i)), rng.choice(o, len(o))) for _ in range(200)]
        found["sets"][name] = {"scores": rows, "interval": np.quantile(draws, (0.025, 0.975)).tolist()}
        edges = np.histogram_bin_edges(np.concatenate([i, o]), HISTOGRAM)
        curve = roc(i, o)
        found["sets"][name] |= {
            "pictures": len(o), "roc": curve[np.linspace(0, len(curve) - 1, min(len(curve), 100)).astype(int)].tolist(),
            "edges": edges.tolist(), "inside": np.histogram(i, edges)[0].tolist(),
            "outside": np.histogram(o, edges)[0].tolist(),
        }  # fmt: skip

    if ood is not None:
        answers = asked(ood.records, ood.digests)
        against("given", kept, scores(answers.logits, answers.cosines, temperature))
        names = {name.casefold() for name in (*data.names, *data.classes)}
        found["overlap"] = [label for label in ood.records.labels if label.casefold() in names]
    elif len(data.classes) >= 3:
        thirds = np.array_split(np.arange(len(data.classes)), 3)
        inside, outside = [], []
        for third in thirds:
            known = [c for c in range(len(data.classes)) if c not in third]
            fewer, out = plain.columns(known), torch.from_numpy(np.isin(np.array(data.labels), third))
            own = scores(fewer.logits, fewer.cosines, temperature)
            inside.append({name: values[~out] for name, values in own.items()})
            outside.append({name: values[out] for name, values in own.items()})
        found["folds"] = [auroc(i[best], o[best]) for i, o in zip(inside, outside, strict=True)]
        sides = ({name: torch.cat([part[name] for part in side]) for name in kept} for side in (inside, outside))
        against("held-out classes", *sides)
    noise = noise_pictures(NOISE, seed)
    answers = asked(noise.records, noise.digests)
    against("noise", kept, scores(answers.logits, answers.cosines, temperature))
    return found
