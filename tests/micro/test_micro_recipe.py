"""The recipe of micro: what it trains on, and a few steps of its small form."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from diptych.core.micro import CONFIG, TOKENIZER, fresh_micro
from diptych.core.towers.blocks import only_patches
from diptych.data.scenes.words import DESCRIPTIONS
from diptych.training.batches import Order

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec: Any = importlib.util.spec_from_file_location("recipe_of_micro", ROOT / "recipes" / "micro.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_shows_or_names_what_is_held_out(recipe: ModuleType) -> None:
    never = set(recipe.SPEC.held_pairs)
    assert len(never) == 28
    words = [f"{colour} {shape}" for colour, shape in never]
    for data in (recipe.scenes(300, 3), recipe.close_ups(200, 3), recipe.subjects(300, 3)):
        for i in range(len(data)):
            text, scene = data[i].texts[0], data[i].extra["scene"].scene
            assert not never & {(thing.colour, thing.shape) for thing in scene.things}
            assert not any(re.search(rf"\b{pair}", text) for pair in words), text


def test_scenes_get_fuller_and_are_all_different(recipe: ModuleType) -> None:
    count, batch = 1280, 128
    data, order = recipe.scenes(count, 0), Order(count, batch, 0)
    first, last = ([data[int(row)] for row in order.rows(step)] for step in (0, 9))
    assert {len(pair.extra["scene"].scene.things) for pair in first} == {1}
    assert {len(pair.extra["scene"].scene.things) for pair in last} == {1, 2, 3}
    assert len({pair.picture().tobytes() for pair in (*first, *last)}) == 2 * batch


def test_a_close_up_holds_its_thing(recipe: ModuleType) -> None:
    data = recipe.close_ups(100, 1)
    for i in range(0, 100, 5):
        near, whole = data[i].picture(), data[i].extra["scene"]
        assert near.size == (recipe.WINDOW, recipe.WINDOW)
        (mask,) = whole.masks
        shown = {tuple(pixel) for pixel in np.asarray(near).reshape(-1, 3)}
        inside = whole.picture[mask]
        assert sum(tuple(pixel) in shown for pixel in inside) > 0.9 * len(inside)


def test_a_subject_is_the_one_large_thing(recipe: ModuleType) -> None:
    data = [recipe.subject(7, i) for i in range(60)]
    named = 0
    for pair in data:
        (large,) = (thing for thing in pair.extra["scene"].scene.things if thing.size == "large")
        assert large.shape in pair.texts[0]
        named += large.colour in pair.texts[0]
        assert all(thing is large or thing.size == "small" for thing in pair.extra["scene"].scene.things)
    assert named > 40


def test_captions_are_true(recipe: ModuleType) -> None:
    """What one thing looks like is said of a thing that is there."""
    told = 0
    for data in (recipe.scenes(300, 5), recipe.close_ups(200, 5)):
        for i in range(len(data)):
            text, scene = data[i].texts[0], data[i].extra["scene"].scene
            shapes = {s for s, listed in DESCRIPTIONS.items() for d in listed if text.endswith(d)}
            if shapes:
                told += 1
                assert shapes & {thing.shape for thing in scene.things}, text
    assert told > 30


def test_the_tokenizer_is_the_one_that_is_shipped(recipe: ModuleType) -> None:
    made = recipe.make_tokenizer(recipe.MANY)
    assert made.tokenizer.get_vocab() == Tokenizer.from_file(str(TOKENIZER)).get_vocab()
    assert made.tokenizer.get_vocab_size() == CONFIG["text_cfg"]["vocab_size"] == made.end_id + 1


def test_a_few_steps_of_all_stages_and_the_packed_files(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = recipe.stages
    made = {"close-ups": (recipe.close_ups, 16), "scenes": (recipe.scenes, 3), "subjects": (recipe.subjects, 3)}

    def short(tiny: bool, seed: int) -> dict[str, Any]:
        cut = {name: {"steps": n, "batch": 32, "data": data(32 * n, seed)} for name, (data, n) in made.items()}
        return {name: given | cut[name] for name, given in stages(tiny, seed).items()}

    monkeypatch.setattr(recipe, "stages", short)
    trained = recipe.train(tmp_path / "run", tiny=True)
    lines = (tmp_path / "run" / "close-ups" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    losses = [float(line.split(",")[column]) for line in lines[1:]]
    assert sum(losses[-4:]) < sum(losses[:4])
    recipe.pack(trained, tmp_path / "packed")
    packed, state = load_file(tmp_path / "packed" / "micro.safetensors"), trained.state_dict()
    assert packed.keys() == state.keys()
    assert all(torch.allclose(packed[name].float(), state[name], rtol=1e-3, atol=1e-6) for name in state)


def test_a_grown_model_sees_the_middle_as_the_small_one_does(recipe: ModuleType) -> None:
    """The codes of a close-up are those of a scene's middle, so the same patches there give the same tokens."""
    small = fresh_micro(
        recipe.make_tokenizer(recipe.FEW), CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"image_size": recipe.WINDOW}}
    )
    large = recipe.grown(small)
    pixels = torch.rand(2, 3, 64, 64)
    kept = torch.tensor([8 * y + x for y in range(2, 6) for x in range(2, 6)]).expand(2, -1)
    with only_patches(large.image, lambda _: kept):
        middle = large.encode_image(pixels)
    torch.testing.assert_close(middle, small.encode_image(pixels[:, :, 16:48, 16:48]), atol=1e-5, rtol=0)
