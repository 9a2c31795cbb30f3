"""Sets of scenes: any item at once by its number, with all that is known of it."""

import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.data.pairs import Pair, Pairs
from diptych.data.records import Record, Records
from diptych.data.scenes import captions
from diptych.data.scenes.captions import Alt, Foil, Question
from diptych.data.scenes.draw import Drawing, Pixels, draw
from diptych.data.scenes.grammar import Fact, Statement, say
from diptych.data.scenes.numbered import Numbered
from diptych.data.scenes.scene import Scene, sample
from diptych.data.scenes.spec import STYLES, SceneSpec, stream
from diptych.data.scenes.words import LANGUAGES
from diptych.errors import DiptychError, nearest

ROLES = ("short", "long", "alt", "noisy", "rewrite")


@dataclass(frozen=True)
class Region:
    """One thing: its phrase without an article, and the box around what is seen of it (x0, y0, x1, y1 in pixels)."""

    phrase: str
    box: tuple[int, int, int, int]
    thing: int  # its number in the scene


@dataclass(frozen=True)
class Planted:
    """A copy of an earlier scene. kind: "exact" or "near"."""

    index: int
    source: int
    kind: str


@dataclass(frozen=True)
class SceneRecord:
    """One scene with its truth; everything is worked out when it is asked for."""

    spec: SceneSpec
    seed: int
    index: int

    @property
    def id(self) -> str:
        return f"{self.seed}-{self.index}"

    @cached_property
    def planted(self) -> Planted | None:
        """What it is a copy of, if it is one."""
        return _planted(self.spec, self.seed, self.index)

    @cached_property
    def scene(self) -> Scene:
        if self.planted is None:
            return sample(self.spec, self.seed, self.index)
        scene = sample(self.spec, self.seed, self.planted.source)
        return _nearly(scene, self.seed, self.index) if self.planted.kind == "near" else scene

    @cached_property
    def drawing(self) -> Drawing:
        return draw(self.scene, self.spec.side)

    @property
    def picture(self) -> Pixels:
        """[H, W, 3] uint8."""
        return self.drawing.picture

    def image(self) -> Image.Image:
        return Image.fromarray(self.picture)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """What is seen of each thing [N, H, W]."""
        return self.drawing.masks

    @property
    def regions(self) -> tuple[Region, ...]:
        """A phrase and a box for each thing of which something is seen."""
        return tuple(
            Region(
                f"{thing.size} {'' if thing.texture == 'solid' else thing.texture + ' '}{thing.colour} {thing.shape}",
                (x0, y0, x1, y1),
                i,
            )
            for i, (thing, (x0, y0, x1, y1)) in enumerate(
                zip(self.scene.things, self.drawing.boxes.tolist(), strict=True)
            )
            if x1
        )

    def detected(self, jitter: float = 0.3, missed: float = 0.2, wrong: float = 0.1) -> tuple[Region, ...]:
        """The regions as a detector would give them.

        Each side of a box is off by up to `jitter` of the box's width or height; a share is missed; a share is wrong:
        the box is a chance one of the same size.
        """
        rng, side = self._chance("detected"), self.spec.side
        found = []
        for region in self.regions:
            x0, y0, x1, y1 = region.box
            w, h = x1 - x0, y1 - y0
            kept, moved = rng.random() >= missed, rng.random() < wrong
            if moved:
                x0, y0 = rng.randint(0, side - w), rng.randint(0, side - h)
            off = [rng.uniform(-jitter, jitter) / 2 for _ in range(4)]
            box = (x0 + off[0] * w, y0 + off[1] * h, x0 + w + off[2] * w, y0 + h + off[3] * h)
            box = tuple(min(side, max(0, round(at))) for at in box)
            if kept and box[0] < box[2] and box[1] < box[3]:
                found.append(replace(region, box=box))
        return tuple(found)

    @cached_property
    def statement(self) -> Statement:
        """What the short caption says."""
        return captions.short(self.scene, self.spec, self._chance("short"))

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """What the long caption says, sentence by sentence."""
        return captions.long(self.scene, self.spec, self._chance("long"))

    @cached_property
    def alt(self) -> Alt:
        rng = stream(self.seed, self.index, "alt")  # a copy has an alt text of its own
        other = sample(self.spec, self.seed, -1 - rng.getrandbits(40))
        return captions.alt(self.scene, other, self.spec, rng, self.index)

    @cached_property
    def foils(self) -> tuple[Foil, ...]:
        """False captions, each next to the short caption."""
        return captions.foils(self.scene, self.statement, self.spec, self._chance("foils"))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return captions.questions(self.scene, self.spec, self._chance("questions"))

    def text(self, role: str = "short") -> str:
        """A text by its role: "short", "long", "alt", "rewrite", "rewrite 3", and a language: "short de", "long fr".

        "noisy" is the short caption, or one that is false of this scene where the alt text is. Alt texts are English.
        """
        kind, *rest = role.split()
        language = next((word for word in rest if word in LANGUAGES), "en")
        number = next((word for word in rest if word.isdigit()), "0")
        if kind not in ROLES or len(rest) > (language in rest) + (number in rest):
            raise DiptychError(f'scenes: no text "{role}"{nearest(kind, ROLES)} and a language {", ".join(LANGUAGES)}')
        match kind:
            case "short":
                return say(self.statement, language)
            case "long":
                return captions.say_long(self.facts, language)
            case "noisy":
                return say(self.statement if self.alt.true else self._false_statement(), language)
            case "rewrite":
                return captions.rewrite(self.statement, self._chance(f"rewrite {number}"), language)
        return self.alt.text

    def _false_statement(self) -> Statement:
        """The short caption of another scene that says what is not true of this one."""
        rng = stream(self.seed, self.index, "noisy")
        for _ in range(20):
            other = sample(self.spec, self.seed, -1 - rng.getrandbits(40))
            statement = captions.short(other, self.spec, rng)
            if not statement.true_of(self.scene):
                return statement
        return Statement(())  # all scenes are alike: "nothing"

    @property
    def labels(self) -> dict[str, Any]:
        """The main thing's words ("" in an empty scene), the background, the style, and how they came about."""
        scene, main = self.scene, self.scene.kinds[0] if self.scene.kinds else None
        words = {name: getattr(main, name, "") for name in ("shape", "colour", "size", "texture")}
        return {
            **words,
            "background": scene.background,
            "style": scene.style,
            "usual_background": main is not None and scene.background == self.spec.own("background", main.shape),
            "usual_colour": main is not None and main.colour == self.spec.own("colour", main.shape),
            "usual_texture": main is not None and main.texture == self.spec.own("texture", main.shape),
            "things": len(scene.things),
            "text_true": self.alt.true,
            "copy_of": self.planted.source if self.planted else None,
        }

    def _chance(self, name: str) -> Random:
        return stream(self.seed, self.planted.source if self.planted else self.index, name)


