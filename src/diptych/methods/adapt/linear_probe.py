"""Linear probe: logistic regression on the image embeddings.

Use it with many labelled pictures a class (32 and more), where it catches up with everything that starts from the
names. Not with few: it knows nothing of the names, and cannot name new classes.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020, appendix A.3:
L-BFGS, at most 1000 iterations, the regularisation C between 1e-6 and 1e6 by validation. The decades are tried one
after the other, each from the last one's solution.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import Linear
from diptych.data.support import Support
from diptych.methods.adapt.parts.adapter import Adapter, Work, values

DECADES = tuple(float(f"1e{power}") for power in range(-6, 7))


@dataclass(frozen=True)
class Config:
    """C: inverse strength of the regularisation. iterations: at most so many for one C."""

    C: float | tuple[float, ...] = DECADES
    iterations: int = 1000


class LinearProbe(Adapter):
    Config = Config
    trains = ("weight", "bias")
    swept = ("C",)
    fallback = {"C": 1.0}  # noqa: RUF012

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        features, labels = support.features(clip).cpu().double(), support.labels.cpu()
        start = torch.zeros(len(support.names), features.shape[1] + 1, dtype=torch.float64)
        for C in sorted(values(self.config, "C")):  # the strongest regularisation first: each start is near its end
            start = regress(features, labels, C, start, self.config.iterations)
            head, config = Linear(start[:, :-1].float(), start[:, -1].float()), replace(self.config, C=C)
            yield config, self.classifier(clip, support, head, config, trainable=start.numel())

    def work(self, classes: int, shots: int) -> Work:
        return Work(seconds=0.3 + 1e-4 * classes * shots)


def regress(features: Tensor, labels: Tensor, C: float, start: Tensor, iterations: int) -> Tensor:
    """Minimise the mean cross-entropy + |weight|^2 / (2 C N) by L-BFGS, in double precision.

    features [N, D], labels [N], start [C, D + 1] -> [C, D + 1], the last column the bias. Not scikit-learn, which calls
    the same SciPy routine: importing it takes longer than all fits together.
    """
    from scipy.optimize import fmin_l_bfgs_b

    x, wanted = features.numpy(), F.one_hot(labels, len(start)).double().numpy()
    count = len(x)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat.reshape(start.shape)[:, :-1], flat.reshape(start.shape)[:, -1]
        logits = x @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        share = np.exp(logits)
        total = share.sum(1, keepdims=True)
        value = (np.log(total[:, 0]) - (logits * wanted).sum(1)).mean() + (weight**2).sum() / (2 * C * count)
        error = (share / total - wanted) / count
        slope = error.T @ x + weight / (C * count)
        return value, np.concatenate([slope, error.sum(0)[:, None]], axis=1).ravel()

    found, _, _ = fmin_l_bfgs_b(loss, start.numpy().ravel(), maxiter=iterations, pgtol=1e-5, factr=1e4)
    return torch.from_numpy(found).reshape(start.shape)
