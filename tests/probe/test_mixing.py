"""mixing: planted lines are found, what cannot be compared is refused, ensembles add logits, runs say their source."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from fakes import COLOURS, colour_clip, colour_folder
from PIL import Image
from torch.nn import functional as F
from train_world import make_clip

import diptych
from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.data.mixture import mixture_of
from diptych.data.pictures import open_picture
from diptych.errors import DiptychError
from diptych.methods.probe.mixing import Config, Mixing, mixtures
from diptych.methods.probe.parts.data import Data, open_data, open_like
from diptych.methods.probe.parts.mixtures import Kind, Tried, analyse
from diptych.methods.probe.parts.probe import Model, Pieces
from diptych.methods.probe.parts.run import open_models, plain, probe
from diptych.report.html import render

NORMAL, PICTURES, CLASSES = NormalDist(), 1500, 40
REACH = {"500": 0.42, "1000": 0.55, "2000": 0.66, "4000": 0.78}
HEIGHTS = {"a": (0.3, -1.0), "b": (-0.8, -0.2), "a=0.5,b=0.5": (-0.2, -0.6), "c": (-0.8, -1.0)}  # on s, on t
AHEAD = {"a": 0.0, "b": 0.02, "a=0.5,b=0.5": 0.01, "c": 0.12}  # a source's size says nothing of its line


def bits(share: float, rng: np.random.Generator, count: int = PICTURES) -> str:
    """As many right as the share says, at chance places: no noise but that of the places."""
    right = np.zeros(count, int)
    right[rng.permutation(count)[: round(share * count)]] = 1
    return "".join(map(str, right))


def runs_of(mixture: str, heights: tuple[float, ...], kind: Kind = "input") -> list[Tried]:
    found = []
    for (size, reach), seed in itertools.product(REACH.items(), range(2)):
        rng = np.random.default_rng([len(mixture), ord(mixture[0]), int(size), seed, kind == "input"])
        reference = reach + AHEAD.get(mixture, 0.0) + 0.01 * seed
        right = {
            name: (bits(reference, rng), bits(NORMAL.cdf(0.9 * NORMAL.inv_cdf(reference) + height), rng))
            for name, height in zip("st", heights, strict=True)
        }
        found.append(Tried(f"{mixture} {size} {seed}", mixture, kind, size, str(seed), False, right))
    return found


def world() -> list[Tried]:
    tried = [run for mixture, heights in HEIGHTS.items() for run in runs_of(mixture, heights)]
    tried += runs_of("a=0.5,b=0.5", (-0.25, -0.6), "output") + runs_of("b=0.5,c=0.5", (-0.8, -0.6), "output")
    return tried


def analysed(tried=None, **how):
    return analyse(tried or world(), {"s": CLASSES, "t": CLASSES}, rounds=120, **how)


def line(found, shift: str, mixture: str, kind: str = "input"):
    return next(x for x in found["shifts"][shift]["lines"] if x["mixture"] == mixture and x["kind"] == kind)


def test_planted_lines_are_found_and_no_source_is_best_on_all_shifts() -> None:
    found = analysed()
    for mixture, heights in HEIGHTS.items():
        for shift, height in zip("st", heights, strict=True):
            one = line(found, shift, mixture)
            assert one["slope"][0] == pytest.approx(0.9, abs=0.02) and one["runs"] == 8 and one["r2"] > 0.99
            assert one["intercept"][0] == pytest.approx(height, abs=0.02)
            assert one["intercept"][1] < height < one["intercept"][2]
    assert found["shifts"]["s"]["order"][:2] == ["a", "a=0.5,b=0.5"] and found["shifts"]["t"]["order"][0] == "b"
    last = [run for run in found["runs"] if run["size"] == "4000" and run["kind"] == "input" and run["seed"] == "0"]
    ahead = max(last, key=lambda run: run["shifts"]["s"]["reference"])
    assert ahead["mixture"] == "c", "the most accurate run is of the source with the lowest line"


def test_dilution_is_told_from_a_mixture_that_is_better_than_both() -> None:
    on_s = {(x["kind"], x["mixture"]): x for x in analysed()["shifts"]["s"]["dilution"]}
    row = on_s["input", "a=0.5,b=0.5"]
    at = analysed()["shifts"]["s"]["at"]
    truth = [NORMAL.cdf(0.9 * NORMAL.inv_cdf(at) + HEIGHTS[m][0]) for m in ("a", "a=0.5,b=0.5")]
    assert row["best"] == "a" and row["sure"] and row["by"][0] == pytest.approx(truth[0] - truth[1], abs=0.02)
    better = [run for run in world() if run.mixture != "a=0.5,b=0.5"] + runs_of("a=0.5,b=0.5", (0.9, -0.6))
    row = next(x for x in analysed(better)["shifts"]["s"]["dilution"] if x["kind"] == "input")
    assert row["by"][2] < 0 and not row["sure"], "dilution is never taken for granted"


def test_an_ensemble_is_held_against_the_training_that_it_predicts() -> None:
    (row,) = analysed()["shifts"]["s"]["predicted"]
    assert row["mixture"] == "a=0.5,b=0.5" and abs(row["by"][0]) < 0.04 and row["nearer"] is True
    far = [run for run in world() if run.kind == "input"] + runs_of("a=0.5,b=0.5", (-1.4, -0.6), "output")
    (row,) = analysed(far)["shifts"]["s"]["predicted"]
    assert row["by"][0] < -0.2 and row["nearer"] is False


def test_advice_is_chosen_on_one_half_and_stated_on_the_other() -> None:
    found = analysed(target="t")["advice"]
    assert found["mixture"] == "b" and [c["mixture"] for c in found["candidates"]].count("a=0.5,b=0.5") == 1
    assert any(c["mixture"] == "b=0.5,c=0.5" and c["kind"] == "output" for c in found["candidates"])
    both = analysed()["advice"]
    assert both["mixture"] == "a" and both["targets"] == ["s", "t"] and "gain" not in both
    good = world() + runs_of("a=0.25,b=0.75", (0.2, -0.1))
    won = analysed(good)["advice"]
    assert won["mixture"] == "a=0.25,b=0.75" and won["single"] == "a" and won["gain"][1] > 0
    # what only looks good on the choosing half is stated as what it is on the other
    order = np.random.default_rng([7, PICTURES]).permutation(PICTURES)
    chosen = np.zeros(PICTURES, bool)
    chosen[order[0::2]] = True

    def flattered(run: Tried) -> Tried:
        reference, shifted = run.right["t"]
        up = "".join("1" if c else bit for c, bit in zip(chosen & (np.arange(PICTURES) % 2 == 0), shifted, strict=True))
        return replace(run, right={**run.right, "t": (reference, up)}) if run.mixture == "a" else run

    found = analysed([flattered(run) for run in world()], target="t")["advice"]
    first = found["candidates"][0]
    assert first["mixture"] == "a" and first["choosing"] - first["stated"] > 0.2


def test_too_few_runs_and_no_line_are_refused_and_never_ranked() -> None:
    few = [run for run in world() if run.mixture != "a" or (run.size in ("500", "4000") and run.seed == "0")]
    found = analysed(few)
    assert line(found, "s", "a")["refused"] == "2 runs, and a line needs 4" and "a" not in found["shifts"]["s"]["order"]
    assert found["advice"]["mixture"] != "a"
    rng = np.random.default_rng(3)
    cloud = [
        replace(run, right={**run.right, "s": (run.right["s"][0], bits(rng.uniform(0.3, 0.9), rng))})
        if run.mixture == "a" else run
        for run in world()
    ]  # fmt: skip
    assert "below 0.9" in line(analysed(cloud), "s", "a")["refused"]
    alone = analysed(runs_of("a", HEIGHTS["a"]))
    assert "refused" in alone["advice"] and alone["shifts"]["s"]["order"] == ["a"]


def test_runs_near_chance_are_dropped_and_the_line_is_that_of_the_others() -> None:
    rng = np.random.default_rng(0)
    low = Tried("low", "a", "input", "100", "0", False, {n: (bits(0.04, rng), bits(0.3, rng)) for n in "st"})
    found = analysed([*world(), low])
    assert (
        line(found, "s", "a")["dropped"] == 1 and line(found, "s", "a")["slope"] == line(analysed(), "s", "a")["slope"]
    )
    assert next(run for run in found["runs"] if run["name"] == "low")["shifts"]["s"]["dropped"]


def test_effective_robustness_is_measured_from_the_baseline() -> None:
    assert all("effective_robustness" not in run["shifts"]["s"] for run in analysed()["runs"])
    rows = analysed(baseline="b")["runs"]
    by = {m: np.mean([r["shifts"]["s"]["effective_robustness"][0] for r in rows if r["mixture"] == m]) for m in HEIGHTS}
    assert by["b"] == pytest.approx(0, abs=0.005) and by["a"] > 0.3 and by["c"] == pytest.approx(0, abs=0.02)
    marked = [replace(run, baseline=run.mixture == "c") for run in world()]
    assert analysed(marked)["shifts"]["s"]["baseline"][1] == pytest.approx(-0.8, abs=0.02)
    with pytest.raises(DiptychError, match='no run has the source "bb"; did you mean "b"'):
        analysed(baseline="bb")
    with pytest.raises(DiptychError, match='no shift is called "u"'):
        analysed(target="u")


# -- models and pictures -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return open_data(colour_folder(tmp_path / "photos", each=30))


def model(name: str, source: str, strength: float, **tags: str) -> Model:
    """A model that weighs the places of a picture by chance, the more the stronger."""
    clip = colour_clip(name)
    chance = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        clip.image.scale.mul_(torch.exp(strength * torch.randn(12, generator=chance)))  # pyright: ignore
    return Model(name, clip, tags={"source": source, **tags})


def test_ensembles_add_the_logits_of_models_that_were_trained_alike(data: Data, tmp_path: Path) -> None:
    some = tuple(COLOURS)[:3]
    other = open_like(colour_folder(tmp_path / "other", each=12, noise=150, colours=some), data)
    models = [
        model(f"{source}{n}", source, strength, n=n, seed="0")
        for source, strength in (("x", 0.6), ("y", 1.0)) for n in ("100", "200")
    ] + [model("z100", "z", 0.3, n="100", seed="1")]  # fmt: skip
    for logits in ("scaled", "cosine"):
        made = Mixing(Config(rounds=20, logits=logits, grid=(0.25,)))
        pieces = Pieces()
        figures = made.measure(models, {"data": data, "shifted": {"far": other}}, pieces)
        names = [run["name"] for run in figures["runs"] if run["kind"] == "output"]
        assert names == ["x=0.25,y=0.75, ensemble"] * 2, "of one size and seed alone"
        kept = [list(data.classes).index(c) for c in sorted(some)]
        assert figures["shifts"]["far"]["classes"] == 3
        for n, run in zip(("100", "200"), [r for r in figures["runs"] if r["kind"] == "output"], strict=True):
            for side, part in (("shifted", other), ("reference", data)):
                total = torch.zeros(len(part), 3)
                for share, source in ((0.25, "x"), (0.75, "y")):
                    clip = next(m.clip for m in models if m.name == f"{source}{n}")
                    pixels = torch.stack([clip.preprocess(open_picture(r)) for r in part.records])
                    rows = class_rows(clip, data.names, TextRecipe(ENSEMBLE))[kept]
                    cosines = F.normalize(clip.encode_image(pixels), dim=1) @ rows.T
                    total += share * cosines * (float(clip.logit_scale) if logits == "scaled" else 1.0)
                right = [
                    kept[g] == label for g, label in zip(total.argmax(1), part.labels, strict=True) if label in kept
                ]
                assert run["shifts"]["far"][side] == pytest.approx(np.mean(right), abs=1e-9), "on the shift's classes"
    with pytest.raises(DiptychError, match="valid: scaled, cosine"):
        Mixing(Config(logits="raw")).measure(models, {"data": data}, Pieces())


def test_mixtures_are_those_of_the_runs_and_of_the_grid() -> None:
    found = mixtures(["a", "a=0.9,b=0.1", "a=0.5,d=0.5"], ["a", "b", "c"], (0.5,))
    assert found == [{"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.5}, {"a": 0.5, "c": 0.5}, {"b": 0.5, "c": 0.5}]


def test_a_probe_of_runs_with_tags_in_a_table_draws_its_page(data: Data, tmp_path: Path) -> None:
    models, rows = [], ["model,source,n,seed,baseline"]
    for source, (i, n) in itertools.product(("x", "y", "x=0.5;y=0.5"), enumerate((1, 2, 3, 4))):
        mixture = source.replace(";", ",")
        name = f"{source[0]}{len(source)}-{n}"
        models.append(replace(model(name, mixture, 1.6 - 0.35 * i), tags={}))
        rows.append(f'{name},"{mixture}",{n},0,{"yes" if source == "y" else ""}')
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    far = {
        "far": colour_folder(tmp_path / "far", each=12, noise=120),
        "near": colour_folder(tmp_path / "near", each=12),
    }
    how = {"tags": tmp_path / "tags.csv", "settings": {"mixing.rounds": "20"}, "out": tmp_path / "out"}
    done = probe("mixing", models, data, others={"shifted": far}, **how)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["shifts"]) == ["far", "near"] and results["shifts"]["far"]["lines"][0]["mixture"] == "x"
    assert len([run for run in results["runs"] if run["kind"] == "output"]) == 4 * 3
    page = render(done.report)
    assert all(word in page for word in ("Lines on far", "Lines on near", "Runs", "What to mix"))
    assert (tmp_path / "out" / "pieces" / "ensembles 1 0.json").is_file()
    again = probe("mixing", models, data, others={"shifted": far}, **how)
    assert plain(again.figures["shifts"]) == results["shifts"]
    with pytest.raises(DiptychError, match="one set as shifted"):
        probe("robustness", models[:1], data, others={"shifted": far}, keep=False)
    with pytest.raises(DiptychError, match="needs shifted"):
        probe("mixing", models, data, keep=False)


def test_pages_of_the_planted_world_say_what_dilutes() -> None:
    figures = analysed() | {"config": {}, "data": {
        "source": "made", "pictures": PICTURES, "classes": ["c"] * CLASSES,
        "shifted": dict.fromkeys("st", (PICTURES, PICTURES)),
    }}  # fmt: skip
    page = render(Mixing().report(figures))
    assert "diluted" in page and "the ensemble is nearer" in page and page.count("<svg") == 4
    assert "a, then a=0.5,b=0.5" in page


def test_a_training_says_of_which_sources_its_pairs_are(tmp_path: Path) -> None:
    """What `curate mixing` counted goes into run.json, and from there into the tags."""
    rng = np.random.default_rng(0)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(mixed / f"{i}.png")
        (mixed / f"{i}.txt").write_text(f"picture {i}")
    tallies = {"rows of photos": 6, "rows of sketches": 2}
    (mixed / "report.json").write_text(json.dumps({"stages": [{"name": "draw", "tallies": tallies}]}))
    assert mixture_of(mixed) == "photos=0.75,sketches=0.25" and mixture_of(tmp_path) == ""
    out = tmp_path / "run"
    diptych.train("clip", mixed, model=make_clip(), out=out, steps=2, batch=4, seed=3, workers=0)
    for given in (out, out / "model"):
        (opened,) = open_models([given], "cpu", {})
        assert opened.name == "run" and opened.tags["source"] == "photos=0.75,sketches=0.25"
        assert opened.tags["n"] == "8" and opened.tags["seed"] == "3"
