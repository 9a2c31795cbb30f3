"""robustness: planted biases and a mis-calibrated model are found, axes are left out with the reason, work is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import COLOURS, colour_clip, colour_folder
from PIL import Image

from diptych.core.classifier import Base, Classifier
from diptych.core.heads import TextRows
from diptych.core.micro import micro
from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.data.scenes import Scenes, SceneSpec
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError
from diptych.methods.probe.parts.data import (
    Data,
    measured_factors,
    open_data,
    open_like,
    open_pictures,
    scene_data,
    scene_factors,
)  # fmt: skip
from diptych.methods.probe.parts.places import correspondence
from diptych.methods.probe.parts.probe import Model, Pieces
from diptych.methods.probe.parts.run import probe
from diptych.methods.probe.robustness import Config, Robustness
from diptych.metrics.ood import auroc
from diptych.report.html import render

NONE = Config(changes="none", pictures=20)


@pytest.fixture
def data(tmp_path) -> Data:
    return open_data(colour_folder(tmp_path / "photos", each=40))


def measure(models, datasets, config=NONE):
    return Robustness(config).measure(models, datasets, Pieces())["models"]


def tripled(model: Model, data: Data, times: float = 3.0) -> Model:
    """The same guesses, three times as sure."""
    rows = class_rows(model.clip, data.classes, TextRecipe(ENSEMBLE))
    head = TextRows(rows, times * float(model.clip.logit_scale))
    fitted = Classifier("made", {}, data.classes, data.classes, head, Base.of(model.base))
    return Model(f"{times:g} times", model.base, fitted)


def test_a_model_that_is_surer_than_right_is_found_out() -> None:
    data = scene_data(Scenes(SceneSpec(counts=(1,), sizes=("medium", "large")), 320, 3))
    start = Model("micro", micro())
    best = measure([start], {"data": data})["micro"]["calibration"]["best"]
    models = [tripled(start, data, t / best) for t in (1.0, 3.0)]  # the first has its own best temperature
    good, bad = (axes["calibration"] for axes in measure(models, {"data": data}).values())
    assert good["best"] == pytest.approx(1, rel=0.02) and bad["best"] == pytest.approx(3 * good["best"], rel=0.02)
    assert bad["sets"]["before"]["ece"][0] >= 2 * good["sets"]["before"]["ece"][0]
    assert bad["sets"]["after"]["ece"][0] == pytest.approx(good["sets"]["after"]["ece"][0], abs=0.005)
    assert bad["sets"]["before"]["accuracy"] == good["sets"]["before"]["accuracy"]
    assert bad["sets"]["before"]["over"] > good["sets"]["before"]["over"]


def test_a_planted_factor_is_the_most_sensitive_one(data: Data) -> None:
    """Pictures that were painted over are wrong; their tag comes first, whatever else is tagged."""
    guesses = measure([Model("colours", colour_clip())], {"data": data})["colours"]["plain"]["right"]
    wrong = {r.id for r, right in zip(data.records, guesses, strict=True) if right == "0"}
    half = {r.id for i, r in enumerate(data.records) if i % 2}
    tags = {r.id: tuple(t for t, own in (("hard", wrong), ("any", half)) if r.id in own) for r in data.records}
    config = replace(NONE, least=1)
    found = measure([Model("colours", colour_clip())], {"data": replace(data, factors=tags)}, config)["colours"]
    rows = {row["name"]: row for row in found["factors"]["rows"]}
    assert found["factors"]["rows"][0]["name"] == "hard" and rows["hard"]["accuracy"][0] == 0
    assert abs(rows["any"]["sensitivity"]) < 1 < rows["hard"]["sensitivity"]
    assert not found["factors"]["measured"]


def test_factors_are_measured_of_plain_pictures(data: Data) -> None:
    tags = measured_factors(data)
    bright = {r.id: np.asarray(Image.open(r.path).convert("L")).mean() for r in data.records if r.path}
    dark, rest = ([bright[one] for one, own in tags.items() if ("dark" in own) == yes] for yes in (True, False))
    assert max(dark) <= min(rest) + 1 and len(dark) == pytest.approx(len(data) / 5, abs=1.5)
    assert not any("wide" in own for own in tags.values()), "all are square"
    assert measured_factors(data.some(range(5))) == {}


def test_scenes_say_what_is_special_about_them() -> None:
    spec = SceneSpec(counts=(1,), turn=180.0, textures=("solid", "striped"), sizes=("small", "large"))
    for record in list(Scenes(spec, 30, 2)):
        thing, tags = record.scene.things[0], scene_factors(record)
        assert ("texture" in tags) == (thing.texture == "striped") and ("smaller" in tags) == (thing.size == "small")
        assert ("pose" in tags) == (abs(np.degrees(thing.turn)) > 45)
        assert "multiple objects" not in tags and "background" not in tags


def test_held_out_shapes_are_told_from_known_ones_and_id_from_id_is_not() -> None:
    """MCM of micro: pictures of four shapes that have no name against ten that have."""
    clip = micro()
    known = ("circle", "star", "cross", "ring", "arrow")
    other = ("heart", "flower", "triangle")
    spec = SceneSpec(counts=(1,), sizes=("large",), shapes=known)
    inside = scene_data(Scenes(spec, 160, 5))
    again = open_pictures(scene_data(Scenes(spec, 160, 6)))
    outside = open_pictures(scene_data(Scenes(replace(spec, shapes=other), 160, 5)))
    figures = [
        measure([Model("micro", clip)], {"data": inside, "ood": ood})["micro"]["ood"] for ood in (outside, again)
    ]
    far, same = (one["sets"]["given"]["scores"]["mcm"]["auroc"] for one in figures)
    assert figures[0]["score"] == "mcm" and far > 0.6
    assert same == pytest.approx(0.5, abs=0.1) and far > same + 0.1
    assert figures[0]["overlap"] == [] and len(figures[1]["overlap"]) == 5
    assert auroc([-1, -2], [-3, -3]) == 1 - auroc([1, 2], [3, 3])


def test_matched_patches_fall_with_the_camera_and_random_ones_are_at_chance() -> None:
    data = scene_data(Scenes(SceneSpec(counts=(3,), sizes=("large",)), 12, 1))
    model = Model("micro", micro())
    found = correspondence(model, data, (0.0, 0.03, 0.06, 0.1), 12)["shifts"]
    assert found["0"]["1"] == 1.0, "identical views"
    assert found["0"]["1"] > found["0.03"]["1"] > found["0.06"]["1"] > 0.5 < found["0.1"]["1"] < found["0.03"]["1"]
    chance = 5 / 64  # of 64 patches, those within one of the right place
    torch.manual_seed(0)
    blind = Model("blind", micro())
    blind.base.image.forward = random_tokens  # type: ignore[method-assign]
    assert correspondence(blind, data, (0.1,), 12)["shifts"]["0.1"]["1"] == pytest.approx(chance, abs=0.06)
    assert "skipped" in correspondence(Model("colours", colour_clip()), data, (0.1,), 2)


def random_tokens(pixels, **_):
    from diptych.core.tower import TowerOutput

    return TowerOutput(torch.zeros(len(pixels), 256), torch.randn(len(pixels), 65, 32))


def test_changes_are_measured_kept_and_worse_with_severity(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(NONE, changes="darkness,gaussian_noise", severities=(1, 5), pictures=40)
    models = [Model("colours", colour_clip())]
    found = measure(models, {"data": data}, config)["colours"]["changes"]
    assert set(found["kinds"]) == {"darkness", "gaussian_noise"} and not found["depth"]
    one, five = (found["kinds"]["darkness"][s]["accuracy"][0] for s in ("1", "5"))
    assert five < one <= 1 and found["kinds"]["darkness"]["5"]["drop"] == pytest.approx(1 - five / found["clean"])

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a picture was encoded again")

    monkeypatch.setattr(FeatureStore, "views", fail)
    assert measure(models, {"data": data}, config)["colours"]["changes"] == found
    with pytest.raises(DiptychError, match=r'has "fogg"; did you mean "fog"'):
        measure(models, {"data": data}, replace(NONE, changes="fogg"))


def test_what_the_data_cannot_say_is_left_out_with_the_reason(data: Data) -> None:
    axes = measure([Model("colours", colour_clip())], {"data": data})["colours"]
    for axis, reason in {"shape": "texture of another", "changes": "no change", "places": "drawn scenes"}.items():
        assert reason in axes[axis]["skipped"]
    assert "pictures with texts" in axes["modalities"]["retrieval"]["skipped"]
    assert set(axes["ood"]["sets"]) == {"held-out classes", "noise"}


def test_several_models_make_a_table_and_a_page(data: Data, tmp_path) -> None:
    clip = colour_clip()
    start = Model("colours", clip, tags={"source": "a"})
    models = [start, *(replace(tripled(start, data, t), tags={"source": "ab"[t > 1]}) for t in (0.5, 2.0))]
    shifted = open_like(colour_folder(tmp_path / "other", each=8, noise=120), data)
    figures = Robustness(NONE).measure(models, {"data": data, "shifted": shifted}, Pieces())
    zoo = figures["zoo"]
    assert set(zoo["rows"]) == {m.name for m in models} and "shifted" in zoo["rows"]["colours"]
    assert any(p["tag"] == "source" and p["pairs"] == 2 for p in zoo["paired"]["ece"])
    assert "baseline=yes" in zoo["effective_robustness"]["skipped"]
    page = render(Robustness(NONE).report(figures))
    assert all(word in page for word in ("inside a language model", "What explains it", "2 times", "<svg"))
    json.dumps(figures)


def test_a_run_writes_a_folder_and_is_not_done_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = colour_folder(tmp_path / "photos", each=20), tmp_path / "out"
    settings = {"robustness.changes": "jpeg", "robustness.severities": "1,5"}
    done = probe("robustness", [colour_clip()], photos, settings=settings, out=out)
    results = json.loads((out / "results.json").read_text())
    assert results["models"]["colours"]["changes"]["kinds"]["jpeg"].keys() == {"1", "5"}
    assert (out / "report.html").is_file() and results["provenance"]["versions"]
    (out / "pieces" / "colours changes.json").write_text('{"skipped": "kept"}')
    again = probe("robustness", [colour_clip()], photos, settings=settings, out=out)
    assert again.figures["models"]["colours"]["changes"] == {"skipped": "kept"}, "a finished piece is not done again"
    with pytest.raises(DiptychError, match="holds another probe"):
        probe("robustness", [colour_clip()], photos, out=out)
    assert done.folder == out


def test_bad_input_is_named(data: Data, tmp_path) -> None:
    for words, call in {
        "takes 2 models, not 1": lambda: probe("weight_space", [colour_clip()], data, keep=False),
        'no data called "odd"': lambda: probe("robustness", [colour_clip()], data, others={"odd": 1}, keep=False),
        'no setting "bin"; did you mean "bins"': lambda: probe(
            "robustness", [colour_clip()], data, settings={"robustness.bin": "3"}, keep=False
        ),
        "takes a whole number": lambda: probe(
            "robustness", [colour_clip()], data, settings={"robustness.bins": "x"}, keep=False
        ),
        "no pictures in": lambda: open_pictures(empty(tmp_path)),
        "it should show classes of": lambda: open_like(
            colour_folder(tmp_path / "c", 4), replace(data, classes=("cat", "dog"))
        ),
        "is no table": lambda: open_data(colour_folder(tmp_path / "d", 4), factors=["pose"]),
        "does not know the class": lambda: measure([tripled(Model("m", colour_clip()), data)], {"data": cut(data)}),
    }.items():
        with pytest.raises(DiptychError, match=words):
            call()


def empty(folder):
    (folder / "nothing").mkdir()
    return folder / "nothing"


def cut(data: Data) -> Data:
    return replace(data, classes=("violet", *sorted(COLOURS)[1:]))


def test_columns_of_a_table_are_factors(tmp_path) -> None:
    colour_folder(tmp_path / "p", each=12)
    rows = ["image,label,split,pose,kind"]
    for colour in COLOURS:
        rows += [f"p/{colour}/{i}.png,{colour},{'test' if i > 2 else 'train'},{'yes' if i % 2 else 'no'},a;b"
                 for i in range(12)]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(rows))
    data = open_data(tmp_path / "list.csv", factors=["pose", "kind"])
    assert len(data) == 36 and set(data.tags()) == {("pose", "a", "b"), ("a", "b")}
    with pytest.raises(DiptychError, match='no column "poze"; did you mean "pose"'):
        open_data(tmp_path / "list.csv", factors=["poze"])


def test_what_a_figure_depends_on_is_in_the_hash(data: Data) -> None:
    first = data.records[0].id
    others = [
        replace(data, factors={first: ("pose",)}),
        replace(data, textures={first: "red"}),
        replace(data, templates=("a {}.",)),
        replace(data, names=("a", "b", "c", "d")),
        data.some(range(5)),
    ]
    assert len({data.hash, *(other.hash for other in others)}) == 6
