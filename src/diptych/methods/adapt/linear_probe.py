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
        wanted = values(self.config, "C")
        # The strongest regularisation first: each start is near its end. One C alone is come by on the same way.
        for C in sorted({*wanted, *(C for C in DECADES if max(wanted) > C)}):
            start = regress(features, labels, C, start, self.config.iterations)
            if C not in wanted:
                continue
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

    count = len(features)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = torch.from_numpy(flat).view_as(start).split([features.shape[1], 1], dim=1)
        log_shares = torch.addmm(bias.T, features, weight.T).log_softmax(1)  # [N, C]
        value = F.nll_loss(log_shares, labels) + weight.square().sum() / (2 * C * count)
        error = log_shares.exp_()
        error[torch.arange(count), labels] -= 1
        error /= count
        slope = torch.cat([error.T @ features + weight / (C * count), error.sum(0)[:, None]], dim=1)
        return float(value), slope.numpy().ravel()

    found, _, _ = fmin_l_bfgs_b(loss, start.numpy().ravel(), maxiter=iterations, pgtol=1e-5, factr=1e7)
    return torch.from_numpy(found).view_as(start)
