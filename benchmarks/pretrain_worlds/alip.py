"""alip against clip and equal weights, where half of the texts are wrong, and where half of the captions are."""

from collections.abc import Mapping
from functools import cache, partial
from statistics import mean

import numpy as np
import torch
from pretrain_worlds.parts import EASY, Arm, Held, Values, World, auroc, drawn, held, pictures, sayings, zero_shot

from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.methods.pretrain.alip import Config, gates, similarities
from diptych.training.folder import TrainingFolder
from diptych.training.run import Trained

NOISE = 0.5
SPEC = SceneSpec(**EASY, say=("colour", "background"), text_noise=NOISE)
COUNT, TEST, SEEN = 8000, 1000, 1500
ASPECTS = {aspect: getattr(SPEC, f"{aspect}s") for aspect in ("colour", "background")}


def caption(record: SceneRecord) -> str:
    """A captioner's: right, and without the colour."""
    return f"a picture of a {record.scene.kinds[0].shape} on {record.scene.background}"


@cache
def pairs(seed: int, wrong: str = "text") -> Held:
    """Text and caption; of a share, one of both ("text", "caption") tells of another scene."""

    def texts(record: SceneRecord) -> tuple[str, str]:
        if wrong == "text" or record.alt.true:
            return record.text("noisy" if wrong == "text" else "short"), caption(record)
        return record.text("short"), caption(replaced(scenes, record))

    scenes = Scenes(SPEC, COUNT, seed)
    return held(scenes, texts, f"scenes with wrong {wrong}s")


def replaced(scenes: Scenes, record: SceneRecord) -> SceneRecord:
    return scenes[(record.index + 1 + scenes.count // 2) % scenes.count]


@cache
def saying(aspect: str, word: str) -> tuple[str, ...]:
    """True held-out texts that say this word."""
    some = drawn(SPEC, 400, 5000)
    return tuple(p.texts[0] for p in some.items if p.extra[aspect] == word)


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    clip, test = trained.clip, drawn(SPEC, TEST, 1000 + seed)
    images = pictures(clip, test)
    right = {
        aspect: zero_shot(clip, images, [p.extra[aspect] for p in test.items], options, partial(saying, aspect))
        for aspect, options in ASPECTS.items()
    }
    wrong = "caption" if "captions" in name else "text"
    return {"zero-shot": mean(right.values()), **right, **weights(trained, pairs(seed, wrong), wrong == "caption")}


def weights(trained: Trained, trained_on: Held, of_caption: bool) -> Mapping[str, float]:
    """What the weights at the end of the training, with its running means, say of pairs that were trained on."""
    found = TrainingFolder(trained.folder, {}).last()
    means = found.part("objective").get("means") if found else None
    if means is None:
        return {}
    clip, some = trained.clip, Held("", trained_on.items[:SEEN])
    texts, captions = (sayings(clip, [p.texts[i] for p in some.items]) for i in (0, 1))
    with torch.inference_mode():
        gamma = Config().sample_gamma, Config().pair_gamma
        made = gates(similarities(pictures(clip, some), texts, captions), means, *gamma)[of_caption].numpy()
    true = np.array([p.extra["text_true"] for p in some.items])
    return {
        "AUROC": auroc(made[true], made[~true]),
        "weight of right": float(made[true].mean()),
        "weight of wrong": float(made[~true].mean()),
    }


def claims(found: Values) -> Mapping[str, bool]:
    return {}


EVEN = {"alip.sample_gamma": 0.0, "alip.pair_gamma": 0.0}
FIRST = {"alip.first_batch": True}
WORLD = World(
    about="Scenes of one thing.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "alip": lambda seed: Arm("alip", pairs(seed), FIRST),
        "equal weights": lambda seed: Arm("alip", pairs(seed), {**FIRST, **EVEN}),
        "alip, means from 1": lambda seed: Arm("alip", pairs(seed)),
        "clip, wrong captions": lambda seed: Arm("clip", pairs(seed, "caption")),
        "alip, wrong captions": lambda seed: Arm("alip", pairs(seed, "caption"), FIRST),
    },
    measure=measure,
    claims=claims,
    steps=400,
    batch=64,
    settings={
        "recipe.rate": 2e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 30, "recipe.crop": 1.0, "recipe.clip": 1.0,
    },
)  # fmt: skip
