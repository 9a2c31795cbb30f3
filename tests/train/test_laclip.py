"""laclip: how texts are drawn, and that prompts in other words are understood."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from train_world import Scene, World, make_clip, scene_accuracy, train

from diptych.data.rewrites import Rewritten, by_rules
from diptych.errors import DiptychError
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.laclip import LaClip

TEXTS = ("the original", "first one", "second one", "third one", "one")


def test_each_text_is_as_likely_and_short_rewrites_are_never_read():
    pair = World(1, texts=lambda scene: TEXTS)[0]
    counts = Counter(LaClip().words(pair, np.random.default_rng([7, epoch]))["text"] for epoch in range(10_000))
    assert set(counts) == set(TEXTS[:4])
    for text in TEXTS[1:4]:
        assert abs(counts[text] - 2000) < 3 * (10_000 * 0.2 * 0.8) ** 0.5
    assert abs(counts[TEXTS[0]] - 4000) < 3 * (10_000 * 0.4 * 0.6) ** 0.5, "in the place of the text of one word"


def test_a_pair_with_one_text_is_clips():
    pair = World(1)[0]
    assert LaClip().words(pair, np.random.default_rng(0)) == {"text": pair.texts[0]}


def test_a_store_takes_the_place_of_a_pairs_other_texts(tmp_path: Path):
    """By the first text, evenly; a caption without rewrites keeps its own; a store of other captions is refused."""
    store = tmp_path / "rewrites.json"
    store.write_text(json.dumps({TEXTS[0]: ["said anew", "said again", "x"]}))
    config = LaClip.Config(rewrites=str(store))
    known, other = World(1, texts=lambda scene: TEXTS), World(1, texts=lambda scene: ("unknown caption", "its own"))
    objective = LaClip(config)
    rows = [objective.words(known[0], np.random.default_rng([7, epoch]))["text"] for epoch in range(4000)]
    counts = Counter(rows)
    assert set(counts) == {TEXTS[0], "said anew", "said again"}
    assert abs(counts["said anew"] - 1000) < 3 * (4000 * 0.25 * 0.75) ** 0.5
    assert {objective.words(other[0], np.random.default_rng(i))["text"] for i in range(20)} == set(other[0].texts)
    objective.prepare(make_clip(), known, 0)
    with pytest.raises(DiptychError, match="other captions than those of drawings"):
        objective.prepare(make_clip(), other, 0)
    with pytest.raises(DiptychError, match=r"nowhere\.json"):
        LaClip(LaClip.Config(rewrites="nowhere.json"))


def fixed(scene: Scene) -> tuple[str, ...]:
    return (f"a photo of a {scene.colour} patch, {scene.place} corner, {scene.ground} ground",)


def unseen(scene: Scene) -> str:
    return f"look, on {scene.ground} ground in the {scene.place} corner lies a patch that is {scene.colour}"


def test_prompts_in_other_words_are_understood_better():
    """All captions share one template; rewrites of the wrong picture do harm, so they are read."""
    plain, held_out = World(600, texts=fixed), World(300, seed=1)
    rewrites = {
        pair.texts[0]: {style: by_rules(pair.texts[0], style) for style in ("1", "2", "3", "4")} for pair in plain
    }
    keys = list(rewrites)
    wrong = dict(zip(keys, [rewrites[k] for k in keys[7:] + keys[:7]], strict=True))
    runs = {"clip": (Clip(), plain), "laclip": (LaClip(), Rewritten(plain, rewrites)),
            "wrong": (LaClip(), Rewritten(plain, wrong))}  # fmt: skip
    scores = {}
    for name, (system, pairs) in runs.items():
        clip = make_clip()
        train(system, clip, pairs, steps=140, rate=4e-3)
        scores[name] = scene_accuracy(clip, held_out, unseen)
    assert scores["laclip"] > scores["clip"] + 0.03
    assert scores["wrong"] < scores["clip"] - 0.05
