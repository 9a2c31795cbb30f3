"""What may be drawn and said: every field is a number, a word or a tuple of words."""

import random
from dataclasses import dataclass, fields
from functools import cached_property

from diptych.errors import DiptychError, nearest

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "diamond",
    "hexagon",
    "ring",
    "crescent",
    "arrow",
    "oval",
    "drop",
    "flower",
)
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown", "black")
SIZES = ("small", "medium", "large")
TEXTURES = ("solid", "striped", "dotted", "checked")
BACKGROUNDS = ("paper", "snow", "sand", "grass", "water", "brick", "wood", "stone")
STYLES = ("filled", "sketch", "noisy", "inverted", "blurred", "dark", "pixelated", "grey")  # grey shows no colour
LAYOUTS = ("apart", "grid", "touching", "overlapping")
ASPECTS = ("colour", "size", "texture", "background", "relation")
COMBINATIONS = ("all", "seen", "unseen")
WORDS = {
    "shapes": SHAPES,
    "colours": COLOURS,
    "sizes": SIZES,
    "textures": TEXTURES,
    "backgrounds": BACKGROUNDS,
    "styles": STYLES,
    "layouts": LAYOUTS,
    "linked": SHAPES,
    "say": ASPECTS,
}
MOST = 12  # things in one scene: the languages count so far


