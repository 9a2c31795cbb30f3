"""symile against CLIP's loss over each two modalities, where these see nothing, a part, or all."""

from collections.abc import Mapping
from functools import cache
from random import Random
from statistics import mean
from typing import Any

import numpy as np
import torch
from pretrain_worlds.parts import Arm, Held, Values, World, tiny_clip
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.data.pairs import Pair
from diptych.data.scenes import Scenes, SceneSpec, Triples, TripleSpec
from diptych.data.scenes.grammar import Phrase, say_phrase
from diptych.methods.pretrain.symile import Symile
from diptych.methods.settings import changed
from diptych.training.folder import TrainingFolder
from diptych.training.run import Trained

SHAPES, COLOURS = ("circle", "cross", "ring", "triangle"), ("red", "yellow", "green", "blue", "pink", "black")
LANGUAGES = ("en", "de", "fr")
COUNT, TEST = 4000, 500

# -- a picture of class p, a text of class q, a sound of class s; p = q + s (xor), or all the same ---------------------


@cache
def triples(link: str, seed: int, count: int = COUNT, missing: float = 0.0) -> Held:
    """The sound as its spectrum, the way a frozen network would hand it over."""
    scene = SceneSpec(side=32, shapes=SHAPES, colours=("black",), sizes=("large",), backgrounds=("snow",), counts=(1,))
    spec = TripleSpec(scene, len(SHAPES), link, missing)

    def held(pair: Pair) -> Pair:
        image = pair.picture()
        spectrum = np.abs(np.fft.rfft(pair.extra["sound"]))[:50].astype(np.float32)
        return Pair(pair.id, lambda: image, pair.texts, {**pair.extra, "sound": spectrum})

    return Held(f"triples {link} {seed} {missing}", [held(pair) for pair in Triples(spec, count, seed).pairs()])


def complete(pairs: Held) -> Held:
    """Those of which nothing is missing."""
    return Held(f"{pairs.source}, complete", [pair for pair in pairs.items if not pair.extra["missing"]])


# -- a text that names three things in three languages, a code for one of them, a picture of the thing named in it ---

WORDS = tuple(
    word
    for language in LANGUAGES
    for shape in SHAPES
    for colour in COLOURS
    for word in say_phrase(Phrase(shape, colour), language).lower().split()
)


@cache
def languages(seed: int, count: int = COUNT) -> Held:
    spec = SceneSpec(side=32, shapes=SHAPES, colours=COLOURS, sizes=("large",), backgrounds=("snow",), counts=(1,))
    kinds = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    pairs = []
    for record in Scenes(spec, count, seed):
        image, rng = record.image(), Random(f"{seed}/{record.index}")
        own = (record.labels["shape"], record.labels["colour"])
        named = rng.sample([kind for kind in kinds if kind != own], len(LANGUAGES) - 1)
        asked = rng.randrange(len(LANGUAGES))
        named.insert(asked, own)
        said = [(say_phrase(Phrase(*k), language)) for k, language in zip(named, LANGUAGES, strict=True)]
        rng.shuffle(said)
        code = np.eye(len(LANGUAGES), dtype=np.float32)[asked]
        extra = {"sound": code, "classes": (kinds.index(own),), "missing": ()}
        pairs.append(Pair(record.id, lambda image=image: image, (", ".join(said),), extra))
    return Held(f"languages {seed}", pairs)


