"""MetaCLIP: keep captions that name an entry of a list, and of frequent entries only so many.

Use it to make a CLIP-quality training set of a raw pool without another CLIP's taste: what is kept and why is a count.
Run it last, after download, safety filters and deduplication: copies are counted too. Not for captions in a language
that the list is not in, and not where the pool is already small and even: it only takes away.

`metaclip.metadata` is a text file with an entry a line (or a JSON list, as the official one). Without it the list is
made of `metaclip.wordnet`, `metaclip.wiki` and `metaclip.titles` (any of them), and kept as metadata.txt in OUT. A row
with several `texts` keeps those that are drawn.

Xu et al., Demystifying CLIP Data, ICLR 2024, arXiv 2309.16671, algorithm 1. Published: ViT-B/16 on 400M pairs, 70.8 on
ImageNet, against 68.3 of OpenAI's 400M.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from diptych.errors import DiptychError
from diptych.methods.curate.parts.entries import Matcher, digest, read_entries
from diptych.methods.curate.parts.head_tail import head_and_tail
from diptych.methods.curate.parts.metadata import build_metadata, files_of, write_entries
from diptych.methods.curate.parts.named import ENTRIES, matches_of, set_column, texts_of, texts_within, with_texts
from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Place, Progress, Stage, Verdict, chance_of
from diptych.report import Section

SOURCES, LEAST = ("wordnet", "wiki", "titles"), ("least_count", "least_pmi", "least_views")


@dataclass(frozen=True)
class Config:
    """metadata: the file of entries, or else what they are made of. wordnet: its dict folder. wiki: dumps
    (pages-articles.xml.bz2), a file or a folder; of them words said at least `least_count` times, and pairs of words
    with a PMI of at least `least_pmi` (no pair reaches the published 30 in less than 2^30 words). titles: page views, a
    file or a folder, of which those with at least `least_views` in all.

    t: matches of an entry up to which all are kept: a number, "inf" for no balancing, or "auto": where entries below it
    have `tail` of all matches, as the published pool's have. online: keep all rows and give each a `weight`, how likely
    it would be kept, for a trainer to draw by. case: whether "Dog" is another word than "dog", as published."""

    metadata: str = ""
    wordnet: str = ""
    wiki: str = ""
    titles: str = ""
    least_count: int = 100
    least_pmi: float = 30.0
    least_views: int = 70
    t: str = "20000"
    tail: float = 0.06
    online: bool = False
    case: bool = True


class MetaCLIP(Pipeline):
    Config = Config
    needs = "texts (with pictures), and a list of entries"

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Stage]:
        made_of = [name for name in SOURCES if getattr(self.config, name)]
        if not (self.config.metadata or made_of):
            raise DiptychError(
                "metaclip needs a list of entries: --set metaclip.metadata=FILE, a text file with one a line; or what "
                "it is to be made of: --set metaclip.wordnet=FOLDER (Debian: wordnet-base, /usr/share/wordnet), "
                "--set metaclip.wiki=enwiki-latest-pages-articles.xml.bz2, --set metaclip.titles=FOLDER of page views"
            )
        if self.config.metadata and made_of:
            raise DiptychError(f"metaclip.metadata is a finished list: leave metaclip.{made_of[0]} away, or metadata")
        for name in made_of:
            files_of(getattr(self.config, name))  # are they there?
        threshold(self.config.t, np.zeros(0), self.config.tail)  # is it one?
        column = "texts" if "texts" in columns else "text"
        match = Match(self.config, column)
        return [match, Balance(self.config, column, match, seed)]


# -- which entries -----------------------------------------------------------------------------------------------------


class Match(Stage):
    name, about = "match", "texts that name no entry"

    def __init__(self, config: Config, column: str) -> None:
        self.config, self.column, self.metadata = config, column, config.metadata
        self.needs, self.adds = (column,), (ENTRIES,)
        if self.metadata:
            _ = self.entries  # a mistake in it is said now

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("entries", "matcher")}

    def prepare(self, folder: Path, progress: Progress) -> None:
        if self.metadata:
            return
        config, file, work = self.config, folder / "metadata.txt", folder / ".work" / "metadata"
        if not file.exists():
            entries = build_metadata(
                **{name: getattr(config, name) for name in (*SOURCES, *LEAST)}, work=work, progress=progress
            )
            write_entries(entries, file)
        self.metadata = str(file)

    @cached_property
    def entries(self) -> list[str]:
        return read_entries(self.metadata)

    @cached_property
    def matcher(self) -> Matcher:
        return Matcher(self.entries, self.config.case)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        texts, rows = texts_of(batch, self.column)
        which, entries = self.matcher.match(texts)
        named = np.bincount(which, minlength=len(texts))
        batch = with_texts(batch, self.column, texts, rows, named, entries)
        keep = np.bincount(rows, named > 0, batch.num_rows) > 0
        tallies = {"texts": len(texts), "texts that name no entry": int((named == 0).sum()), "matches": len(entries)}
        return Verdict(batch, keep, np.where(keep, "", "names no entry").tolist(), tallies)


# -- how many of each --------------------------------------------------------------------------------------------------


class Balance(Stage):
    name, about, counts = "balance", "texts of frequent entries that were not drawn", True

    def __init__(self, config: Config, column: str, match: Match, seed: int) -> None:
        self.config, self.column, self.match, self.seed = config, column, match, seed
        self.needs, self.adds = (column, ENTRIES), (("weight",) if config.online else ())

    def prepare(self, folder: Path, progress: Progress) -> None:
        self.match.prepare(folder, progress)

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        entries, _, _ = matches_of(batch, self.column)
        counts = np.bincount(entries)
        found = np.flatnonzero(counts)
        return {"entry": found, "count": counts[found].astype(np.uint64)}

    def merge(self, counts: Sequence[Counts]) -> Counts:
        found, at = np.unique(np.concatenate([one["entry"] for one in counts]), return_inverse=True)
        total = np.zeros(len(found), np.uint64)
        np.add.at(total, at, np.concatenate([one["count"] for one in counts]))
        return {"entry": found, "count": total}

    def finish(self, counts: Counts) -> Counts:
        every = np.zeros(len(self.match.entries), np.uint64)
        every[counts["entry"]] = counts["count"]
        return {"count": every, "t": np.array(threshold(self.config.t, every, self.config.tail))}

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        chance = probabilities(counts["count"], float(counts["t"]))
        entries, texts, rows = matches_of(batch, self.column)
        if self.config.online:
            weight = kept_chance(chance[entries], rows[texts], batch.num_rows)
            tallies = {"rows expected": round(float(weight.sum()))}
            batch = set_column(batch, "weight", pa.array(weight))
            return Verdict(batch, np.ones(batch.num_rows, bool), [""] * batch.num_rows, tallies)
        keys = batch.column("key").to_pylist()
        drawn = draws(chance_of(keys, self.seed, self.name), rows[texts], texts_within(rows)[texts], entries)
        fired = np.bincount(texts, drawn < chance[entries], len(rows)) > 0
        kept = fired[texts]
        tallies = tail_tallies(counts["count"], entries[kept]) | {"texts not drawn": int((~fired).sum())}
        if self.column == "texts":
            named = np.where(fired, np.bincount(texts, minlength=len(rows)), 0)
            batch = with_texts(batch, self.column, texts_of(batch, self.column)[0], rows, named, entries[kept])
        keep = np.bincount(rows, fired, batch.num_rows) > 0
        return Verdict(
            batch, keep, np.where(keep, "", "names only frequent entries, and was not drawn").tolist(), tallies
        )

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        names = self.match.entries
        chance = probabilities(counts["count"], float(counts["t"]))
        kept = {int(k.rpartition("^")[2]): n for k, n in tallies.items() if k.startswith(TAIL)}
        return head_and_tail(names, digest(names), counts["count"], chance, float(counts["t"]), kept)


TAIL = "_matches left of entries with 2^"  # "_": for the plot, not for the table of what was counted


def tail_tallies(counts: np.ndarray, entries: np.ndarray) -> dict[str, int]:
    """Matches that are left, by how frequent their entries were, in powers of 2."""
    found = np.bincount(np.log2(np.maximum(counts[entries], 1).astype(np.float64)).astype(np.int64))
    return {f"{TAIL}{k}": int(n) for k, n in enumerate(found) if n}


def threshold(t: str, counts: np.ndarray, tail: float) -> float:
    """t in words -> the number. "auto": the least t below which entries have at least `tail` of all matches."""
    if t == "auto":
        ascending = np.sort(counts[counts > 0]).astype(np.float64)
        if not len(ascending):
            return np.inf
        at = int(np.searchsorted(np.cumsum(ascending), tail * ascending.sum()))
        return float(ascending[at] + 1)
    try:
        number = float(t)
    except ValueError:
        number = np.nan
    if not number > 0:
        raise DiptychError(f'metaclip.t takes a number above 0, "inf" or "auto"; not "{t}"')
    return number


def probabilities(counts: np.ndarray, t: float) -> np.ndarray:
    """p[e] = t / max(count[e], t): 1 for the tail."""
    return np.ones(len(counts)) if np.isinf(t) else t / np.maximum(counts.astype(np.float64), t)


def kept_chance(chance: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """1 - prod(1 - p) over the matches of each row [count]: what `Balance` keeps it with."""
    with np.errstate(divide="ignore"):
        return 1 - np.exp(np.bincount(rows, np.log1p(-chance), count))


def draws(of_row: np.ndarray, rows: np.ndarray, text: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each match, from its row's: splitmix64 of the row, the text in it and the entry."""
    with np.errstate(over="ignore"):
        mixed = (of_row[rows] * 2.0**53).astype(np.uint64) << np.uint64(11)
        for number in (text, entry):
            mixed += (number.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) * 2.0**-53
