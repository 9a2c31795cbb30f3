"""Tip-Adapter: a picture is also compared with the labelled ones, each voting for its class; no training.

Use it from 4 shots a class on, where a class has several looks that one mean would blur. It cannot name new classes,
and everything labelled stays in the file and is compared with at each prediction. Not for very many pictures, and not
where zero-shot is near chance, which then only disturbs the votes (`tip_adapter_f`, `gda`).

Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022, arXiv 2207.09519
(2111.03930): 62.0% on ImageNet with 16 shots and RN50, where zero-shot has 60.3. alpha and beta are searched on
held-out shots over all ranges of the release, never on the test pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.support import CROP, Support
from diptych.methods.adapt.parts.adapter import FEW, Adapter, Work, recipe_of, sweep
from diptych.methods.adapt.parts.cache import ALPHAS, BETAS, FALLBACK, MOST, build_cache, kept


@dataclass(frozen=True)
class Config:
    """alpha: weight of the votes. beta: their sharpness. views: augmented copies averaged into a key, 0 for none.

    No views are taken with more than 16 shots a class unless another number is set, and at most 16 a class become keys,
    or 4,096 pictures where that is more.
    """

    alpha: float | tuple[float, ...] = ALPHAS
    beta: float | tuple[float, ...] = BETAS
    views: int = 10


class TipAdapter(Adapter):
    Config = Config
    swept = ("alpha", "beta")
    fallback = FALLBACK
    many = {"views": 0}  # noqa: RUF012

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        shots = kept(support)
        cache = build_cache(clip, shots, support.rows(clip, recipe_of(support)), self.config.views)
        for config in sweep(self.config, "alpha", "beta"):
            head = replace(cache, alpha=config.alpha, beta=config.beta)
            yield config, self.classifier(clip, support, head, config)

    def views(self) -> tuple[int, tuple[float, float]]:
        return self.config.views, CROP

    def work(self, classes: int, shots: int) -> Work:
        return Work(seconds=0.03 + 3e-8 * classes * shots * min(classes * shots, max(FEW * classes, MOST)))