# -- what is measured --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def rows(objective: Symile, clip: CLIP, pairs: Held) -> dict[str, Tensor]:
    """Of complete pairs."""
    pixels = torch.stack([clip.preprocess(pair.picture()) for pair in pairs.items])
    sound = torch.from_numpy(np.stack([pair.extra["sound"] for pair in pairs.items]))
    text = clip.encode_text([pair.texts[0] for pair in pairs.items])
    assert objective.heads is not None
    return {"image": clip.encode_image(pixels), "text": text, "sound": objective.heads.vectors["sound"](sound)}


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    """Pictures found from text and sound together, among all held-out pictures: percent that are of the right class."""
    clip, arm = trained.clip, WORLD.arms[name](seed)
    settings = {key.partition(".")[2]: value for key, value in arm.settings.items() if key.startswith("symile.")}
    objective = Symile(changed(Symile.Config(), settings, "symile"))
    last = TrainingFolder(trained.folder, {}).last()
    assert last is not None
    objective.restore(last.part("heads"), clip)
    test = languages(1000 + seed, TEST) if "languages" in name else triples(link_of(name), 1000 + seed, TEST)
    found, classes = rows(objective, clip, test), torch.tensor([pair.extra["classes"][0] for pair in test.items])
    with torch.inference_mode():
        known = {kind: found[kind] for kind in ("text", "sound")}
        best = objective.scores(known, "image", found["image"], clip).argmax(1)
    return {"right picture": 100 * float((classes[best] == classes).float().mean())}


def link_of(name: str) -> str:
    return "same" if "same" in name else "xor"


def claims(found: Values) -> Mapping[str, bool]:
    def all_of(name: str) -> list[float]:
        return found.get(name, {}).get("right picture", [])

    says: dict[str, bool] = {}
    chance = 100 / len(SHAPES)
    if a := all_of("xor symile"):
        says["Exclusive or: symile finds 95% in each seed"] = min(a) >= 95
    if a := all_of("xor pairs"):
        says["Exclusive or: pairs are within 5 points of chance in each seed"] = max(abs(x - chance) for x in a) <= 5
    if (a := all_of("same symile")) and (b := all_of("same pairs")):
        says["All of one class: both find 95% in each seed"] = min(*a, *b) >= 95
    for share in ("20%", "50%"):
        if (a := all_of(f"xor symile {share} missing")) and (b := all_of(f"xor symile complete of {share}")):
            says[f"Each modality missing in {share}: symile finds 90% in each seed"] = min(a) >= 90
            says[f"... and dropping pairs that lack one is not better than keeping them ({share})"] = mean(b) <= mean(a)
    if (a := all_of("languages symile")) and (b := all_of("languages pairs")):
        says["Languages: symile finds 10 points more than pairs in each seed"] = all(
            x > y + 10 for x, y in zip(a, b, strict=True)
        )
    return says


def arm(pairs: Held, **settings: Any) -> Arm:
    return Arm("symile", pairs, {"symile.modalities": "sound", **{f"symile.{k}": v for k, v in settings.items()}})


WORLD = World(
    about=(
        "Picture, text and sound: the picture's class is the text's plus the sound's (xor), or all are of one class; "
        "or the text names three things in three languages and a code selects one. Sought among 500 held-out pictures."
    ),
    arms={
        "xor pairs": lambda seed: arm(triples("xor", seed), contrast="pairs"),
        "xor symile": lambda seed: arm(triples("xor", seed)),
        "xor symile layer norms": lambda seed: arm(triples("xor", seed), norm="layer"),
        "xor symile 20% missing": lambda seed: arm(triples("xor", seed, missing=0.2)),
        "xor symile complete of 20%": lambda seed: arm(complete(triples("xor", seed, missing=0.2))),
        "xor symile 50% missing": lambda seed: arm(triples("xor", seed, missing=0.5)),
        "xor symile complete of 50%": lambda seed: arm(complete(triples("xor", seed, missing=0.5))),
        "same pairs": lambda seed: arm(triples("same", seed), contrast="pairs"),
        "same symile": lambda seed: arm(triples("same", seed)),
        "languages pairs": lambda seed: arm(languages(seed), contrast="pairs"),
        "languages symile": lambda seed: arm(languages(seed)),
    },
    measure=measure,
    claims=claims,
    steps=1200,
    batch=64,
    settings={"recipe.rate": 2e-3, "recipe.warmup": 40, "recipe.crop": 1.0},
    model=lambda seed: tiny_clip(seed, more=WORDS),
)
