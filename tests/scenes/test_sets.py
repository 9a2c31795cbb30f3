"""What a spec asks is what a set gives: shares, links, combinations that never meet, copies, numbers alone decide."""

import ast
import io
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diptych.data.scenes as package
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.scenes.scene import RADIUS, sample
from diptych.data.scenes.spec import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES
from diptych.errors import DiptychError


def near(share: float, asked: float, count: int) -> bool:
    """Within 3.5 standard deviations."""
    return abs(share - asked) <= 3.5 * np.sqrt(asked * (1 - asked) / count)


def test_a_scene_is_a_function_of_spec_seed_and_number():
    spec = SceneSpec(textures=TEXTURES, styles=("noisy", "filled"), exact_copies=0.2, near_copies=0.2, text_noise=0.5)
    scenes = Scenes(spec, 60, 5)
    order = list(range(60))
    random.Random(0).shuffle(order)
    seen = {i: (scenes[i].picture.tobytes(), scenes[i].text("long"), scenes[i].alt) for i in order}
    for i, record in enumerate(Scenes(spec, 6000, 5)):
        if i == 20:
            break
        assert seen[i] == (record.picture.tobytes(), record.text("long"), record.alt)
    assert Scenes(spec, 60, 6)[3].scene != scenes[3].scene
    program = (
        "from diptych.data.scenes import *\nimport zlib\n"
        "r = Scenes(SceneSpec(styles=('noisy',)), 60, 5)[41]\n"
        "print(zlib.crc32(r.picture.tobytes() + (r.text() + r.text('long de') + repr(r.questions)).encode()))"
    )
    runs = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in "ab"}
    assert len(runs) == 1


def test_what_is_asked_is_what_comes():
    spec = SceneSpec(
        shapes=("circle", "star", "star", "star"), sizes=("small", "large"), counts=(1, 2), copies=(1, 3), turn=20
    )
    scenes = [record.scene for record in Scenes(spec, 2000)]
    mains = Counter(scene.kinds[0].shape for scene in scenes)
    assert near(mains["star"] / 2000, 0.75, 2000)
    sizes = Counter(scene.kinds[0].size for scene in scenes)
    assert set(sizes) == {"small", "large"} and near(sizes["small"] / 2000, 0.5, 2000)
    assert near(sum(len(scene.kinds) == 2 for scene in scenes) / 2000, 0.5, 2000)
    copies = Counter(sum(thing.kind == 0 for thing in scene.things) for scene in scenes)
    assert set(copies) == {1, 3} and near(copies[3] / 2000, 0.5, 2000)
    turns = np.degrees([thing.turn for scene in scenes for thing in scene.things])
    assert 19 < turns.max() <= 20 and -20 <= turns.min() < -19
    for scene in scenes:
        assert len({(kind.shape, kind.colour) for kind in scene.kinds}) == len(scene.kinds)
        for thing in scene.things:
            assert (thing.shape, thing.colour, thing.size) == tuple(
                getattr(scene.kinds[thing.kind], name) for name in ("shape", "colour", "size")
            )
        scale = {thing.radius / RADIUS[thing.size] for thing in scene.things}
        assert max(scale) - min(scale) < 1e-9 and max(scale) <= 1 + 1e-9
    usual = [s.things[0].radius / RADIUS[s.things[0].size] for s in scenes if len(s.things) <= 4]
    assert np.mean(np.array(usual) > 0.999) > 0.99


def test_crowds_fit():
    for layout in ("apart", "grid", "touching"):
        for i in range(5):
            scene = sample(SceneSpec(counts=(3,), copies=(4,), sizes=("large",), layouts=(layout,)), 0, i)
            assert len(scene.things) == 12


def test_kinds_may_be_asked_to_share_nothing():
    for record in Scenes(SceneSpec(counts=(4,), distinct="each"), 100):
        kinds = record.scene.kinds
        assert len({k.shape for k in kinds}) == len({k.colour for k in kinds}) == 4


