"""The report of a curation: what each stage removed and why, with examples, and what the stages themselves show."""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diptych.engine.provenance import provenance
from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Source, Stage
from diptych.report import Cell, Column, Facts, Gallery, Picture, Report, Section, Table, Text

if TYPE_CHECKING:
    from diptych.curation.run import Line

SHOWN = 12  # examples of a reason


def report_of(
    pipeline: Pipeline,
    steps: Sequence[Source | Stage],
    lines: Sequence["Line"],
    examples: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Counts],
    identity: Mapping[str, Any],
    seconds: float,
) -> Report:
    rows_in, rows_out = lines[0].rows, lines[-1].kept
    share = rows_out / max(1, rows_in)
    facts = Facts(
        [
            ("rows in", f"{rows_in:,}", ""),
            ("rows out", f"{rows_out:,}", f"{share:.1%}"),
            ("time", f"{seconds:.1f} s", f"{rows_in / max(seconds, 1e-9):,.0f} rows/s"),
        ]
    )
    sections: list[Section] = [facts, table_of(lines, title="What each stage removed")]
    sections += reasons(lines)
    by_name = {line.name: line for line in lines}
    for step in steps:
        if isinstance(step, Stage) and by_name[step.name].rows:
            sections += step.sections(counts.get(step.name, {}), by_name[step.name].tallies)
    sections += examples_of(examples)
    about = {**identity, **provenance(), "seconds": seconds}
    return Report(f"Curated by {pipeline.system()}", sections, about)


def table_of(lines: Sequence["Line"], title: str = "") -> Table:
    """Stage, rows in and out, time."""
    columns = (
        Column("stage", number=False),
        Column("rows"),
        Column("removed"),
        Column("left"),
        Column("seconds", help="of all processes together", drop=1),
    )
    rows = []
    for line in lines:
        removed = line.rows - line.kept
        rows.append(
            (
                line.name,
                Cell(f"{line.rows:,}", line.rows),
                Cell(f"{removed:,}", removed, "" if removed else "muted"),
                Cell(f"{line.kept:,}", line.kept),
                Cell(f"{line.seconds:.1f}", line.seconds, "muted"),
            )
        )
    return Table(columns, rows, title=title)


def reasons(lines: Sequence["Line"]) -> list[Section]:
    """Every reason, and what else was counted."""
    found: list[Section] = []
    columns = (Column("stage", number=False), Column("why", number=False), Column("rows"), Column("of its rows"))
    rows = [
        (line.name, why, Cell(f"{count:,}", count), Cell(f"{count / max(1, line.rows):.2%}", count / max(1, line.rows)))
        for line in lines
        for why, count in line.why.items()
    ]
    if rows:
        found.append(Table(columns, rows, title="Why"))
    shown = [(line, name, n) for line in lines for name, n in line.tallies.items() if not name.startswith("_")]
    counted = [(line.name, name, Cell(f"{n:,}", n)) for line, name, n in shown]
    if counted:
        heads = (Column("stage", number=False), Column("counted", number=False), Column("number"))
        found.append(Table(heads, counted, note="Counted beside the rows that were removed."))
    return found


def examples_of(examples: Sequence[Mapping[str, Any]]) -> list[Section]:
    """A gallery, or a list of texts, for each reason."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for example in examples:
        groups.setdefault((example["stage"], example["why"]), []).append(example)
    found: list[Section] = []
    for n, ((stage, why), some) in enumerate(groups.items()):
        some = sorted(some, key=lambda one: one["chance"])[:SHOWN]
        title = "Examples of what was removed" if n == 0 else ""
        if any("picture" in one or "unreadable" in one for one in some):
            pictures = [
                Picture(
                    base64.b64decode(one["picture"]) if "picture" in one else None,
                    one["key"],
                    note=one["text"] or one.get("unreadable", ""),
                )
                for one in some
            ]
            found.append(Gallery(pictures, title=title, fold=f"{stage}: {why}"))
        else:
            lines = [one["text"] or one["key"] for one in some]
            found.append(Text(lines, "list", title=title, fold=f"{stage}: {why}"))
    return found
