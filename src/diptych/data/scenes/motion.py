"""Moving scenes: frames, what happens in them and when, captions of one or two events, and their foils.

Directions show in the order of the frames alone: what goes left is what goes right, played backwards. The jumps show in
the set of frames, in any order, and in no single one: each frame has the thing in one of four corners, as often for
every jump. Growing, turning and the like show in the order too.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from diptych.data.scenes.captions import Foil, phrase_of
from diptych.data.scenes.draw import Drawing, draw
from diptych.data.scenes.grammar import Statement, say_phrase
from diptych.data.scenes.numbered import Numbered
from diptych.data.scenes.scene import Scene, Thing, sample
from diptych.data.scenes.spec import ALONE, SceneSpec, stream
from diptych.errors import DiptychError, nearest

MOTIONS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
    "appear": "appears",
    "vanish": "vanishes",
    "still": "stays still",
    "row": "jumps sideways",
    "column": "jumps up and down",
    "diagonal": "jumps from corner to corner",
}
DIRECTIONS = ("left", "right", "up", "down")
JUMPS = ("row", "column", "diagonal")
REVERSED = {"left": "right", "up": "down", "grow": "shrink", "appear": "vanish"}
REVERSED |= {b: a for a, b in REVERSED.items()}
ROOM = {1: 1.0, 2: 0.75}  # events -> the share of their size at which things are drawn, to have room
TRAVEL = 0.22  # how far a thing moves, as a share of the side


@dataclass(frozen=True)
class MotionSpec:
    """What moves and how. One motion is drawn evenly for each event; the things come from `scene`, one for an event."""

    scene: SceneSpec = ALONE
    motions: tuple[str, ...] = DIRECTIONS
    events: int = 1  # or 2, one after the other, each of another thing
    frames: int = 8

    def __post_init__(self) -> None:
        for motion in self.motions:
            if motion not in MOTIONS:
                raise DiptychError(f'scenes: motions has "{motion}"{nearest(motion, MOTIONS)}')
        if self.events not in (1, 2) or not self.motions:
            raise DiptychError(f"scenes: {self.events} events of {len(self.motions)} motions; 1 or 2, of at least one")
        if self.frames < 2 * self.events:
            raise DiptychError(f"scenes: {self.frames} frames; at least {2 * self.events} for {self.events} events")
        if set(self.scene.counts) != {self.events} or set(self.scene.copies) != {1}:
            raise DiptychError(f"scenes: a thing for each event: counts=({self.events},), copies=(1,)")


@dataclass(frozen=True)
class Event:
    """A motion of one thing, during frames start to stop - 1; before and after it rests."""

    thing: int
    motion: str
    start: int
    stop: int


@dataclass(frozen=True)
class MovingRecord:
    """A clip with its truth."""

    spec: MotionSpec
    seed: int
    index: int

    @property
    def id(self) -> str:
        return f"{self.seed}-{self.index}"

    @cached_property
    def _made(self) -> tuple[tuple[Scene, ...], tuple[Event, ...]]:
        return _clip(self.spec, self.seed, self.index)

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """One for each frame. A thing that is not there lies outside of the picture, so that numbers stay."""
        return self._made[0]

    @property
    def events(self) -> tuple[Event, ...]:
        """In the order in which they happen."""
        return self._made[1]

    @property
    def label(self) -> int:
        """The first motion's number in `spec.motions`."""
        return self.spec.motions.index(self.events[0].motion)

    @cached_property
    def drawings(self) -> tuple[Drawing, ...]:
        return tuple(draw(scene, self.spec.scene.side) for scene in self.scenes)

    @property
    def frames(self) -> NDArray[np.uint8]:
        """[T, H, W, 3]."""
        return np.stack([drawing.picture for drawing in self.drawings])

    @property
    def masks(self) -> NDArray[np.bool_]:
        """What is seen of each thing in each frame [T, N, H, W]."""
        return np.stack([drawing.masks for drawing in self.drawings])

    @property
    def caption(self) -> str:
        """ "a red circle moves left, then a blue square appears" """
        return ", then ".join(self._clause(event) for event in self.events)

    @property
    def foils(self) -> tuple[Foil, ...]:
        """False captions: another motion (opposite where there is one), and for two events the other order.

        Their `words` are the changed places in `text.split()`, () where the numbers of words differ.
        """
        found = []
        for event in self.events:
            other = REVERSED.get(event.motion) or _next(event.motion, self.spec.motions)
            if other:
                text = ", then ".join(self._clause(e, other if e is event else "") for e in self.events)
                found.append(self._foil("motion", text))
        if len(self.events) == 2:
            found.append(self._foil("order", ", then ".join(self._clause(e) for e in self.events[::-1])))
            first, second = self.events
            if first.motion != second.motion:
                swapped = (self._clause(first, second.motion), self._clause(second, first.motion))
                found.append(self._foil("swap", ", then ".join(swapped)))
        return tuple(found)

    def _clause(self, event: Event, motion: str = "") -> str:
        scene = self.scenes[0]
        phrase = phrase_of(scene, scene.things[event.thing], ("colour",))
        return f"{say_phrase(phrase)} {MOTIONS[motion or event.motion]}"

    def _foil(self, kind: str, text: str) -> Foil:
        old, new = self.caption.split(), text.split()
        alike = len(old) == len(new)
        words = tuple(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b) if alike else ()
        return Foil(kind, self.caption, text, words, Statement(()))


