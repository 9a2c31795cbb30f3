"""The words of five languages: what a shape, a colour, a place is called, and how the word bends.

Nouns are "singular plural gender"; German plurals are nominative. Adjectives are their first form, from which
`adjective` makes the others; a "=" before an adjective says that it never bends.
"""

from functools import cache

LANGUAGES = ("en", "de", "fr", "es", "it")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = {  # "shape" is the word for any of them
    "en": {
        name: f"{name} {name}{'es' if name.endswith('s') else 's'} n"
        for name in _words(
            "shape circle square triangle star heart cross diamond hexagon ring crescent arrow oval drop flower"
        )
    },
    "de": {
        "shape": "Form Formen f",
        "circle": "Kreis Kreise m",
        "square": "Quadrat Quadrate n",
        "triangle": "Dreieck Dreiecke n",
        "star": "Stern Sterne m",
        "heart": "Herz Herzen n",
        "cross": "Kreuz Kreuze n",
        "diamond": "Raute Rauten f",
        "hexagon": "Sechseck Sechsecke n",
        "ring": "Ring Ringe m",
        "crescent": "Sichel Sicheln f",
        "arrow": "Pfeil Pfeile m",
        "oval": "Oval Ovale n",
        "drop": "Tropfen Tropfen m",
        "flower": "Blume Blumen f",
    },
    "fr": {
        "shape": "forme formes f",
        "circle": "cercle cercles m",
        "square": "carré carrés m",
        "triangle": "triangle triangles m",
        "star": "étoile étoiles f",
        "heart": "cœur cœurs m",
        "cross": "croix croix f",
        "diamond": "losange losanges m",
        "hexagon": "hexagone hexagones m",
        "ring": "anneau anneaux m",
        "crescent": "croissant croissants m",
        "arrow": "flèche flèches f",
        "oval": "ovale ovales m",
        "drop": "goutte gouttes f",
        "flower": "fleur fleurs f",
    },
    "es": {
        "shape": "figura figuras f",
        "circle": "círculo círculos m",
        "square": "cuadrado cuadrados m",
        "triangle": "triángulo triángulos m",
        "star": "estrella estrellas f",
        "heart": "corazón corazones m",
        "cross": "cruz cruces f",
        "diamond": "rombo rombos m",
        "hexagon": "hexágono hexágonos m",
        "ring": "anillo anillos m",
        "crescent": "medialuna medialunas f",
        "arrow": "flecha flechas f",
        "oval": "óvalo óvalos m",
        "drop": "gota gotas f",
        "flower": "flor flores f",
    },
    "it": {
        "shape": "figura figure f",
        "circle": "cerchio cerchi m",
        "square": "quadrato quadrati m",
        "triangle": "triangolo triangoli m",
        "star": "stella stelle f",
        "heart": "cuore cuori m",
        "cross": "croce croci f",
        "diamond": "rombo rombi m",
        "hexagon": "esagono esagoni m",
        "ring": "anello anelli m",
        "crescent": "mezzaluna mezzelune f",
        "arrow": "freccia frecce f",
        "oval": "ovale ovali m",
        "drop": "goccia gocce f",
        "flower": "fiore fiori m",
    },
}

_ADJECTIVES = """
red       rot           rouge       rojo         rosso
orange    orangefarben  =orange     =naranja     arancione
yellow    gelb          jaune       amarillo     giallo
green     grün          vert        verde        verde
turquoise türkisfarben  =turquoise  =turquesa    turchese
blue      blau          bleu        azul         =blu
purple    violett       violet      morado       =viola
pink      =rosa         rose        =rosa        =rosa
brown     braun         =marron     marrón       marrone
black     schwarz       noir        negro        nero
small     klein         petit       pequeño      piccolo
medium    mittelgroß    moyen       mediano      medio
large     groß          grand       grande       grande
solid     einfarbig     uni         liso         unicolore
striped   gestreift     rayé        rayado       rigato
dotted    gepunktet     pointillé   punteado     punteggiato
checked   kariert       quadrillé   cuadriculado quadrettato
"""
ADJECTIVES: dict[str, dict[str, str]] = {
    language: {row.split()[0]: row.split()[i] for row in _ADJECTIVES.strip().splitlines()}
    for i, language in enumerate(LANGUAGES)
}
ADJECTIVES["en"]["solid"] = "plain"

NUMBERS: dict[str, tuple[str, ...]] = {
    "en": _words("no one two three four five six seven eight nine ten eleven twelve"),
    "de": _words("kein ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf"),
    "fr": _words("aucun un deux trois quatre cinq six sept huit neuf dix onze douze"),
    "es": _words("ningún un dos tres cuatro cinco seis siete ocho nueve diez once doce"),
    "it": _words("nessun un due tre quattro cinque sei sette otto nove dieci undici dodici"),
}

