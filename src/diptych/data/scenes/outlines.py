"""The shapes as polygons, and what can be said of two of them: do they meet, how far until they touch."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [P, 2], x to the right, y down, a closed ring


def _ring(count: int, radius: "float | Callable[[Points], Points]" = 1.0, start: float = -np.pi / 2) -> Points:
    """Points around the centre from the top on; the radius may depend on the angle."""
    angle = np.arange(count) * 2 * np.pi / count
    r = radius(angle) if callable(radius) else np.full(count, radius)
    return np.stack([r * np.cos(angle + start), r * np.sin(angle + start)], 1)


def _star() -> Points:
    points = _ring(10)
    points[1::2] *= 0.45
    return points


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], 1)


def _crescent(centre: float = 0.45, radius: float = 0.8) -> Points:
    """A disc of radius 1 without a smaller one to its right."""
    x = (1 - radius**2 + centre**2) / (2 * centre)  # the tips
    tip, seen = np.arccos(x), np.arctan2(np.sqrt(1 - x**2), x - centre)
    back, bite = np.linspace(tip, 2 * np.pi - tip, 24), np.linspace(2 * np.pi - seen, seen, 24)[1:-1]
    outer = np.stack([np.cos(back), np.sin(back)], 1)
    return np.concatenate([outer, np.stack([centre + radius * np.cos(bite), radius * np.sin(bite)], 1)])


def _drop() -> Points:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([0.75 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], 1)


def _unit(*rings: Points) -> tuple[Points, ...]:
    """In the middle, and the farthest point at 1: a size means the same for all shapes."""
    middle = (rings[0].min(0) + rings[0].max(0)) / 2
    reach = np.hypot(*(rings[0] - middle).T).max()
    return tuple((ring - middle) / reach for ring in rings)


_THIRD = 0.36
_CROSS = np.array(
    [(-1, -1), (-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1)], float
) * [_THIRD, _THIRD]
_ARROW = np.array([(-1, -0.25), (0.1, -0.25), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.25), (-1, 0.25)])

OUTLINES: dict[str, tuple[Points, ...]] = {  # the second ring is a hole
    "circle": _unit(_ring(40)),
    "square": _unit(_ring(4, start=-np.pi / 4)),
    "triangle": _unit(_ring(3)),
    "star": _unit(_star()),
    "heart": _unit(_heart()),
    "cross": _unit(_CROSS),
    "diamond": _unit(_ring(4) * [0.6, 1]),
    "hexagon": _unit(_ring(6, start=0)),
    "ring": _unit(_ring(40), _ring(40, 0.5)),
    "crescent": _unit(_crescent()),
    "arrow": _unit(_ARROW),
    "oval": _unit(_ring(40) * [1, 0.55]),
    "drop": _unit(_drop()),
    "flower": _unit(_ring(60, lambda a: 0.72 + 0.28 * np.cos(5 * a))),
}


def edges(points: Points) -> tuple[Points, Points]:
    return points, np.roll(points, -1, 0)


def inside(points: Points, ring: Points) -> NDArray[np.bool_]:
    """Which of the points [P, 2] are within a ring: rays to the right cross it an odd number of times."""
    a, b = edges(ring)
    x, y = points[:, :1], points[:, 1:]
    between = (a[:, 1] > y) != (b[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    return ((x < cross) & between).sum(1) % 2 == 1


def meet(a: tuple[Points, ...], b: tuple[Points, ...]) -> bool:
    """Whether two shapes share any area."""
    return any(_cross(p, q) for p in a for q in b) or _corner_within(a, b) or _corner_within(b, a)


def _corner_within(a: tuple[Points, ...], b: tuple[Points, ...]) -> bool:
    """Whether a corner of a's outline lies on b, not in its hole."""
    within = inside(a[0], b[0])
    for hole in b[1:]:
        within &= ~inside(a[0], hole)
    return bool(within.any())


def _cross(p: Points, q: Points) -> bool:
    """Whether any edge of one ring crosses one of the other."""
    a, b = (e[:, None] for e in edges(p))
    c, d = (e[None] for e in edges(q))
    return bool(((_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)).any())


def _side(a: Points, b: Points, c: Points) -> Points:
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def way_to_contact(moving: Points, still: Points, direction: tuple[float, float]) -> float:
    """How far a ring can go along a unit vector until it touches the other; infinity where it passes by.

    Two polygons first meet with a corner of one on an edge of the other.
    """
    u = np.asarray(direction)
    return min(_first_hit(moving, still, u), _first_hit(still, moving, -u))


def _first_hit(corners: Points, ring: Points, u: Points) -> float:
    """The shortest ray along u from a corner to an edge of the ring."""
    across = np.array([-u[1], u[0]])
    a, b = (e[None] - corners[:, None] for e in edges(ring))  # [P, E, 2]: edges as seen from each corner
    sa, sb = a @ across, b @ across
    with np.errstate(divide="ignore", invalid="ignore"):
        share = sa / (sa - sb)
        along = (a + share[..., None] * (b - a)) @ u
    hits = along[(share >= 0) & (share <= 1) & (along >= 0)]
    return float(hits.min()) if hits.size else float("inf")
