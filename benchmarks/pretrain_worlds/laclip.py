"""laclip against clip, where all captions are in one template and prompts are in that one or in others."""

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import mean

from pretrain_worlds.parts import EASY, Arm, Held, Values, World, drawn, pictures, tiny_clip, zero_shot

from diptych.data.rewrites import Rewritten, by_rules
from diptych.data.scenes import SceneSpec
from diptych.training.run import Trained

SPEC = SceneSpec(**EASY, say=("colour", "background"))
COUNT, TEST, K = 8000, 1000, 4
ASPECTS = {aspect: getattr(SPEC, f"{aspect}s") for aspect in ("colour", "background")}
UNSEEN = (
    "look at {}",
    "in this drawing you find {}",
    "what we have there is {} , as you see",
    "free clipart with {} by the sketch",
)
MORE = tuple(" ".join(UNSEEN).replace("{}", "").lower().split())


@cache
def pairs(seed: int) -> Held:
    return drawn(SPEC, COUNT, seed)


@cache
def rewritten(seed: int, shift: int = 0) -> Rewritten:
    """With K rewrites by rules. shift: those of the caption so many places on."""
    texts = list(dict.fromkeys(pair.texts[0] for pair in pairs(seed).items))
    made = [{str(k): by_rules(text, str(k)) for k in range(K)} for text in texts]
    return Rewritten(pairs(seed), dict(zip(texts, made[shift:] + made[:shift], strict=True)))


@cache
def saying(aspect: str, word: str) -> tuple[str, ...]:
    """Held-out captions that say this word."""
    some = drawn(SPEC, 300, 5000)
    return tuple(p.texts[0] for p in some.items if p.extra[aspect] == word)[:8]


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    clip, test = trained.clip, drawn(SPEC, TEST, 1000 + seed)
    images = pictures(clip, test)

    def accuracy(templates: Sequence[str]) -> float:
        return mean(
            zero_shot(clip, images, [p.extra[aspect] for p in test.items], options,
                      lambda word: [template.format(text) for text in saying(aspect, word)])  # noqa: B023
            for aspect, options in ASPECTS.items() for template in templates
        )  # fmt: skip

    return {"own template": accuracy(["{}"]), "unseen templates": accuracy(UNSEEN)}


def claims(found: Values) -> Mapping[str, bool]:
    return {}


WORLD = World(
    about="Scenes of one thing",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "laclip": lambda seed: Arm("laclip", rewritten(seed)),
        "rewrites of others": lambda seed: Arm("laclip", rewritten(seed, 7)),
    },
    measure=measure,
    claims=claims,
    steps=400,
    batch=64,
    settings={
        "recipe.rate": 2e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 30, "recipe.crop": 1.0,
    },
    model=lambda seed: tiny_clip(seed, more=MORE),
)  # fmt: skip
