"""How phrases and statements are said in five languages, and whether they are true of a scene."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diptych.data.scenes.scene import Scene, Thing
from diptych.data.scenes.words import (
    ADJECTIVES,
    GROUNDS,
    NUMBERS,
    PLACES,
    RELATION_WORDS,
    SENTENCES,
    TEMPLATES,
    adjective,
    noun,
)

Synonyms = Mapping[str, str]  # an English word -> what is said instead


@dataclass(frozen=True)
class Phrase:
    """Things by their attributes; "" is not said. "two small red circles": exactly so many are there."""

    shape: str = ""
    colour: str = ""
    size: str = ""
    texture: str = ""
    count: int = 1

    def fits(self, thing: Thing) -> bool:
        return (
            self.shape in ("", thing.shape)
            and self.colour in ("", thing.colour)
            and self.size in ("", thing.size)
            and self.texture in ("", thing.texture)
        )

    def found(self, scene: Scene) -> list[int]:
        """The numbers of the things it fits."""
        return [i for i, thing in enumerate(scene.things) if self.fits(thing)]

    def true_of(self, scene: Scene) -> bool:
        return len(self.found(scene)) == self.count


@dataclass(frozen=True)
class Statement:
    """What a short caption says: things, or a relation of two phrases; and the background, unless ""."""

    phrases: tuple[Phrase, ...]
    relation: str = ""
    background: str = ""

    def true_of(self, scene: Scene) -> bool:
        if self.background not in ("", scene.background) or not all(p.true_of(scene) for p in self.phrases):
            return False
        if not self.phrases:
            return not scene.things
        return not self.relation or related(scene, self.relation, *self.phrases)


def related(scene: Scene, relation: str, a: Phrase, b: Phrase) -> bool:
    """Whether all that a fits stand in a relation to all that b fits."""
    pairs = [(scene.things[i], scene.things[j]) for i in a.found(scene) for j in b.found(scene)]
    return all(one is not other and scene.holds(relation, one, other) for one, other in pairs)


def say(statement: Statement, language: str = "en", template: int = 0, synonyms: Synonyms | None = None) -> str:
    """A statement in words: "a small red circle left of two blue stars on grass"."""
    words = SENTENCES[language]
    phrases = [say_phrase(p, language, synonyms=synonyms) for p in statement.phrases]
    if not phrases:
        text = words["nothing"]
    elif statement.relation:
        text = f"{phrases[0]} {_beside(statement.relation, statement.phrases[1], language, False, synonyms)}"
    else:
        text = ", ".join(phrases[:-1]) + (f" {words['and']} " if len(phrases) > 1 else "") + phrases[-1]
    if statement.background:
        text += " " + words["on"].format(w=GROUNDS[language][statement.background])
    return TEMPLATES[language][template].format(s=text)


def say_phrase(
    phrase: Phrase,
    language: str = "en",
    definite: bool = False,
    dative: bool = False,
    synonyms: Synonyms | None = None,
) -> str:
    """ "a red circle", "the red circle"; count 0: "no red circle". The dative is for German alone."""
    many = phrase.count > 1
    singular, plural, gender = noun(phrase.shape or "shape", language)
    name = plural if many else singular
    adjectives = [word for word in (phrase.size, phrase.texture, phrase.colour) if word]
    if language == "en":
        swap = synonyms or {}
        name = swap.get(singular, singular)
        name += ("es" if name.endswith(("s", "x")) else "s") if many else ""
        words = [*(swap.get(word, ADJECTIVES["en"][word]) for word in adjectives), name]
        return " ".join(_counted_en(phrase.count, definite, words[0]) + words)
    if language == "de":
        ending = _ending_de(phrase.count, gender, definite, dative)
        forms = [ADJECTIVES["de"][word] for word in adjectives]
        forms = [form[1:] if form.startswith("=") else form + ending for form in forms]
        if many and dative and not name.endswith(("n", "s")):
            name += "n"
        return " ".join([*_counted_de(phrase.count, gender, definite, dative), *forms, name])
    bent = {word: adjective(word, language, gender, many) for word in adjectives}
    before = [bent.pop(phrase.size)] if language == "fr" and phrase.size in ("small", "large") else []
    after = [bent[word] for word in (phrase.size, phrase.colour, phrase.texture) if word in bent]
    words = [*before, name, *after]
    counted = _counted_romance(phrase.count, gender, definite, language, words[0])
    return _joined([*counted, *words], language)


def _counted_en(count: int, definite: bool, following: str) -> list[str]:
    if count == 1:
        return ["the"] if definite else ["an" if following[0] in "aeiou" else "a"]
    return [*(["the"] if definite else []), NUMBERS["en"][count]]


_DE = {"m": ("der", "dem"), "f": ("die", "der"), "n": ("das", "dem")}


def _counted_de(count: int, gender: str, definite: bool, dative: bool) -> list[str]:
    if count > 1:
        return [*([("die", "den")[dative]] if definite else []), NUMBERS["de"][count]]
    if definite:
        return [_DE[gender][dative]]
    ending = {"m": "em", "f": "er", "n": "em"}[gender] if dative else {"m": "", "f": "e", "n": ""}[gender]
    return [NUMBERS["de"][count] + ending]


def _ending_de(count: int, gender: str, definite: bool, dative: bool) -> str:
    if dative:
        return "en"
    if count > 1:
        return "en" if definite else "e"
    return "e" if definite else {"m": "er", "f": "e", "n": "es"}[gender]


_THE = {
    "fr": {"m": "le", "f": "la", "p": "les"},
    "es": {"m": "el", "f": "la", "pm": "los", "pf": "las"},
    "it": {"m": "il", "f": "la", "pm": "i", "pf": "le"},
}


def _counted_romance(count: int, gender: str, definite: bool, language: str, following: str) -> list[str]:
    if count > 1:
        number = NUMBERS[language][count]
        article = _THE[language].get("p") or _THE[language]["p" + gender]
        if article == "i" and number[0] in "aeiou":
            article = "gli"
        return [article, number] if definite else [number]
    if definite:
        return [_THE[language][gender]]
    if count == 1:
        return ["une" if language == "fr" else "una"] if gender == "f" else ["un"]
    if language == "fr":
        return ["pas", "de"]
    return [{"es": "ninguna", "it": "nessuna"}[language]] if gender == "f" else [NUMBERS[language][0]]


def _joined(words: list[str], language: str) -> str:
    """Words as they are spoken: l'étoile, d'un, du cercle, della stella, del círculo."""
    text = " ".join(words)
    if language == "fr":
        text = re.sub(r"\b(l|d)(?:e|a) (?=[aeiouéêh])", r"\1'", text)
        return re.sub(r"\bde les\b", "des", re.sub(r"\bde le\b", "du", text))
    if language == "es":
        return re.sub(r"\bde el\b", "del", text)
    text = re.sub(r"\b(?:il|la) (?=[aeiou])", "l'", text)
    for preposition, stem in (("di", "de"), ("a", "a")):
        for article, joined in (("il", "l"), ("la", "lla"), ("gli", "gli"), ("i", "i"), ("le", "lle")):
            text = re.sub(rf"\b{preposition} {article} ", f"{stem}{joined} ", text)
        text = re.sub(rf"\b{preposition} l'", f"{stem}ll'", text)
    return text


def _beside(relation: str, phrase: Phrase, language: str, definite: bool, synonyms: Synonyms | None = None) -> str:
    """ "left of a blue star" """
    words = RELATION_WORDS[language][relation]
    words = (synonyms or {}).get(words, words)
    text = say_phrase(phrase, language, definite, dative=True, synonyms=synonyms)
    return f"{words} {text}" if language in ("en", "de") else _joined([*words.split(), text], language)


# -- sentences of a long caption -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """One sentence. kind: total, some, none (phrase); is (phrase, attribute word); at (phrase, place); related (phrase,
    relation, other); ground (word)."""

    kind: str
    phrase: Phrase = Phrase()
    word: str = ""
    other: Phrase = Phrase()

    def true_of(self, scene: Scene) -> bool:
        match self.kind:
            case "ground":
                return scene.background == self.word
            case "is":
                things = [scene.things[i] for i in self.phrase.found(scene)]
                fits = all(self.word in (thing.size, thing.texture, thing.colour) for thing in things)
                return self.phrase.true_of(scene) and fits
            case "at":
                found = self.phrase.found(scene)
                return self.phrase.true_of(scene) and all(place_of(scene.things[i]) == self.word for i in found)
            case "related":
                true = self.phrase.true_of(scene) and self.other.true_of(scene)
                return true and related(scene, self.word, self.phrase, self.other)
        return self.phrase.true_of(scene)

    def say(self, language: str = "en") -> str:
        """A sentence, with a capital and a full stop."""
        phrase, word = self.phrase, self.word
        _, _, gender = noun(phrase.shape or "shape", language)
        a = say_phrase(phrase, language)
        the = say_phrase(phrase, language, definite=True)
        b = ""
        match self.kind:
            case "ground":
                word = GROUNDS[language][word]
            case "at":
                word = PLACES[language][word]
            case "related":
                b = _beside(word, self.other, language, True)
            case "is" if language in ("en", "de"):
                word = ADJECTIVES[language][word].removeprefix("=")
            case "is":
                word = adjective(word, language, gender, phrase.count > 1)
        forms = SENTENCES[language][self.kind].split("|")
        text = forms[min(len(forms) - 1, phrase.count > 1)].format(a=a, the=the, b=b, w=word)
        return text[0].upper() + text[1:] + "."


def place_of(thing: Thing) -> str:
    """ "top left", "middle", ...; "" where it is too near to a border of the thirds to say."""
    words = []
    for at, low, high in ((thing.y, "top", "bottom"), (thing.x, "left", "right")):
        if min(abs(at - 1 / 3), abs(at - 2 / 3)) < 0.03:
            return ""
        words.append(low if at < 1 / 3 else high if at > 2 / 3 else "")
    return " ".join(word for word in words if word) or "middle"
