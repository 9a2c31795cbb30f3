"""Hard-concrete gates: which channels, heads and units a tower can do without, learned by gradient.

Louizos et al., Learning Sparse Neural Networks through L0 Regularization, ICLR 2018, arXiv 1712.01312; with a size that
is held by Lagrange multipliers: Wang et al., Structured Pruning of Large Language Models, arXiv 1910.04732. As used in
Wu et al., TinyCLIP, ICCV 2023, arXiv 2309.12314. Shapes: W channels, H heads and U units of a block.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diptych.core.gates import Gates
from diptych.core.surgery import Shape

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # of the concrete distribution, and what it is stretched to
START, LEAST, MOST = 10.0, math.log(0.01), math.log(100)  # of the gates' parameters; the bounds hold after a step


class Concrete(nn.Module):
    """A gate for each channel, head and unit of a tower. Parameters: hidden [W], heads [sum of H], units [sum of U]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.hidden = nn.Parameter(torch.full((shape.width,), START))
        self.heads = nn.Parameter(torch.full((sum(shape.heads),), START))
        self.units = nn.Parameter(torch.full((sum(shape.units),), START))

    def sample(self, generator: torch.Generator) -> Gates:
        """One draw, in the graph."""

        def draw(a: Tensor) -> Tensor:
            u = torch.rand(a.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(a.device)
            return ((u.logit() + a) / TEMPERATURE).sigmoid().mul(HIGH - LOW).add(LOW).clamp(0, 1)

        return self.gates(draw(self.hidden), draw(self.heads), draw(self.units))

    def chances(self) -> Gates:
        """How likely each gate is open."""
        shift = TEMPERATURE * math.log(-LOW / HIGH)
        return self.gates(*((a - shift).sigmoid() for a in (self.hidden, self.heads, self.units)))

    @torch.no_grad()
    def settled(self) -> Gates:
        """The gates without chance: the least likely are closed, as many as are expected to be; of heads and units in
        each block. A channel always stays."""
        chances = self.chances()
        values = self.gates(*((0.8 * a / TEMPERATURE).sigmoid() for a in (self.hidden, self.heads, self.units)))

        def close(value: Tensor, chance: Tensor, least: int = 0) -> Tensor:
            closed = min(round(len(value) - float(chance.sum())), len(value) - least)
            return value.index_fill(0, value.argsort(stable=True)[:closed], 0.0)

        heads, units = (
            tuple(close(v, c) for v, c in zip(*both, strict=True))
            for both in ((values.heads, chances.heads), (values.units, chances.units))
        )
        return Gates(close(values.hidden, chances.hidden, 1), heads, units)

    def size(self) -> Tensor:
        """Expected `Shape.parameters` of what is left; a scalar in the graph.

        With biases, so that it is exact for gates that are all open or closed: they are 1% of a tower 32 wide.
        """
        chances = self.chances()
        width, total = chances.hidden.sum(), chances.hidden.new_zeros(())
        for heads, units in zip(chances.heads, chances.units, strict=True):
            head = self.shape.head
            total = total + heads.sum() * head * (4 * width + 3) + width * some(heads)
            total = total + units.sum() * (2 * width + 1) + width * some(units)
        return total

    def gates(self, hidden: Tensor, heads: Tensor, units: Tensor) -> Gates:
        return Gates(hidden, heads.split(self.shape.heads), units.split(self.shape.units))  # type: ignore[arg-type]

    @torch.no_grad()
    def bound(self) -> None:
        """After a step."""
        for a in self.parameters():
            a.clamp_(LEAST, MOST)


def some(chances: Tensor) -> Tensor:
    """The chance that any of them is open."""
    return 1 - (1 - chances).prod()


class Sized(nn.Module):
    """Gates for several towers, and the multipliers that hold their size together: weights of the excess and of its
    square, a pair for each tower, learned uphill."""

    def __init__(self, shapes: dict[str, Shape], whole: int, multiplier: float = 10.0) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({name: Concrete(shape) for name, shape in shapes.items()})
        self.multipliers = nn.Parameter(torch.full((len(shapes), 2), multiplier))
        self.whole = whole

    def each(self) -> Iterator[tuple[str, Concrete]]:
        yield from self.towers.items()  # type: ignore[misc]

    def share(self) -> Tensor:
        """Expected size of all towers as a share of `whole`."""
        return torch.stack([tower.size() for _, tower in self.each()]).sum() / self.whole

    def penalty(self, share: float) -> Tensor:
        """What the towers' expected size costs beyond `share`; a smaller size is free."""
        excess = (self.share() - share).clamp(min=0)
        first, second = self.multipliers.mean(0)
        return first * excess + second * excess.square()
