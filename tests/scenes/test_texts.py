"""What is said is true and says it all; what is a foil is false by what it marks. Captions are read back to check."""

import re
from collections import Counter

import numpy as np
import pytest

from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.scenes.captions import LONG, proper_name, tokens
from diptych.data.scenes.grammar import Phrase, Statement, place_of, say, say_phrase
from diptych.data.scenes.scene import Scene
from diptych.data.scenes.spec import COLOURS, SHAPES, SIZES, TEXTURES
from diptych.data.scenes.words import (
    ADJECTIVES,
    DESCRIPTIONS,
    LANGUAGES,
    NUMBERS,
    SYNONYMS,
    TEMPLATES,
    adjective,
    meanings,
    noun,
)

RICH = SceneSpec(
    textures=TEXTURES, counts=(0, 1, 2, 3, 4), copies=(1, 1, 2, 3), layouts=("apart", "overlapping"), detail=0.6
)
NUMBER = {word: i for i, word in enumerate(NUMBERS["en"])}
NUMBER |= {"a": 1, "an": 1}
BESIDE = {"left of": "left", "right of": "right", "above": "above", "below": "below", "in front of": "front"}
BESIDE |= {"behind": "behind"}
SINGULAR = {f"{s}es" if s.endswith("s") else f"{s}s": s for s in (*SHAPES, "shape")}
PLURAL = {singular: plural for plural, singular in SINGULAR.items()}


# A reader of English captions that knows nothing of how they are made.


def read_phrase(words: str) -> tuple[int, dict[str, str]]:
    """ "the two small red circles" -> (2, {"size": "small", ...})"""
    first, *rest = words.split()
    if first == "the":
        count, rest = (NUMBER[rest[0]], rest[1:]) if rest[0] in NUMBER else (1, rest)
    else:
        count = NUMBER[first]
    shape = rest.pop()
    assert (shape in SINGULAR) == (count > 1), words
    found = {"shape": SINGULAR.get(shape, shape)}
    for word in rest:
        word = "solid" if word == "plain" else word
        (name,) = [n for n, v in (("size", SIZES), ("texture", TEXTURES), ("colour", COLOURS)) if word in v]
        assert name not in found
        found[name] = word
    if found["shape"] == "shape":
        del found["shape"]
    return count, found


def fitting(scene: Scene, words: str) -> list:
    count, said = read_phrase(words)
    found = [thing for thing in scene.things if all(getattr(thing, name) == word for name, word in said.items())]
    assert len(found) == count, (words, scene)
    return found


def check_relation(scene: Scene, a: str, relation: str, b: str) -> None:
    for one in fitting(scene, a):
        for other in fitting(scene, b):
            dx, dy = other.x - one.x, other.y - one.y
            match BESIDE[relation]:
                case "left":
                    assert dx > 0.09
                case "right":
                    assert dx < -0.09
                case "above":
                    assert dy > 0.09
                case "below":
                    assert dy < -0.09
                case "front":
                    assert one.depth < other.depth and abs(dx) + abs(dy) < 2 * (one.radius + other.radius)
                case "behind":
                    assert one.depth > other.depth and abs(dx) + abs(dy) < 2 * (one.radius + other.radius)


def check_short(scene: Scene, text: str) -> None:
    text, on, ground = text.partition(" on ")
    assert not on or ground == scene.background
    if text == "nothing":
        assert not scene.things
        return
    relation = re.fullmatch(f"(.+?) ({'|'.join(BESIDE)}) (.+)", text)
    if relation:
        check_relation(scene, *relation.groups())
        return
    told = [thing for phrase in re.split(", | and ", text) for thing in fitting(scene, phrase)]
    assert len(told) == len(scene.things)  # each thing, and each once


def check_sentence(scene: Scene, text: str) -> None:
    text = text[0].lower() + text[1:]
    if match := re.fullmatch("the background is (.+)", text):
        assert match[1] == scene.background
    elif match := re.fullmatch("(?:the picture shows|there is|there are) (.+)", text):
        fitting(scene, match[1])
    elif match := re.fullmatch(f"(.+?) (?:is|are) ({'|'.join(BESIDE)}) (.+)", text):
        check_relation(scene, *match.groups())
    elif match := re.fullmatch("(.+?) (?:is|are) (?:at the|in the) (.+)", text):
        names = match[2].split()
        for thing in fitting(scene, match[1]):
            x = 0 if "left" in names else 2 if "right" in names else 1
            y = 0 if "top" in names else 2 if "bottom" in names else 1
            assert (int(thing.x * 3), int(thing.y * 3)) == (x, y)
    else:
        match = re.fullmatch("(.+?) (?:is|are) (.+)", text)
        assert match, text
        word = "solid" if match[2] == "plain" else match[2]
        assert all(word in (t.size, t.texture) for t in fitting(scene, match[1]))


