"""Captions said in other words: by a language model from worked examples, or by rules offline; and what is no rewrite.

The prompts and the sampling follow Fan et al., Improving CLIP Training with Language Rewrites, arXiv 2305.20088,
section 3; the worked examples are ours, and so is what is asked of an answer. `rewrite_store` makes and keeps them.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from diptych.data.language_model import Endpoint, LanguageModel, LocalModel

Rewrites = dict[str, dict[str, str]]  # caption -> style -> rewrite
Rewriter = Callable[[str, str], str]  # (caption, style) -> an answer that `accepted` judges

INSTRUCTION = "Write each image caption in another way, without adding or leaving out what it shows."
SHOTS = 3  # worked examples a prompt
WORDS = 60  # of a caption that a prompt quotes; CLIP reads no more
STYLES: dict[str, tuple[tuple[str, str], ...]] = {
    "plain": (
        ("brown dog on beach", "A brown dog stands on a sandy beach."),
        ("two men repairing a bicycle", "Two men are busy with the repair of a bicycle."),
        ("old lighthouse at dusk", "An old lighthouse in the last light of the day."),
        ("a bowl of tomato soup with basil", "Tomato soup in a bowl, topped with basil."),
        ("kids playing football in the rain", "In the rain, children are having a game of football."),
        ("red tractor, field", "A tractor painted red works in a field."),
    ),
    "short": (
        ("a photo of a small boat that lies on a calm lake", "small boat, calm lake"),
        ("there is a woman who is reading a newspaper on a train", "woman reading a newspaper on a train"),
        ("the front of a narrow house with green shutters", "narrow house with green shutters"),
        ("a picture of three sheep standing behind a wooden fence", "three sheep behind a wooden fence"),
        ("a close view of a hand that holds a silver watch", "hand holding a silver watch"),
        ("an image showing a crowd of people at a night market", "crowd at a night market"),
    ),
    "vivid": (
        ("a cat sleeping on a sofa", "Curled up on a sofa, a cat is fast asleep."),
        ("snow on mountains", "Snow lies over the mountains, peak after peak."),
        ("a man climbs a ladder", "Rung by rung, a man makes his way up a ladder."),
        ("street with yellow taxis", "Yellow taxis fill the street."),
        ("a girl blowing out candles on a cake", "With one breath, a girl blows out the candles on her cake."),
        ("waves hitting rocks", "Waves break against the rocks."),
    ),
    "turned": (
        ("a vase of tulips on a piano", "a piano with a vase of tulips on it"),
        ("a horse behind a white gate", "a white gate with a horse behind it"),
        ("a child under a large umbrella", "a large umbrella over a child"),
        ("books beside a lamp", "a lamp with books beside it"),
        ("a bridge over a river in fog", "in fog, a river that a bridge crosses"),
        ("a cyclist in front of a bakery", "a bakery with a cyclist in front of it"),
    ),
}


def spoken(text: str) -> str:
    """On one line and without the arrow that prompts are made with."""
    return " ".join(text.replace("=>", "->").split())


def prompt_for(caption: str, style: str, rng: random.Random) -> str:
    """An instruction, three worked examples of a style by chance, and the caption left open."""
    shown = rng.sample(STYLES[style], SHOTS)
    open_line = " ".join(spoken(caption).split()[:WORDS])
    return "\n".join([INSTRUCTION, "", *(f"{before} => {after}" for before, after in shown), f"{open_line} =>"])


# -- what is a rewrite -------------------------------------------------------------------------------------------------

REFUSALS = ("empty", "too long", "a copy", "an echo", "words lost")
EXAMPLES = {text for pairs in STYLES.values() for pair in pairs for text in pair}
RECALL = 0.5  # of the caption's words, at least


def first_line(answer: str, caption: str) -> str:
    """What an answer says: its first line that says anything, without quotes and without the caption said again."""
    found = next((line.strip() for line in answer.split("\n") if line.strip()), "")
    before, arrow, after = found.partition("=>")
    if arrow and before.strip() in ("", spoken(caption)):
        found = after
    return found.strip().strip("\"'“”").strip()


def refusal(found: str, caption: str, least: float = RECALL) -> str:
    """Why this is no rewrite of the caption, one of REFUSALS; "" where it is one.

    empty: fewer than two words; too long: more than thrice the caption's words and ten, or more than CLIP reads; a
    copy: the caption but for case and marks; an echo: of the prompt or its worked examples; words lost: it keeps less
    than `least` of the caption's words (`recall`).
    """
    words = found.split()
    if len(words) < 2:
        return "empty"
    if found in EXAMPLES or "=>" in found or INSTRUCTION.lower() in found.lower():
        return "an echo"
    if len(words) > min(WORDS, 10 + 3 * len(caption.split())):
        return "too long"
    if bare(found) == bare(caption):
        return "a copy"
    return "words lost" if recall(caption, found) < least else ""


def accepted(answer: str, caption: str, least: float = RECALL) -> str | None:
    """The rewrite of an answer; None where `refusal` has a reason."""
    found = first_line(answer, caption)
    return None if refusal(found, caption, least) else found


def bare(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


# -- by a model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByModel:
    """A `Rewriter` that asks a language model; a caption and a style always give the same prompt."""

    model: LanguageModel
    seed: int = 0

    def __call__(self, caption: str, style: str) -> str:
        kind = style.partition(" ")[0]  # "plain 2" is "plain" once more, with other examples
        return self.model.complete(prompt_for(caption, kind, random.Random(f"{self.seed} {style} {caption}")))


def by_model(model: LanguageModel, seed: int = 0) -> ByModel:
    """With the paper's sampling (temperature 0.9, nucleus 0.95, one line of 77 tokens), where the model is of ours."""
    if isinstance(model, (Endpoint, LocalModel)):
        model = replace(model, temperature=0.9, top_p=0.95, length=77, stop="\n")
    return ByModel(model, seed)


