"""What balancing did to the histogram of entries, for the report: a plot of head and tail, and the head by name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from diptych.report import Cell, Column, Facts, Plot, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 20  # entries in the table


def head_and_tail(
    names: list[str], digest: str, counts: np.ndarray, chance: np.ndarray, t: float, kept: Mapping[int, int]
) -> list[Section]:
    """counts, chance: of every entry. kept: power of 2 of an entry's count -> matches that are left of such entries;
    empty where nothing was drawn."""
    named = counts > 0
    total = int(counts.sum())
    tail = int(counts[counts < t].sum())
    facts = Facts(
        [
            ("t", "inf" if np.isinf(t) else f"{t:,.0f}", "matches that an entry keeps"),
            ("entries named", f"{int(named.sum()):,}", f"of {len(names):,}"),
            ("in the head", f"{int((counts >= t).sum()):,}", "entries with t or more"),
            ("tail share", f"{tail / max(1, total):.1%}", "of all matches"),
        ],
        title="Head and tail",
        note=f"Entries: SHA-256 {digest[:16]}",
    )
    top = np.argsort(counts, kind="stable")[::-1][:SHOWN]
    columns = (Column("entry", number=False), Column("matches"), Column("drawn with"))
    rows: list[tuple[Cell | str, ...]] = [
        (names[n], Cell(f"{counts[n]:,}", float(counts[n])), Cell(f"{chance[n]:.3g}", float(chance[n])))
        for n in top.tolist()
    ]
    table = Table(columns, rows, half=True, note="A text with several entries has the chance of each.")
    found: list[Section] = [facts]
    if total:
        alt = "Matches of entries in the order of their frequency, before and after balancing, on logarithmic axes"
        found.append(Plot(figure(counts, t, kept), alt))
    return [*found, table]


def figure(counts: np.ndarray, t: float, kept: Mapping[int, int]) -> "Figure":
    """Rank against matches before, and after as means over entries of like frequency."""
    from matplotlib.figure import Figure

    from diptych.report.svg import COLOURS, SOFT, house_style

    before = np.sort(counts[counts > 0])[::-1].astype(float)
    at = np.unique(np.geomspace(1, len(before), min(200, len(before))).astype(int))
    with house_style():
        made = Figure(figsize=(5.4, 4.0), layout="constrained")
        axes = made.add_subplot()
        axes.grid(True)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(at, before[at - 1], color=COLOURS[0], label="before")
        if kept:
            power = np.log2(before).astype(int)
            ranks, means = [], []
            for k in sorted(kept, reverse=True):
                where = np.flatnonzero(power == k)
                ranks.append(float(np.sqrt((where[0] + 1) * (where[-1] + 1))))
                means.append(kept[k] / len(where))
            axes.plot(ranks, means, color=COLOURS[1], marker="o", markersize=3, label="after")
        if np.isfinite(t) and t <= before[0]:
            axes.axhline(t, color=SOFT, linestyle=":", label="t")
        axes.set_xlabel("entries, the most frequent first")
        axes.set_ylabel("matches")
        axes.legend(frameon=False)
    return made
