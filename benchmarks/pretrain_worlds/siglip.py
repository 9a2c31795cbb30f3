"""siglip against clip in small batches, with its bias and without."""

from collections.abc import Mapping
from statistics import mean

from pretrain_worlds.parts import EASY, Arm, Held, Values, World, drawn, pictures, recall, sayings, zero_shot_on

from diptych.data.scenes import SceneSpec
from diptych.training.run import Trained

SPEC = SceneSpec(**EASY)
COUNT, TEST = 3000, 1000


def pairs(seed: int) -> Held:
    return drawn(SPEC, COUNT, seed)


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    clip, test = trained.clip, drawn(SPEC, TEST, 1000 + seed)
    images = pictures(clip, test)
    texts = sayings(clip, [pair.texts[0] for pair in test.items])
    ends = {"first loss": trained.rows[0]["loss"]} | (
        {} if clip.logit_bias is None else {"bias": float(clip.logit_bias)}
    )
    return {**zero_shot_on(clip, images, test, SPEC), "R@10": recall(images, texts, 10), **ends}


def claims(found: Values) -> Mapping[str, bool]:
    right = {name: mean(by["zero-shot"]) for name, by in found.items()}
    says = {}
    if {"clip", "siglip"} <= set(right):
        says["siglip is at least as good as clip in batches of 32"] = right["siglip"] >= right["clip"]
    if {"clip", "siglip bias of the batch"} <= set(right):
        says["... where its bias starts at the odds of the batch"] = right["siglip bias of the batch"] >= right["clip"]
    if {"siglip", "siglip bias 0"} <= set(right):
        says["a bias from -10 is at least as good as one from 0"] = right["siglip"] >= right["siglip bias 0"]
    return says


WORLD = World(
    about="Scenes of one thing, batches of 32.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "siglip": lambda seed: Arm("siglip", pairs(seed)),
        "siglip bias of the batch": lambda seed: Arm("siglip", pairs(seed), {"siglip.bias": -3.4}),  # -log(31)
        "siglip bias 0": lambda seed: Arm("siglip", pairs(seed), {"siglip.bias": 0.0}),
    },
    measure=measure,
    claims=claims,
    steps=300,
    batch=32,
    settings={
        "recipe.rate": 1e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 40, "recipe.crop": 1.0, "recipe.clip": 1.0,
    },
)  # fmt: skip
