"""Where things go: apart, in the cells of a grid, touching, or one over another."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from diptych.data.scenes.outlines import way_to_contact
from diptych.data.scenes.scene import Thing

GAP = 0.02  # between the circles of things that are apart
ROOM = 0.5  # share of the picture that circles can take and still be placed by chance
CONTACT = 0.002  # between outlines that touch
COVER = 0.4  # share of the smaller radius by which a thing is pushed over another
CLEAR = 0.6  # share of the greater radius that lies at least between two centres


def place(things: Sequence[Thing], layout: str, rng: Random) -> list[Thing]:
    """The things with places inside the picture, in the given order (back to front).

    Where so many large ones do not fit, all are made smaller by one factor: words of size compare within a scene.
    """
    put = {"apart": _apart, "grid": _grid, "touching": _touching, "overlapping": _overlapping}[layout]
    area = sum(math.pi * thing.radius**2 for thing in things)
    scale = min(1.0, math.sqrt(ROOM / area)) if area else 1.0
    while True:
        scaled = [replace(thing, radius=thing.radius * scale) for thing in things]
        for _ in range(6):
            found = put(scaled, rng)
            if found is not None:
                return found
        scale *= 0.9


def _apart(things: list[Thing], rng: Random) -> list[Thing] | None:
    """Circles around things do not meet; the largest are placed first."""
    placed: dict[int, Thing] = {}
    for i in sorted(range(len(things)), key=lambda i: -things[i].radius):
        radius = things[i].radius
        for _ in range(40):
            x, y = rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)
            if all(math.hypot(x - o.x, y - o.y) >= radius + o.radius + GAP for o in placed.values()):
                placed[i] = replace(things[i], x=x, y=y)
                break
        else:
            return None
    return [placed[i] for i in range(len(things))]


def _grid(things: list[Thing], rng: Random) -> list[Thing] | None:
    """Each in the middle of its own cell."""
    across = max(2, math.ceil(math.sqrt(len(things))))
    if any(thing.radius > 0.5 / across for thing in things):
        return None
    cells = rng.sample(range(across * across), len(things))
    return [
        replace(thing, x=(cell % across + 0.5) / across, y=(cell // across + 0.5) / across)
        for thing, cell in zip(things, cells, strict=True)
    ]


def _touching(things: list[Thing], rng: Random) -> list[Thing] | None:
    return _against(things, rng, -CONTACT, 0.0)


def _overlapping(things: list[Thing], rng: Random) -> list[Thing] | None:
    return _against(things, rng, 0.0, COVER)


def _against(things: list[Thing], rng: Random, further: float, cover: float) -> list[Thing] | None:
    """Each comes in from outside towards one that lies already, until it touches any; then goes a little further."""
    placed = _apart(things[:1], rng) or []
    for thing in things[1:]:
        for _ in range(40):
            found = _arrive(thing, placed, rng, further, cover)
            if found is not None:
                placed.append(found)
                break
        else:
            return None
    return placed


def _arrive(thing: Thing, placed: list[Thing], rng: Random, further: float, cover: float) -> Thing | None:
    goal, angle = rng.choice(placed), rng.uniform(0, 2 * math.pi)
    u = (math.cos(angle), math.sin(angle))
    start = replace(thing, x=goal.x - 2 * u[0], y=goal.y - 2 * u[1])
    ways = [way_to_contact(start.rings[0], other.rings[0], u) for other in placed]
    way = min(ways)
    way += further + cover * min(thing.radius, placed[ways.index(way)].radius)
    found = replace(start, x=start.x + way * u[0], y=start.y + way * u[1])
    within = all(found.radius <= at <= 1 - found.radius for at in (found.x, found.y))
    clear = all(math.hypot(found.x - o.x, found.y - o.y) >= CLEAR * max(found.radius, o.radius) for o in placed)
    return found if within and clear else None
