"""MetaCLIP: keep captions that name an entry of a list, and of frequent entries only so many.

Use it to make a CLIP-quality training set of a raw pool without another CLIP's taste: what is kept and why is a count.
Run it last, after download, safety filters and deduplication: copies are counted too. Not for captions in a language
that the list is not in, and not where the pool is already small and even: it only takes away.

`metaclip.metadata` is a text file with an entry a line (or a JSON list, as the official one); `build_metadata` in
parts/metadata.py makes it of WordNet and Wikipedia. A row with several `texts` keeps those that are drawn.

Xu et al., Demystifying CLIP Data, ICLR 2024, arXiv 2309.16671, algorithm 1. Published: ViT-B/16 on 400M pairs, 70.8 on
ImageNet, against 68.3 of OpenAI's 400M.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from diptych.errors import DiptychError
from diptych.methods.curate.parts.entries import Matcher, digest, read_entries
from diptych.methods.curate.parts.head_tail import head_and_tail
from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Place, Stage, Verdict, chance_of
from diptych.report import Section

ENTRIES = "entries"  # the column of numbers of named entries: a list a row; of several texts, a list a text


@dataclass(frozen=True)
class Config:
    """metadata: the file of entries. t: matches of an entry up to which all are kept: a number, "inf" for no
    balancing, or "auto": where entries below it have `tail` of all matches, as the published pool's have. online: keep
    all rows and give each a `weight`, how likely it would be kept, for a trainer to draw by. case: whether "Dog" is
    another word than "dog", as published."""

    metadata: str = ""
    t: str = "20000"
    tail: float = 0.06
    online: bool = False
    case: bool = True


class MetaCLIP(Pipeline):
    Config = Config
    needs = "texts (with pictures), and a list of entries"

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Stage]:
        if not self.config.metadata:
            raise DiptychError(
                "metaclip needs the list of entries: --set metaclip.metadata=FILE, a text file with one a line; "
                "build_metadata in diptych.methods.curate.parts.metadata makes it of WordNet and Wikipedia"
            )
        threshold(self.config.t, np.zeros(0), self.config.tail)  # is it one?
        column = "texts" if "texts" in columns else "text"
        match = Match(self.config.metadata, column, self.config.case)
        return [match, Balance(self.config, column, len(match.entries), seed)]


# -- which entries -----------------------------------------------------------------------------------------------------


class Match(Stage):
    name, about = "match", "texts that name no entry"

    def __init__(self, metadata: str, column: str, case: bool) -> None:
        self.metadata, self.column, self.case = metadata, column, case
        self.needs, self.adds = (column,), (ENTRIES,)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("entries", "matcher")}

    @cached_property
    def entries(self) -> list[str]:
        return read_entries(self.metadata)

    @cached_property
    def matcher(self) -> Matcher:
        return Matcher(self.entries, self.case)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        texts, rows = texts_of(batch, self.column)
        which, entries = self.matcher.match(texts)
        named = np.bincount(which, minlength=len(texts))
        batch = with_texts(batch, self.column, texts, rows, named, entries)
        keep = np.bincount(rows, named > 0, batch.num_rows) > 0
        tallies = {"texts": len(texts), "texts that name no entry": int((named == 0).sum()), "matches": len(entries)}
        return Verdict(batch, keep, np.where(keep, "", "names no entry").tolist(), tallies)


def texts_of(batch: pa.RecordBatch, column: str) -> tuple[pa.Array, np.ndarray]:
    """(all texts of the rows, the row of each)."""
    texts = batch.column(column)
    if column == "text":
        return texts.cast(pa.string()), np.arange(batch.num_rows)
    lengths = texts.value_lengths().fill_null(0).to_numpy()
    return texts.flatten().cast(pa.string()), np.repeat(np.arange(batch.num_rows), lengths)


def with_texts(
    batch: pa.RecordBatch, column: str, texts: pa.Array, rows: np.ndarray, named: np.ndarray, entries: np.ndarray
) -> pa.RecordBatch:
    """Rows with their entries. named: how many each text has; of several texts those with none are left out."""
    lists = pa.ListArray.from_arrays(offsets(named), pa.array(entries, pa.uint32()))
    if column == "text":
        return set_column(batch, ENTRIES, lists)
    left = named > 0
    starts = offsets(np.bincount(rows[left], minlength=batch.num_rows))
    batch = set_column(batch, column, pa.ListArray.from_arrays(starts, texts.filter(pa.array(left))))
    return set_column(batch, ENTRIES, pa.ListArray.from_arrays(starts, lists.filter(pa.array(left))))


def offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def set_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    return batch.append_column(name, values) if at < 0 else batch.set_column(at, name, values)


# -- how many of each --------------------------------------------------------------------------------------------------


class Balance(Stage):
    name, about, counts = "balance", "texts of frequent entries that were not drawn", True

    def __init__(self, config: Config, column: str, entries: int, seed: int) -> None:
        self.config, self.column, self.entries, self.seed = config, column, entries, seed
        self.needs, self.adds = (column, ENTRIES), (("weight",) if config.online else ())

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
        every = np.zeros(self.entries, np.uint64)
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
        names = read_entries(self.config.metadata)
        chance = probabilities(counts["count"], float(counts["t"]))
        kept = {int(k.rpartition("^")[2]): n for k, n in tallies.items() if k.startswith(TAIL)}
        return head_and_tail(names, digest(names), counts["count"], chance, float(counts["t"]), kept)


TAIL = "_matches left of entries with 2^"  # "_": for the plot, not for the table of what was counted


def tail_tallies(counts: np.ndarray, entries: np.ndarray) -> dict[str, int]:
    """Matches that are left, by how frequent their entries were, in powers of 2."""
    found = np.bincount(np.log2(np.maximum(counts[entries], 1).astype(np.float64)).astype(np.int64))
    return {f"{TAIL}{k}": int(n) for k, n in enumerate(found) if n}


def matches_of(batch: pa.RecordBatch, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(entry of each match [M], its text [M], the row of each text [T])."""
    lists = batch.column(ENTRIES)
    rows = np.arange(batch.num_rows)
    if column == "texts":
        rows = np.repeat(rows, lists.value_lengths().to_numpy())
        lists = lists.flatten()
    texts = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())
    return lists.flatten().to_numpy().astype(np.int64), texts, rows


def texts_within(rows: np.ndarray) -> np.ndarray:
    """The number of each text in its row; rows: sorted."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)


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
