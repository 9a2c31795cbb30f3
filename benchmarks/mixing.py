"""Mixtures of sources on drawn scenes: lines over sizes, dilution, what ensembles predict, a filter, and the theory.

    python benchmarks/mixing.py --out FOLDER              train what is not trained yet, then measure
    python benchmarks/mixing.py --out FOLDER --write      and write docs/results/mixing.json

Four sources: photos (scenes as they are), sketches, negatives (inverted colours), each with a fifth of its pictures in
each of the two other styles; and noisy, half of it such as sketches and half photos with the captions of other scenes.
Every picture has a light of its own and grain. A word tells the colour of a thing and a word its shape; nine colours
are the classes. Tests are 1,000 pictures of each style; photos are the reference. Two pools are cut by half, by the
cosines of a model of a good source or at random: noisy, and photos and negatives in equal parts.

A run is a small CLIP (4 x 4 patches, two layers, mean and largest of all patches; a mean of word vectors) trained from
scratch by the loss of `diptych train clip` for four epochs in batches of 64, whatever its size: of the sizes, the
epochs are held, not the steps. The rows of a run are drawn by `curate mixing`.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data.mixture import largest_remainder, name_of, parse_mixture
from diptych.data.scenes import Scenes, SceneSpec
from diptych.engine.provenance import provenance
from diptych.files import atomic, write_atomically
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.curate.mixing import Config, Mixing
from diptych.methods.curate.parts.pipeline import Place
from diptych.methods.probe.mixing import mixtures
from diptych.methods.probe.parts.mixtures import Key, Kind, Shift, Tried, analyse, lines_of
from diptych.metrics.dilution import expected_accuracy, simulated_accuracy
from diptych.metrics.trends import accuracies, difference, fit_trend

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "mixing.json"
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black")
STYLES = {"photos": "filled", "sketches": "sketch", "negatives": "inverted"}
OWN = 3  # parts of a source in its own style, beside one part in each other
LIGHT, GRAIN = 0.15, 25.0
POOL, TEST = 10_000, 1000  # pictures of a source, of a test
SIZES, SEEDS = (1000, 2000, 4000, 8000), (0, 1, 2)
EPOCHS, BATCH, RATE, WIDTH, EMBED = 4, 64, 3e-3, 64, 48
MIXES = (
    "photos", "sketches", "negatives", "noisy", "photos=0.75,sketches=0.25", "photos=0.5,sketches=0.5",
    "photos=0.25,sketches=0.75", "photos=0.5,negatives=0.5", "photos=1,sketches=1,negatives=1",
)  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """Half of a pool, by the cosines of a model of a good source with so many pairs, or at random."""

    pool: str
    good: str
    size: int
    random: bool = False


CUTS = {
    "noisy-filtered": Cut("noisy", "sketches", 8000),
    "noisy-random": Cut("noisy", "sketches", 8000, True),
    "styles-filtered": Cut("photos=0.5,negatives=0.5", "photos", 2000),
    "styles-random": Cut("photos=0.5,negatives=0.5", "photos", 2000, True),
}


@dataclass(frozen=True)
class Pictures:
    """pixels [N, 3, 32, 32] uint8; words [N, 2]: what is said of colour and shape; shown [N]: the colour there is."""

    pixels: Tensor
    words: Tensor
    shown: Tensor

    def __getitem__(self, rows: Tensor) -> "Pictures":
        return Pictures(self.pixels[rows], self.words[rows], self.shown[rows])


def drawn(style: tuple[str, ...], count: int, seed: int) -> Pictures:
    spec = SceneSpec(
        side=32, shapes=SHAPES, colours=COLOURS, sizes=("small", "medium"), counts=(1,), styles=style
    )  # fmt: skip
    pixels, words = np.empty((count, 3, 32, 32), np.uint8), np.empty((count, 2), np.int64)
    for i, record in enumerate(Scenes(spec, count, seed)):
        rng, labels = np.random.default_rng([9, seed, i]), record.labels
        light = np.exp(rng.normal(0, LIGHT, 3))
        lit = record.picture * light + rng.normal(0, GRAIN, record.picture.shape)
        pixels[i] = lit.clip(0, 255).transpose(2, 0, 1)
        words[i] = COLOURS.index(labels["colour"]), SHAPES.index(labels["shape"])
    return Pictures(torch.from_numpy(pixels), torch.from_numpy(words), torch.from_numpy(words[:, 0].copy()))


def leaning(own: str) -> tuple[str, ...]:
    return (STYLES[own],) * OWN + tuple(style for name, style in STYLES.items() if name != own)


def sets(out: Path) -> tuple[dict[str, Pictures], dict[str, Pictures]]:
    """(pools by source, tests by style), drawn once."""
    place = out / "pictures.npz"
    if not place.exists():
        found = {f"test {name}": drawn((style,), TEST, 900) for name, style in STYLES.items()}
        found |= {name: drawn(leaning(name), POOL, 5 + i) for i, name in enumerate(STYLES)}
        clean, other = drawn(leaning("sketches"), POOL, 20), drawn(leaning("photos"), POOL, 21)
        words = torch.cat([clean.words, other.words.roll(POOL // 2, 0)])
        found["noisy"] = Pictures(torch.cat([clean.pixels, other.pixels]), words, torch.cat([clean.shown, other.shown]))
        with atomic(place) as path, open(path, "wb") as file:
            np.savez(file, **{f"{n}/{k}": v.numpy() for n, one in found.items() for k, v in vars(one).items()})
    with np.load(place, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    names = dict.fromkeys(name.partition("/")[0] for name in arrays)
    every = {n: Pictures(*(arrays[f"{n}/{k}"] for k in ("pixels", "words", "shown"))) for n in names}
    tests = {name: every.pop(f"test {name}") for name in STYLES}
    return every, tests


# -- a run -------------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """The smallest CLIP that tells colours."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches, self.mix = nn.Conv2d(3, WIDTH, 4, 4), nn.Conv2d(WIDTH, WIDTH, 1)
        self.out = nn.Linear(2 * WIDTH, EMBED)
        self.words = nn.Embedding(len(COLOURS) + len(SHAPES), EMBED)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def images(self, pixels: Tensor) -> Tensor:
        x = F.gelu(self.patches((pixels.float() / 255 - 0.5) / 0.25))
        x = F.gelu(self.mix(x)).flatten(2)
        return F.normalize(self.out(torch.cat([x.mean(2), x.amax(2)], 1)), dim=1)

    def texts(self, words: Tensor) -> Tensor:
        return F.normalize(self.words(words[:, 0]) + self.words(len(COLOURS) + words[:, 1]), dim=1)

    def classes(self) -> Tensor:
        """A row a colour: the mean of what is said of it over all shapes."""
        shapes = torch.arange(len(SHAPES))
        rows = [self.texts(torch.stack([torch.full_like(shapes, c), shapes], 1)).mean(0) for c in range(len(COLOURS))]
        return F.normalize(torch.stack(rows), dim=1)


