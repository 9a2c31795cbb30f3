"""Rows brought down to the few directions in which they differ most, in a way that a gradient can go through."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.losses.precision import in_float32


class Nearest(torch.autograd.Function):
    """The nearest matrix of rank k, X [N, D] -> X V V^T, V the k first right singular vectors.

    The gradient is that of the projection, which asks only that the k-th singular value differs from the next; through
    the vectors themselves (autograd of an SVD) it is the same where all values differ, and no number where two do not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        ctx.save_for_backward(u, s, vh)
        ctx.k = k
        return (x @ vh[:k].T) @ vh[:k]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        u, s, vh = ctx.saved_tensors
        k = ctx.k
        inside = u.T @ gradient @ vh.T  # [r, r]: the gradient by pairs of directions
        a, b = inside[:k, k:], inside[k:, :k].T  # a kept one with one that is left out, [k, r - k]
        kept, left = s[:k, None], s[None, k:]
        gap = kept.square() - left.square()
        alike = gap <= torch.finfo(s.dtype).eps * s.new_tensor(max(u.shape[0], vh.shape[1])) * s[:1].square()
        turn = torch.where(alike, 0.0, (kept * a + left * b) / torch.where(alike, 1.0, gap))
        # what turns the kept directions towards those that are left out: within the rows' span, then outside it
        found = (gradient @ vh[:k].T) @ vh[:k]
        found += u[:, :k] @ (kept * turn) @ vh[k:] + u[:, k:] @ (left * turn).T @ vh[:k]
        outside = u[:, :k].T @ gradient
        found += u[:, :k] @ (outside - (outside @ vh.T) @ vh)
        return found, None


@in_float32
def principal(rows: Tensor, k: int, *, detach_directions: bool = False) -> Tensor:
    """Rows [N, D] without what lies outside their k principal directions: mean + (rows - mean) C C^T, [N, D].

    C [D, k]: the first right singular vectors of the centred rows; k is at most N - 1 and D, beyond which nothing is
    left out. The results are not of unit length. detach_directions: C is a constant to the gradient.
    """
    mean = rows.mean(0)
    centred = rows - mean
    k = min(k, len(rows) - 1, rows.shape[1])
    if detach_directions:
        directions = torch.linalg.svd(centred.detach(), full_matrices=False)[2][:k]  # [k, D]
        return mean + (centred @ directions.T) @ directions
    return mean + Nearest.apply(centred, k)  # type: ignore[operator]
