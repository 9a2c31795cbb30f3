"""How fast the loss grows around some weights: the worst and the average case, adaptive or not.

Foret et al. 2021 and Kwon et al. 2021, by the recipe of Andriushchenko et al. 2023 (arXiv 2302.07011). The weights that
are given are never changed: what is tried is made anew.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Loss = Callable[[Mapping[str, Tensor]], Tensor]
MOMENTUM = 0.75  # share of the new point
FIRST, SHRINK, LEAST = 0.22, 0.03, 0.06  # check-points, as shares of the iterations
IMPROVED = 0.75  # of the steps between two check-points, or the step is halved


def checkpoints(iterations: int) -> set[int]:
    """When the step may be halved: first at 22% of the iterations, then at gaps shrinking by 3 points down to 6%."""
    at, gap, found = FIRST, FIRST, set()
    while at < 1 - 1e-9:
        found.add(math.ceil(at * iterations - 1e-9))
        gap = max(gap - SHRINK, LEAST)
        at += gap
    return found


def box(weights: Weights, names: Sequence[str], rho: float, adaptive: bool) -> Weights:
    """The largest change of each entry: rho, or rho times its magnitude."""
    return {name: rho * (weights[name].abs() if adaptive else torch.ones_like(weights[name])) for name in names}


def moved(weights: Weights, change: Weights) -> Weights:
    return {**weights, **{name: weights[name] + d for name, d in change.items()}}


def worst(
    loss: Loss, weights: Weights, names: Sequence[str], rho: float, *, adaptive: bool = True, iterations: int = 20,
    step: float = 1.0, start: Weights | None = None,
) -> tuple[float, Weights]:  # fmt: skip
    """max of loss(w + d) - loss(w) over |d_i| <= rho (|w_i|), d moving `names` alone, and the d that gave it.

    APGD: signed gradient steps of 2 rho `step` (|w_i|), projected; momentum; the best point is kept and gone back to
    where the step is halved. start: a first d within the box; zero by default.
    """
    limit = box(weights, names, rho, adaptive)
    with torch.no_grad():
        plain = float(loss(weights))
    best = {name: torch.zeros_like(weights[name]) for name in names}
    highest, at, size = plain, dict(start or best), 2 * step
    marks, rises, since, before, halved, last_best = checkpoints(iterations), 0, 0, -math.inf, False, plain
    for i in range(iterations):
        leaves = {name: d.detach().requires_grad_() for name, d in at.items()}
        value = loss(moved(weights, leaves))
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        height = float(value.detach())
        rises, since, before = rises + (height > before), since + 1, height
        if before > highest:
            highest, best = before, {name: d.detach().clone() for name, d in leaves.items()}
        if i in marks and since:
            stuck = highest == last_best and not halved
            halved = rises < IMPROVED * since or stuck
            if halved:
                size, at = size / 2, {name: d.clone() for name, d in best.items()}
                rises, since, last_best = 0, 0, highest
                continue
            rises, since, last_best = 0, 0, highest
        new = {
            name: (at[name] + size * limit[name] * (0 if g is None else g.sign())).clamp(-limit[name], limit[name])
            for name, g in zip(leaves, gradients, strict=True)
        }
        at = {name: (MOMENTUM * d + (1 - MOMENTUM) * at[name]).detach() for name, d in new.items()}
    with torch.no_grad():
        value = float(loss(moved(weights, at)))
    return (value - plain, at) if value > highest else (highest - plain, best)


def average(
    loss: Loss, weights: Weights, names: Sequence[str], rho: float, *, adaptive: bool = True, draws: int = 10,
    seed: int = 0,
) -> float:  # fmt: skip
    """Mean of loss(w + d) - loss(w) over d uniform in the same box; each d is followed by -d, so that the slope cancels
    and few draws show the curvature."""
    limit, generator = box(weights, names, rho, adaptive), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        plain, total = float(loss(weights)), 0.0
        change: Weights = {}
        for i in range(draws):
            if i % 2:
                change = {name: -d for name, d in change.items()}
            else:
                change = {n: b * (2 * torch.rand(b.shape, generator=generator).to(b) - 1) for n, b in limit.items()}
            total += float(loss(moved(weights, change)))
    return total / draws - plain
