"""The systems that need transformers, and descriptors, on a trained vision transformer: their effects, quickly.

Things are drawn as sketches, a style that micro never saw; the figures with their spread are in
docs/results/adapters_micro.json.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from micro_world import SKETCH, Drawn, accuracy, pair

from diptych.core.clip import CLIP
from diptych.core.load import load
from diptych.data.scenes import SceneSpec
from diptych.data.scenes.words import DESCRIPTIONS
from diptych.methods.adapt import coop, dclip, lora, maple
from diptych.methods.adapt.parts.adapter import Adapter, fit_path, last
from diptych.methods.adapt.zero_shot import ZeroShot


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return load("micro", "cpu")


@pytest.fixture(scope="module")
def shots() -> Drawn:
    return Drawn(SKETCH, pair, 9, 8, seed=41)


@pytest.fixture(scope="module")
def test() -> Drawn:
    return Drawn(SKETCH, pair, 9, 20, seed=42)


def reached(adapter: Adapter, clip: CLIP, shots: Drawn, test: Drawn) -> float:
    fitted = last(fit_path(adapter, adapter.config, clip, shots.support()))
    return accuracy(fitted, clip, test.support())


@pytest.mark.parametrize(
    "adapter",
    [
        coop.CoOp(coop.Config(epochs=100, views=1)),
        maple.MaPLe(maple.Config(epochs=6)),
        lora.LoRA(lora.Config(steps_per_shot=6, batch=16, rate=5e-3)),
    ],
    ids=lambda adapter: adapter.system(),
)
def test_few_pictures_say_what_the_template_does_not(adapter: Adapter, clip: CLIP, shots: Drawn, test: Drawn) -> None:
    before, after = reached(ZeroShot(), clip, shots, test), reached(adapter, clip, shots, test)
    assert after > before + 0.1


def test_descriptors_tell_classes_with_invented_names(clip: CLIP, tmp_path: Path) -> None:
    names = dict(zip(("blicket", "dax", "wug", "toma", "fep", "zorp"), list(DESCRIPTIONS)[:6], strict=True))
    spoken = {shape: name for name, shape in names.items()}
    spec = SceneSpec(shapes=tuple(names.values()), counts=(1,), sizes=("large",))
    drawn = Drawn(spec, lambda record: spoken[record.scene.things[0].shape], 6, 15, seed=43)
    bank = tmp_path / "bank.json"
    bank.write_text(json.dumps({name: DESCRIPTIONS[shape] for name, shape in names.items()}))
    given = dclip.Config(bank=str(bank))
    found = {
        kind: reached(dclip.DCLIP(replace(given, descriptors=kind)), clip, drawn, drawn) for kind in ("own", "shuffled")
    }
    bare = reached(ZeroShot(), clip, drawn, drawn)
    assert found["own"] > bare + 0.3
    assert found["shuffled"] < 0.3
