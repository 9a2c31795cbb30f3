"""What is said of a scene: short and long captions, alt texts, rewrites, foils, questions."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from diptych.data.scenes.grammar import Fact, Phrase, Statement, place_of, related, say, say_phrase
from diptych.data.scenes.scene import OPPOSITE, RADIUS, RELATIONS, Scene, Thing
from diptych.data.scenes.spec import COLOURS, SHAPES, SIZES, TEXTURES, SceneSpec
from diptych.data.scenes.words import ADJECTIVES, NUMBERS, RELATION_WORDS, SYNONYMS, TEMPLATES

LONG = (70, 170)  # words and marks of a long caption in English, evenly; French takes a third more


def tokens(text: str) -> list[str]:
    """Words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text)


def phrase_of(scene: Scene, thing: Thing, aspects: Iterable[str]) -> Phrase:
    """A thing by its shape and the said aspects, with the number of things that fit it."""
    phrase = Phrase(thing.shape, **{a: getattr(thing, a) for a in ("colour", "size", "texture") if a in aspects})
    return replace(phrase, count=len(phrase.found(scene)))


def short(scene: Scene, spec: SceneSpec, rng: Random) -> Statement:
    """All kinds of thing, or two of them in a relation; each detail by chance."""
    details = {a for a in ("size", "texture", "background", "relation") if rng.random() < spec.detail}
    if all(thing.texture == "solid" for thing in scene.things):
        details -= {"texture"}
    aspects = (details | {"colour"}) & set(spec.say)
    phrases = list(dict.fromkeys(phrase_of(scene, kind, aspects) for kind in scene.kinds))
    rng.shuffle(phrases)
    background = scene.background if "background" in aspects else ""
    if "relation" in aspects and len(phrases) > 1:
        found = _relations(scene, phrases)
        if found:
            a, relation, b = rng.choice(found)
            return Statement((a, b), relation, background)
    return Statement(tuple(phrases), "", background)


def _relations(scene: Scene, phrases: Sequence[Phrase]) -> list[tuple[Phrase, str, Phrase]]:
    relations = RELATIONS if scene.layout == "overlapping" else RELATIONS[:4]
    return [(a, r, b) for a in phrases for b in phrases if a is not b for r in relations if related(scene, r, a, b)]


def long(scene: Scene, spec: SceneSpec, rng: Random) -> tuple[Fact, ...]:
    """Facts kind by kind, in a chance order, up to a length within LONG; what is absent fills a short one up.

    A thing's colour and shape name it; its size, texture, place and relations are sentences of their own.
    """
    named = list(dict.fromkeys(phrase_of(scene, kind, {"colour"} & set(spec.say)) for kind in scene.kinds))
    rng.shuffle(named)
    blocks = [[Fact("some", phrase)] for phrase in named]
    extra: list[tuple[int, Fact]] = []  # (block, fact)
    for i, phrase in enumerate(named):
        first = scene.things[phrase.found(scene)[0]]
        told = [Fact("is", phrase, getattr(first, a)) for a in ("size", "texture") if a in spec.say]
        told += [Fact("at", phrase, place_of(first))]
        extra += [(i, fact) for fact in told if fact.word and fact.true_of(scene)]
    if "relation" in spec.say:
        for a, relation, b in _relations(scene, named):
            extra.append((max(named.index(a), named.index(b)), Fact("related", a, relation, b)))
    opening = Fact("total", Phrase(count=len(scene.things))) if scene.things else Fact("none", Phrase(count=0))
    ground = [Fact("ground", word=scene.background)] if "background" in spec.say else []

    left = rng.randint(*LONG) - sum(_length(f) for f in [opening, *ground, *(b[0] for b in blocks)])
    rng.shuffle(extra)
    for block, fact in extra:
        if (size := _length(fact)) <= left:
            blocks[block].append(fact)
            left -= size
    for fact in _absent(scene, spec, rng):
        if (size := _length(fact)) > left:
            break
        block = rng.choice(blocks or [ground])
        block.insert(rng.randint(1, len(block)), fact)
        left -= size
    blocks.insert(rng.randint(0, len(blocks)), ground)
    return (opening, *(fact for block in blocks for fact in block))


def _length(fact: Fact) -> int:
    return len(tokens(fact.say()))


def _absent(scene: Scene, spec: SceneSpec, rng: Random) -> list[Fact]:
    """What may be drawn and is not there."""
    coloured = "colour" in spec.say
    words = list(dict.fromkeys((shape, colour if coloured else "") for colour, shape in spec.pairs))
    most = LONG[1] // 6  # sentences
    some = rng.sample(words, min(len(words), most + len(scene.things)))
    absent = [Fact("none", Phrase(shape, colour, count=0)) for shape, colour in some]
    return [fact for fact in absent if fact.true_of(scene)][:most]


