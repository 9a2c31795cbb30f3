"""GDA: classes as Gaussians of one shared covariance, beside zero-shot; closed form, no training.

Use it first of all that need labels: most of the gain of trained adapters within a second, from one shot a class on,
and it can still name new classes. Not where a class has several unlike looks and many pictures of each: one mean blurs
them (`tip_adapter`, `knn`).

Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024, arXiv 2402.04087. Mean of 11
data sets with RN50: 62.2, 66.2, 69.8, 73.3, 76.1% at 1, 2, 4, 8, 16 shots (16 shots ViT-B/16: 81.9%); base to new
with ViT-B/16: 84.0 and 74.5%. alpha is chosen here on held-out shots, never on the test pictures. Base to new takes
the pooled ridge estimate for the base classes too: the release's inverse of their mean covariance breaks down with few.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.support import CROP, Support
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work, recipe_of, sweep
from diptych.methods.adapt.parts.gaussian import ALPHAS, fit_classes, head_of


@dataclass(frozen=True)
class Config:
    """The released defaults.

    alpha: weight of the Gaussian part; depends on the number of pictures, so one data set's means nothing for another.
    views: augmented copies of each shot, each a sample of its own; 0 is the plain picture, and what is taken with more
    than 16 shots a class unless another number is set. prior: "uniform", or
    "counts" where rare classes are rare in life too.
    """

    alpha: float | tuple[float, ...] = ALPHAS
    views: int = 10
    prior: str = "uniform"


class GDA(Adapter):
    Config = Config
    needs = Needs()
    names_new_classes = True
    swept = ("alpha",)
    fallback = {"alpha": 0.1}  # noqa: RUF012
    many = {"views": 0}  # noqa: RUF012

    def refusal(self, clip: CLIP, support: Support | None = None) -> str | None:
        reason = super().refusal(clip, support)
        if reason is None and support is not None and self.config.views < 2 and int(support.counts.max()) < 2:
            return "has no scatter within a class at one shot with one view; set gda.views=10 or give more shots"
        return reason

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        recipe = recipe_of(support)
        rows = support.rows(clip, recipe)
        features = support.features(clip, self.config.views)
        labels = support.labels.to(features.device)
        if self.config.views:
            features, labels = features.flatten(0, 1), labels.repeat_interleave(self.config.views)
        weights = F.one_hot(labels, len(support.names)).to(features.dtype)
        fitted = fit_classes(features, weights, self.config.prior)
        head = head_of(fitted, rows, features, float(clip.logit_scale))
        for config in sweep(self.config, "alpha"):
            yield config, self.classifier(clip, support, replace(head, alpha=config.alpha), config, recipe=recipe)

    def views(self) -> tuple[int, tuple[float, float]]:
        return self.config.views, CROP

    def work(self, classes: int, shots: int) -> Work:
        return Work(seconds=0.05 + 2e-5 * classes * shots * max(self.config.views, 1))
