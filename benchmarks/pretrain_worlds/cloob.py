"""cloob against clip, on scenes of one thing with five words each."""

from collections.abc import Mapping
from functools import cache
from statistics import mean

from pretrain_worlds.parts import Arm, Held, Values, World, drawn, effective_rank, pictures, recall, sayings, zero_shot

from diptych.data.scenes import SceneSpec
from diptych.training.run import Trained

SPEC = SceneSpec(
    side=32,
    shapes=("circle", "square", "triangle", "cross", "ring", "star"),
    sizes=("small", "medium", "large"),
    textures=("solid", "striped", "dotted", "checked"),
    counts=(1,),
    say=("colour", "size", "texture", "background"),
    detail=1.0,
)
COUNT, TEST = 20_000, 1000
ASPECTS = {aspect: getattr(SPEC, f"{aspect}s") for aspect in ("shape", "colour", "size", "texture", "background")}


def pairs(seed: int) -> Held:
    return drawn(SPEC, COUNT, seed)


def test(seed: int) -> Held:
    return drawn(SPEC, TEST, 1000 + seed)


@cache
def captions(aspect: str, word: str) -> tuple[str, ...]:
    """Held-out captions that say this word."""
    pairs = drawn(SPEC, 300, 5000)
    return tuple(p.texts[0] for p in pairs.items if p.extra[aspect] == word)


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    clip, held = trained.clip, test(seed)
    images, texts = pictures(clip, held), sayings(clip, [pair.texts[0] for pair in held.items])
    right = {
        aspect: zero_shot(clip, images, [pair.extra[aspect] for pair in held.items], options,
                          lambda word, aspect=aspect: captions(aspect, word))
        for aspect, options in ASPECTS.items()
    }  # fmt: skip
    return {
        "zero-shot": mean(right.values()),
        **right,
        "R@1": recall(images, texts),
        "rank of pictures": effective_rank(images),
        "rank of texts": effective_rank(texts),
    }


def claims(found: Values) -> Mapping[str, bool]:
    return {}


WORLD = World(
    about="Scenes of one thing: shape, colour, texture, background.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "cloob": lambda seed: Arm("cloob", pairs(seed), {"recipe.freeze": "log_scale"}),
    },
    measure=measure,
    claims=claims,
    steps=600,
    settings={
        "recipe.rate": 1e-3,
        "recipe.weight_decay": 0.1,
        "recipe.beta2": 0.98,
        "recipe.warmup": 100,
        "recipe.crop": 1.0,
        "recipe.cycles": 1,
    },
)
