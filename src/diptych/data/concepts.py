"""What people call a thing, and how often captions do: synonyms of class names, counted, and the most frequent one.

Parashar et al., The Neglected Tails of Vision-Language Models, CVPR 2024, arXiv 2401.12425. Synonyms come from a file
or a language model; `diptych curate real` counts them into a file concepts.json, which the adapters read.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diptych.data.descriptions import answers_file, describe, key
from diptych.data.language_model import LanguageModel
from diptych.errors import DiptychError

FORMAT = 1
TAIL = 0.2  # share of the classes that are called rare
FORM = '{"class": ["name", ...]}, or {"class": {"names": [...], "definition": "...", "others": ["another sense", ...]}}'

# One worked example and an open question; the words are ours.
PROMPT = """\
Q: Which other names do people use for a puma in photo captions?
A: Other names for a puma in photo captions are:
- cougar
- mountain lion
- catamount
- panther

Q: Which other names do people use for a {} in photo captions?
A: Other names for a {} in photo captions are:
-"""


WORD = re.compile(r"\w+")
# Quotation marks go, hyphens and underscores part words.
BARE = str.maketrans({**dict.fromkeys("\"'`´‘’“”"), "-": " ", "_": " "})


def tokens(text: str) -> list[str]:
    """The words of a name or a caption: runs of letters and digits, in lower case, without accents and quotation marks.

    All else (hyphens, parentheses, dots, slashes) parts words and is not matched, as in a full-text index.
    """
    text = text.translate(BARE).lower()
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return WORD.findall(text)


# -- synonyms ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concept:
    """names: what it is called, the class's own name first, no two alike; definition: a line, "" where none is known;
    others: definitions of other things with one of these names."""

    names: tuple[str, ...]
    definition: str = ""
    others: tuple[str, ...] = ()


def concept(name: str, synonyms: Sequence[str], definition: str = "", others: Sequence[str] = ()) -> Concept:
    """Names that are the same words for a caption are one."""
    if not tokens(name):
        raise DiptychError(f'the class name "{name}" has no word in it')
    by_words: dict[tuple[str, ...], str] = {}
    for one in [name, *synonyms]:
        if said := tuple(tokens(one)):
            by_words.setdefault(said, one.strip())
    return Concept(tuple(by_words.values()), definition.strip(), tuple(others))


def read_synonyms(path: str | Path) -> dict[str, Concept]:
    """Class -> its names, from JSON or a text file with one class a line.

    JSON is {"class": ["name", ...]} or {"class": {"names": [...], "definition": "...", "others": ["...", ...]}}. Text
    is "name, name, name" a line, the class's own name first, as WordNet's lists of synsets; their number is passed
    over. Raises DiptychError saying what is wrong where.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DiptychError(f"cannot read the synonyms at {path}: {why}; they are JSON, {FORM}") from error
    found = from_json(text, path) if path.suffix.lower() == ".json" else from_lines(text)
    if not found:
        raise DiptychError(f"{path} names no class; it should hold {FORM}")
    return found


def from_json(text: str, path: Path) -> dict[str, Concept]:
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DiptychError(f"{path} is not JSON ({error}); synonyms are {FORM}") from error
    if not isinstance(listed, dict):
        raise DiptychError(f"{path} should hold {FORM}")
    found = {}
    for name, value in listed.items():
        parts = value if isinstance(value, dict) else {"names": value}
        names, others, definition = parts.get("names", []), parts.get("others", []), parts.get("definition", "")
        lists = isinstance(names, list) and isinstance(others, list) and isinstance(definition, str)
        if not lists or not all(isinstance(one, str) for one in [*names, *others]):
            raise DiptychError(f'"{name}" in {path} should be a list of names; the file holds {FORM}')
        if others and not definition.strip():
            raise DiptychError(f'"{name}" in {path} has "others" and no "definition" to tell it from them')
        found[name] = concept(name, names, definition, others)
    return found


def from_lines(text: str) -> dict[str, Concept]:
    lines = [re.sub(r"^\s*[nvar]\d{8}\s+", "", line) for line in text.splitlines()]
    listed = [[name.strip() for name in line.split(",") if name.strip()] for line in lines]
    return {names[0]: concept(names[0], names[1:]) for names in listed if names}