def test_short_captions_read_back_are_true_and_complete():
    for record in Scenes(RICH, 400, 1):
        check_short(record.scene, record.text())
        assert record.statement.true_of(record.scene)


def test_long_captions_read_back_are_true_and_spread_over_their_length():
    lengths, late = [], []
    for record in Scenes(RICH, 300, 2):
        sentences = record.text("long").removesuffix(".").split(". ")
        assert len(sentences) == len(record.facts) == len(set(sentences))
        for sentence, fact in zip(sentences, record.facts, strict=True):
            check_sentence(record.scene, sentence)
            assert fact.true_of(record.scene)
        lengths.append(len(tokens(record.text("long"))))
        half = record.facts[len(record.facts) // 2 :]
        if len(record.scene.kinds) > 1:
            late.append(sum(fact.kind in ("some", "is", "at", "related") for fact in half))
    assert min(lengths) >= 60 and max(lengths) <= 200
    assert max(lengths) - min(lengths) > 0.8 * (LONG[1] - LONG[0])
    assert np.mean(np.array(late) >= 2) > 0.9  # what is there, and not only what is absent


def test_the_chance_of_a_detail_is_what_was_asked():
    for detail in (0.0, 0.3, 1.0):
        scenes = Scenes(SceneSpec(counts=(1,), detail=detail), 400)
        said = np.array([[bool(r.statement.background), bool(r.statement.phrases[0].size)] for r in scenes])
        assert np.abs(said.mean(0) - detail).max() <= 3 * np.sqrt(detail * (1 - detail) / 400)
    mute = Scenes(SceneSpec(say=(), textures=TEXTURES, detail=1.0, counts=(1, 2)), 50)
    words = {word for record in mute for word in record.text().split()}
    assert not words & {*COLOURS, *SIZES, *TEXTURES, "plain", "on", "left", "above"}
    for record in mute:
        check_short(record.scene, record.text())


def test_rewrites_say_the_same_in_other_words():
    back = meanings()
    assert len(back) == sum(map(len, SYNONYMS.values())) and not set(back) & set(SYNONYMS)
    frames = [template.format(s="(.+)") for template in TEMPLATES["en"][1:]]
    different = []
    for record in Scenes(RICH, 200, 3):
        text = record.text("rewrite 1")
        (plain,) = [match[1] for frame in frames if (match := re.fullmatch(frame, text))]
        for synonym in sorted(back, key=len, reverse=True):
            plain = re.sub(rf"\b{synonym}\b", back[synonym], plain)
            plain = re.sub(rf"\b{synonym}e?s\b", PLURAL.get(back[synonym], ""), plain)
        plain = re.sub(r"\ban? (?=\w)", "a ", plain)
        check_short(record.scene, plain)
        kept = Counter(re.findall(r"[a-z]+", re.sub(r"\ban\b", "a", record.text())))
        new = Counter(re.findall(r"[a-z]+", plain))
        changed = (kept - new) + (new - kept)
        assert not set(changed) - {"left", "right", "above", "below", "behind", "in", "front", "of"}
        different.append(text != record.text() and text != record.text("rewrite 2"))
        assert text == record.text("rewrite 1")
    assert np.mean(different) > 0.9


@pytest.mark.parametrize("spec", [RICH, SceneSpec(counts=(2,), distinct="each")])
def test_foils_are_false_by_exactly_what_they_mark(spec: SceneSpec):
    kinds = Counter()
    for record in Scenes(spec, 200, 4):
        for foil in record.foils:
            kinds[foil.kind] += 1
            before, after = foil.caption.split(), foil.text.split()
            assert foil.caption == record.text() and len(before) == len(after)
            assert tuple(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b) == foil.words
            with pytest.raises(AssertionError):
                check_short(record.scene, foil.text)
            if foil.kind == "swap":
                i, j = foil.words
                words = [text[k].rstrip(",") for text in (before, after) for k in (i, j)]
                old_i, old_j, new_i, new_j = (SINGULAR.get(word, word) for word in words)
                assert (old_i, old_j) == (new_j, new_i)
            elif foil.kind == "order":
                assert Counter(before) == Counter(after)
            else:
                assert len(foil.words) == 1
            word = after[foil.words[0]].rstrip(",")
            if foil.kind in ("colour", "size"):
                assert word in {"colour": COLOURS, "size": SIZES}[foil.kind]
            elif foil.kind == "shape":
                assert SINGULAR.get(word, word) in SHAPES
            elif foil.kind == "count":
                assert NUMBER[word] >= 2
    wanted = {"colour", "shape", "size", "relation", "swap", "order"}
    assert wanted <= set(kinds), kinds
    if spec is RICH:
        assert {"count", "texture"} <= set(kinds)


def test_a_foil_has_a_scene_of_its_own_that_differs_in_what_it_marks():
    made, possible = Counter(), Counter()
    for record in Scenes(SceneSpec(counts=(2,), textures=TEXTURES), 150, 7):
        for foil in record.foils:
            other = foil.scene(record.scene, record.statement)
            possible[foil.kind] += 1
            if other is None:
                continue
            made[foil.kind] += 1
            check_short(other, foil.text)
            with pytest.raises(AssertionError):
                check_short(other, foil.caption)
            assert other.background == record.scene.background and len(other.things) == len(record.scene.things)
            differs = {
                name
                for a, b in zip(record.scene.things, other.things, strict=True)
                for name in ("colour", "shape", "size", "texture", "x", "y")
                if getattr(a, name) != getattr(b, name)
            }
            if foil.kind in ("relation", "order"):
                assert differs <= {"x", "y"}
            elif foil.kind == "swap":
                assert len(differs) == 1
            else:
                assert differs == {foil.kind}
    assert all(made[kind] > 0.5 * possible[kind] > 5 for kind in ("colour", "shape", "texture", "swap", "relation"))


def test_questions_have_the_answers_that_the_scene_gives():
    answers = Counter()
    for record in Scenes(RICH, 150, 5):
        scene = record.scene
        for question in record.questions:
            text = question.text.removesuffix("?")
            answers[question.kind, question.answer] += 1
            if match := re.fullmatch("what (size|texture|colour) (?:is|are) (.+)", text):
                answer = "solid" if question.answer == "plain" else question.answer
                assert {getattr(thing, match[1]) for thing in fitting(scene, match[2])} == {answer}
            elif match := re.fullmatch("what shapes? (?:is|are) the (.+) ones?", text):
                assert {thing.shape for thing in scene.things if thing.colour == match[1]} == {question.answer}
            elif match := re.fullmatch("how many (.+) are there", text):
                _, said = read_phrase("two " + match[1])
                found = [t for t in scene.things if all(getattr(t, k) == v for k, v in said.items())]
                assert str(len(found)) == question.answer
            elif match := re.fullmatch("is there (.+)", text):
                _, said = read_phrase(match[1])
                found = [t for t in scene.things if all(getattr(t, k) == v for k, v in said.items())]
                assert question.answer == ("yes" if found else "no")
            elif match := re.fullmatch(f"(?:is|are) (.+?) ({'|'.join(BESIDE)}) (.+)", text):
                if question.answer == "yes":
                    check_relation(scene, *match.groups())
                else:
                    with pytest.raises(AssertionError):
                        check_relation(scene, *match.groups())
            else:
                assert text == "what is the background" and question.answer == scene.background
    assert answers["relation", "yes"] == answers["relation", "no"] > 50
    assert answers["exists", "yes"] == answers["exists", "no"] > 50


def test_alt_texts_are_false_at_the_rate_that_was_asked():
    for noise, names in ((0.0, 1.0), (0.4, 0.3), (1.0, 0.0)):
        scenes = Scenes(SceneSpec(text_noise=noise, alt_names=names), 500, 6)
        alts = [record.alt for record in scenes]
        for asked, got in ((noise, [not a.true for a in alts]), (names, [bool(a.name) for a in alts])):
            assert abs(np.mean(got) - asked) <= 3.5 * np.sqrt(asked * (1 - asked) / 500)
        for record in scenes:
            shapes = {SINGULAR.get(word, word) for word in re.findall("[a-z]+", record.alt.text)} & set(SHAPES)
            colours = set(re.findall("[a-z]+", record.alt.text)) & set(COLOURS)
            there = {thing.shape for thing in record.scene.things}
            if record.alt.true:
                assert shapes and shapes <= there and colours <= {t.colour for t in record.scene.things}
            elif not colours:
                assert not shapes & there
            assert record.alt.name in record.alt.text
            if record.alt.true:
                assert record.text("noisy de") == record.text("short de")
            else:
                with pytest.raises(AssertionError):
                    check_short(record.scene, record.text("noisy"))
    assert len({proper_name(i) for i in range(20_000)}) == 20_000


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "a small striped red circle left of three large orange stars on grass"),
        ("de", "ein kleiner gestreifter roter Kreis links von drei großen orangefarbenen Sternen auf Gras"),
        ("fr", "un petit cercle rouge rayé à gauche de trois grandes étoiles orange sur de l'herbe"),
        ("es", "un círculo pequeño rojo rayado a la izquierda de tres estrellas grandes naranja sobre hierba"),
        ("it", "un cerchio piccolo rosso rigato a sinistra di tre stelle grandi arancioni su erba"),
    ],
)
def test_five_languages_say_the_same(language: str, said: str):
    a, b = Phrase("circle", "red", "small", "striped"), Phrase("star", "orange", "large", count=3)
    assert say(Statement((a, b), "left", "grass"), language) == said


