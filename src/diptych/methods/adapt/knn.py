"""k nearest neighbours: a picture belongs to the class of the labelled pictures it is most like.

Use it as a check: it shows what the pictures alone say, without names and without a fit. Not with few shots, where it
is the weakest of all; with hundreds a class and ragged classes it can be strong.

Cosine distance, one vote a neighbour; k is chosen on held-out shots. With `temperature` 0.07 votes are weighted as in
Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, arXiv 1805.01978: then
it is Tip-Adapter's cache without the names, and about as good.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import Neighbours
from diptych.data.support import Support
from diptych.methods.adapt.parts.adapter import Adapter, Work, sweep


@dataclass(frozen=True)
class Config:
    """k: neighbours that vote, each with exp(cosine / temperature). temperature: the smaller, the more the nearest
    count; 1000 counts heads, and the nearer ones decide a tie."""

    k: int | tuple[int, ...] = (1, 3, 5, 10, 20, 50, 100, 200)
    temperature: float = 1000.0


class KNN(Adapter):
    Config = Config
    swept = ("k", "temperature")
    fallback = {"k": 1}  # noqa: RUF012

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        keys, labels = support.features(clip).cpu(), support.labels.cpu()
        for config in sweep(self.config, "temperature", "k"):
            head = Neighbours(keys, labels, len(support.names), config.k, config.temperature)
            yield config, self.classifier(clip, support, head, config)

    def work(self, classes: int, shots: int) -> Work:
        return Work(seconds=0.02 + 1e-9 * (classes * shots) ** 2)