@pytest.mark.parametrize("dial", [0.0, 0.5, 0.9, 1.0])
def test_a_link_is_as_strong_as_its_dial(dial: float):
    count = 2500
    for aspect, options in (("background", 8), ("colour", 10), ("texture", 4)):
        spec = SceneSpec(counts=(1,), textures=TEXTURES, **{f"{aspect}_link": dial})
        own = []
        for record in Scenes(spec, count, 2):
            thing, scene = record.scene.kinds[0], record.scene
            value = scene.background if aspect == "background" else getattr(thing, aspect)
            own.append(value == spec.own(aspect, thing.shape))
        assert near(np.mean(own), dial + (1 - dial) / options, count)


def test_a_link_may_hold_for_some_shapes_alone():
    spec = SceneSpec(counts=(1,), shapes=("star", "ring"), background_link=1.0, linked=("star",))
    usual = {"star": [], "ring": []}
    for record in Scenes(spec, 800):
        usual[record.scene.kinds[0].shape].append(record.labels["usual_background"])
    assert all(usual["star"]) and near(np.mean(usual["ring"]), 1 / len(BACKGROUNDS), len(usual["ring"]))


def test_combinations_that_never_meet():
    base = SceneSpec(held_out=0.3, counts=(1, 2, 3))
    met = {}
    for name in ("seen", "unseen"):
        spec = replace(base, combinations=name)
        met[name] = {(t.colour, t.shape) for record in Scenes(spec, 1500, 3) for t in record.scene.things}
    assert not met["seen"] & met["unseen"]
    assert len(met["unseen"]) == round(0.3 * len(SHAPES) * len(COLOURS)) and met["unseen"] == set(base.held_pairs)
    for one, every in ((0, COLOURS), (1, SHAPES)):
        assert {pair[one] for pair in met["seen"]} == set(every) == {pair[one] for pair in met["unseen"]}
    spec = replace(base, combinations="seen", text_noise=0.5, textures=TEXTURES)
    for record in Scenes(spec, 200, 3):
        said = " ".join((record.text(), record.text("long"), record.alt.text))
        assert not any(re.search(rf"\b{colour} {shape}", said) for colour, shape in base.held_pairs)


def test_planted_copies_are_listed_and_are_copies():
    spec = SceneSpec(exact_copies=0.1, near_copies=0.15, textures=TEXTURES)
    scenes = Scenes(spec, 800, 1)
    planted = scenes.planted()
    kinds = Counter(copy.kind for copy in planted)
    assert near(kinds["exact"] / 800, 0.1, 800) and near(kinds["near"] / 800, 0.15, 800)
    sources = {copy.source for copy in planted}
    assert not sources & {copy.index for copy in planted}
    for copy in planted[:60]:
        a, b = scenes[copy.source], scenes[copy.index]
        assert copy.source < copy.index and b.planted == copy and a.planted is None and a.text() == b.text()
        if copy.kind == "exact":
            assert (a.picture == b.picture).all()
        else:
            off = np.abs(a.picture.astype(int) - b.picture).mean()
            assert 0 < off < 20
            moved = a.drawing.boxes - b.drawing.boxes
            assert np.abs(moved).max() <= 2 and (a.masks != b.masks).any()  # the truth moves with the picture
    alone = [record.picture.tobytes() for record in scenes if record.planted is None]
    assert len(set(alone)) == len(alone) == 800 - len(planted)
    assert {copy.source for copy in Scenes(SceneSpec(exact_copies=1.0), 50).planted()} == {0}
    assert Scenes(spec, 400, 1).planted() == [copy for copy in planted if copy.index < 400]


