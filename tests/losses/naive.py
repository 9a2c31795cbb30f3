"""What the losses' tests share: rows, and loops over Python floats."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Random unit rows in float64."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


class Largest(TorchDispatchMode):
    """While it lasts: the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.elements = max(self.elements, found.numel())
        return found


def dot(*vectors: list[float]) -> float:
    return sum(math.prod(values) for values in zip(*vectors, strict=True))


def log_sum(values: list[float]) -> float:
    return math.log(sum(math.exp(v) for v in values))


def softmax(values: list[float]) -> list[float]:
    return [math.exp(v - log_sum(values)) for v in values]


def cross_entropy(target: list[float], logits: list[float]) -> float:
    total = log_sum(logits)
    return sum(t * (total - v) for t, v in zip(target, logits, strict=True))


def matrix(a: Tensor, b: Tensor, scale: float = 1.0) -> list[list[float]]:
    return [[scale * dot(x, y) for y in b.tolist()] for x in a.tolist()]


def turned(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def one_hot(i: int, size: int) -> list[float]:
    return [float(i == j) for j in range(size)]
