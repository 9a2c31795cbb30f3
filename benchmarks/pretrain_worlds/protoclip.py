"""protoclip against clip in small batches: how alike things lie together, and what a linear probe finds."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from statistics import mean

from pretrain_worlds.parts import EASY, Arm, Held, Values, World, drawn, pictures, zero_shot_on
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from diptych.data.scenes import SceneSpec
from diptych.training.run import Trained

SPEC = SceneSpec(**EASY)  # captions tell the class, a colour and a shape (36 in all), and the background
COUNT, TEST = 1000, 1000


@cache
def pairs(seed: int) -> Held:
    """extra: "words", what a plain model of texts says of the caption: TF-IDF of its words."""
    plain = drawn(SPEC, COUNT, seed)
    rows = TfidfVectorizer().fit_transform([pair.texts[0] for pair in plain.items]).toarray()
    items = [replace(p, extra={**p.extra, "words": r}) for p, r in zip(plain.items, rows, strict=True)]
    return replace(plain, items=items)


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    """Linear probe: of the class, fitted to other pictures. ARI: k-means against the class, and against all that is
    told, with as many groups."""
    clip, fit, test = trained.clip, drawn(SPEC, TEST, 2000 + seed), drawn(SPEC, TEST, 1000 + seed)
    known, asked = pictures(clip, fit), pictures(clip, test)
    middle, spread = known.mean(0), known.std(0)
    a, b = (((rows - middle) / spread).numpy() for rows in (known, asked))
    classes = [[f"{p.extra['colour']} {p.extra['shape']}" for p in held.items] for held in (fit, test)]
    told = [f"{kind} {p.extra['background']}" for kind, p in zip(classes[1], test.items, strict=True)]
    probe = LogisticRegression(max_iter=300).fit(a, classes[0]).score(b, classes[1])
    right = zero_shot_on(clip, asked, test, SPEC)
    return {
        "linear probe": 100 * float(probe),
        "ARI class": agreement(asked, classes[1]),
        "ARI told": agreement(asked, told),
        "zero-shot colour": right["colour"],
        "zero-shot background": right["background"],
        "zero-shot shape": right["shape"],
    }


def agreement(rows: Tensor, kinds: list[str]) -> float:
    """100 times the adjusted Rand index of k-means of rows [N, D] with the kinds."""
    groups = KMeans(len(set(kinds)), n_init=5, random_state=0).fit_predict(rows.numpy())
    return 100 * float(adjusted_rand_score(kinds, groups))


def claims(found: Values) -> Mapping[str, bool]:
    says = {}
    for name in ("protoclip", "protoclip words"):
        if name not in found or "clip" not in found:
            continue
        for what in ("linear probe", "ARI class", "ARI told"):
            gain = mean(found[name][what]) - mean(found["clip"][what])
            says[f"{name}: {what} is at least 2 points above clip's"] = gain >= 2
    if {"clip", "one cluster"} <= set(found):
        apart = mean(found["one cluster"]["linear probe"]) - mean(found["clip"]["linear probe"])
        says["with one cluster the probe is within 2 points of clip's"] = abs(apart) <= 2
    return says


def arm(seed: int, **settings: object) -> Arm:
    sizes = {"episodes": 20, "shortest": 1, "clusters": 100, "restarts": 1, "hidden": 256, "projection": 48}
    return Arm("protoclip", pairs(seed), {f"protoclip.{k}": v for k, v in (sizes | settings).items()})


WORLD = World(
    about="Scenes of one thing, batches of 64.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "protoclip": lambda seed: arm(seed),
        "protoclip words": lambda seed: arm(seed, teacher="words"),
        "one cluster": lambda seed: arm(seed, clusters=1),
    },
    measure=measure,
    claims=claims,
    steps=300,
    batch=64,
    settings={
        "recipe.rate": 1e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 40, "recipe.crop": 1.0, "recipe.clip": 1.0,
    },
)  # fmt: skip
