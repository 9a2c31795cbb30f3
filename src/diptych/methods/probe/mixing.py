"""Mixing: which source, or which mixture, makes a model robust: lines over runs, dilution, and what to mix.

Use it on a grid of runs, the same training on several sizes of each source (`diptych curate mixing`, then `diptych
train`), to see which source holds up under which shift, what mixing costs, and, from models of single sources alone,
which mixture is worth a training: the ensemble of their logits stands for it. Not on one model a source: a larger
source is further along on both axes, so that lines are compared and never accuracies, and a line of fewer than four
runs, or on which they do not lie (R\u00b2 below 0.9), is refused. Remove near-copies of the test pictures first.

Nguyen et al., Quality Not Quantity: On the Interaction between Dataset Design and Robustness of CLIP, NeurIPS 2022,
arXiv 2208.05516: input mixing (section 4.1), output mixing (4.2). Its finding: no source is best on all shifts, a
mixture lies between its sources, and ensembles of their models predict where. Published as plots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from diptych.data.mixture import name_of, parse_mixture
from diptych.errors import DiptychError
from diptych.methods.probe.parts.answers import Answers, judge
from diptych.methods.probe.parts.data import Data
from diptych.methods.probe.parts.mixture_pages import mixing_report
from diptych.methods.probe.parts.mixtures import BASELINE, Tried, analyse
from diptych.methods.probe.parts.probe import Model, Pieces, Probe, Role
from diptych.report import Report

Figures = dict[str, Any]
LOGITS = ("scaled", "cosine")
Sets = Mapping[str, tuple[Data, Data, list[int]]]  # shift -> the reference on its classes, the shift, those classes


@dataclass(frozen=True)
class Config:
    """logits: what an ensemble adds up, each model's own logits (scaled) or its plain cosines (cosine). grid: shares of
    ensembles of two sources, beside the mixtures that were trained on. baseline: the source whose line effective
    robustness is measured from, where no model has the tag baseline=yes. target: the shift to advise for ("" all). at:
    the accuracy on the reference at which lines are read (0: the middle of what all reach). rounds: of the bootstrap.
    """

    logits: str = "scaled"
    grid: tuple[float, ...] = (0.25, 0.5, 0.75)
    baseline: str = ""
    target: str = ""
    at: float = 0.0
    rounds: int = 500


class Mixing(Probe):
    Config = Config
    needs = "models of several sources, labelled pictures"
    roles = {  # noqa: RUF012
        "data": Role("classes", "labelled pictures: the reference", needed=True),
        "shifted": Role("classes", "pictures of the same classes as they come elsewhere", needed=True, many=True),
    }

    def measure(self, models: Sequence[Model], datasets: Mapping[str, Any], pieces: Pieces) -> Figures:
        config, data = self.config, datasets["data"]
        if config.logits not in LOGITS:
            raise DiptychError(f'mixing.logits cannot be "{config.logits}"; valid: {", ".join(LOGITS)}')
        sets = {name: on_classes_of(data, other) for name, other in datasets.get("shifted", {}).items()}
        runs = [run_of(model) for model in models]
        tried = []
        for model, (mixture, size, seed, baseline) in zip(models, runs, strict=True):
            right = pieces(f"run {model.name}", lambda model=model: right_of(logits_of(model, data, sets), sets))
            tried.append(Tried(model.name, mixture, "input", size, seed, baseline, pairs_of(right)))
        for (size, seed), own in twins(models, runs).items():
            wanted = mixtures([run[0] for run in runs], sorted(own), config.grid)
            name = f"ensembles {size} {seed}".strip()
            found = pieces(name, lambda own=own, wanted=wanted: ensembles(own, wanted, data, sets, config.logits))
            tried += [
                Tried(f"{mixture}, ensemble", mixture, "output", size, seed, False, pairs_of(right))
                for mixture, right in found.items()
            ]
        figures = analyse(
            tried, {name: len(classes) for name, (_, _, classes) in sets.items()}, baseline=config.baseline,
            target=config.target, at=config.at, rounds=config.rounds,
        )  # fmt: skip
        about = {"source": data.records.source, "pictures": len(data), "classes": list(data.classes), "hash": data.hash}
        about["shifted"] = {name: [len(other), len(plain)] for name, (plain, other, _) in sets.items()}
        return {"system": self.system(), "config": asdict(config), "data": about, **figures}

    def report(self, figures: Mapping[str, Any]) -> Report:
        return mixing_report(figures)


# -- the data ----------------------------------------------------------------------------------------------------------


def on_classes_of(data: Data, other: Data) -> tuple[Data, Data, list[int]]:
    """The reference with the classes of a shift alone: among fewer classes a model is right more often."""
    classes = sorted(set(other.labels))
    rows = [i for i, label in enumerate(data.labels) if label in set(classes)]
    return data.some(rows), other, classes


# -- runs --------------------------------------------------------------------------------------------------------------


def run_of(model: Model) -> tuple[str, str, str, bool]:
    """(mixture, size, seed, whether it is a baseline), by the tags; without one a model is its own source."""
    tags = model.tags
    words = tags.get("source", "")
    mixture = name_of(parse_mixture(words, f"the source of {model.name}")) if words else model.name
    return mixture, tags.get("n", ""), tags.get("seed", ""), tags.get(BASELINE, "").lower() in ("yes", "true", "1")


def answers(model: Model, data: Data, sets: Sets) -> dict[str, tuple[Answers, Answers]]:
    """What a model says of the reference and of each shift, among the classes of the shift."""
    ask = judge(model, data)
    return {
        name: (
            ask(plain.records, plain.digests).columns(classes),
            ask(other.records, other.digests).columns(classes),
        )
        for name, (plain, other, classes) in sets.items()
    }


def logits_of(model: Model, data: Data, sets: Sets) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (plain.logits, other.logits) for name, (plain, other) in answers(model, data, sets).items()}


def right_of(answered: Mapping[str, tuple[Tensor, Tensor]], sets: Sets) -> dict[str, list[str]]:
    """Logits [N, classes of the shift] -> "1" or "0" a picture, of the reference and of the shift."""
    rows = {}
    for name, said in answered.items():
        *parts, classes = sets[name]
        rows[name] = [
            "".join("01"[classes[guess] == label] for guess, label in zip(logits.argmax(1), part.labels, strict=True))
            for logits, part in zip(said, parts, strict=True)
        ]
    return rows


def pairs_of(right: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    return {name: (reference, shifted) for name, (reference, shifted) in right.items()}


# -- output mixing -----------------------------------------------------------------------------------------------------


def twins(
    models: Sequence[Model], runs: Sequence[tuple[str, str, str, bool]]
) -> dict[tuple[str, str], dict[str, Model]]:
    """Models of single sources that were trained alike, by size and seed: source -> model. At least two of them."""
    found: dict[tuple[str, str], dict[str, Model]] = {}
    for model, (mixture, size, seed, _) in zip(models, runs, strict=True):
        if "=" not in mixture:
            found.setdefault((size, seed), {}).setdefault(mixture, model)
    return {key: own for key, own in found.items() if len(own) > 1}


def mixtures(trained: Sequence[str], sources: Sequence[str], grid: Sequence[float]) -> list[dict[str, float]]:
    """Those that were trained on, where all their sources are here, and each two sources at the grid's shares."""
    known = [parse_mixture(words, "a mixture") for words in dict.fromkeys(trained) if "=" in words]
    pairs = [{a: share, b: 1 - share} for (a, b), share in product(combinations(sources, 2), grid)]
    every = [one for one in (*known, *pairs) if set(one) <= set(sources)]
    return list({name_of(one): one for one in every}.values())


def ensembles(
    models: Mapping[str, Model], wanted: Sequence[Mapping[str, float]], data: Data, sets: Sets, logits: str
) -> dict[str, dict[str, list[str]]]:
    """mixture -> what the sum of the models' logits, weighted by the shares, gets right."""
    said = {source: answers(model, data, sets) for source, model in models.items()}

    def total(mixture: Mapping[str, float], name: str, side: int) -> Tensor:
        parts = [share * read(said[source][name][side], logits, source) for source, share in mixture.items()]
        return torch.stack(parts).sum(0)

    return {
        name_of(mixture): right_of({name: (total(mixture, name, 0), total(mixture, name, 1)) for name in sets}, sets)
        for mixture in wanted
    }


def read(answer: Answers, logits: str, source: str) -> Tensor:
    if logits == "scaled":
        return answer.logits
    if answer.cosines is None:
        raise DiptychError(
            f"the model of {source} has no texts of its classes, hence no cosines: use mixing.logits=scaled"
        )
    return answer.cosines
