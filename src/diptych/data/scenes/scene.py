"""A scene: what is there and where, drawn by chance from a spec; and what is true of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from diptych.data.scenes.outlines import OUTLINES, Points, meet
from diptych.data.scenes.spec import SceneSpec, stream
from diptych.errors import DiptychError

RADIUS = {"small": 0.08, "medium": 0.12, "large": 0.17}  # of the circle around a thing, as a share of the side
MARGIN = 0.1  # by which a centre is left of another, or above it
RELATIONS = ("left", "right", "above", "below", "front", "behind")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind", "behind": "front"}
FAR = 3.0  # depth of the background; the front thing is at 1


@dataclass(frozen=True)
class Thing:
    """One object. Lengths are shares of the picture's side; y goes down."""

    shape: str
    colour: str
    size: str
    texture: str
    kind: int = 0  # things of one kind share the four words above; 0 is the main kind
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.1  # of the circle around it
    turn: float = 0.0  # radians, clockwise
    depth: float = 1.0

    @property
    def rings(self) -> tuple[Points, ...]:
        """Its outline, and its hole if it has one, as polygons [P, 2]."""
        c, s = math.cos(self.turn) * self.radius, math.sin(self.turn) * self.radius
        return tuple(ring @ [[c, s], [-s, c]] + [self.x, self.y] for ring in OUTLINES[self.shape])


@dataclass(frozen=True)
class Scene:
    """Things from back to front, before a background, in a rendering style."""

    things: tuple[Thing, ...]
    background: str
    style: str
    layout: str = "apart"
    grain: int = 0  # decides the noise of background and style
    strength: float = 1.0
    gain: float = 1.0  # of the brightness

    @cached_property
    def kinds(self) -> tuple[Thing, ...]:
        """One thing of each kind, the main kind first."""
        first = {thing.kind: thing for thing in reversed(self.things)}
        return tuple(first[kind] for kind in sorted(first))

    def holds(self, relation: str, a: Thing, b: Thing) -> bool:
        """Whether a is left of b (by a margin), or the like. In front: it visibly covers a part of b."""
        match relation:
            case "left":
                return b.x - a.x >= MARGIN
            case "right":
                return a.x - b.x >= MARGIN
            case "above":
                return b.y - a.y >= MARGIN
            case "below":
                return a.y - b.y >= MARGIN
            case "front":
                slim = [replace(thing, radius=0.93 * thing.radius).rings for thing in (a, b)]
                return a.depth < b.depth and meet(*slim)
            case "behind":
                return self.holds("front", b, a)
        raise DiptychError(f'scenes: no relation "{relation}"; valid: {", ".join(RELATIONS)}')

    def seen_from(self, x: float, y: float) -> "Scene":
        """The scene from a camera moved by a share of the side: things move against it, by less the deeper they lie.

        A thing keeps its number, so that pixels of the two pictures correspond through the masks.
        """
        moved = (replace(thing, x=thing.x - x / thing.depth, y=thing.y - y / thing.depth) for thing in self.things)
        return replace(self, things=tuple(moved))


def sample(spec: SceneSpec, seed: int, index: int) -> Scene:
    """Scene number `index`: a function of its arguments alone."""
    from diptych.data.scenes.place import place

    rng = stream(seed, index, "things")
    kinds = _kinds(spec, rng)
    copies = [rng.choice(spec.copies) for _ in kinds]
    things = [kind for kind, count in zip(kinds, copies, strict=True) for _ in range(count)]
    rng.shuffle(things)
    things = [replace(thing, turn=math.radians(rng.uniform(-spec.turn, spec.turn))) for thing in things]
    places, rest = stream(seed, index, "places"), stream(seed, index, "background")
    layout = places.choice(spec.layouts)
    placed = place(things, layout, places)
    return Scene(
        tuple(replace(t, depth=FAR - (FAR - 1) * (i + 1) / len(placed)) for i, t in enumerate(placed)),
        _linked(spec, rest, "background", kinds[0].shape if kinds else "", spec.backgrounds),
        stream(seed, index, "style").choice(spec.styles),
        layout,
        rest.getrandbits(32),
        spec.strength,
    )


def _kinds(spec: SceneSpec, rng: Random) -> list[Thing]:
    """Kinds that differ as the spec asks; the first is not drawn again, so that its links are exact."""
    count = rng.choice(spec.counts)
    shapes = [shape for shape in spec.shapes if shape in spec.palette]
    kinds: list[Thing] = []
    tries = 0
    while len(kinds) < count:
        shape = rng.choice(shapes)
        colour = _linked(spec, rng, "colour", shape, spec.palette[shape])
        size = rng.choice(spec.sizes)
        texture = _linked(spec, rng, "texture", shape, spec.textures)
        same = ((k.shape == shape, k.colour == colour) for k in kinds)
        if not any(any(alike) if spec.distinct == "each" else all(alike) for alike in same):
            kinds.append(Thing(shape, colour, size, texture, len(kinds), radius=RADIUS[size]))
        tries += 1
        if tries % 500 == 0:  # kinds from which no other is left
            kinds.clear()
    return kinds


def _linked(spec: SceneSpec, rng: Random, aspect: str, shape: str, options: Sequence[str]) -> str:
    """The shape's own one with the link's probability, else any."""
    tied = rng.random() < getattr(spec, aspect + "_link")
    free = rng.choice(options)
    if not tied or not shape or (spec.linked and shape not in spec.linked):
        return free
    own = spec.own(aspect, shape)
    return own if own in options else free
