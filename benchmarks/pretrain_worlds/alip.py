"""alip against clip and equal weights, where many of the texts are wrong, and where many of the captions are."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from pretrain_worlds.parts import (
    STYLED,
    Arm,
    Held,
    Values,
    World,
    above,
    accuracies,
    auroc,
    held,
    pictures,
    sayings,
    styled,
    told,
)

from diptych.data.scenes import SceneRecord, Scenes
from diptych.methods.pretrain.alip import Config, gates, similarities
from diptych.training.folder import TrainingFolder
from diptych.training.run import Trained

NOISE = 0.4
COUNT, TEST, SEEN = 4000, 600, 1000


def caption(record: SceneRecord) -> str:
    """A captioner's: without style and colour."""
    return f"this drawing shows a {record.scene.kinds[0].shape} on {record.scene.background}"


@cache
def wrong(seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 77]).random(COUNT) < NOISE


@cache
def pairs(seed: int, of: str = "texts") -> Held:
    """Text and caption of each; of a share, one of both ("texts", "captions") tells of another scene."""

    def texts(record: SceneRecord) -> tuple[str, str]:
        other = scenes[(record.index + COUNT // 2) % COUNT] if wrong(seed)[record.index] else record
        return told(other if of == "texts" else record), caption(other if of == "captions" else record)

    scenes = Scenes(STYLED, COUNT, seed)
    return held(scenes, texts, f"scenes with wrong {of}")


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    test = styled(TEST, 1000 + seed)
    found = accuracies(trained.clip, pictures(trained.clip, test), test)
    of = "captions" if "captions" in name else "texts"
    return {**found, **weights(trained, pairs(seed, of), wrong(seed)[:SEEN], of == "captions")}


def weights(trained: Trained, on: Held, false: np.ndarray, of_caption: bool) -> Mapping[str, float]:
    """What the weights at the end of the training, with its running means, are for pairs that were trained on."""
    found = TrainingFolder(trained.folder, {}).last()
    means = found.part("objective").get("means") if found else None
    if means is None:
        return {}
    clip, some = trained.clip, Held("", on.items[: len(false)])
    texts, captions = (sayings(clip, [p.texts[i] for p in some.items]) for i in (0, 1))
    with torch.inference_mode():
        gamma = Config().sample_gamma, Config().pair_gamma
        made = gates(similarities(pictures(clip, some), texts, captions), means, *gamma)[of_caption].numpy()
    return {
        "AUROC": auroc(made[~false], made[false]),
        "weight of right": float(made[~false].mean()),
        "weight of wrong": float(made[false].mean()),
        "right over wrong": float(made[~false].mean() / made[false].mean()),
    }


def claims(found: Values) -> Mapping[str, bool]:
    """Of the paper's effects, at this size."""
    return {
        **above(found, "zero-shot", "alip", "clip", 5),
        **above(found, "zero-shot", "alip", "equal weights", 0),
        **above(found, "AUROC", "alip", None, 0.8),
        **above(found, "right over wrong", "alip", None, 2),
        **above(found, "zero-shot", "alip, wrong captions", "clip, wrong captions", -1),
        **above(found, "AUROC", "alip, wrong captions", None, 0.8),
    }


EVEN = {"alip.sample_gamma": 0.0, "alip.pair_gamma": 0.0}
FIRST = {"alip.first_batch": True}
WORLD = World(
    about="Scenes of one thing: eight backgrounds, four styles, six colours; a text says all, a caption shape and "
    "background alone. Of the texts (or of the captions) 40% are another scene's. Weights: of pairs that were trained "
    "on, at the end; AUROC: how often a right one weighs more than a wrong one.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "equal weights": lambda seed: Arm("alip", pairs(seed), {**FIRST, **EVEN}),
        "alip": lambda seed: Arm("alip", pairs(seed), FIRST),
        "alip, means from 1": lambda seed: Arm("alip", pairs(seed)),
        "clip, wrong captions": lambda seed: Arm("clip", pairs(seed, "captions")),
        "alip, wrong captions": lambda seed: Arm("alip", pairs(seed, "captions"), FIRST),
    },
    measure=measure,
    claims=claims,
    steps=300,
    batch=64,
    settings={
        "recipe.rate": 2e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 30, "recipe.crop": 1.0, "recipe.clip": 1.0,
    },
)  # fmt: skip
