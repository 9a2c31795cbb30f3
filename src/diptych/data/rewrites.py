"""Captions said in other words, made once and kept: by a language model from worked examples, or by rules offline.

The prompts, the sampling and the check of answers follow Fan et al., Improving CLIP Training with Language Rewrites,
arXiv 2305.20088, section 3; the worked examples are ours. A store is a file of JSON lines, {"text", "style",
"rewrite"}: an interrupted run goes on where it stopped, and captions are found by their words, not by their place.
"""

import json
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.data.descriptions import Endpoint, LanguageModel, LocalModel
from diptych.errors import DiptychError

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


def accepted(answer: str, caption: str) -> str | None:
    """The rewrite of an answer: its first line that says anything, without quotes; None where it is none.

    Refused: fewer than two words, the caption unchanged, a worked example, a line of the prompt.
    """
    lines = [line.strip() for line in answer.split("\n")]
    found = next((line for line in lines if line), "").removeprefix("=>").strip().strip("\"'“”").strip()
    examples = {text for pairs in STYLES.values() for pair in pairs for text in pair}
    wrong = len(found.split()) < 2 or found == spoken(caption) or found in examples or "=>" in found
    return None if wrong or INSTRUCTION.lower() in found.lower() else found


@dataclass(frozen=True)
class ByModel:
    """A `Rewriter` that asks a language model; a caption and a style always give the same prompt."""

    model: LanguageModel
    seed: int = 0

    def __call__(self, caption: str, style: str) -> str:
        return self.model.complete(prompt_for(caption, style, random.Random(f"{self.seed} {style} {caption}")))


def by_model(model: LanguageModel, seed: int = 0) -> ByModel:
    """With the paper's sampling (temperature 0.9, nucleus 0.95, 77 tokens), where the model is one of ours."""
    if isinstance(model, (Endpoint, LocalModel)):
        model = replace(model, temperature=0.9, top_p=0.95, length=77)
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
    template = rng.choice([t for t in TEMPLATES if t.format(text).lower() != spoken(caption).lower()])
    return template.format(", ".join(clauses) or text)


# -- the store ---------------------------------------------------------------------------------------------------------


def rewrite(
    captions: Iterable[str],
    rewriter: Rewriter,
    store: Path,
    *,
    styles: Sequence[str] = tuple(STYLES),
    progress: Callable[[int], None] | None = None,
) -> Rewrites:
    """Every caption in every style that `store` does not hold yet; each answer is kept as it comes.

    What is not accepted is kept as the caption itself, so that it is not asked for again.
    """
    kept = read_rewrites(store) if store.exists() else {}
    store.parent.mkdir(parents=True, exist_ok=True)
    captions = list(dict.fromkeys(captions))
    with store.open("ab") as file:
        file.truncate(whole(store.read_bytes()))
        for done, caption in enumerate(captions):
            own = kept.setdefault(caption, {})
            for style in styles:
                if style not in own:
                    own[style] = accepted(rewriter(caption, style), caption) or caption
                    line = {"text": caption, "style": style, "rewrite": own[style]}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    file.flush()
            if progress:
                progress(done + 1)
    return {caption: kept[caption] for caption in captions}


def whole(data: bytes) -> int:
    """Bytes of the lines that were not cut off."""
    return data.rfind(b"\n") + 1


def read_rewrites(store: Path) -> Rewrites:
    """A store. A last line that was cut off is passed over; raises DiptychError for any other that is none."""
    try:
        data = store.read_bytes()
    except OSError as error:
        raise DiptychError(f"cannot read the rewrites at {store}: {error.strerror}") from error
    found: Rewrites = {}
    for number, line in enumerate(data[: whole(data)].splitlines()):
        try:
            one = json.loads(line)
            found.setdefault(one["text"], {})[one["style"]] = one["rewrite"]
        except (ValueError, KeyError, TypeError) as error:
            right = '{"text": ..., "style": ..., "rewrite": ...}'
            raise DiptychError(f"{store} line {number + 1} is no rewrite; it should be {right}") from error
    return found


def read_aligned(captions: Path, files: Sequence[Path]) -> Rewrites:
    """Rewrites of other makers: text files whose line n is a rewrite of line n of `captions`; the name is the style.

    Raises DiptychError where the numbers of lines differ, for one line missing would shift all others.
    """
    texts = captions.read_text(encoding="utf-8").splitlines()
    found: Rewrites = {text: {} for text in texts}
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        if len(lines) != len(texts):
            raise DiptychError(f"{file} has {len(lines)} lines and {captions} has {len(texts)}: they must be alike")
        for text, line in zip(texts, lines, strict=True):
            if (one := accepted(line, text)) is not None:
                found[text][file.stem] = one
    return found


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
    r"as|into|over|under|photo|picture|image|pictured|shows|showing"
)


def recall(caption: str, rewritten: str) -> float:
    """The share of the caption's words that a rewrite still says, in 0..1; words like "the" do not count."""
    said = {word for word in re.findall(r"\w+", caption.lower()) if not EMPTY.fullmatch(word)}
    return len(said & set(re.findall(r"\w+", rewritten.lower()))) / len(said) if said else 1.0
