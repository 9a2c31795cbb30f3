"""weight_space: sharpness in closed form, ends of the line, planted stragglers, failures flagged, nothing changed."""

import pytest
import torch
from fakes import colour_clip, colour_folder
from micro_world import Drawn, pair
from torch import Tensor

from diptych.core.micro import micro
from diptych.core.weights import layers, prune
from diptych.data.scenes import Scenes, SceneSpec
from diptych.errors import DiptychError
from diptych.methods.adapt.gda import GDA
from diptych.methods.adapt.parts.adapter import fit_path, last
from diptych.methods.adapt.wise_ft import Config as Tuning
from diptych.methods.adapt.wise_ft import WiSEFT
from diptych.methods.probe.parts.data import open_data, scene_data
from diptych.methods.probe.parts.endpoints import Judged, ends, logits, tensors_of, tower_of
from diptych.methods.probe.parts.probe import Model, Pieces
from diptych.methods.probe.parts.sharpness import average, checkpoints, worst
from diptych.methods.probe.weight_space import (
    Config,
    WeightSpace,
    barrier,
    gain,
    lag,
    path,
    pixels_of,
    repair,
    stragglers,
    summary,
)  # fmt: skip

SHAPES, COLOURS = ("circle", "triangle", "star"), ("red", "yellow", "blue")
ID = SceneSpec(shapes=SHAPES, colours=COLOURS, counts=(1,), sizes=("large",), styles=("sketch",))
OOD = SceneSpec(shapes=SHAPES, colours=COLOURS, counts=(1,), sizes=("medium",), styles=("sketch", "noisy", "pixelated"))
QUICK = Config(points=16, batch=16, iterations=3, rhos=(0.01, 0.05), draws=2, layers=False, alphas=(0.0, 0.5, 1.0))


