"""GDA without labels: Gaussian classes found in unlabelled pictures, started from zero-shot; no training.

Use it with some hundred unlabelled pictures of the same classes (a folder `unlabelled/` beside the classes) and few or
no labelled ones. Not where the pool holds many pictures of none of the classes, or zero-shot is near chance: it makes
firmer what zero-shot believes.

Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024, arXiv 2402.04087: a Gaussian
mixture of one covariance, by expectation maximisation. The release does not hold this variant, so the number of rounds
is ours. Labelled pictures serve only to choose alpha.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.support import Support
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work, recipe_of, sweep
from diptych.methods.adapt.parts.gaussian import ALPHAS, Classes, fit_classes, head_of


@dataclass(frozen=True)
class Config:
    """alpha: weight of the Gaussian part. rounds: of expectation and maximisation. prior: "uniform" or "counts"."""

    alpha: float | tuple[float, ...] = ALPHAS
    rounds: int = 10
    prior: str = "uniform"


class GDAUnsupervised(Adapter):
    Config = Config
    needs = Needs(labels=False, pool=True)
    names_new_classes = True
    swept = ("alpha",)
    fallback = {"alpha": 0.1}  # noqa: RUF012

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        recipe = recipe_of(support)
        rows, scale = support.rows(clip, recipe), float(clip.logit_scale)
        features = support.source.images(clip, support.unlabelled)
        fitted = fit_mixture(features, (scale * features @ rows.T).softmax(1), self.config.rounds, self.config.prior)
        head = head_of(fitted, rows, features, scale)
        for config in sweep(self.config, "alpha"):
            yield config, self.classifier(clip, support, replace(head, alpha=config.alpha), config, recipe=recipe)

    def work(self, classes: int, shots: int) -> Work:
        return Work(seconds=0.05 + 0.05 * self.config.rounds)


def fit_mixture(features: Tensor, posterior: Tensor, rounds: int, prior: str = "uniform") -> Classes:
    """Gaussians from unit features [N, D] and first posteriors [N, C]: maximise, then `rounds` times both steps.

    The expectation is Bayes' rule under the inverse covariance, (N - 1) / D times the precision of `fit_classes`.
    """
    features = features.double()
    count, d = features.shape
    fitted = fit_classes(features, posterior, prior)
    for _ in range(rounds):
        weight = fitted.means @ fitted.precision
        energy = features @ weight.T + fitted.log_prior - 0.5 * (weight * fitted.means).sum(1)
        posterior = (energy * ((count - 1) / d)).softmax(1)
        fitted = fit_classes(features, posterior, prior)
    return fitted
