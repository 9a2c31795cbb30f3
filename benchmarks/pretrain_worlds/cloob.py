"""cloob against clip, against itself from the first step, and against its two halves."""

from collections.abc import Mapping

from pretrain_worlds.parts import Arm, Held, Values, World, above, accuracies, effective_rank, pictures, sayings, styled
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.losses.contrastive import softmax_rows
from diptych.losses.loob import info_loob, retrieve
from diptych.methods.pretrain.cloob import Cloob
from diptych.methods.pretrain.parts.contrast import unit
from diptych.methods.pretrain.parts.objective import Batch, Embeddings
from diptych.training.run import Trained

COUNT, TEST, START = 4000, 600, 75


class WithoutLoob(Cloob):
    """Retrieval, and InfoNCE on what was retrieved."""

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        x, y = unit(embeddings, "image", "text")
        if batch.step < self.config.start:
            return super().loss(embeddings, clip, batch)
        beta, scale = self.config.beta, clip.logit_scale
        images = softmax_rows(retrieve(x, x, beta), retrieve(y, x, beta), scale).mean()
        return {"contrastive": images + softmax_rows(retrieve(y, y, beta), retrieve(x, y, beta), scale).mean()}


class WithoutRetrieval(Cloob):
    """InfoLOOB on the embeddings themselves."""

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        x, y = unit(embeddings, "image", "text")
        if batch.step < self.config.start:
            return super().loss(embeddings, clip, batch)
        return {"loob": info_loob(x, y, clip.logit_scale) + info_loob(y, x, clip.logit_scale)}


def measure(name: str, trained: Trained, seed: int) -> Mapping[str, float]:
    clip, test = trained.clip, styled(TEST, 1000 + seed)
    images, texts = pictures(clip, test), sayings(clip, [pair.texts[0] for pair in test.items])
    alike = images[:200] @ images[:200].T
    return {
        **accuracies(clip, images, test),
        "rank of pictures": effective_rank(images),
        "rank of texts": effective_rank(texts),
        "cosine of pictures": float(alike.mean()),
        "retrieves itself": float((8 * alike[:64, :64]).softmax(1).diagonal().mean()),
    }


def claims(found: Values) -> Mapping[str, bool]:
    """Of the paper's effects, at this size."""
    long = "cloob at 14.3, started by clip, 1500 steps"
    arms = {"cloob": "clip", "cloob, started by clip": "clip", "cloob, started late": "clip"}
    arms |= {"cloob at 14.3, started by clip": "clip", long: "clip, 1500 steps"}
    held = above(found, "zero-shot", "cloob, started by clip", "retrieval alone", 0)
    for arm, other in arms.items():
        held |= above(found, "rank of pictures", arm, other, 0) | above(found, "zero-shot", arm, other, -1)
    return held


def pairs(seed: int) -> Held:
    return styled(COUNT, seed)


CODE = {"cloob.beta": 14.3, "cloob.scale": 14.3}  # the defaults of the authors' program; the paper's runs had others
FIRST, LATE = {"cloob.start": START}, {"cloob.start": 200}
WORLD = World(
    about="Scenes of one thing: eight backgrounds, four styles, six colours; captions say all. Where an "
    "arm says so, the first 75 (late: 200) of the 300 steps go by clip's loss. Rank: eigenvalues that hold 99% of the "
    "covariance of held-out embeddings. Retrieves itself: its share in what a picture retrieves among 64.",
    arms={
        "clip": lambda seed: Arm("clip", pairs(seed)),
        "cloob": lambda seed: Arm("cloob", pairs(seed)),
        "cloob, started by clip": lambda seed: Arm("cloob", pairs(seed), FIRST),
        "cloob, started late": lambda seed: Arm("cloob", pairs(seed), LATE),
        "cloob at 14.3": lambda seed: Arm("cloob", pairs(seed), CODE),
        "cloob at 14.3, started by clip": lambda seed: Arm("cloob", pairs(seed), {**FIRST, **CODE}),
        "clip, 1500 steps": lambda seed: Arm("clip", pairs(seed), steps=1500),
        "cloob at 14.3, started by clip, 1500 steps": lambda seed: Arm(
            "cloob", pairs(seed), {**FIRST, **CODE}, steps=1500
        ),
        "InfoLOOB alone": lambda seed: Arm("cloob", pairs(seed), FIRST, WithoutRetrieval),
        "retrieval alone": lambda seed: Arm("cloob", pairs(seed), FIRST, WithoutLoob),
    },
    measure=measure,
    claims=claims,
    steps=300,
    batch=64,
    settings={
        "recipe.rate": 2e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 30, "recipe.crop": 1.0, "recipe.cycles": 1,
    },
)  # fmt: skip