def test_regions_name_what_their_boxes_hold():
    for record in Scenes(SceneSpec(textures=TEXTURES, counts=(3,)), 40):
        assert len(record.regions) == len(record.scene.things)
        for region in record.regions:
            thing = record.scene.things[region.thing]
            x0, y0, x1, y1 = region.box
            assert all(word in region.phrase for word in (thing.size, thing.colour, thing.shape))
            assert ("striped" in region.phrase) == (thing.texture == "striped")
            assert record.masks[region.thing][y0:y1, x0:x1].sum() == record.masks[region.thing].sum()


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection over union."""
    w, h = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    both = max(0, w) * max(0, h)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_detected_regions_are_as_good_as_asked():
    records = list(Scenes(SceneSpec(counts=(3,), sizes=("large",)), 200))
    assert all(record.detected(0, 0, 0) == record.regions for record in records)
    found = [(record, region) for record in records for region in record.detected(0.3, 0.2, 0.1)]
    assert near(1 - len(found) / 600, 0.2, 600)
    iou = np.array([overlap(region.box, record.regions[region.thing].box) for record, region in found])
    assert 0.05 < np.mean(iou < 0.4) < 0.13  # some chance boxes hit
    assert 0.6 < np.median(iou) < 0.95
    for record, region in found:
        x0, y0, x1, y1 = region.box
        assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
        assert region.phrase == record.regions[region.thing].phrase


def test_pairs_and_records():
    scenes = Scenes(SceneSpec(side=32), 30, 9)
    pairs = scenes.pairs("short", "long", "rewrite 2", "short fr")
    assert len(pairs) == 30 and len({pairs[i].id for i in range(30)}) == 30
    pair = pairs[7]
    assert pair.texts == tuple(scenes[7].text(role) for role in ("short", "long", "rewrite 2", "short fr"))
    assert (np.asarray(pair.picture()) == scenes[7].picture).all() and pair.picture().size == (32, 32)
    assert pair.extra["shape"] == scenes[7].scene.kinds[0].shape and pair.extra["scene"].index == 7
    assert (np.asarray(pickle.loads(pickle.dumps(pairs))[7].picture()) == scenes[7].picture).all()  # for workers
    assert pairs.digest == Scenes(SceneSpec(side=32), 30, 9).pairs("short", "long", "rewrite 2", "short fr").digest
    assert len({pairs.digest, scenes.pairs().digest, Scenes(SceneSpec(side=32), 30, 8).pairs().digest}) == 3
    records = scenes.records("class")
    read = records[7].read
    assert read and (np.asarray(Image.open(io.BytesIO(read()))) == scenes[7].picture).all()
    main = scenes[7].scene.kinds[0]
    assert records[7].label == f"{main.colour} {main.shape}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shapes": ("circel",)}, 'did you mean "circle"'),
        ({"counts": (0, 13)}, "at most 12"),
        ({"background_link": 1.5}, "from 0 to 1"),
        ({"shapes": ("star",), "colours": ("red",), "counts": (2,)}, "only 1 can differ"),
        ({"shapes": ("star", "ring"), "counts": (3,), "distinct": "each"}, "only 2 can differ"),
        ({"held_out": 0.95}, "at most 0.9"),
        ({"colours": ()}, "is empty"),
        ({"combinations": "unseen"}, "only 0 can differ"),
        ({"side": 4}, "from 16 on"),
    ],
)
def test_a_wrong_spec_is_told_what_would_be_right(wrong: dict, message: str):
    with pytest.raises(DiptychError, match=message):
        SceneSpec(**wrong)


def test_a_wrong_number_or_role_is_refused():
    with pytest.raises(DiptychError, match="short"):
        Scenes()[0].text("shrot")
    with pytest.raises(DiptychError):
        Scenes()[0].text("short nl")
    with pytest.raises(IndexError):
        Scenes(count=5)[5]
    assert len(list(Scenes(count=5))) == 5


def test_the_example_in_the_documentation_runs():
    example = re.search(r"\n    from .*?(?=\n\n\S)", package.__doc__ or "", re.DOTALL)
    assert example
    lines = [line[4:] for line in example[0].strip("\n").splitlines()]
    names: dict = {}
    exec("\n".join(lines), names)
    assert names["record"].picture.shape == (64, 64, 3)


def test_numpy_and_pillow_are_all_it_needs():
    for file in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in {"numpy", "PIL", "diptych", *sys.stdlib_module_names}
    program = "import sys; from diptych.data.scenes import Scenes; Scenes()[3].picture; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_sizes_are_words_for_radii():
    assert RADIUS["small"] < RADIUS["medium"] < RADIUS["large"] and set(RADIUS) == set(SIZES)