_PLACES = """
en: at the top | in the middle | at the bottom | at the left | at the right | at the top left | at the top right \
| at the bottom left | at the bottom right
de: oben | in der Mitte | unten | links | rechts | oben links | oben rechts | unten links | unten rechts
fr: en haut | au milieu | en bas | à gauche | à droite | en haut à gauche | en haut à droite | en bas à gauche \
| en bas à droite
es: arriba | en el centro | abajo | a la izquierda | a la derecha | arriba a la izquierda | arriba a la derecha \
| abajo a la izquierda | abajo a la derecha
it: in alto | al centro | in basso | a sinistra | a destra | in alto a sinistra | in alto a destra \
| in basso a sinistra | in basso a destra
"""
PLACE_NAMES = ("top", "middle", "bottom", "left", "right", "top left", "top right", "bottom left", "bottom right")
PLACES: dict[str, dict[str, str]] = {
    line[:2]: dict(zip(PLACE_NAMES, (words.strip() for words in line[3:].split("|")), strict=True))
    for line in _PLACES.strip().splitlines()
}

_RELATIONS = """
en: left of | right of | above | below | in front of | behind
de: links von | rechts von | über | unter | vor | hinter
fr: à gauche de | à droite de | au-dessus de | au-dessous de | devant | derrière
es: a la izquierda de | a la derecha de | encima de | debajo de | delante de | detrás de
it: a sinistra di | a destra di | sopra | sotto | davanti a | dietro
"""
RELATION_WORDS: dict[str, dict[str, str]] = {
    line[:2]: dict(
        zip(
            ("left", "right", "above", "below", "front", "behind"),
            (words.strip() for words in line[3:].split("|")),
            strict=True,
        )
    )
    for line in _RELATIONS.strip().splitlines()
}

GROUNDS: dict[str, dict[str, str]] = {
    language: dict(
        zip(("paper", "snow", "sand", "grass", "water", "brick", "wood", "stone"), words.split(", "), strict=True)
    )
    for language, words in {
        "en": "paper, snow, sand, grass, water, brick, wood, stone",
        "de": "Papier, Schnee, Sand, Gras, Wasser, Ziegel, Holz, Stein",
        "fr": "du papier, de la neige, du sable, de l'herbe, de l'eau, de la brique, du bois, de la pierre",
        "es": "papel, nieve, arena, hierba, agua, ladrillo, madera, piedra",
        "it": "carta, neve, sabbia, erba, acqua, mattone, legno, pietra",
    }.items()
}

# What stands in braces: {a} {b} phrases, {the} a definite one, {is} its verb, {w} a word, {s} a whole statement.
SENTENCES = {
    "en": {
        "nothing": "nothing",
        "and": "and",
        "on": "on {w}",
        "ground": "the background is {w}",
        "total": "the picture shows {a}",
        "some": "there is {a}|there are {a}",
        "is": "{the} is {w}|{the} are {w}",
        "at": "{the} is {w}|{the} are {w}",
        "related": "{the} is {b}|{the} are {b}",
        "none": "there is {a}",
    },
    "de": {
        "nothing": "nichts",
        "and": "und",
        "on": "auf {w}",
        "ground": "der Hintergrund ist {w}",
        "total": "das Bild zeigt {a}",
        "some": "zu sehen ist {a}|zu sehen sind {a}",
        "is": "{the} ist {w}|{the} sind {w}",
        "at": "{the} ist {w}|{the} sind {w}",
        "related": "{the} ist {b}|{the} sind {b}",
        "none": "zu sehen ist {a}",
    },
    "fr": {
        "nothing": "rien",
        "and": "et",
        "on": "sur {w}",
        "ground": "le fond est {w}",
        "total": "l'image montre {a}",
        "some": "il y a {a}|il y a {a}",
        "is": "{the} est {w}|{the} sont {w}",
        "at": "{the} est {w}|{the} sont {w}",
        "related": "{the} est {b}|{the} sont {b}",
        "none": "il n'y a {a}",
    },
    "es": {
        "nothing": "nada",
        "and": "y",
        "on": "sobre {w}",
        "ground": "el fondo es {w}",
        "total": "la imagen muestra {a}",
        "some": "hay {a}|hay {a}",
        "is": "{the} es {w}|{the} son {w}",
        "at": "{the} está {w}|{the} están {w}",
        "related": "{the} está {b}|{the} están {b}",
        "none": "no hay {a}",
    },
    "it": {
        "nothing": "niente",
        "and": "e",
        "on": "su {w}",
        "ground": "lo sfondo è {w}",
        "total": "l'immagine mostra {a}",
        "some": "c'è {a}|ci sono {a}",
        "is": "{the} è {w}|{the} sono {w}",
        "at": "{the} è {w}|{the} sono {w}",
        "related": "{the} è {b}|{the} sono {b}",
        "none": "non c'è {a}",
    },
}
TEMPLATES = {
    "en": ("{s}", "a picture of {s}", "here you see {s}", "this drawing shows {s}", "we look at {s}"),
    "de": ("{s}", "ein Bild: {s}", "zu sehen: {s}", "hier: {s}", "die Zeichnung: {s}"),
    "fr": ("{s}", "une image avec {s}", "on voit {s}", "voici {s}", "ce dessin montre {s}"),
    "es": ("{s}", "una imagen con {s}", "aquí hay {s}", "vemos {s}", "este dibujo muestra {s}"),
    "it": ("{s}", "un'immagine con {s}", "si vede {s}", "ecco {s}", "questo disegno mostra {s}"),
}