def say_long(facts: Iterable[Fact], language: str = "en") -> str:
    return " ".join(fact.say(language) for fact in facts)


def rewrite(statement: Statement, rng: Random, language: str = "en") -> str:
    """The same said otherwise: another template, order of clauses, and in English other words. No meaning is lost."""
    if statement.relation and rng.random() < 0.5:
        statement = replace(statement, phrases=statement.phrases[::-1], relation=OPPOSITE[statement.relation])
    elif not statement.relation:
        statement = replace(statement, phrases=tuple(rng.sample(statement.phrases, len(statement.phrases))))
    synonyms = {word: rng.choice((word, *others)) for word, others in SYNONYMS.items()}
    return say(statement, language, rng.randrange(1, len(TEMPLATES[language])), synonyms)


# -- alt texts -------------------------------------------------------------------------------------------------------

_WEB = ("{x}", "{x} stock photo", "IMG_{n} {x}", "buy {x} online", "{x} | wallpaper {n}", "free {x} clipart", "{x}.jpg")
_NAMED = ("{name} - {x}", "{x} by {name}", "{name}: {x}", "{x} ({name})")
_SYLLABLES = [
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "jo",
    "ki",
    "lu",
    "me",
    "na",
    "po",
    "ri",
    "sa",
    "te",
    "vo",
    "wa",
    "xi",
    "yo",
    "zu",
]


@dataclass(frozen=True)
class Alt:
    """A web page's alt text. true: it tells of this scene; name: the proper name in it, or ""."""

    text: str
    true: bool
    name: str


def alt(scene: Scene, other: Scene, spec: SceneSpec, rng: Random, index: int) -> Alt:
    """One or two things of the scene, or of another scene, in the way of web pages.

    A false one names nothing that is there; where the other scene has no such thing, it is a file's name alone.
    """
    true, named = rng.random() >= spec.text_noise, rng.random() < spec.alt_names
    aspects = {"colour"} & set(spec.say) if rng.random() < 0.7 else set()
    shown = scene if true else other
    phrases = [phrase_of(shown, kind, aspects) for kind in shown.kinds]
    phrases = [phrase for phrase in dict.fromkeys(phrases) if true or not phrase.found(scene)]
    said = [" ".join(say_phrase(p).split()[p.count == 1 :]) for p in phrases[: rng.randint(1, 2)]]
    n = rng.randint(100, 9999)
    name = proper_name(index) if named else ""
    text = rng.choice(_WEB).format(x=" and ".join(said), n=n) if said else f"IMG_{n}.jpg"
    return Alt(rng.choice(_NAMED).format(name=name, x=text) if named else text, true, name)


