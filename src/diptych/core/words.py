"""The words of a text and the tokens that spell each: where a tokenizer's pieces meet the words that people read."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.core.clip import CLIP
from diptych.core.tokenizer import FastTokenizer, SimpleTokenizer, cleaning
from diptych.core.tower import Tokens
from diptych.errors import DiptychError, Unsupported


@dataclass(frozen=True)
class Word:
    """text: the word, or one "." or ","; start, end: its characters in the text it stands in.

    tokens: the places of its pieces in the tokenised text; none where the text was cut before it, or where the
    tokenizer has nothing for it.
    """

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]

    @property
    def punctuation(self) -> bool:
        return all(unicodedata.category(letter).startswith("P") for letter in self.text)


@dataclass(frozen=True)
class ReadText:
    """A text as a CLIP reads it. tokens: of one text, template included; text: without the template, as it was given
    where the tokenizer changes no more than case and spaces, else as it was cleaned; words: those of `text`, in order,
    so that a repeated word is known by its place."""

    text: str
    tokens: Tokens
    words: tuple[Word, ...]


def split_words(text: str) -> list[tuple[int, int]]:
    """First character and end of each word: split on spaces, with every "." and "," a word of its own."""
    return [match.span() for match in re.finditer(r"[.,]|[^\s.,]+", text)]


def align(words: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """For each word (first character, end) the tokens whose characters meet its own; spans: those of each token, empty
    for start, end and padding. A token that spans several words belongs to each of them."""
    return [
        tuple(i for i, (first, end) in enumerate(spans) if end > first and first < stop and end > start)
        for start, stop in words
    ]


def read_words(clip: CLIP, text: str, template: str = "") -> ReadText:
    """A text with its words' tokens; `template`: words put before it, which are read but are none of its words. Words
    without tokens say what a cut text lost, so that nothing warns of it.

    Raises DiptychError for a text without a word, Unsupported for a tokenizer that does not say which characters a
    token covers.
    """
    tokenizer = clip.tokenizer
    if not isinstance(tokenizer, FastTokenizer | SimpleTokenizer):
        raise Unsupported(f"the tokenizer of {clip.name} does not say which characters a token covers")
    clean = cleaning(tokenizer.clean)
    before = " ".join(template.split())
    given = " ".join(f"{before} {text}".split())
    cleaned = clean(given)
    shown = given if cleaned.lower() == given.lower() and len(cleaned) == len(given) else cleaned
    skip = len(split_words(clean(before)))
    spans = split_words(shown)
    if len(spans) <= skip:
        raise DiptychError("a text without a word cannot be explained: it is empty")
    [(_, covered)] = tokenizer.encode([cleaned])
    start = spans[skip][0]
    words = tuple(
        Word(shown[first:end], first - start, end - start, pieces)
        for (first, end), pieces in zip(spans[skip:], align(spans, covered)[skip:], strict=True)
    )
    return ReadText(shown[start:], clip.tokenize([given], warn=False), words)