def told_apart(concepts: Mapping[str, Concept]) -> dict[str, Concept]:
    """With the definitions of other classes of the same name among the others, where all have one."""
    users: dict[tuple[str, ...], list[str]] = {}
    for one, known in concepts.items():
        for name in known.names:
            users.setdefault(tuple(tokens(name)), []).append(one)

    def apart(one: str, known: Concept) -> Concept:
        rivals = dict.fromkeys(other for name in known.names for other in users[tuple(tokens(name))] if other != one)
        senses = (concepts[other].definition for other in rivals)
        others = dict.fromkeys([*known.others, *(s for s in senses if s and s != known.definition)])
        return replace(known, others=tuple(others) if known.definition else ())

    return {one: apart(one, known) for one, known in concepts.items()}


def ask_synonyms(classes: Sequence[str], model: LanguageModel, source: str, name: str = "") -> dict[str, Concept]:
    """Asked of a language model, once for each class; answers are kept. source, name: what the model was called."""
    bank = describe(classes, model, answers_file(source, name, PROMPT), prompt=PROMPT)
    return {one: concept(one, bank[one]) for one in classes}


# -- counted -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """A class in the captions of a training set.

    counts: name -> captions that say it, the class's own name first. matched: captions that say any of them.
    relevance: share of those that mean the class, as judged on `seen` captions; 1 where nothing was judged.
    """

    counts: Mapping[str, int]
    matched: int
    relevance: float = 1.0
    seen: int = 0

    @property
    def frequency(self) -> float:
        """Captions that mean it, estimated."""
        return self.relevance * self.matched


Concepts = dict[str, Counted]


def written(concepts: Concepts, captions: int) -> bytes:
    """The content of concepts.json. captions: how many there were."""
    classes = {name: asdict(one) | {"frequency": one.frequency} for name, one in concepts.items()}
    about = {"format": FORMAT, "captions": captions, "classes": classes}
    return (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()


def read_concepts(path: str | Path) -> Concepts:
    """What `written` made. Raises DiptychError for anything else."""
    path = Path(path).expanduser()
    right = "`diptych curate real` writes it as concepts.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DiptychError(f"cannot read the concepts at {path}: {error.strerror}; {right}") from error
    except (ValueError, RecursionError) as error:
        raise DiptychError(f"{path} is no file of concepts ({error}); {right}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DiptychError(f"{path} is no file of concepts of format {FORMAT}; {right}")
    try:
        return {name: counted(value) for name, value in about["classes"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DiptychError(f"{path} is damaged: {type(error).__name__} {error}; {right}") from error


def counted(value: Mapping[str, Any]) -> Counted:
    counts = {str(name): int(count) for name, count in value["counts"].items()}
    if not counts:
        raise ValueError("a class without a name")
    return Counted(counts, int(value["matched"]), float(value["relevance"]), int(value["seen"]))


def tail(frequencies: Sequence[float], share: float = TAIL) -> list[int]:
    """The rarest classes: as many as int(share x classes), the rarest first (the release takes one more)."""
    order = sorted(range(len(frequencies)), key=lambda c: (frequencies[c], c))
    return order[: int(share * len(frequencies))]


# -- the most frequent name --------------------------------------------------------------------------------------------


def common_name(own: str, counts: Mapping[str, int], strict: bool = False) -> str:
    """The name that captions say most.

    A name takes the place of the class's own if it is more frequent and, unless `strict`, is not merely a part of its
    words ("Honda" for "Honda Accord") in fewer words. The count to beat rises only with a name that is taken: in the
    release it rises with every one, so a part that is refused hides what comes after it.
    """
    best, most, words = own, counts.get(own, 0), set(tokens(own))
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        said = set(tokens(name))
        if count > most and (strict or said == words or not said <= words):
            best, most = name, count
    return best


def common_names(names: Sequence[str], concepts: Concepts, strict: bool = False) -> dict[str, str]:
    """The class names of a task -> what captions call them; classes that the file does not know keep their name.

    Where two classes would be called alike, so that nothing could tell them apart, they keep their own names.
    """
    by_key = {key(name): one for name, one in concepts.items()}
    chosen = {}
    for name in names:
        one = by_key.get(key(name))
        own = next(iter(one.counts)) if one else name
        found = common_name(own, one.counts, strict) if one else name
        chosen[name] = name if found == own else found
    while True:
        said = Counter(tuple(tokens(one)) for one in chosen.values())
        alike = [name for name, one in chosen.items() if one != name and said[tuple(tokens(one))] > 1]
        if not alike:
            return chosen
        chosen |= {name: name for name in alike}