# -- by rules ----------------------------------------------------------------------------------------------------------

SAME = (  # said either way
    ("next to", "beside"), ("near", "close to"), ("under", "below"), ("on top of", "upon"), ("large", "big"),
    ("small", "little"), ("two", "a pair of"), ("couch", "sofa"), ("street", "road"), ("photograph", "photo"),
)  # fmt: skip
TEMPLATES = (
    "{}", "a photo of {}", "{} in a picture", "here is {}", "this picture has {}", "one can see {}", "{}, pictured",
    "it shows {}",
)  # fmt: skip
OPENING = re.compile(r"^(an? |the )?(photo|photograph|picture|image|drawing|view|shot)( of| showing)? ", re.IGNORECASE)


def by_rules(caption: str, style: str) -> str:
    """Another template, other words for the usual ones, its clauses in another order; all that it shows is kept.

    A `Rewriter`: a function of caption and style, whatever the style is called.
    """
    rng = random.Random(zlib.crc32(f"{style} {caption}".encode()))
    text = OPENING.sub("", spoken(caption)).strip(" .")
    text = re.sub(r"^(An?|The) ", lambda found: found[0].lower(), text)
    for pair in SAME:
        for before, after in (pair, pair[::-1]):
            if rng.random() < 0.5 and re.search(rf"\b{before}\b", text):
                text = re.sub(rf"\b{before}\b", after, text)
                break
    clauses = [clause.strip() for clause in text.split(",") if clause.strip()]
    rng.shuffle(clauses)
    template = rng.choice([t for t in TEMPLATES if bare(t.format(text)) != bare(caption)])
    return template.format(", ".join(clauses) or text)


# -- in training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewritten:
    """Pairs whose texts are the first one and its rewrites. A rewrite that is the original counts as one too, so that
    all pairs draw alike."""

    pairs: Any  # pairs by number, each a dataclass with `texts`
    rewrites: Rewrites

    @property
    def source(self) -> str:
        return self.pairs.source

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> Any:
        pair = self.pairs[index]
        original = pair.texts[0]
        return replace(pair, texts=(original, *self.rewrites.get(original, {}).values()))

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


# -- how good they are -------------------------------------------------------------------------------------------------

EMPTY = re.compile(
    r"an?|the|of|on|in|at|to|and|or|with|by|for|from|is|are|was|were|be|its?|this|that|there|here|one|can|see|has|have|"
    r"as|into|over|under|photo|photograph|picture|image|pictured|shows|showing"
)


def recall(caption: str, rewritten: str) -> float:
    """The share of the caption's words that a rewrite still says, in 0..1; words like "the" do not count, endings and
    the usual synonyms make no difference."""
    said = content(caption)
    return len(said & content(rewritten)) / len(said) if said else 1.0


def content(text: str) -> set[str]:
    """The words that say something, without their endings."""
    text = text.lower()
    for word, other in SAME:
        text = re.sub(rf"\b{other}\b", word, text)
    return {root(word) for word in re.findall(r"\w+", text) if not EMPTY.fullmatch(word)}


def root(word: str) -> str:
    """ "riding", "rides", "ride" -> "rid"; short words stay."""
    short = re.sub(r"(.)\1$", r"\1", re.sub(r"(ing|ed|es|e|s)$", "", word))
    return short if len(short) >= 3 else word
