"""laclip against clip, where all captions are in one template and prompts are in that one or in others."""

from collections.abc import Mapping
from functools import cache
from statistics import mean

from pretrain_worlds.parts import Arm, Held, Values, World, above, accuracies, pictures, styled, tiny_clip

from diptych.data.rewrites import Rewritten, by_rules
from diptych.training.run import Trained

COUNT, TEST, K = 4000, 600, 4
UNSEEN = (
    "look at {}",
    "in this drawing you find {}",
    "what we have there is {} , as you see",
    "free clipart with {} by hand",
)
MORE = tuple(" ".join(UNSEEN).replace("{}", "").lower().split())


@cache
def pairs(seed: int) -> Held:
    return styled(COUNT, seed)


@cache
def rewritten(seed: int, shift: int = 0) -> Rewritten:
    """With K rewrites by rules. shift: those of the caption so many places on."""
    texts = list(dict.fromkeys(pair.texts[0] for pair in pairs(seed).items))
    made = [{str(k): by_rules(text, str(k)) for k in range(K)} for text in texts]
    return Rewritten(pairs(seed), dict(zip(texts, made[shift:] + made[:shift], strict=True)))


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    clip, test = trained.clip, styled(TEST, 1000 + seed)
    images = pictures(clip, test)

    own = accuracies(clip, images, test)["zero-shot"]
    unseen = [accuracies(clip, images, test, template)["zero-shot"] for template in UNSEEN]
    return {"own template": own, "unseen templates": mean(unseen)}


def claims(found: Values) -> Mapping[str, bool]:
    """Of the paper's effects, at this size."""
    return {
        **above(found, "unseen templates", "laclip", "clip", 3),
        **above(found, "own template", "laclip", "clip", -1),
        **above(found, "own template", "laclip, 600 steps", "clip, 600 steps", -1),
        **above(found, "own template", "clip", "rewrites of others", 5),
    }


WORLD = World(
    about="Scenes of one thing: eight backgrounds, four styles, six colours; all captions in one template, and "
    "four rewrites of each by rules. Zero-shot among 1,152 captions, in that template and in four that no text has.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "laclip": lambda seed: Arm("laclip", rewritten(seed)),
        "rewrites of others": lambda seed: Arm("laclip", rewritten(seed, 7)),
        "clip, 600 steps": lambda seed: Arm("clip", pairs(seed), steps=600),
        "laclip, 600 steps": lambda seed: Arm("laclip", rewritten(seed), steps=600),
    },
    measure=measure,
    claims=claims,
    steps=300,
    batch=64,
    settings={
        "recipe.rate": 2e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 30, "recipe.crop": 1.0,
    },
    model=lambda seed: tiny_clip(seed, more=MORE),
)  # fmt: skip