def train(pairs: Pictures, seed: int) -> Tiny:
    model, count = Tiny(seed), len(pairs.pixels)
    each = count // BATCH
    steps, chance = EPOCHS * each, torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1)
    order = torch.empty(0)
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(count, generator=chance)
        some = pairs[order[step % each * BATCH :][:BATCH]]
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 10) * 0.5 * (1 + np.cos(np.pi * step / steps))
        loss = softmax_contrastive(model.images(some.pixels), model.texts(some.words), model.log_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def chosen(sources: Mapping[str, int], mixture: str, count: int, seed: int) -> dict[str, Tensor]:
    """Rows of each source that `curate mixing` draws."""
    keys = [(f"{i:06d}", name) for name in parse_mixture(mixture, "") for i in range(sources[name])]
    (stage,) = Mixing(Config(name_words(mixture), count, short="refuse")).stages(["key", "source"], seed)
    batch = pa.RecordBatch.from_pydict({"key": [k for k, _ in keys], "source": [s for _, s in keys]})
    counts = stage.finish(stage.merge([stage.count(batch, Place(0, 0))]))
    kept = np.flatnonzero(stage.select(batch, Place(0, 0), counts).keep).tolist()
    return {
        name: torch.tensor([int(keys[i][0]) for i in kept if keys[i][1] == name]) for name in parse_mixture(mixture, "")
    }


def name_words(mixture: str) -> str:
    return mixture if "=" in mixture else f"{mixture}=1"


def joined(pools: Mapping[str, Pictures], rows: Mapping[str, Tensor]) -> Pictures:
    parts = [pools[name][own] for name, own in rows.items()]
    return Pictures(*(torch.cat([getattr(p, f) for p in parts]) for f in ("pixels", "words", "shown")))


def plan() -> Iterator[tuple[str, int, int]]:
    for seed in SEEDS:
        for arm in (*MIXES, *CUTS):
            for size in SIZES:
                yield arm, size, seed


def half(pools: Mapping[str, Pictures], cut: Cut, size: int, seed: int) -> tuple[Pictures, float]:
    """`size` of twice as many pairs, and which share of the clean ones they hold: those of the good source, or whose
    words are right."""
    counts = {name: len(pool.pixels) for name, pool in pools.items()}
    drawn_rows = chosen(counts, cut.pool, 2 * size, seed)
    pool = joined(pools, drawn_rows)
    clean = torch.cat([rows < POOL if name == "noisy" else torch.full_like(rows, name == cut.good, dtype=torch.bool)
                       for name, rows in drawn_rows.items()])  # fmt: skip
    if cut.random:
        scores = torch.rand(2 * size, generator=torch.Generator().manual_seed(seed))
    else:
        scorer = train(joined(pools, chosen(counts, cut.good, cut.size, seed)), seed)
        with torch.inference_mode():
            scores = (scorer.images(pool.pixels) * scorer.texts(pool.words)).sum(1)
    kept = scores.argsort(descending=True)[:size]
    return pool[kept], float(clean[kept].sum() / clean.sum())


def run_all(out: Path) -> None:
    pools, tests = sets(out)
    counts = {name: len(pool.pixels) for name, pool in pools.items()}
    todo = list(plan())
    for done, (arm, size, seed) in enumerate(todo, 1):
        place = out / "runs" / f"{arm} {size} {seed}.npz"
        if place.exists():
            continue
        about: dict[str, float] = {}
        if arm in CUTS:
            pairs, about["clean_kept"] = half(pools, CUTS[arm], size, seed)
        else:
            pairs = joined(pools, chosen(counts, arm, size, seed))
        start = time.process_time()
        model = train(pairs, seed)
        with torch.inference_mode():
            rows = model.classes()
            cosines = {name: (model.images(test.pixels) @ rows.T).numpy() for name, test in tests.items()}
        right = {name: float((c.argmax(1) == tests[name].shown.numpy()).mean()) for name, c in cosines.items()}
        about |= {"scale": float(model.log_scale.exp()), "cpu_seconds": time.process_time() - start}
        with atomic(place) as path, open(path, "wb") as file:
            arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **cosines}
            np.savez(file, **arrays)
        shown = {name: round(100 * share, 1) for name, share in right.items()}
        print(f"{done}/{len(todo)}", arm, size, seed, shown, file=sys.stderr, flush=True)


