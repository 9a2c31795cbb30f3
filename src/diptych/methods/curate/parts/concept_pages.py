"""The pages of concept frequency: rare and frequent classes, and how steeply one falls to the other."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from diptych.data.concepts import Counted, common_name, tail
from diptych.report import Cell, Column, Facts, Plot, Section, Table, Text

SHOWN = 100  # classes at each end of a long table
COLUMNS = (
    Column("class", number=False),
    Column("most said", "the most frequent name that is not a part of the class's own", number=False),
    Column("captions", "that say one of its names"),
    Column("relevant", "share of them that mean it"),
    Column("frequency", "captions that mean it, estimated"),
    Column("", "the rarest fifth", number=False),
)


def frequency_sections(concepts: Mapping[str, Counted], captions: int, judged: bool) -> list[Section]:
    """Figures, a table from rare to frequent, and a curve; captions: how many there were."""
    from diptych.report.plots import lines

    if not concepts:
        return []
    order = sorted(concepts, key=lambda name: (concepts[name].frequency, name))
    rare = {[*concepts][c] for c in tail([one.frequency for one in concepts.values()])}
    rest = [concepts[name].frequency for name in order if name not in rare]
    renamed = [name for name in order if said_most(concepts[name]) != own_name(concepts[name])]
    facts = [
        ("captions", f"{captions:,}", "read"),
        ("classes", f"{len(concepts):,}", f"{len(renamed)} of them said otherwise by most"),
        ("rarest fifth", f"{mean([concepts[n].frequency for n in rare] or [0]):,.0f}", "captions a class, on average"),
        ("the others", f"{mean(rest or [0]):,.0f}", "captions a class, on average"),
    ]
    shown = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], *order[-SHOWN:]]
    left = f"{len(order) - len(shown)} classes between the rarest and the most frequent are not shown" * (
        len(shown) < len(order)
    )
    rows = [row(name, concepts[name], name in rare, judged) for name in shown]
    series = {"say a name of it": [log(concepts[name].matched) for name in order][::-1]}
    if judged:
        series["mean it"] = [log(concepts[name].frequency) for name in order][::-1]
    curves = {name: [(rank + 1.0, value) for rank, value in enumerate(values)] for name, values in series.items()}
    figure = lines(curves, "class, from frequent to rare", "captions (power of ten)")
    sections: list[Section] = [Facts(facts, title="How often captions mean each class")]
    if not judged:
        sections.append(
            Text(
                "Relevance was not judged: a class whose name means other things too is counted too often. "
                "Judge it with real.relevance=embeddings or a language model.",
                style="warning",
            )
        )
    plot = Plot(figure, "captions of each class on a logarithmic scale, from the most frequent class to the rarest")
    return [*sections, plot, Table(COLUMNS, rows, note=left)]


def row(name: str, one: Counted, rare: bool, judged: bool) -> Sequence[Cell | str]:
    share = Cell(f"{one.relevance:.0%} of {one.seen:,}", one.relevance) if judged else Cell("-", mark="muted")
    counts = (Cell(f"{one.matched:,}", one.matched), share, Cell(f"{one.frequency:,.0f}", one.frequency))
    said = said_most(one)
    most = Cell(said) if said != own_name(one) else Cell(said, mark="muted")
    return [name, most, *counts, "rare" if rare else ""]


def own_name(one: Counted) -> str:
    return next(iter(one.counts))


def said_most(one: Counted) -> str:
    return common_name(own_name(one), one.counts)


def log(count: float) -> float:
    return math.log10(max(count, 0.5))
