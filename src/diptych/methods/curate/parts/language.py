"""Which language a text is in, by py3langid (character n-grams, 97 languages, its model is in the package).

LAION-5B cuts its data into three: English, other languages, and texts of which no language is known with a probability
of at least 0.7 (names of products and places, file names, a few words).
"""

from collections.abc import Mapping, Sequence
from functools import cache

import pyarrow as pa

from diptych.errors import missing_extra
from diptych.methods.curate.parts.clip_filter import LISTED, stream_of
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.vectors import with_column
from diptych.methods.curate.parts.web_rules import by_reason
from diptych.report import Column, Section, Table

NONE = "nolang"


class Language(Stage):
    """Adds `language`: a code such as "en", or "nolang". keep: these streams or languages alone; "en", "other" (all
    but English and nolang), "nolang", or codes."""

    name = "language"
    about = "a language that was not asked for"
    needs = ("text",)
    adds = ("language",)

    def __init__(self, least: float = 0.7, keep: Sequence[str] = ("en", "other", NONE)) -> None:
        self.least = least
        self.keep = frozenset(keep)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        found = [language_of(text, self.least) for text in batch.column("text").to_pylist()]
        why = ["" if self.keep & {one, stream_of(one)} else f"language {stream_of(one)}" for one in found]
        verdict = by_reason(with_column(batch, "language", pa.array(found, pa.string())), why)
        tallies: dict[str, int] = {}
        for one, reason in zip(found, why, strict=True):
            tallies[f"{one} seen"] = tallies.get(f"{one} seen", 0) + 1
            tallies[f"{one} kept"] = tallies.get(f"{one} kept", 0) + (not reason)
        return Verdict(verdict.batch, verdict.keep, why, tallies)

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        seen = {name.removesuffix(" seen"): n for name, n in tallies.items() if name.endswith(" seen")}
        rows = [
            [name, f"{n:,}", f"{tallies[f'{name} kept'] / n:.0%}"]
            for name, n in sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        ]
        hidden = len(rows) - LISTED
        note = f"{hidden} languages with fewer rows are not listed" if hidden > 0 else ""
        head = (Column("language", number=False), Column("texts"), Column("kept"))
        return [Table(head, rows[:LISTED], title="Languages of the texts", note=note)] if rows else []


def language_of(text: str, least: float = 0.7) -> str:
    """A code of ISO 639, or "nolang" where none has this probability."""
    code, probability = identifier().classify(text)
    return code if probability >= least and code != "zxx" else NONE  # zxx: no words at all


@cache
def identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise missing_extra("py3langid", "curate", "telling languages apart") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