# -- what they say -----------------------------------------------------------------------------------------------------

SHIFTS, ROUNDS = ("sketches", "negatives"), 500
PAIR = ("photos", "sketches")


def tried_of(out: Path, tests: Mapping[str, Pictures]) -> tuple[list[Tried], list[dict[str, Any]]]:
    """Every run and every ensemble, and what was noted of the runs."""
    labels = {name: test.shown.numpy() for name, test in tests.items()}
    logits: dict[tuple[str, int, int], dict[str, np.ndarray]] = {}
    notes, tried = [], []
    for arm, size, seed in plan():
        with np.load(out / "runs" / f"{arm} {size} {seed}.npz", allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            logits[arm, size, seed] = {name: about["scale"] * file[name] for name in tests}
        notes.append({"arm": arm, "size": size, "seed": seed, **about})
        tried.append(tried_one(arm, "input", size, seed, logits[arm, size, seed], labels))
    sources = [arm for arm in MIXES if "=" not in arm]
    for size in SIZES:
        for seed in SEEDS:
            for mixture in mixtures(MIXES, sources, (0.25, 0.5, 0.75)):
                total = {
                    name: sum(share * logits[source, size, seed][name] for source, share in mixture.items())
                    for name in tests
                }
                tried.append(tried_one(name_of(mixture), "output", size, seed, total, labels))
    return tried, notes


def tried_one(
    mixture: str, kind: Kind, size: int, seed: int, logits: Mapping[str, Any], labels: Mapping[str, np.ndarray]
) -> Tried:
    mixture = name_of(parse_mixture(mixture, "a mixture"))
    bits = {name: "".join("01"[int(right)] for right in logits[name].argmax(1) == labels[name]) for name in labels}
    right = {name: (bits["photos"], bits[name]) for name in SHIFTS}
    return Tried(f"{mixture} {size} {seed}", mixture, kind, str(size), str(seed), False, right)


def percent(values: Any) -> list[float]:
    return [round(100 * float(v), 2) for v in values]


def single_against_mix(shift: Shift, at: float, single: str) -> dict[str, Any]:
    """Check 2: how far the source that has the shifted style lies above its equal mixture with photos."""
    mixture = name_of({"photos": 0.5, single: 0.5})
    by = difference(shift.trends["input", single], shift.trends["input", mixture], at)
    refused = {name: why for name in (single, mixture) if (why := shift.refused.get(("input", name)))}
    return {"at": percent([at])[0], "points": percent(by), "holds": by.mean >= 0.05, "refused": refused}


def over_shares(shift: Shift, at: float) -> dict[str, Any]:
    """Check 3 on sketches: lines of photos and sketches over the share of sketches, and what ensembles say."""
    names = [name_of({PAIR[0]: 1 - w, PAIR[1]: w}) for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    lines = [shift.trends["input", name] for name in names]
    trained = [line.at(at) for line in lines]
    rises = [difference(b, a, at) for a, b in itertools.pairwise(lines)]
    found: dict[str, Any] = {"trained": {name: percent(v) for name, v in zip(names, trained, strict=True)}}
    found["rises"] = [percent(step) for step in rises]
    found["monotone"] = all(step.mean > 0 for step in rises)
    found["monotone within the intervals"] = all(step.high >= 0 for step in rises)
    found["between the ends"] = all(trained[0].low <= v.mean <= trained[-1].high for v in trained[1:-1])
    found["ensembles"] = {}
    for name in names[1:-1]:
        own = shift.trends["input", name]
        by = difference(shift.trends["output", name], own, at)
        ends = {end: difference(shift.trends["input", end], own, at) for end in PAIR}
        found["ensembles"][name] = {
            "less trained": percent(by), "single less trained": {end: percent(v) for end, v in ends.items()},
            "within 4 points": abs(by.mean) <= 0.04,
            "nearer than either": all(abs(by.mean) < abs(end.mean) for end in ends.values()),
        }  # fmt: skip
    return found


def filtered(shift: Shift, at: float, notes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Check 4: how far the lines of a pool, whole and cut by half, lie from that of the good source."""
    cut = CUTS[f"{name}-filtered"]
    whole = name_of(parse_mixture(cut.pool, "a pool"))
    good: Key = ("input", cut.good)
    lines = {what: shift.trends["input", arm] for what, arm in
             (("whole", whole), ("filtered", f"{name}-filtered"), ("random", f"{name}-random"))}  # fmt: skip
    less = {what: difference(line, shift.trends[good], at) for what, line in lines.items()}
    gain = difference(lines["filtered"], lines["random"], at)
    kept = [n["clean_kept"] for n in notes if n["arm"] == f"{name}-filtered"]
    apart = {what: abs(by.mean) for what, by in less.items()}
    return {
        "good": cut.good, "at": percent([at])[0],
        "less the good source": {what: percent(by) for what, by in less.items()},
        "filtered less random": percent(gain),
        "clean pairs kept (mean, least, most)": percent([np.mean(kept), min(kept), max(kept)]),
        "keeps 80% of the clean": min(kept) >= 0.8,
        "filtered is nearer than whole": apart["filtered"] < apart["whole"],
        "filtered is nearer than random": apart["filtered"] < apart["random"],
        "filtered is told from random": gain.distinguishable,
        "refused": {what: line.refused for what, line in lines.items() if line.refused},
    }  # fmt: skip


def line_fits() -> dict[str, Any]:
    """Check 1: a known line from runs that are right by chance, 200 draws of 10 runs on 1,000 pictures each."""
    normal, rng, held = NormalDist(), np.random.default_rng(0), np.zeros(2)
    reference = np.repeat(np.linspace(0.35, 0.9, 5), 2)
    shifted = np.array([normal.cdf(0.9 * normal.inv_cdf(a) - 0.4) for a in reference])
    exact = fit_trend(reference[None], shifted[None], (1e-6, 1e-6)).line
    for seed in range(200):
        rights = [rng.random((10, 1000)) < share[:, None] for share in (reference, shifted)]
        trend = fit_trend(accuracies(rights[0], 100, seed), accuracies(rights[1], 100, seed + 1000), (5e-4, 5e-4), seed)
        held += [trend.slope.low <= 0.9 <= trend.slope.high, trend.intercept.low <= -0.4 <= trend.intercept.high]
    return {
        "largest error without noise": max(abs(exact.slope - 0.9), abs(exact.intercept + 0.4)),
        "draws whose interval holds the slope": held[0] / 200, "the intercept": held[1] / 200,
    }  # fmt: skip


def theory() -> dict[str, Any]:
    """Check 5: simulation less closed form, over shares, for a shift like one source, like the other, and between."""
    means = np.zeros((2, 8))
    means[0, 0], means[1, 1], means[1, 0] = 1.0, 1.2, 0.1
    grid, rows = [(1 - w, w) for w in np.linspace(0, 1, 9)], {}
    for name, shifted in {"one": means[0], "other": means[1], "between": means.sum(0)}.items():
        form = [expected_accuracy(means, shares, shifted, 1.0) for shares in grid]
        made = [
            simulated_accuracy(means, shares, shifted, 1.0, count=100_000, tests=100_000, seed=i)
            for i, shares in enumerate(grid)
        ]
        apart = max(abs(a - b) for a, b in zip(form, made, strict=True))
        rows[name] = {
            "closed form": percent(form),
            "simulated": percent(made),
            "largest difference": percent([apart])[0],
        }
    return rows


def draws() -> dict[str, Any]:
    """Check 6: shares and nesting of what `curate mixing` draws."""
    sources, exact, nested = {"a": 5000, "b": 3000, "c": 2000}, True, True
    for mixture in ("a=1,b=1", "a=3,b=1", "a=0.6,b=0.3,c=0.1"):
        before: dict[str, set[int]] = {}
        for count in (100, 500, 1000, 2500):
            rows = {name: set(own.tolist()) for name, own in chosen(sources, mixture, count, 0).items()}
            shares = parse_mixture(mixture, "a mixture")
            wanted = largest_remainder(np.array([shares[name] for name in rows]), count)
            exact &= [len(own) for own in rows.values()] == wanted.tolist()
            nested &= all(before.get(name, set()) <= own for name, own in rows.items())
            before = rows
    return {"exact": exact, "nested": nested}


def rounded(line: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(line)
    for name in ("slope", "intercept"):
        found[name] = [round(v, 3) for v in line[name]]
    return found | {
        "r2": round(line["r2"], 3),
        "at": percent(line["at"]),
        "reach": percent([line["low"], line["high"]]),
    }


def lines_shown(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [rounded(line) for line in lines if "slope" in line]


def measure(out: Path) -> dict[str, Any]:
    _, tests = sets(out)
    tried, notes = tried_of(out, tests)
    classes = dict.fromkeys(SHIFTS, len(COLOURS))
    figures = analyse(tried, classes, baseline="photos", rounds=ROUNDS)
    shifts = {name: lines_of(tried, name, count, "photos", ROUNDS) for name, count in classes.items()}
    at = {name: figures["shifts"][name]["at"] for name in SHIFTS}
    singles = [arm for arm in MIXES if "=" not in arm]
    heights = {
        name: {arm: shifts[name].trends["input", arm].at(at[name]).mean for arm in singles} for name in SHIFTS
    }  # fmt: skip
    best = {name: max(of, key=lambda arm, of=of: of[arm]) for name, of in heights.items()}
    accuracy: dict[str, dict[str, list[list[float]]]] = {}
    for run in figures["runs"]:
        if run["kind"] == "input":
            one = [run["shifts"][SHIFTS[0]]["reference"], *(run["shifts"][name]["shifted"] for name in SHIFTS)]
            accuracy.setdefault(run["mixture"], {}).setdefault(run["size"], []).append(one)
    return {
        "about": (__doc__ or "").split("\n\n", 2)[2].strip().replace("\n", " "),
        "epochs": EPOCHS, "sizes": list(SIZES), "seeds": len(SEEDS), "runs": len(notes), "test pictures": TEST,
        "accuracy (photos, sketches, negatives; mean over seeds)": {
            arm: {n: percent(np.mean(v, 0)) for n, v in by.items()} for arm, by in accuracy.items()
        },
        "read at": {name: percent([v])[0] for name, v in at.items()},
        "lines": {name: lines_shown(of["lines"]) for name, of in figures["shifts"].items()},
        "checks": {
            "1 line fits": line_fits(),
            "2 single source against its equal mixture with photos": {
                **{name: single_against_mix(shifts[name], at[name], name) for name in SHIFTS},
                "best source by shift": best, "no source is best on all": len(set(best.values())) > 1,
            },
            "3 over the shares": over_shares(shifts["sketches"], at["sketches"]),
            "4 filter": {
                "wrong captions, on sketches": filtered(shifts["sketches"], at["sketches"], notes, "noisy"),
                "another style, on negatives": filtered(shifts["negatives"], at["negatives"], notes, "styles"),
            },
            "5 theory": theory(), "6 draws": draws(),
        },
        "ensembles against trainings": {name: figures["shifts"][name]["predicted"] for name in SHIFTS},
        "dilution": {name: figures["shifts"][name]["dilution"] for name in SHIFTS},
        "advice": figures["advice"],
        "cpu_seconds of training": round(sum(n["cpu_seconds"] for n in notes), 1),
        "provenance": provenance() | {"threads": torch.get_num_threads()},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where pictures and runs are kept")
    parser.add_argument("--write", action="store_true", help="write docs/results/mixing.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    (given.out / "runs").mkdir(parents=True, exist_ok=True)
    run_all(given.out)
    found = json.dumps(measure(given.out), indent=1)
    print(found)
    if given.write:
        write_atomically(RESULTS, (found + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
