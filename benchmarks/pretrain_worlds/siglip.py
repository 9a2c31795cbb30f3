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
    if "clip" not in found or "siglip" not in found:
        return {}
    clip, siglip = (mean(found[name]["zero-shot"]) for name in ("clip", "siglip"))
    says = {"siglip is at least as good as clip in small batches": siglip >= clip}
    if "siglip bias 0" in found:
        says["... and a bias that starts at -10 is at least as good as one from 0"] = mean(
            found["siglip"]["zero-shot"]
        ) >= mean(found["siglip bias 0"]["zero-shot"])
    return says


WORLD = World(
    about="Scenes of one thing, batches of 32.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "siglip": lambda seed: Arm("siglip", pairs(seed)),
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
