"""The closed set of heads a `Classifier` can have. Every head maps unit embeddings [N, D] to logits [N, C].

A head is data: tensors and numbers. `renamed(rows)` gives the head for other classes where the kind allows it.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import Unsupported


@dataclass(frozen=True)
class Head:
    """Shared by all kinds: saving, moving, and refusing what a kind cannot do."""

    def logits(self, x: Tensor) -> Tensor:
        """Unit embeddings [N, D] -> logits [N, C]."""
        raise NotImplementedError

    def renamed(self, rows: Tensor) -> "Head":
        """The head for other classes, given their text rows [C', D]."""
        raise Unsupported(f"a {type(self).__name__} head knows only the classes it was fitted on")

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v for k, v in values.items() if isinstance(v, Tensor)}
        return {"kind": type(self).__name__, **{k: v for k, v in values.items() if k not in tensors}}, tensors

    def to(self, device: torch.device | str) -> "Head":
        _, tensors = self.pack()
        return replace(self, **{k: v.to(device) for k, v in tensors.items()})


@dataclass(frozen=True)
class TextRows(Head):
    """Zero-shot rows: scale * x @ rows.T. rows [C, D] are used as they are (unit, or a mean of unit rows)."""

    rows: Tensor
    scale: float

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * x @ self.rows.T

    def renamed(self, rows: Tensor) -> "TextRows":
        return replace(self, rows=rows)


@dataclass(frozen=True)
class Linear(Head):
    """x @ weight.T + bias. weight [C, D], bias [C]."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@dataclass(frozen=True)
class Neighbours(Head):
    """Vote of the k nearest keys by cosine, each with weight exp(cosine / temperature); logits are log shares.

    keys [N, D] unit; labels [N]; classes: C.
    """

    keys: Tensor
    labels: Tensor
    classes: int
    k: int
    temperature: float = 0.07

    def logits(self, x: Tensor) -> Tensor:
        near, index = (x @ self.keys.T).topk(min(self.k, len(self.keys)), dim=1)  # [B, k]
        weight = ((near - near[:, :1]) / self.temperature).exp()
        votes = torch.zeros(len(x), self.classes, device=x.device, dtype=x.dtype)
        votes.scatter_add_(1, self.labels.long()[index], weight)
        return (votes / votes.sum(1, keepdim=True)).clamp_min(1e-6).log()


@dataclass(frozen=True)
class Cache(Head):
    """Zero-shot rows plus a key-value cache (Tip-Adapter, arXiv 2111.03930, equations 3 to 6).

    logits = scale * x @ rows.T + alpha * exp(-beta * (1 - x @ keys.T)) @ onehot(labels).
    rows [C, D]; keys [N, D]; labels [N].
    """

    rows: Tensor
    keys: Tensor
    labels: Tensor
    scale: float
    alpha: float
    beta: float

    def logits(self, x: Tensor) -> Tensor:
        affinity = (-self.beta * (1 - x @ self.keys.T)).exp()  # [B, N]
        values = F.one_hot(self.labels.long(), len(self.rows)).to(x.dtype)
        return self.scale * x @ self.rows.T + self.alpha * affinity @ values


def gaussian_precision(scatter: Tensor, count: int) -> Tensor:
    """Ridge estimate of the precision from few samples: d * pinv((n - 1) S + trace(S) I).

    scatter S [D, D] = covariance with divisor n - 1; count n. Kubokawa and Srivastava, as used by GDA
    (arXiv 2402.04087). On the scale of d / (n - 1) times the inverse covariance for large n.
    """
    d = len(scatter)
    identity = torch.eye(d, dtype=scatter.dtype, device=scatter.device)
    return d * torch.linalg.pinv((count - 1) * scatter + scatter.trace() * identity, hermitian=True)


@dataclass(frozen=True)
class Gaussian(Head):
    """Classes as Gaussians of one covariance, beside zero-shot rows (GDA, arXiv 2402.04087).

    logits = scale * x @ rows.T + alpha * (x @ W + b), W = precision @ means.T, b = log_prior - diag(means W) / 2.
    rows, means [C, D]; precision [D, D]; log_prior [C]; features [N, D] of the fit, for classes named later.
    """

    rows: Tensor
    means: Tensor
    precision: Tensor
    log_prior: Tensor
    features: Tensor
    scale: float
    alpha: float

    def matrix(self) -> tuple[Tensor, Tensor]:
        """The Gaussian part as one matrix: weight [C, D], bias [C]."""
        weight = self.means @ self.precision
        return weight, self.log_prior - 0.5 * (weight * self.means).sum(1)

    def logits(self, x: Tensor) -> Tensor:
        weight, bias = self.matrix()
        return self.scale * x @ self.rows.T + self.alpha * (x @ weight.T + bias)

    def renamed(self, rows: Tensor, nearest: int = 64, copies: int = 16) -> "Gaussian":
        """New classes from their text rows and the fit's features (the paper's base-to-new protocol).

        Mean of a new class: its `nearest` features and `copies` of its row. Scatter: those features around the row.
        """
        k = min(nearest, len(self.features))
        index = (rows @ self.features.T).topk(k, dim=1).indices  # [C', k]
        near = self.features[index]  # [C', k, D]
        means = (near.sum(1) + copies * rows) / (k + copies)
        centred = near - rows[:, None]
        scatters = centred.transpose(1, 2) @ centred / max(k - 1, 1)  # [C', D, D]
        precision = torch.stack([gaussian_precision(s, k) for s in scatters]).mean(0)
        log_prior = torch.full((len(rows),), 1 / len(rows), dtype=rows.dtype, device=rows.device).log()
        return replace(self, rows=rows, means=means, precision=precision, log_prior=log_prior)


KINDS: dict[str, type[Head]] = {k.__name__: k for k in (TextRows, Linear, Neighbours, Cache, Gaussian)}


def unpack_head(spec: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    """The inverse of `Head.pack`. Raises KeyError for an unknown kind."""
    values = {k: v for k, v in spec.items() if k != "kind"}
    return KINDS[spec["kind"]](**values, **tensors)
