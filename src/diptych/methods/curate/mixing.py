"""Mixing: one set out of several sources, with exactly the shares that were asked for, drawn by chance.

Use it to compare sources at one size, to try a mixture before training on all there is, and to cut a large source
down without taking one topic or one year of it: the rows of a smaller draw are among those of a larger one, so that a
curve over sizes compares like with like. Not a way to make a set better by itself: more sources can dilute the best
one, which `diptych probe mixing` measures; and near-copies of the test pictures in one source fake its robustness, so
remove those first.

Nguyen et al., Quality Not Quantity: On the Interaction between Dataset Design and Robustness of CLIP, NeurIPS 2022,
arXiv 2208.05516, section 3 and the mixtures of section 4. Its code holds the sources' downloaders and no sampler: the
draw is ours. A source is what the column `source` says; inputs given as a=PATH,b=PATH have it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diptych.data.mixture import OF, achievable, largest_remainder, parse_mixture
from diptych.errors import DiptychError, nearest
from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Place, Stage, Verdict, chance_of
from diptych.report import Cell, Column, Section, Table

BEYOND, LEFT_OUT = "beyond its share", "of no source asked for"
TOTALS, SHORT = ("fixed", "all"), ("report", "refuse")


@dataclass(frozen=True)
class Config:
    """weights: the shares, such as a=0.75,b=0.25 or a=3,b=1; "": every source alike. A source that is not named is left
    out. count: rows in all (0: as many as the sources give at these shares). total: "fixed", so many rows in all; or
    "all", so many of each source and all where count is 0: the set grows with every source, and shares say nothing.
    short: what to do where a source has too few rows: "report" takes those it has, "refuse" takes none of any."""

    weights: str = ""
    count: int = 0
    total: str = "fixed"
    short: str = "report"


class Mixing(Pipeline):
    Config = Config
    needs = "several sources"

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Stage]:
        if "source" not in columns:
            raise DiptychError(
                'mixing needs a column "source": give the sources as a=PATH,b=PATH, or a table that has the column'
                f"{nearest('source', columns)}"
            )
        return [Draw(self.config, seed)]


class Draw(Stage):
    """Of every source, the rows with the smallest chance: uniform, without replacement, nested in the count.

    With three sources or more, whose shares do not come out even, rounding can take one row of a source away again as
    the count grows.
    """

    name = "draw"
    about = "draws of each source as many rows as its share is, by chance"
    needs = ("source",)
    counts = True

    def __init__(self, config: Config, seed: int = 0) -> None:
        for name, word, known in (("total", config.total, TOTALS), ("short", config.short, SHORT)):
            if word not in known:
                raise DiptychError(f'mixing.{name} cannot be "{word}"; valid: {", ".join(known)}')
        if config.count < 0:
            raise DiptychError(f"mixing.count is {config.count}; it is a number of rows, or 0 for all")
        if config.weights and config.total == "all":
            raise DiptychError("mixing.total=all takes rows of every source alike: it has no use for mixing.weights")
        self.config, self.seed = config, seed
        self.weights = parse_mixture(config.weights, "mixing.weights") if config.weights else None

    # counts: sources [S], seen [S] rows of each; drawn rows as columns: of [R] (their source), chance, piece, row

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        names, of = sources_of(batch)
        rows = np.arange(place.row, place.row + batch.num_rows)
        found = {
            "sources": names, "seen": np.bincount(of, minlength=len(names)), "of": of,
            "chance": self.chances(batch, names, of), "piece": np.full(batch.num_rows, place.piece), "row": rows,
        }  # fmt: skip
        return self.fewest(found)

    def chances(self, batch: pa.RecordBatch, names: np.ndarray, of: np.ndarray) -> np.ndarray:
        """[N]; each source has its own, so that rows of two sources with one key are drawn independently."""
        found, keys = np.empty(batch.num_rows), batch.column("key").to_pylist()
        for number, name in enumerate(names):
            own = np.flatnonzero(of == number)
            found[own] = chance_of([str(keys[i]) for i in own], self.seed, f"mixing {name}")
        return found

    def merge(self, counts: Sequence[Counts]) -> Counts:
        names = np.array(sorted({name for one in counts for name in one["sources"].tolist()}))
        columns: dict[str, list[np.ndarray]]
        seen, columns = np.zeros(len(names), np.int64), {name: [] for name in COLUMNS}
        for one in counts:
            place = np.searchsorted(names, one["sources"])
            np.add.at(seen, place, one["seen"])
            for name, parts in columns.items():
                parts.append(place[one["of"]] if name == "of" else one[name])
        rows = {name: np.concatenate(parts) for name, parts in columns.items()}
        return self.fewest({"sources": names, "seen": seen, **rows})

    def fewest(self, found: Counts) -> Counts:
        """No source can give more than `count` rows: what lies beyond is forgotten, and memory is bounded by it."""
        if not self.config.count:
            return found if self.config.total == "fixed" else {**found, **{n: found[n][:0] for n in COLUMNS}}
        kept = rank(found) < self.config.count
        return {**found, **{name: found[name][kept] for name in COLUMNS}}

    def finish(self, counts: Counts) -> Counts:
        """asked, taken [S], and the last row of each source that is taken: chance, piece, row [S]."""
        names, seen = counts["sources"].tolist(), counts["seen"]
        asked = self.asked(names, seen)
        short = [name for name, want, have in zip(names, asked, seen, strict=True) if want > have]
        if short and self.config.short == "refuse":
            i = names.index(short[0])
            raise DiptychError(
                f"mixing needs {asked[i]} rows of {short[0]}, which has {seen[i]}: at these shares the sources give "
                f"{achievable(self.shares(names), seen)} rows in all (mixing.count=0 takes so many)"
            )
        taken = np.minimum(asked, seen)
        found = {
            "sources": counts["sources"],
            "seen": seen,
            "asked": asked,
            "taken": taken,
            "share": self.shares(names),
        }
        if self.config.total == "all" and not self.config.count:
            return found
        last = np.flatnonzero(rank(counts) == taken[counts["of"]] - 1)
        for name, none in (("chance", -1.0), ("piece", -1), ("row", -1)):
            column = np.full(len(names), none)
            column[counts["of"][last]] = counts[name][last]
            found[name] = column
        return found

    def shares(self, names: Sequence[str]) -> np.ndarray:
        """[S], sum 1. Raises DiptychError for a weight of a source that is not there."""
        if self.weights is None:
            return np.full(len(names), 1 / max(len(names), 1))
        for name, weight in self.weights.items():
            if weight and name not in names:
                raise DiptychError(f'mixing.weights names "{name}", of which there is no row{nearest(name, names)}')
        return np.array([self.weights.get(name, 0.0) for name in names])

    def asked(self, names: Sequence[str], seen: np.ndarray) -> np.ndarray:
        count = self.config.count
        if self.config.total == "all":
            return np.full(len(names), count) if count else seen
        shares = self.shares(names)
        return largest_remainder(shares, count or achievable(shares, seen))

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        names, of = sources_of(batch)
        at = np.searchsorted(counts["sources"], names)[of]
        if "chance" not in counts:
            keep = np.ones(batch.num_rows, bool)
        else:
            mine = (self.chances(batch, names, of), place.piece, place.row + np.arange(batch.num_rows))
            last = [counts[name][at] for name in ("chance", "piece", "row")]
            keep = not_after(mine, last)
        out = counts["share"][at] == 0
        why = ["" if kept else LEFT_OUT if never else BEYOND for kept, never in zip(keep, out, strict=True)]
        left = np.bincount(of[keep], minlength=len(names))
        tallies = {f"{OF}{name}": int(rows) for name, rows in zip(names, left, strict=True) if rows}
        return Verdict(batch, keep, why, tallies)

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        if not counts:
            return ()  # no row came so far
        taken, asked = counts["taken"], counts["asked"]
        total = max(int(taken.sum()), 1)
        columns = [Column("source", number=False), Column("share asked"), Column("rows there"), Column("rows asked"),
                   Column("rows taken"), Column("share taken")]  # fmt: skip
        rows = [
            [str(name), f"{share:.4g}", whole(there), whole(want), whole(got), f"{got / total:.4g}"]
            for name, share, there, want, got in zip(
                counts["sources"], counts["share"], counts["seen"], asked, taken, strict=True
            )
        ]
        rows.append(["in all", "", whole(counts["seen"].sum()), whole(asked.sum()), whole(taken.sum()), ""])
        short = [str(n) for n, want, got in zip(counts["sources"], asked, taken, strict=True) if want > got]
        note = f"Too few rows in {', '.join(short)}: the shares are not those asked for." if short else ""
        if self.config.total == "all":
            note = "Every source alike, whatever its size: with each one more the set grows."
        return [Table(columns, rows, title="The mixture", note=note)]


COLUMNS = ("of", "chance", "piece", "row")


def whole(number: int) -> Cell:
    return Cell(f"{number:,}", float(number))


def sources_of(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """(names [S] in their order, which of them each row has [N])."""
    words = np.array([str(word) for word in batch.column("source").to_pylist()], dtype=np.str_)
    return np.unique(words, return_inverse=True)


def rank(rows: Counts) -> np.ndarray:
    """The place of each row [R] among those of its source, by chance; of equal chances (a key that comes twice) the row
    that stands first."""
    order = np.lexsort((rows["row"], rows["piece"], rows["chance"], rows["of"]))
    own = rows["of"][order]
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - np.searchsorted(own, own)
    return found


def not_after(mine: Sequence[np.ndarray | int], last: Sequence[np.ndarray]) -> np.ndarray:
    """Whether (chance, piece, row) of each row [N] comes no later than that of the last one taken [N]."""
    (c, p, r), (lc, lp, lr) = mine, last
    return (c < lc) | ((c == lc) & ((p < lp) | ((p == lp) & (r <= lr))))  # type: ignore[operator]