def test_words_bend_with_their_nouns():
    forms = {
        "de": {
            ("star", "black", 1, False, True): "einem schwarzen Stern",
            ("flower", "black", 1, False, True): "einer schwarzen Blume",
            ("heart", "black", 1, False, False): "ein schwarzes Herz",
            ("heart", "pink", 1, True, True): "dem rosa Herz",
            ("flower", "blue", 2, True, False): "die zwei blauen Blumen",
            ("arrow", "blue", 2, True, True): "den zwei blauen Pfeilen",
            ("drop", "blue", 0, False, False): "kein blauer Tropfen",
        },
        "fr": {
            ("star", "purple", 1, True, False): "l'étoile violette",
            ("hexagon", "green", 0, False, False): "pas d'hexagone vert",
            ("cross", "green", 2, True, False): "les deux croix vertes",
            ("flower", "brown", 3, False, False): "trois fleurs marron",
        },
        "es": {
            ("cross", "blue", 2, False, False): "dos cruces azules",
            ("heart", "brown", 2, True, False): "los dos corazones marrones",
            ("crescent", "yellow", 1, True, False): "la medialuna amarilla",
            ("drop", "red", 0, False, False): "ninguna gota roja",
        },
        "it": {
            ("oval", "green", 1, True, False): "l'ovale verde",
            ("hexagon", "red", 8, True, False): "gli otto esagoni rossi",
            ("drop", "yellow", 2, True, False): "le due gocce gialle",
            ("crescent", "blue", 1, False, False): "una mezzaluna blu",
        },
        "en": {("oval", "", 1, False, False): "an oval", ("cross", "orange", 2, True, False): "the two orange crosses"},
    }
    for language, cases in forms.items():
        for (shape, colour, count, definite, dative), said in cases.items():
            assert say_phrase(Phrase(shape, colour, count=count), language, definite, dative) == said
    assert adjective("medium", "it", "m", True) == "medi" and adjective("medium", "it", "f", True) == "medie"
    assert adjective("medium", "fr", "f", False) == "moyenne" and adjective("large", "es", "f", True) == "grandes"
    for language in LANGUAGES:
        assert set(ADJECTIVES[language]) == {*COLOURS, *SIZES, *TEXTURES}
        assert len({noun(shape, language)[0] for shape in SHAPES}) == len(SHAPES)


def test_a_caption_names_the_same_things_in_every_language():
    for record in Scenes(RICH, 40, 8):
        for language in LANGUAGES[1:]:
            text = record.text(f"short {language}")
            for phrase in record.statement.phrases:
                singular, plural, gender = noun(phrase.shape, language)
                assert (plural if phrase.count > 1 else singular).lower() in text.lower()
                if phrase.colour and language != "de":
                    assert adjective(phrase.colour, language, gender, phrase.count > 1) in text
            assert text != record.text() or not record.statement.phrases
            assert len(record.text(f"long {language}").split(". ")) == len(record.facts)


def test_places_are_not_said_near_a_border():
    for record in Scenes(SceneSpec(), 50):
        for thing in record.scene.things:
            if place_of(thing):
                assert min(abs(at - third) for at in (thing.x, thing.y) for third in (1 / 3, 2 / 3)) > 0.029


def test_every_shape_is_described_without_its_name():
    assert set(DESCRIPTIONS) == set(SHAPES)
    every = [text for texts in DESCRIPTIONS.values() for text in texts]
    assert all(shape not in text.split() for shape, texts in DESCRIPTIONS.items() for text in texts)
    assert len(set(every)) > 0.9 * len(every)