@dataclass(frozen=True)
class SceneSpec:
    """What may be drawn and said. From a tuple one is drawn evenly; a word that stands twice comes twice as often.

    A scene holds `counts` kinds of thing and `copies` things of each kind. No two kinds of a scene have the same
    colour and shape; with `distinct="each"` they share neither colour nor shape.

    Links are dials from 0 (independent) to 1 (always together). They tie the background, the colour or the texture of
    the first kind to its shape: with probability `link` it is the shape's own one (`own`), else it is drawn as ever, so
    P(own) = link + (1 - link) / options. With `linked`, only these shapes have such ties.

    Of the colour-shape pairs, the share `held_out` is never drawn under `combinations="seen"`, and nothing else is
    under `"unseen"`; every colour and shape is still met, and own colours are never held out.
    """

    side: int = 64  # pixels
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    sizes: tuple[str, ...] = SIZES
    textures: tuple[str, ...] = ("solid",)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    styles: tuple[str, ...] = ("filled",)
    layouts: tuple[str, ...] = ("apart",)
    counts: tuple[int, ...] = (1, 2, 3)  # kinds of thing
    copies: tuple[int, ...] = (1,)  # things of each kind
    distinct: str = "pair"  # or "each"
    turn: float = 0.0  # things are turned by up to this many degrees each way
    strength: float = 1.0  # of the style's noise, blur, darkness

    background_link: float = 0.0
    colour_link: float = 0.0
    texture_link: float = 0.0
    linked: tuple[str, ...] = ()  # () for all shapes
    held_out: float = 0.0  # share of the colour-shape pairs
    combinations: str = "all"  # or "seen", "unseen"

    say: tuple[str, ...] = ASPECTS  # what captions may tell of, beside shapes
    detail: float = 0.5  # chance that a short caption says the sizes; the textures; the background; a relation
    text_noise: float = 0.0  # share of alt and noisy texts that tell of another scene
    alt_names: float = 0.0  # share of alt texts with a made-up name that no other scene has
    exact_copies: float = 0.0  # share of scenes that are copies of an earlier one, byte for byte
    near_copies: float = 0.0  # ... of which the picture is shifted and brightened a little

    def __post_init__(self) -> None:
        for name, valid in WORDS.items():
            for word in getattr(self, name):
                _one_of(name, word, valid)
            if not getattr(self, name) and name not in ("linked", "say"):
                raise DiptychError(f"scenes: {name} is empty; name at least one of {', '.join(valid)}")
        _one_of("distinct", self.distinct, ("pair", "each"))
        _one_of("combinations", self.combinations, COMBINATIONS)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("float", float) and field.name not in ("turn", "strength") and not 0 <= value <= 1:
                raise DiptychError(f"scenes: {field.name} is {value}; it goes from 0 to 1")
        if self.exact_copies + self.near_copies > 1:
            raise DiptychError("scenes: exact_copies and near_copies are shares of all scenes: at most 1 together")
        if self.side < 16:
            raise DiptychError(f"scenes: side is {self.side} pixels; shapes can be told apart from 16 on")
        if not self.counts or not self.copies or min(self.counts) < 0 or min(self.copies) < 1:
            raise DiptychError("scenes: counts are 0 or more, copies 1 or more")
        if max(self.counts) * max(self.copies) > MOST:
            raise DiptychError(f"scenes: counts x copies goes to {max(self.counts) * max(self.copies)}; at most {MOST}")
        if max(self.counts) > self.most_kinds():
            raise DiptychError(
                f"scenes: {max(self.counts)} kinds in a scene, but only {self.most_kinds()} can differ as asked "
                "(distinct, held_out); add shapes or colours"
            )

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The (colour, shape) pairs that may be drawn."""
        shapes, colours = list(dict.fromkeys(self.shapes)), list(dict.fromkeys(self.colours))
        every = [(colour, shape) for shape in shapes for colour in colours]
        held = set(self.held_pairs)
        if self.combinations == "seen":
            every = [pair for pair in every if pair not in held]
        elif self.combinations == "unseen":
            every = [pair for pair in every if pair in held]
        return tuple(every)

    @cached_property
    def held_pairs(self) -> tuple[tuple[str, str], ...]:
        """The (colour, shape) pairs that "seen" and "unseen" keep apart: whole diagonals first, never own colours."""
        shapes, colours = list(dict.fromkeys(self.shapes)), list(dict.fromkeys(self.colours))
        diagonals = [
            ((c - s) % len(colours), s, colour, shape)
            for s, shape in enumerate(shapes)
            for c, colour in enumerate(colours)
        ]
        far = sorted((d for d in diagonals if d[0]), key=lambda d: (-d[0], d[1]))
        count = round(self.held_out * len(diagonals))
        if count > len(far):
            raise DiptychError(f"scenes: held_out is {self.held_out}; own colours stay: at most {1 - 1 / len(colours)}")
        return tuple((colour, shape) for _, _, colour, shape in far[:count])

    @cached_property
    def palette(self) -> dict[str, tuple[str, ...]]:
        """Each shape that may be drawn, with the colours it may have; words repeated in the spec are repeated here."""
        pairs = set(self.pairs)
        palette = {s: tuple(c for c in self.colours if (c, s) in pairs) for s in dict.fromkeys(self.shapes)}
        return {shape: colours for shape, colours in palette.items() if colours}

    def own(self, aspect: str, shape: str) -> str:
        """The background, colour or texture that a link ties to this shape."""
        options = list(dict.fromkeys(getattr(self, aspect + "s")))
        return options[list(dict.fromkeys(self.shapes)).index(shape) % len(options)]

    def most_kinds(self) -> int:
        """How many kinds of thing a scene can hold at most."""
        pairs = self.pairs
        if self.distinct == "pair":
            return len(pairs)
        taken: dict[str, str] = {}  # shape -> colour: a largest matching, by augmenting paths

        def place(colour: str, tried: set[str]) -> bool:
            for shape in (s for c, s in pairs if c == colour and s not in tried):
                tried.add(shape)
                if shape not in taken or place(taken[shape], tried):
                    taken[shape] = colour
                    return True
            return False

        return sum(place(colour, set()) for colour in dict.fromkeys(self.colours))


def stream(seed: int, index: int, name: str) -> random.Random:
    """Chance for one aspect of one scene: a function of its arguments alone.

    Each aspect has its own, so that two specs that differ in the style alone draw the same things in the same places.
    """
    return random.Random(f"{seed}/{index}/{name}")


def _one_of(name: str, word: str, valid: tuple[str, ...]) -> None:
    if word not in valid:
        raise DiptychError(f'scenes: {name} has "{word}"{nearest(str(word), valid)}')


ALONE = SceneSpec(counts=(1,))