@dataclass(frozen=True)
class MovingScenes(Numbered[MovingRecord]):
    """`count` clips; number i is a function of (spec, seed, i)."""

    spec: MotionSpec = MotionSpec()
    count: int = 1000
    seed: int = 0

    def make(self, index: int) -> MovingRecord:
        return MovingRecord(self.spec, self.seed, index)


def _next(motion: str, motions: tuple[str, ...]) -> str:
    """Another one of the motions that is asked for, "" where there is none."""
    others = [m for m in dict.fromkeys(motions) if m != motion]
    return others[0] if others else ""


def _clip(spec: MotionSpec, seed: int, index: int) -> tuple[tuple[Scene, ...], tuple[Event, ...]]:
    still = sample(spec.scene, seed, index)
    rng = stream(seed, index, "motion")
    order = rng.sample(range(spec.events), spec.events)
    bounds = [round(k * spec.frames / spec.events) for k in range(spec.events + 1)]
    events = tuple(
        Event(thing, rng.choice(spec.motions), start, stop)
        for thing, start, stop in zip(order, bounds[:-1], bounds[1:], strict=True)
    )
    areas = [(0.0, 0.0, 1.0, 1.0)] if spec.events == 1 else _halves(rng)
    tracks = []
    for event, area in zip(events, areas, strict=True):
        thing = still.things[event.thing]
        tracks.append(_track(replace(thing, radius=thing.radius * ROOM[spec.events]), event, spec.frames, area, rng))
    by_thing = {event.thing: track for event, track in zip(events, tracks, strict=True)}
    scenes = tuple(replace(still, things=tuple(by_thing[i][t] for i in range(spec.events))) for t in range(spec.frames))
    return scenes, events


def _halves(rng: Random) -> list[tuple[float, float, float, float]]:
    """The picture's two halves (x0, y0, x1, y1), in any order, so that two things do not meet."""
    halves = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)] if rng.random() < 0.5 else [(0, 0, 1, 0.5), (0, 0.5, 1, 1)]
    return rng.sample(halves, 2)


def _track(
    thing: Thing, event: Event, frames: int, area: tuple[float, float, float, float], rng: Random
) -> list[Thing]:
    """The thing in each frame. Where it is and how far it goes does not depend on which way."""
    x0, y0, x1, y1 = area
    radius = thing.radius
    low, high = (x0 + radius, y0 + radius), (x1 - radius, y1 - radius)
    along_x = event.motion in ("left", "right")
    along_y = event.motion in ("up", "down")
    x = rng.uniform(low[0], high[0] - TRAVEL * along_x)
    y = rng.uniform(low[1], high[1] - TRAVEL * along_y)
    corner, other = _corners(event.motion, rng)
    thing = replace(thing, radius=radius, x=x, y=y)
    track = []
    for t in range(frames):
        share = min(1.0, max(0.0, (t - event.start) / (event.stop - 1 - event.start)))
        match event.motion:
            case "left" | "right":
                track.append(replace(thing, x=x + TRAVEL * (share if event.motion == "right" else 1 - share)))
            case "up" | "down":
                track.append(replace(thing, y=y + TRAVEL * (share if event.motion == "down" else 1 - share)))
            case "grow" | "shrink":
                grown = share if event.motion == "grow" else 1 - share
                track.append(replace(thing, radius=radius * (0.5 + 0.5 * grown)))
            case "appear" | "vanish":
                there = (share >= 0.5) == (event.motion == "appear")
                track.append(thing if there else replace(thing, x=-2.0, y=-2.0))
            case "row" | "column" | "diagonal":
                late = t - event.start if event.start <= t < event.stop else 0 if t < event.start else event.stop - 1
                column, row = (corner, other)[late % 2]
                track.append(replace(thing, x=(low[0], high[0])[column], y=(low[1], high[1])[row]))
            case _:
                track.append(thing)
    return track


def _corners(motion: str, rng: Random) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two corners (column, row) between which a thing jumps; each of the four is the first as often."""
    column, row = rng.randrange(2), rng.randrange(2)
    return (column, row), (column ^ (motion in ("row", "diagonal")), row ^ (motion in ("column", "diagonal")))