# -- sharpness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [True, False])
def test_of_a_quadratic_it_is_the_closed_form(adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(30, generator=generator, dtype=torch.float64) + 0.1
    w = {"a": torch.randn(20, generator=generator, dtype=torch.float64), "b": h.new_ones(10)}

    def loss(weights) -> Tensor:
        both = torch.cat([weights["a"], weights["b"]])
        return 0.5 * (h * both * both).sum()

    flat = torch.cat([w["a"], w["b"]]).abs()
    before, last_one = {name: t.clone() for name, t in w.items()}, 0.0
    for rho in (0.02, 0.1, 0.4):
        r = rho * flat if adaptive else torch.full_like(flat, rho)
        expected = float((h * (flat * r + r * r / 2)).sum())
        found, change = worst(loss, w, ["a", "b"], rho, adaptive=adaptive)
        assert found == pytest.approx(expected, rel=0.01)
        assert float(loss({n: w[n] + d for n, d in change.items()}) - loss(w)) == pytest.approx(found)
        assert found >= last_one, "a larger box holds the smaller"
        mean = average(loss, w, ["a", "b"], rho, adaptive=adaptive, draws=200)
        assert mean == pytest.approx(float((h * r * r / 6).sum()), rel=0.3) and mean <= found
        alone = float((h[:20] * (flat * r + r * r / 2)[:20]).sum())
        assert worst(loss, w, ["a"], rho, adaptive=adaptive)[0] == pytest.approx(alone, rel=0.01)
        last_one = found
    assert all(torch.equal(before[name], w[name]) for name in w)


def test_steps_are_halved_where_the_recipe_says() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


# -- the line ----------------------------------------------------------------------------------------------------------


def test_gain_barrier_and_stragglers() -> None:
    assert gain([0.5, 0.7, 0.6]) == pytest.approx(0.1) and gain([0.5, 0.4, 0.6]) == 0
    assert barrier([0.5, 0.6, 0.3], [0.0, 0.5, 1.0]) == pytest.approx(0.2) and barrier([0.5, 0.4], [0.0, 1.0]) == 0
    lags = {"a": 0.1, "b": 0.11, "c": 0.9, "d": 0.12, "e": 0.1}
    assert stragglers(lags, 2) == ["c", "d"] and stragglers(lags, 0) == ["c"]
    assert stragglers({"a": 0.0, "b": 0.2}, 2) == ["b"], "a layer that costs nothing is no straggler"
    flat = {"ood": {"accuracy": [0.5, 0.4, 0.3]}}
    assert summary(flat, (0.0, 0.5, 1.0))["failed"]
    assert not summary({"ood": {"accuracy": [0.5, 0.6, 0.3]}}, (0.0, 0.5, 1.0))["failed"]


@pytest.fixture(scope="module")
def world():
    """micro, and a mild fine-tune of it on sketches."""
    clip = micro()
    few = Drawn(ID, pair, 9, 12, seed=1).support()
    tuned = last(fit_path(WiSEFT(), Tuning(alpha=1.0, epochs=3, rate=1e-4), clip, few))
    words = {f"{c} {s}": f"{c} {s}" for c in COLOURS for s in SHAPES}
    data, other = (scene_data(Scenes(spec, 120, 7), "class", words) for spec in (ID, OOD))
    return Model("micro", clip), Model("tuned", clip, tuned), data, other


def test_the_ends_are_the_models_themselves_and_nothing_is_changed(world) -> None:
    zero, tuned, data, _ = world
    before = {name: t.clone() for name, t in zero.clip.state_dict().items()}
    both = ends(zero, tuned, data)
    judged = pixels_of(zero, data.at_most(20), Config())
    for model, weights in zip((zero, tuned), both, strict=True):
        with torch.no_grad():
            embeddings = model.clip.encode_image(judged.pixels)
        if model.classifier is None:
            rows = both[0]["head.weight"]
            expected = torch.nn.functional.normalize(embeddings, dim=-1) @ rows.T
        else:
            expected = model.classifier.logits(embeddings)[:, [model.classifier.classes.index(c) for c in data.classes]]
        assert torch.allclose(judged.answers(weights), expected, atol=1e-4)
    figures = WeightSpace(QUICK).measure([zero, tuned], {"data": data.at_most(48)}, Pieces())
    assert set(figures["layers"]) >= {"head", "image.model.conv1"} or len(figures["layers"]) > 6
    assert all(torch.equal(before[name], t) for name, t in zero.clip.state_dict().items())
    assert figures["sharpness"]["second"]["worst"] >= figures["sharpness"]["second"]["average"]
    curve = list(figures["sharpness"]["second"]["curve"].values())
    assert curve[0] <= curve[1]


def test_a_mild_fine_tune_helps_between_and_a_scrambled_one_is_flagged(world) -> None:
    zero, tuned, data, other = world
    alphas = (0.0, 0.25, 0.5, 1.0)
    sets = {"id": pixels_of(zero, data, Config()), "ood": pixels_of(zero, other, Config())}
    both = ends(zero, tuned, data)
    mild = path(both, sets, alphas)
    found = summary(mild, alphas)
    assert mild["id"]["accuracy"][-1] > mild["id"]["accuracy"][0] + 0.2, "it learned the sketches"
    assert max(mild["ood"]["accuracy"]) >= max(mild["ood"]["accuracy"][0], mild["ood"]["accuracy"][-1])
    generator = torch.Generator().manual_seed(0)
    ruined = {
        name: t + 0.3 * torch.randn(t.shape, generator=generator) if t.is_floating_point() and t.dim() > 1 else t
        for name, t in both[1].items()
    }
    broken = summary(path((both[0], ruined), sets, alphas), alphas)
    assert broken["failed"] and broken["ood"]["gain"] <= 0
    assert broken["ood"]["gain"] <= found["ood"]["gain"]


def scrambled(weights: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The same function by other weights of one block: hidden units in another order, heads with both signs turned.
    Half the way to it there is nothing of use."""
    made = dict(weights)
    (up,) = (name for name in names if name.endswith("c_fc.weight"))
    order = torch.randperm(len(made[up]), generator=torch.Generator().manual_seed(0))
    down = up.replace("c_fc", "c_proj")
    made[up], made[down] = made[up][order], made[down][:, order]
    made[up.replace("weight", "bias")] = made[up.replace("weight", "bias")][order]
    for name in names:
        if "in_proj" in name or name.endswith("out_proj.weight"):
            made[name] = -made[name]
    return made


def test_a_planted_straggler_is_found_and_going_back_on_it_mends_the_line(world) -> None:
    zero, tuned, data, _ = world
    first, second = ends(zero, tuned, data)
    groups = layers(first)
    planted = next(layer for layer in groups if layer.endswith(".1"))
    bad = scrambled(second, groups[planted])
    judged = pixels_of(zero, data.at_most(96), Config())
    choose, test = judged.some(slice(0, 32)), judged.some(slice(32, 96))
    assert torch.allclose(choose.answers(bad), choose.answers(second), atol=1e-3), "the same model"
    lags = {layer: lag((first, bad), names, choose, (0.0, 0.5, 1.0)) for layer, names in groups.items()}
    assert stragglers(lags, 1) == [planted] == stragglers(lags, 0)[:1]

    sets, alphas = {"ood": test}, (0.25, 0.5)
    lines = {
        name: sum(path((first, end), sets, alphas)["ood"]["loss"])
        for name, end in {"plain": second, "bad": bad, "mended": prune(bad, 1.0, groups[planted], first)}.items()
    }
    assert lines["mended"] < lines["bad"] - 0.1 and lines["plain"] < lines["bad"] - 0.1
    config = Config(alphas=(0.0, 0.25, 0.5), sparsities=(0.5, 1.0))
    mended = repair((first, bad), groups[planted], choose, sets, config)
    assert set(mended["scan"]) == {"0", "0.5", "1"} and mended["sparsity"] in (0.0, 0.5, 1.0)
    assert mended["scan"][f"{mended['sparsity']:g}"] == max(mended["scan"].values())


def test_the_lag_is_its_formula(world) -> None:
    zero, tuned, data, _ = world
    both = ends(zero, tuned, data)
    judged = pixels_of(zero, data.at_most(24), Config())
    names = layers(both[0])["head"]
    expected = []
    for alpha in (0.0, 0.5):
        mixed = {**both[1], **{n: (1 - alpha) * both[0][n] + alpha * both[1][n] for n in names}}
        z = [logits(judged.tower, w, judged.pixels) for w in (mixed, both[1])]
        rise = [float(torch.nn.functional.cross_entropy(one, judged.labels)) for one in z]
        expected.append(max(rise[0] - rise[1], 0))
    assert lag(both, names, judged, (0.0, 0.5, 1.0)) == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_what_no_line_leads_to_is_refused(tmp_path) -> None:
    clip, small = micro(), colour_clip()
    data = open_data(colour_folder(tmp_path / "p"))
    with pytest.raises(DiptychError, match="no line leads from"):
        ends(Model("micro", clip), Model("colours", small), data)
    few = Drawn(ID, pair, 9, 4, seed=1).support()
    with pytest.raises(DiptychError, match="micro and again have the same weights"):
        WeightSpace(QUICK).measure(
            [Model("micro", clip), Model("again", clip)], {"data": scene_data(Scenes(ID, 60, 3))}, Pieces()
        )
    gda = last(fit_path(GDA(), GDA.Config(alpha=1.0), clip, few))
    scenes = scene_data(Scenes(ID, 60, 3), "class")
    with pytest.raises(DiptychError, match="is no matrix"):
        tensors_of(Model("gda", clip, gda), scenes)
    with pytest.raises(DiptychError, match='does not know the class "blue'):
        tensors_of(Model("gda", clip, gda), data)
    assert isinstance(Judged(tower_of(small), torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64)), Judged)