SYNONYMS = {  # English only; each means its key and nothing else
    "circle": ("disc",),
    "square": ("box",),
    "diamond": ("rhombus", "lozenge"),
    "ring": ("hoop",),
    "oval": ("ellipse",),
    "drop": ("droplet", "teardrop"),
    "flower": ("blossom",),
    "arrow": ("pointer",),
    "red": ("crimson", "scarlet"),
    "turquoise": ("teal",),
    "purple": ("violet",),
    "brown": ("chestnut",),
    "green": ("emerald",),
    "small": ("little", "tiny"),
    "medium": ("mid-sized",),
    "large": ("big", "huge"),
    "striped": ("stripy",),
    "dotted": ("spotted",),
    "checked": ("chequered",),
    "left of": ("to the left of",),
    "right of": ("to the right of",),
    "above": ("over", "higher than"),
    "below": ("under", "beneath"),
}

DESCRIPTIONS = {  # what can be seen of a shape, without its name
    "circle": ("perfectly round outline", "no corners", "same width in every direction"),
    "square": ("four equal straight sides", "four right angles", "as wide as tall"),
    "triangle": ("three straight sides", "three corners", "one point at the top"),
    "star": ("five sharp points", "deep notches between the points", "ten straight edges"),
    "heart": ("two round lobes at the top", "one point at the bottom", "a notch at the top"),
    "cross": ("two bars that meet in the middle", "four equal arms", "twelve right-angled corners"),
    "diamond": ("four straight slanted sides", "taller than wide", "points at the top and the bottom"),
    "hexagon": ("six straight sides", "six blunt corners", "nearly round outline"),
    "ring": ("round hole in the middle", "round outline", "a band of even width"),
    "crescent": ("two pointed tips", "a round bite on one side", "curved like a sickle"),
    "arrow": ("a wide head on a thin shaft", "one point at the right", "longer than high"),
    "oval": ("smooth outline", "wider than tall", "no corners"),
    "drop": ("round at the bottom", "one point at the top", "taller than wide"),
    "flower": ("five round petals", "curved notches between the petals", "no straight edges"),
}


def noun(shape: str, language: str) -> tuple[str, str, str]:
    """(singular, plural, gender)"""
    singular, plural, gender = NOUNS[language][shape].split()
    return singular, plural, gender


@cache
def adjective(word: str, language: str, gender: str, plural: bool) -> str:
    """The form that goes with a noun, in French, Spanish and Italian; German endings depend on more (`grammar`)."""
    form = ADJECTIVES[language][word]
    if form.startswith("="):
        return form[1:]
    feminine = gender == "f"
    match language:
        case "fr":
            if feminine and not form.endswith("e"):
                form += "te" if form.endswith("et") else "ne" if form.endswith("en") else "e"
            return form + "s" if plural else form
        case "es":
            if form.endswith("o") and feminine:
                form = form[:-1] + "a"
            if plural:
                form = form[:-2] + "ones" if form.endswith("ón") else form + ("s" if form[-1] in "aeo" else "es")
            return form
        case "it":
            if form.endswith("e"):
                return form[:-1] + "i" if plural else form
            ends = {(False, False): "o", (True, False): "a", (False, True): "i", (True, True): "e"}
            stem = form[:-1]
            if stem.endswith("i") and plural and not feminine:  # medio, medi
                return stem
            return stem + ends[feminine, plural]
    return form


def meanings() -> dict[str, str]:
    """English synonym -> the word it stands for."""
    return {other: word for word, others in SYNONYMS.items() for other in others}
