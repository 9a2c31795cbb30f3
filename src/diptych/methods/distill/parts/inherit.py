"""Manual inheritance: which shape a smaller tower has, and which blocks of the larger one it is made of.

Wu et al., TinyCLIP, ICCV 2023, arXiv 2309.12314, section 3.2, and its published models: heads keep their width.
"""

from diptych.core.surgery import Shape
from diptych.errors import DiptychError, Unsupported


def smaller(shape: Shape, keep: float, layers: int = 0) -> Shape:
    """The even shape of so many blocks (0: all) whose size is nearest to `keep` of `shape`: whole heads, and units in
    proportion to the width. Raises Unsupported for a shape that is uneven itself, DiptychError for too many blocks."""
    depth = len(shape.heads)
    if not shape.even:
        raise Unsupported("a manual cut takes the first of everything from blocks that are all alike; these are uneven")
    if not 0 <= layers <= depth:
        raise DiptychError(f"{layers} blocks cannot be taken from a tower of {depth}")
    count = layers or depth

    def of(heads: int) -> Shape:
        width = heads * shape.head
        units = shape.units[0] * width // shape.width
        return Shape(width, (heads,) * count, (units,) * count, shape.head)

    choices = [of(heads) for heads in range(1, shape.heads[0] + 1)]
    return min(choices, key=lambda one: abs(one.parameters - keep * shape.parameters))


def spread(depth: int, count: int, rule: str) -> tuple[int, ...]:
    """Which `count` of `depth` blocks. "step": every so many-th from the first, depth // count apart, so that 9 of 12
    are the first 9; "uniform": as even as can be, the first and the last among them."""
    if rule == "step" or count == 1:
        return tuple(i * (depth // count) for i in range(count))
    return tuple(round(i * (depth - 1) / (count - 1)) for i in range(count))
