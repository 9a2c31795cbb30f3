"""Whether a caption means the class that it names: asked of a language model, or told by embeddings of definitions.

Parashar et al., arXiv 2401.12425, section 3: a yes or no for each caption, the definition of the class at hand. The
words of the question and the test by embeddings are ours.
"""

import hashlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from diptych.data.concepts import Concept
from diptych.data.language_model import LanguageModel, language_model
from diptych.errors import DiptychError
from diptych.paths import cache_dir

if TYPE_CHECKING:
    from diptych.core.clip import CLIP

LONG = 100  # words; longer captions are lists of keywords more often than sentences, and mean nothing
SAMPLING = {"temperature": 0.6, "top_p": 0.9, "length": 8, "stop": "\n"}
PROMPT = """\
Answer only yes or no.

Caption: "crane lifts steel beam on building site"
Does "crane" in this caption mean a crane, a tall wading bird?
Answer: no

Caption: "a crane standing in shallow water at dawn"
Does "crane" in this caption mean a crane, a tall wading bird?
Answer: yes

Caption: "{caption}"
Does "{word}" in this caption mean a {name}{definition}?
Answer:"""


@dataclass(frozen=True)
class Question:
    """Does `word` in the caption mean the concept?"""

    caption: str
    word: str
    concept: Concept


class Judge(ABC):
    @abstractmethod
    def relevant(self, questions: Sequence[Question]) -> list[bool]: ...


class Asked(Judge):
    """A language model's yes; anything else is no. Answers are kept, so that none is paid for twice."""

    def __init__(self, model: LanguageModel, name: str) -> None:
        # its published sampling, where it is a model of ours
        self.model: Any = replace(model, **SAMPLING) if is_dataclass(model) else model  # type: ignore[type-var]
        self.name = name

    def relevant(self, questions: Sequence[Question]) -> list[bool]:
        path = cache_dir() / "relevance.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=60)) as kept:
            kept.execute("create table if not exists answers (asked blob primary key, yes integer)")
            fresh: dict[bytes, bool] = {}
            try:
                return [self.one(question, kept, fresh) for question in questions]
            finally:  # those before a failure are kept too
                kept.executemany("insert or replace into answers values (?, ?)", fresh.items())
                kept.commit()

    def one(self, question: Question, kept: sqlite3.Connection, fresh: dict[bytes, bool]) -> bool:
        if len(question.caption.split()) > LONG:
            return False
        prompt = prompt_of(question)
        asked = hashlib.sha256(f"{self.name}\0{prompt}".encode()).digest()
        row = kept.execute("select yes from answers where asked = ?", (asked,)).fetchone()
        if row is None and asked not in fresh:
            fresh[asked] = yes(self.model.complete(prompt))
        return fresh[asked] if row is None else bool(row[0])


def prompt_of(question: Question) -> str:
    """The captions are strangers': one line without quotation marks, so that none ends the quotation."""
    bare = " ".join(question.caption.replace('"', "").split())
    name, said = question.concept.names[0], question.concept.definition
    return PROMPT.format(caption=bare, word=question.word, name=name, definition=f", {said}" if said else "")


def yes(answer: str) -> bool:
    """ "Yes." is yes; "yes, but", "Yes and no" and all else is no."""
    lines = answer.strip().splitlines()
    return bool(lines) and lines[0].strip().strip(".").lower() == "yes"


class Nearest(Judge):
    """A caption means the class whose definition is nearer to it than those of all other things of that name.

    Where no other meaning is known, every caption is taken to mean the class.
    """

    def __init__(self, clip: "CLIP") -> None:
        self.clip = clip

    def relevant(self, questions: Sequence[Question]) -> list[bool]:
        import torch
        from torch.nn import functional as F

        texts = [question.caption for question in questions]
        senses = list(dict.fromkeys(one for q in questions for one in (q.concept.definition, *q.concept.others) if one))
        if not senses:
            return [True] * len(questions)
        with torch.inference_mode():
            rows = F.normalize(self.clip.encode_text(texts).float(), dim=1)
            places = {sense: i for i, sense in enumerate(senses)}
            cosines = (rows @ F.normalize(self.clip.encode_text(senses).float(), dim=1).T).tolist()
        found = []
        for near, q in zip(cosines, questions, strict=True):
            others = [near[places[one]] for one in q.concept.others if one]
            found.append(not others or near[places[q.concept.definition]] > max(others))
        return found


@lru_cache(maxsize=2)
def clip_of(name: str) -> "CLIP":
    """Opened once a process, and not part of a stage, which travels between processes."""
    from diptych.core.load import load

    return load(name)


@lru_cache(maxsize=2)
def judge_of(source: str, name: str, clip: str) -> Judge | None:
    """ "none", "embeddings" (of the model `clip`), or a language model: a folder, a .gguf file or an http address,
    where it has a `name`. Raises DiptychError for anything else."""
    if source == "none":
        return None
    if source == "embeddings":
        return Nearest(clip_of(clip))
    model = language_model(source, name)
    if model is None:
        raise DiptychError(
            f'real.relevance cannot be "{source}"; it is none, embeddings, or a language model: a folder, a .gguf file '
            "or an http address"
        )
    return Asked(model, f"{source} {name}")
