"""Three modalities of which any two tell nothing of each other, and together tell the third.

A picture shows one thing of class p, a text names class q, a sound plays note s, and p = (q + s) mod n: exclusive or
for n = 2. Seen in pairs all is independent; only a score of all three at once can match them.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.data.pairs import Pair, Pairs
from diptych.data.scenes.draw import Pixels, draw
from diptych.data.scenes.grammar import Phrase, say_phrase
from diptych.data.scenes.numbered import Numbered
from diptych.data.scenes.scene import Scene, sample
from diptych.data.scenes.spec import ALONE, SceneSpec, stream
from diptych.data.scenes.words import TEMPLATES
from diptych.errors import DiptychError, nearest

RATE = 8000  # samples a second
SAMPLES = 400
LOWEST = 200.0  # Hz; each note is a third of an octave above the one before
MODALITIES = ("picture", "text", "sound")


@dataclass(frozen=True)
class TripleSpec:
    """The classes are the scene's first `values` shapes; colours, places and the rest are by chance.

    link: "xor", or for comparison "same", where picture, text and sound are of one class.
    missing: the chance that a modality is not there, for each by itself; one at least stays.
    """

    scene: SceneSpec = ALONE
    values: int = 2
    link: str = "xor"
    missing: float = 0.0
    hiss: float = 0.3  # standard deviation of a sound's noise, beside an amplitude of 1

    def __post_init__(self) -> None:
        shapes = len(dict.fromkeys(self.scene.shapes))
        if not 2 <= self.values <= min(shapes, 12):
            raise DiptychError(f"scenes: {self.values} values; from 2 to {min(shapes, 12)}, the shapes to choose from")
        if self.link not in ("xor", "same"):
            raise DiptychError(f'scenes: link is "{self.link}"{nearest(self.link, ("xor", "same"))}')
        if not 0 <= self.missing <= 1:
            raise DiptychError(f"scenes: missing is {self.missing}; it goes from 0 to 1")
        if self.scene.combinations != "all":
            raise DiptychError("scenes: triples draw from all combinations")


@dataclass(frozen=True)
class TripleRecord:
    spec: TripleSpec
    seed: int
    index: int

    @property
    def id(self) -> str:
        return f"{self.seed}-{self.index}"

    @cached_property
    def classes(self) -> tuple[int, int, int]:
        """Of the picture, the text and the sound."""
        rng = stream(self.seed, self.index, "triple")
        n = self.spec.values
        q, s = rng.randrange(n), rng.randrange(n)
        return (q, q, q) if self.spec.link == "same" else ((q + s) % n, q, s)

    @cached_property
    def scene(self) -> Scene:
        """The shape is the picture's class; all else is independent of it."""
        scene = sample(replace(self.spec.scene, counts=(1,), copies=(1,)), self.seed, self.index)
        (thing,) = scene.things
        return replace(scene, things=(replace(thing, shape=self._names[self.classes[0]]),))

    @property
    def picture(self) -> Pixels:
        return draw(self.scene, self.spec.scene.side).picture

    def image(self) -> Image.Image:
        return Image.fromarray(self.picture)

    @property
    def text(self) -> str:
        rng = stream(self.seed, self.index, "text")
        return rng.choice(TEMPLATES["en"]).format(s=say_phrase(Phrase(self._names[self.classes[1]])))

    @property
    def sound(self) -> NDArray[np.float32]:
        """[SAMPLES], one note at a chance phase and loudness, with noise."""
        rng = stream(self.seed, self.index, "sound")
        tone = note(self.classes[2], rng.random()) * np.float32(rng.uniform(0.7, 1.0))
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(SAMPLES).astype(np.float32)
        return (tone + self.spec.hiss * noise).astype(np.float32)

    @property
    def present(self) -> tuple[bool, bool, bool]:
        """Which of MODALITIES are there."""
        rng = stream(self.seed, self.index, "missing")
        kept = rng.randrange(3)
        there = [rng.random() >= self.spec.missing for _ in MODALITIES]
        return (there[0], there[1], there[2]) if any(there) else (kept == 0, kept == 1, kept == 2)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.spec.scene.shapes))


@dataclass(frozen=True)
class Triples(Numbered[TripleRecord]):
    """`count` triples; number i is a function of (spec, seed, i)."""

    spec: TripleSpec = TripleSpec()
    count: int = 1000
    seed: int = 0

    def make(self, index: int) -> TripleRecord:
        return TripleRecord(self.spec, self.seed, index)

    def pairs(self) -> Pairs:
        """Pictures with their texts. extra: "sound" [SAMPLES], "classes" in the order of MODALITIES; "missing", names
        ("image", "text", "sound") of what is not there, though something stands in its place."""

        digest = hashlib.sha256(repr(self).encode()).hexdigest()
        return Pairs(f"triples (seed {self.seed})", self.count, partial(_pair, self), digest=digest)


def _pair(triples: Triples, index: int) -> Pair:
    record = triples.make(index)
    missing = tuple(n for n, there in zip(("image", "text", "sound"), record.present, strict=True) if not there)
    extra = {"sound": record.sound, "classes": record.classes, "missing": missing}
    return Pair(record.id, record.image, (record.text,), extra)


def note(number: int, phase: float = 0.0) -> NDArray[np.float32]:
    """[SAMPLES] of a sine; the phase is a share of its period."""
    time = np.arange(SAMPLES) / RATE
    return np.sin(2 * np.pi * (LOWEST * 2 ** (number / 3) * time + phase)).astype(np.float32)
