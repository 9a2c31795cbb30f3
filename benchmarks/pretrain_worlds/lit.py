"""lit against clip: few captions, and a picture tower that was trained before on codes for texts."""

import tempfile
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from statistics import mean

from pretrain_worlds.parts import EASY, Arm, Held, Values, World, drawn, held, pictures, tiny_clip, zero_shot_on

from diptych.core.clip import CLIP
from diptych.core.tower import Tower
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.training.run import Trained, train

SPEC = SceneSpec(**EASY)
FEW, MANY, TEST = 200, 4000, 1000
ASPECTS = {"colour": SPEC.colours, "background": SPEC.backgrounds, "shape": SPEC.shapes}
CODES = {
    word: f"{letter}{number}"
    for letter, words in zip("xyz", ASPECTS.values(), strict=True)
    for number, word in enumerate(words)
}
SETTINGS = {
    "recipe.rate": 1e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
    "recipe.warmup": 40, "recipe.crop": 1.0, "recipe.clip": 1.0,
}  # fmt: skip


def pairs(seed: int) -> Held:
    return drawn(SPEC, FEW, seed)


def code(record: SceneRecord) -> tuple[str]:
    return (" ".join(CODES[record.labels[aspect]] for aspect in ASPECTS),)


@cache
def good_tower(seed: int) -> Tower:
    """Trained on many labelled pictures; it has met no word of a caption."""
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            "clip", held(Scenes(SPEC, MANY, 3000 + seed), code), model=tiny_clip(seed, more=tuple(CODES.values())),
            out=Path(folder) / "run", settings=SETTINGS, steps=500, batch=64, workers=0, device="cpu", seed=seed,
        )  # fmt: skip
        return trained.clip.image


def with_good_tower(seed: int) -> CLIP:
    clip = tiny_clip(seed)
    clip.towers["image"] = deepcopy(good_tower(seed))
    return clip


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    clip, test = trained.clip, drawn(SPEC, TEST, 1000 + seed)
    images = pictures(clip, test)
    return {**zero_shot_on(clip, images, test, SPEC)}


def claims(found: Values) -> Mapping[str, bool]:
    right = {name: by["zero-shot"] for name, by in found.items()}
    says = {}
    if {"lit", "clip"} <= set(right):
        says["a locked good tower is better than clip from scratch in each seed"] = all(
            a > b for a, b in zip(right["lit"], right["clip"], strict=True)
        )
    if {"lit", "clip from the tower"} <= set(right):
        says["... and than going on with it unlocked"] = mean(right["lit"]) > mean(right["clip from the tower"])
    if {"lit", "lit from scratch"} <= set(right):
        says["... and random weights, locked, are no use"] = mean(right["lit from scratch"]) < mean(right["lit"]) - 20
    return says


WORLD = World(
    about=f"Scenes of one thing: {FEW} captions; the tower was trained on {MANY} other pictures with codes for texts.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "clip from the tower": lambda seed: Arm("clip", pairs(seed), model=with_good_tower),
        "lit": lambda seed: Arm("lit", pairs(seed), model=with_good_tower),
        "lit from scratch": lambda seed: Arm("lit", pairs(seed)),
    },
    measure=measure,
    claims=claims,
    steps=250,
    batch=32,
    settings=SETTINGS,
)
