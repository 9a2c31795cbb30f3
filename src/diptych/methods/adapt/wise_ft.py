"""WiSE-FT: fine-tune the whole image tower, then go part of the way back to the zero-shot weights.

It changes what the tower sees, so it can help where no method on fixed features does, at the cost of one training run
over the pixels and a model file as large as the tower. Use it from about 16 shots a class and for pictures far from
what the model knows. Not for one shot, and not where many results must share one model.

Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv 2109.01903: tower and head, which starts from
the zero-shot texts, are trained end to end and the weights of both ends averaged; the share is chosen on validation,
0.5 without. Published: AdamW, rate 3e-5, weight decay 0.1, gradient norm 1, 10 epochs of ImageNet in batches of 512.
The few steps that a few shots on a CPU can have are larger ones, in small batches, with the statistics of batch norms
kept and no bias in the head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, TowerEdits
from diptych.core.heads import TextRows
from diptych.core.weights import interpolate
from diptych.data.support import Support
from diptych.engine.loop import Cosine, Optimiser, train
from diptych.methods.adapt.parts.adapter import Adapter, Work, recipe_of, sweep, values
from diptych.methods.adapt.parts.sampling import Batches, steps_of

CROP = (0.5, 1.0)


@dataclass(frozen=True)
class Config:
    """alpha: share of the fine-tuned weights, 0 is zero-shot. warmup: share of the steps."""

    alpha: tuple[float, ...] | float = (0.0, 0.25, 0.5, 0.75, 1.0)
    epochs: int = 4
    rate: float = 1e-4
    weight_decay: float = 0.1
    batch: int = 16
    warmup: float = 0.1
    clip: float = 1.0


class WiSEFT(Adapter):
    Config = Config
    trains = ("image tower", "head")
    cost = "both towers"
    names_new_classes = True
    swept = ("alpha",)
    fallback = {"alpha": 0.5}  # noqa: RUF012
    folds = 2

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        config: Config = self.config
        recipe = recipe_of(support)
        rows, scale = support.rows(clip, recipe), float(clip.logit_scale)
        tuned, tuned_rows = fine_tune(clip, support, rows, config)
        base = dict(clip.image.named_parameters())
        for chosen in sweep(config, "alpha"):
            share = chosen.alpha
            weights = interpolate(base, tuned, share) if share else {}
            yield (
                chosen,
                self.classifier(
                    clip,
                    support,
                    TextRows(rows.lerp(tuned_rows, share), scale),
                    chosen,
                    recipe=recipe,
                    edits=Edits({"image": TowerEdits(weights=weights)}),
                    trainable=rows.numel() + sum(w.numel() for w in tuned.values()),
                ),
            )

    def work(self, classes: int, shots: int) -> Work:
        pictures = classes * shots
        steps = steps_of(pictures, self.config.batch, self.config.epochs)
        judged = pictures * len(values(self.config, "alpha")) // 2  # held pictures, once a share, in about two fits
        return Work(images=judged, images_backward=steps * min(self.config.batch, pictures))


def fine_tune(clip: CLIP, support: Support, rows: Tensor, config: Config) -> tuple[dict[str, Tensor], Tensor]:
    """Train copies of all weights of the image tower, and of the text rows [C, D], end to end; returns both."""
    weights = {name: p.detach().clone().requires_grad_() for name, p in clip.image.named_parameters()}
    head = rows.detach().clone().requires_grad_()
    tuned = clip.edited(Edits({"image": TowerEdits(weights=weights)}))
    batches, labels = Batches(support, config.batch), support.labels.to(clip.device)
    steps = steps_of(len(support), config.batch, config.epochs)

    def loss(step: int) -> Tensor:
        batch = batches[step]
        pixels = support.pixels(clip, batch.tolist(), batches.crops(step), CROP).to(clip.device)
        pictures = F.normalize(tuned.encode_image(pixels), dim=-1)
        return F.cross_entropy(clip.logit_scale * pictures @ head.T, labels[batch])

    train(
        {**weights, "head": head},
        loss,
        Optimiser("adamw", config.rate, config.weight_decay),
        steps,
        schedule=Cosine(warmup=max(1, round(config.warmup * steps))),
        clip=config.clip,
    )
    return {name: weight.detach() for name, weight in weights.items()}, head.detach()