@dataclass(frozen=True)
class Scenes(Numbered[SceneRecord]):
    """`count` scenes. Number i is a function of (spec, seed, i): neither the count nor the order nor workers matter.

    Two specs that differ in styles or backgrounds alone have the same things in the same places at the same numbers.
    """

    spec: SceneSpec = field(default_factory=SceneSpec)
    count: int = 1000
    seed: int = 0

    def make(self, index: int) -> SceneRecord:
        return SceneRecord(self.spec, self.seed, index)

    def planted(self) -> list[Planted]:
        """All copies among these scenes."""
        found = (_planted(self.spec, self.seed, i) for i in range(self.count))
        return [copy for copy in found if copy]

    def pairs(self, *roles: str) -> Pairs:
        """Pictures with the texts of these roles (`SceneRecord.text`), by default the short caption alone.

        extra: the scene's labels, and its record under "scene".
        """

        roles = roles or ("short",)
        digest = hashlib.sha256(repr((self, roles)).encode()).hexdigest()
        return Pairs(f"scenes (seed {self.seed})", self.count, partial(_pair, self, roles), digest=digest)

    def records(self, label: str = "shape") -> Records:
        """As labelled pictures, by the main thing's "shape", "colour", ... or by its "class": "red circle"."""
        items = (_record(record, label) for record in self)
        return Records(tuple(items), f"scenes (seed {self.seed})")


def scenes_of(count: int, words: Sequence[str] = ()) -> Pairs:
    """Pairs of scenes in a style and with captions in a language, where words name them: "sketch", "de".

    The scenes are others for other words. Raises DiptychError for a word that names neither.
    """
    for word in words:
        if word not in (*STYLES, *LANGUAGES):
            raise DiptychError(f'scenes: no style or language "{word}"{nearest(word, [*STYLES, *LANGUAGES])}')
    styles = tuple(word for word in words if word in STYLES)
    languages = [word for word in words if word in LANGUAGES]
    if len(languages) > 1:
        raise DiptychError(f"scenes: captions are in one language, not in {' and '.join(languages)}")
    spec = SceneSpec(styles=styles) if styles else SceneSpec()
    seed = zlib.crc32(" ".join(words).encode()) if words else 0
    return Scenes(spec, count, seed).pairs(" ".join(["short", *languages]))


def _pair(scenes: Scenes, roles: tuple[str, ...], index: int) -> Pair:
    record = scenes.make(index)
    texts = tuple(record.text(role) for role in roles)
    return Pair(record.id, record.image, texts, {**record.labels, "scene": record})


def _record(record: SceneRecord, label: str) -> Record:
    labels = record.labels
    word = f"{labels['colour']} {labels['shape']}" if label == "class" else labels[label]
    group = record.planted.source if record.planted else record.index
    return Record(record.id, None, word, group=str(group), read=partial(_png, record))


def _png(record: SceneRecord) -> bytes:
    out = io.BytesIO()
    replace(record).image().save(out, "PNG", compress_level=1)  # a new record: the drawing is not kept
    return out.getvalue()


def _planted(spec: SceneSpec, seed: int, index: int) -> Planted | None:
    """Whether a scene is a copy, and of which earlier scene that is none itself."""
    kind = _copy_kind(spec, seed, index)
    if not kind:
        return None
    rng = stream(seed, index, "source")
    tries = (rng.randrange(index) for _ in range(1000))
    return Planted(index, next((i for i in tries if not _copy_kind(spec, seed, i)), 0), kind)


def _copy_kind(spec: SceneSpec, seed: int, index: int) -> str:
    """ "exact", "near" or "" for no copy; the first scene never is one."""
    if index <= 0 or not spec.exact_copies + spec.near_copies:
        return ""
    chance = stream(seed, index, "copy").random()
    if chance < spec.exact_copies:
        return "exact"
    return "near" if chance < spec.exact_copies + spec.near_copies else ""


def _nearly(scene: Scene, seed: int, index: int) -> Scene:
    """All things moved together by about a hundredth, and another brightness."""
    rng = stream(seed, index, "near")
    x, y = (rng.choice((-1, 1)) * rng.uniform(0.004, 0.015) for _ in "xy")
    things = tuple(replace(thing, x=thing.x + x, y=thing.y + y) for thing in scene.things)
    return replace(scene, things=things, gain=rng.choice((0.94, 0.97, 1.03)))
