"""REAL-Linear: a linear classifier trained on pictures found for your classes in the model's own training data.

It needs no labels of yours, and helps most where a model has seen little of a class: the pictures are a balanced set.
Use it with what `diptych curate real` found (`--set real_linear.retrieved=FOLDER`, pictures included, concepts.json
beside them). Not for classes that the training data does not name, nor where new classes may come.

Parashar et al., The Neglected Tails of Vision-Language Models, CVPR 2024, arXiv 2401.12425, section 4: the weights
start from the text rows of REAL-Prompt, learn from 32 pictures and 32 prompts a step, and end half-way back (WiSE-FT).

Near-copies of your pictures among those found would flatter every figure. Left out is what is near (cosine above
`copies`) to the shots or to the unlabelled pictures; the test pictures are shown to no method, so copies of them must
be named: `apart=FOLDER` holds pictures, without regard to their classes, that none of those found may be near to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import TextRows
from diptych.core.text import TextRecipe
from diptych.data.support import Support
from diptych.engine.loop import Cosine, Optimiser, train
from diptych.errors import Unsupported
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work, recipe_of, sweep
from diptych.methods.adapt.parts.common_names import check_rule, recipe_for, unfit
from diptych.methods.adapt.parts.retrieved import retrieve

SCALE = 100.0  # of the logits; fixed, and meant for weights of norm near 1, which are not normalised
WARMUP, START = 50, 1e-5  # steps of a rising rate, and where it starts


@dataclass(frozen=True)
class Config:
    """The release's defaults.

    retrieved: the pictures found: a folder, table or shards with a class each. concepts: the file of counted names;
    nothing for concepts.json beside them, or the classes' own names where there is none. rule: as in `real_prompt`.
    alpha: share of the trained weights. n: pictures a class at most. iterations: steps at most. copies, apart: see
    above.
    """

    retrieved: str = ""
    concepts: str = ""
    rule: str = "relaxed"
    alpha: float | tuple[float, ...] = 0.5
    n: int = 500
    rate: float = 1e-4
    weight_decay: float = 0.01
    batch: int = 32
    epochs: int = 10
    iterations: int = 32_000
    copies: float = 0.95
    apart: str = ""


class REALLinear(Adapter):
    Config = Config
    needs = Needs(labels=False)
    trains = ("weight",)
    swept = ("alpha",)

    def refusal(self, clip: CLIP, support: Support | None = None) -> str | None:
        if reason := super().refusal(clip, support):
            return reason
        if not self.config.retrieved:
            return (
                "needs pictures found for your classes in the model's training data: `diptych curate real` finds them; "
                "then --set real_linear.retrieved=FOLDER"
            )
        file = names_file(self.config)
        return unfit(file, "real_linear", support) if file else None

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        config: Config = self.config
        check_rule(config.rule, "real_linear")
        if reason := self.refusal(clip, support):
            raise Unsupported(reason)
        file = names_file(config)
        recipe = recipe_for(file, config.rule, support) if file else recipe_of(support)
        rows = support.rows(clip, recipe).cpu()
        found = retrieve(clip, support, config.retrieved, config.n, config.copies, config.apart)
        texts, own = prompts(clip, support, recipe)
        weight = probe(found.features, found.labels, texts, own, rows, config, support.seed)
        for chosen in sweep(config, "alpha"):
            head = TextRows(rows.lerp(weight, chosen.alpha), float(clip.logit_scale))
            yield chosen, self.classifier(clip, support, head, chosen, trainable=weight.numel())

    def work(self, classes: int, shots: int) -> Work:
        steps = min(self.config.iterations, self.config.n * classes * self.config.epochs // self.config.batch)
        return Work(tokens=classes * 7 * 8, seconds=0.1 + 1e-3 * steps)


def names_file(config: Config) -> str:
    beside = Path(config.retrieved).expanduser() / "concepts.json"
    return config.concepts or (str(beside) if beside.is_file() else "")


def prompts(clip: CLIP, support: Support, recipe: TextRecipe) -> tuple[Tensor, Tensor]:
    """Unit embeddings [M, D] of every prompt of every class and their classes [M], in the order of the names."""
    order = sorted(range(len(support.names)), key=lambda c: support.names[c])
    texts = [(text, c) for c in order for text in recipe.texts(support.names[c])]
    embedded = support.source.texts(clip, [text for text, _ in texts]).cpu().float()
    return F.normalize(embedded, dim=1), torch.tensor([c for _, c in texts])


def probe(
    features: Tensor, labels: Tensor, texts: Tensor, own: Tensor, start: Tensor, config: Config, seed: int
) -> Tensor:
    """Weights [C, D] from unit features [N, D] with labels [N], unit prompts [M, D] with theirs [M], and the start."""
    weight = start.detach().clone().requires_grad_()
    steps = max(1, min(config.iterations, len(features) * config.epochs // config.batch))

    def loss(step: int) -> Tensor:
        i, j = drawn(len(features), config.batch, step, (seed, 0)), drawn(len(texts), config.batch, step, (seed, 1))
        return cross_modal_loss(weight, torch.cat([features[i], texts[j]]), torch.cat([labels[i], own[j]]))

    schedule = Cosine(warmup=min(WARMUP, steps // 2), start=min(START, config.rate))
    train({"weight": weight}, loss, Optimiser("adamw", config.rate, config.weight_decay), steps, schedule=schedule)
    return weight.detach()


def cross_modal_loss(weight: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of 100 x features [B, D] @ weight [C, D] transposed, pictures and prompts alike."""
    return F.cross_entropy(SCALE * features @ weight.T, labels)


def drawn(count: int, size: int, step: int, seed: tuple[int, ...]) -> Tensor:
    """What a step sees of `count` things: shuffled passes in whole batches, of fewer things all of them."""
    size = min(size, count)
    epoch, part = divmod(step, count // size)
    order = np.random.default_rng([*seed, 0x2EA1, epoch]).permutation(count)
    return torch.from_numpy(order[part * size : (part + 1) * size])