def proper_name(index: int) -> str:
    """A made-up name, another one for each index below 20**5."""
    number = (index * 1_299_709 + 777_777) % 20**5
    return "".join(_SYLLABLES[number // 20**i % 20] for i in range(5)).capitalize()


# -- foils -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Foil:
    """A caption that is false by one word, or by two words that changed places (swap), or two phrases that did (order).

    words: the numbers of the changed words in `text.split()`.
    """

    kind: str  # colour, shape, size, texture, count, relation, swap, order
    caption: str
    text: str
    words: tuple[int, ...]
    statement: Statement

    def scene(self, scene: Scene, statement: Statement) -> Scene | None:
        """A scene of which this foil is true, like the given one of which `statement` is, in all but what it marks.

        None for another count, and where things would meet that did not or the foil would not be true yet.
        """
        things = list(scene.things)
        if self.kind in ("relation", "order"):
            a, b = (phrase.found(scene) for phrase in statement.phrases)
            if len(a) != 1 or len(b) != 1:
                return None
            one, other = things[a[0]], things[b[0]]
            things[a[0]] = replace(one, x=other.x, y=other.y)
            things[b[0]] = replace(other, x=one.x, y=one.y)
        else:
            for old, new in zip(statement.phrases, self.statement.phrases, strict=True):
                words = {name: getattr(new, name) for name in _ATTRIBUTES if getattr(new, name)}
                for i in old.found(scene):
                    scale = RADIUS[new.size] / RADIUS[things[i].size] if new.size else 1
                    things[i] = replace(things[i], **words, radius=things[i].radius * scale)
        changed = replace(scene, things=tuple(things))
        return changed if self.statement.true_of(changed) and _as_free(scene, changed) else None


def _as_free(before: Scene, after: Scene) -> bool:
    """Whether no things meet that were apart, and all are inside the picture."""
    pairs = [(i, j) for i in range(len(before.things)) for j in range(i)]
    inside = all(t.radius <= at <= 1 - t.radius for t in after.things for at in (t.x, t.y))
    return inside and all(_apart(after, i, j) or not _apart(before, i, j) for i, j in pairs)


def _apart(scene: Scene, i: int, j: int) -> bool:
    a, b = scene.things[i], scene.things[j]
    return math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


_ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}


def foils(
    scene: Scene, statement: Statement, spec: SceneSpec, rng: Random, language: str = "en", template: int = 0
) -> tuple[Foil, ...]:
    """One foil of each kind and place that the statement allows. Words come from the spec."""
    caption = say(statement, language, template)
    found = []

    def add(kind: str, candidates: list[Statement], changed: int | None) -> None:
        rng.shuffle(candidates)
        for candidate in candidates:
            text = say(candidate, language, template)
            words = _changed(caption, text)
            if words and changed in (None, len(words)) and not candidate.true_of(scene):
                found.append(Foil(kind, caption, text, words, candidate))
                return

    for i, phrase in enumerate(statement.phrases):
        for name in _ATTRIBUTES:
            if getattr(phrase, name):
                options = [replace(phrase, **{name: word}) for word in dict.fromkeys(getattr(spec, name + "s"))]
                add(name, [_with(statement, i, p) for p in options if not p.found(scene)], 1)
        if phrase.count > 1:
            counts = [n for n in range(2, len(NUMBERS[language])) if n != phrase.count]
            near = sorted(counts, key=lambda n: abs(n - phrase.count))[:3]
            add("count", [_with(statement, i, replace(phrase, count=n)) for n in near], 1)
    if statement.relation:
        add("relation", [replace(statement, relation=OPPOSITE[statement.relation])], 1)
        add("order", [replace(statement, phrases=statement.phrases[::-1])], None)
    for i, a in enumerate(statement.phrases):
        for j, b in enumerate(statement.phrases[:i]):
            for name in _ATTRIBUTES:
                left, right = getattr(a, name), getattr(b, name)
                if left and right and left != right:
                    new_a, new_b = replace(a, **{name: right}), replace(b, **{name: left})
                    if not new_a.found(scene) or not new_b.found(scene):
                        add("swap", [_with(_with(statement, i, new_a), j, new_b)], 2)
    return tuple(found)


def _with(statement: Statement, place: int, phrase: Phrase) -> Statement:
    phrases = (*statement.phrases[:place], phrase, *statement.phrases[place + 1 :])
    return replace(statement, phrases=phrases)


def _changed(before: str, after: str) -> tuple[int, ...]:
    """The places at which two texts of as many words differ; () where their lengths do."""
    old, new = before.split(), after.split()
    return tuple(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b) if len(old) == len(new) else ()


# -- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    kind: str  # colour, shape, size, texture, count, exists, relation, background
    text: str
    answer: str


def questions(scene: Scene, spec: SceneSpec, rng: Random) -> tuple[Question, ...]:
    """All that have one answer, in English; as many with yes as with no."""
    found = [Question("background", "what is the background?", scene.background)]
    phrases = [phrase_of(scene, kind, ("colour",)) for kind in scene.kinds]
    for kind, phrase in zip(scene.kinds, phrases, strict=True):
        the, verb = say_phrase(phrase, definite=True), "are" if phrase.count > 1 else "is"
        found.append(Question("size", f"what size {verb} {the}?", kind.size))
        found.append(Question("texture", f"what texture {verb} {the}?", ADJECTIVES["en"][kind.texture]))
        found.append(_how_many(phrase))
        if sum(kind.shape == other.shape for other in scene.kinds) == 1:
            the = say_phrase(replace(phrase, colour=""), definite=True)
            found.append(Question("colour", f"what colour {verb} {the}?", kind.colour))
        if sum(kind.colour == other.colour for other in scene.kinds) == 1:
            what = "shapes are" if phrase.count > 1 else "shape is"
            found.append(
                Question("shape", f"what {what} the {kind.colour} {'ones' if verb == 'are' else 'one'}?", kind.shape)
            )
    absent = [fact.phrase for fact in _absent(scene, replace(spec, say=("colour",)), rng)]
    for there, missing in zip(phrases, absent, strict=False):
        for phrase, answer in ((there, "yes"), (missing, "no")):
            one = say_phrase(replace(phrase, count=1))
            found.append(Question("exists", f"is there {one}?", answer))
        found.append(_how_many(missing))
    for a, relation, b in _relations(scene, phrases):
        for words, answer in ((relation, "yes"), (OPPOSITE[relation], "no")):
            beside = f"{RELATION_WORDS['en'][words]} {say_phrase(b, definite=True)}"
            verb = "are" if a.count > 1 else "is"
            found.append(Question("relation", f"{verb} {say_phrase(a, definite=True)} {beside}?", answer))
    return tuple(found)


def _how_many(phrase: Phrase) -> Question:
    several = " ".join(say_phrase(replace(phrase, count=2)).split()[1:])
    return Question("count", f"how many {several} are there?", str(phrase.count))
