"""flip against clip: what hiding patches costs and saves, and what a finish on whole pictures gives back."""

from collections.abc import Mapping
from statistics import mean

import torch
from pretrain_worlds.parts import (
    EASY,
    Arm,
    Held,
    Values,
    World,
    drawn,
    pictures,
    recall,
    sayings,
    tiny_clip,
    zero_shot_on,
)

from diptych.data.scenes import SceneSpec
from diptych.losses.contrastive import softmax_contrastive
from diptych.training.run import Trained

SPEC = SceneSpec(**EASY)
COUNT, TEST = 3000, 1000


def pairs(seed: int) -> Held:
    return drawn(SPEC, COUNT, seed)


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    """All on whole pictures."""
    clip, test = trained.clip, drawn(SPEC, TEST, 1000 + seed)
    images, texts = pictures(clip, test), sayings(clip, [pair.texts[0] for pair in test.items])
    with torch.inference_mode():
        parts = [
            softmax_contrastive(a, b, clip.logit_scale)
            for a, b in zip(images.split(100), texts.split(100), strict=True)
        ]
    return {
        **zero_shot_on(clip, images, test, SPEC),
        "R@10": recall(images, texts, 10),
        "held-out loss": float(torch.stack(parts).mean()),
    }


def claims(found: Values) -> Mapping[str, bool]:
    def of(name: str, what: str = "zero-shot") -> float:
        return mean(found[name][what])

    says = {}
    if {"clip", "flip half", "flip half finished"} <= set(found):
        says["half of the patches cost less processor time a step"] = of("flip half", "cpu_seconds") < of(
            "clip", "cpu_seconds"
        )
        says["half of the patches and a finish are within 2 points of clip"] = of("flip half finished") > of("clip") - 2
        says["a finish on whole pictures lowers the loss on them (half)"] = of(
            "flip half finished", "held-out loss"
        ) < of("flip half", "held-out loss")
    if {"flip quarter", "flip quarter finished"} <= set(found):
        says["a finish on whole pictures lowers the loss on them (quarter)"] = of(
            "flip quarter finished", "held-out loss"
        ) < of("flip quarter", "held-out loss")
    return says


def arm(keep: float, finish: float):
    return lambda seed: Arm("flip", pairs(seed), {"flip.keep": keep, "flip.finish": finish})


WORLD = World(
    about="Scenes of one thing, pictures of 64 patches.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "flip half": arm(0.5, 0.0),
        "flip half finished": arm(0.5, 0.1),
        "flip quarter": arm(0.25, 0.0),
        "flip quarter finished": arm(0.25, 0.1),
    },
    measure=measure,
    claims=claims,
    steps=300,
    batch=32,
    settings={
        "recipe.rate": 1e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 40, "recipe.crop": 1.0, "recipe.clip": 1.0,
    },
    model=lambda seed: tiny_clip(seed, patch=4),
)  # fmt: skip
