"""The closed set of heads a `Classifier` can have. Every head maps unit embeddings [N, D] to logits [N, C].

A head is data: tensors and numbers. `renamed(rows)` gives the head for other classes where the kind allows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import Unsupported

ROWS = 1024  # pictures at a time against all keys


@dataclass(frozen=True)
class Head:
    """Shared by all kinds: saving, moving, and refusing what a kind cannot do."""

    def logits(self, x: Tensor) -> Tensor:
        """Unit embeddings [N, D] -> logits [N, C]."""
        raise NotImplementedError

    @classmethod
    def logits_each(cls, heads: Sequence[Any], x: Tensor) -> Iterator[Tensor]:
        """The logits of each of several heads of this kind; kinds override it where heads of one fit share the work."""
        for head in heads:
            yield head.logits(x)

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
        return torch.cat([self.vote(*self.nearest(part)) for part in x.split(ROWS)])

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and labels of the k nearest keys [B, k], the nearest first."""
        near, index = (x @ self.keys.T).topk(min(self.k, len(self.keys)), dim=1)
        return near, self.labels.long()[index]

    def vote(self, near: Tensor, labels: Tensor) -> Tensor:
        weight = ((near[:, : self.k] - near[:, :1]) / self.temperature).exp()
        votes = near.new_zeros(len(near), self.classes).scatter_add_(1, labels[:, : self.k], weight)
        return (votes / votes.sum(1, keepdim=True)).clamp_min(1e-6).log()

    @classmethod
    def logits_each(cls, heads: Sequence[Self], x: Tensor) -> Iterator[Tensor]:
        """Each key is looked at once for all k."""
        shared: Any = None
        for head in heads:
            if shared is None or shared[0] is not head.keys:
                most = replace(head, k=max(h.k for h in heads))
                parts = [most.nearest(part) for part in x.split(ROWS)]
                shared = head.keys, *(torch.cat(p) for p in zip(*parts, strict=True))
            yield head.vote(*shared[1:])


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
        (logits,) = self.logits_each([self], x)
        return logits

    @classmethod
    def logits_each(cls, heads: Sequence[Self], x: Tensor) -> Iterator[Tensor]:
        """Affinities are computed once a set of keys, votes once a beta; alpha costs nothing."""
        votes: dict[tuple[int, float], Tensor] = {}
        for keys in {id(head.keys): head for head in heads}.values():
            values = F.one_hot(keys.labels.long(), len(keys.rows)).to(x.dtype)  # [N, C]
            betas = {head.beta for head in heads if head.keys is keys.keys}
            parts: dict[float, list[Tensor]] = {beta: [] for beta in betas}
            for part in x.split(ROWS):
                distance = 1 - part @ keys.keys.T  # [B, N]
                for beta in betas:
                    parts[beta].append((-beta * distance).exp() @ values)
            votes |= {(id(keys.keys), beta): torch.cat(p) for beta, p in parts.items()}
        for head in heads:
            yield head.scale * x @ head.rows.T + head.alpha * votes[id(head.keys), head.beta]


def gaussian_precision(scatter: Tensor, count: int) -> Tensor:
    """Ridge estimate of the precision from few samples: d * pinv((n - 1) S + trace(S) I).

    scatter S [D, D] = covariance with divisor n - 1; count n. Kubokawa and Srivastava, as used by GDA
    (arXiv 2402.04087). On the scale of d / (n - 1) times the inverse covariance for large n.
    """
    d = len(scatter)
    ridge = scatter.trace()
    identity = torch.eye(d, dtype=scatter.dtype, device=scatter.device)
    ridged = (count - 1) * scatter + ridge * identity
    if ridge <= 0:
        return d * torch.linalg.pinv(ridged, hermitian=True)
    return d * torch.cholesky_inverse(torch.linalg.cholesky(ridged))  # its eigenvalues lie within 1..n times the ridge


def ridge_precision(centred: Tensor) -> Tensor:
    """`gaussian_precision` of the scatter of n centred vectors [n, D], n < D, by an n x n inverse (Woodbury)."""
    count, d = centred.shape
    wide = centred.double()
    ridge = (wide.square().sum() / max(count - 1, 1)).clamp_min(1e-12)
    inner = ridge * torch.eye(count, dtype=wide.dtype, device=wide.device) + wide @ wide.T
    identity = torch.eye(d, dtype=wide.dtype, device=wide.device)
    return (d * (identity - wide.T @ torch.linalg.solve(inner, wide)) / ridge).to(centred.dtype)


@dataclass(frozen=True)
class Gaussian(Head):
    """Classes as Gaussians of one covariance, beside zero-shot rows (GDA, arXiv 2402.04087).

    logits = scale * x @ rows.T + alpha * (x @ W + b), W = precision @ means.T, b = log_prior - diag(means W) / 2, up to
    a number that all classes of a picture share.
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
        """The Gaussian part as one matrix: weight [C, D], bias [C].

        Of the means' differences from their mean: that takes the same number from all classes of a picture, and what
        the classes have in common no longer drowns their differences in round-off.
        """
        centre = self.means.mean(0)
        apart = self.means - centre
        weight = apart @ self.precision
        return weight, self.log_prior - weight @ centre - 0.5 * (weight * apart).sum(1)

    def logits(self, x: Tensor) -> Tensor:
        (logits,) = self.logits_each([self], x)
        return logits

    @classmethod
    def logits_each(cls, heads: Sequence[Self], x: Tensor) -> Iterator[Tensor]:
        """The matrix is made once a fit; alpha costs nothing."""
        shared: Any = None
        for head in heads:
            if shared is None or shared[0] is not head.precision or shared[1] is not head.means:
                weight, bias = head.matrix()
                shared = head.precision, head.means, x @ weight.T + bias
            yield head.scale * x @ head.rows.T + head.alpha * shared[2]

    def renamed(self, rows: Tensor, nearest: int = 64, copies: int = 16) -> "Gaussian":
        """New classes from their text rows and the fit's features (the paper's base-to-new protocol).

        Mean of a new class: its `nearest` features and `copies` of its row. Precision: the mean over the new classes of
        the ridge estimates from those features around the row. alpha stays, as in the release.
        """
        k = min(nearest, len(self.features))
        index = (rows @ self.features.T).topk(k, dim=1).indices  # [C', k]
        means = torch.empty_like(rows)
        precision = torch.zeros_like(self.precision)
        for c, row in enumerate(rows):
            near = self.features[index[c]]  # [k, D]
            means[c] = (near.sum(0) + copies * row) / (k + copies)
            precision += ridge_precision(near - row) / len(rows)
        log_prior = torch.full((len(rows),), 1 / len(rows), dtype=rows.dtype, device=rows.device).log()
        return replace(self, rows=rows, means=means, precision=precision, log_prior=log_prior)


KINDS: dict[str, type[Head]] = {k.__name__: k for k in (TextRows, Linear, Neighbours, Cache, Gaussian)}


def unpack_head(spec: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    """The inverse of `Head.pack`. Raises KeyError for an unknown kind."""
    values = {k: v for k, v in spec.items() if k != "kind"}
    return KINDS[spec["kind"]](**values, **tensors)
