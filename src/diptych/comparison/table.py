"""The table of a comparison: one line a method, for the terminal and the page."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from diptych.comparison.summary import REFERENCE, Standing, Summary, shots_words
from diptych.metrics.intervals import Interval
from diptych.report import Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STAR = "★"


def comparison_table(summary: Summary, full: bool = False) -> Table:
    """One row a method at its largest shots, the most accurate first; `full` adds columns for the page."""
    shots = summary.shots
    before, last = shots[:-1], shots[-1] if shots else "all"
    columns = [
        Column("method", number=False),
        # on a narrow terminal the first shots stay longest: with the last they say what pictures are worth
        *(Column(f"{shots_words(s)}\n%", "test accuracy", drop=8 if i else 6) for i, s in enumerate(before)),
        Column(f"accuracy %\n{shots_words(last)}", "test accuracy with its 95% interval"),
        Column("valid.\n%", "validation inside the shots: what the winner is chosen by", drop=1),
        *([Column("vs zero-shot\npoints", "paired difference with its 95% interval")] if full else []),
        Column("macro\nrecall %", "mean over classes of the share found", drop=7),
        Column("ECE\n%", "expected calibration error, 15 bins: how far stated probability is off", drop=3),
        Column("encode\ns", "reading and encoding the pictures, shared by the methods that use features", drop=9),
        Column("fit\ns", "fitting, search of hyper-parameters included", drop=2),
        Column("ms a\npicture", "to predict one picture", drop=10),
        Column("peak\nMB", "highest memory, measured in a process of its own", drop=11),
        Column("trainable", "parameters fitted", drop=5),
        Column("new classes %\nbefore → after", "accuracy on classes held out of the fit, zero-shot and after", drop=4),
    ]
    best = max((s.accuracy_mean for s in summary.largest if s.shots == last), default=-1.0)
    rows = [_row(summary, s, before, last, best, full) for s in summary.largest]
    chosen = next(
        (i for i, s in enumerate(summary.largest) if summary.winner and s.method == summary.winner.method), None
    )
    return Table(columns=columns, rows=rows, chosen=chosen)


def _row(
    summary: Summary, s: Standing, before: list[int | str], last: int | str, best: float, full: bool
) -> list[Cell | str]:
    winner = summary.winner and summary.winner.method == s.method
    name = f"{s.method} {STAR}" if winner else s.method
    at = "" if s.shots == last or s.method == REFERENCE else f" ({shots_words(s.shots)})"
    accuracy = f"{interval_words(s.accuracy)}" if s.accuracy else percent(s.accuracy_mean)
    earlier = []
    for shots in before:
        standing = summary.standings.get((s.method, shots))
        earlier.append(
            _cell(percent(standing.accuracy_mean if standing else None), standing and standing.accuracy_mean)
        )
    new = ""
    if s.new_class_before is not None and s.new_class_after is not None:
        new = f"{percent(s.new_class_before)} → {percent(s.new_class_after)}"
    versus = [] if not full else [
        _cell(difference_words(s.versus_zero_shot), s.versus_zero_shot and s.versus_zero_shot.mean)
    ]  # fmt: skip
    return [
        name,
        *earlier,
        Cell(accuracy + at, s.accuracy_mean, "best" if s.accuracy_mean == best and s.shots == last else ""),
        _cell(percent(s.validation), s.validation),
        *versus,
        _cell(percent(s.macro_recall), s.macro_recall),
        _cell(percent(s.ece), s.ece),
        _cell(seconds_number(s.encode_seconds), s.encode_seconds),
        _cell(seconds_number(s.fit_seconds), s.fit_seconds),
        _cell("–" if s.ms_per_image is None else f"{s.ms_per_image:.3g}", s.ms_per_image),
        _cell("–" if s.peak_mb is None else f"{s.peak_mb:,.0f}", s.peak_mb),
        _cell(count_words(s.trainable), s.trainable),
        Cell(new, s.new_class_after),
    ]


def footnotes(summary: Summary) -> list[str]:
    """What a reader of the table must know, in sentences."""
    many = len(summary.truth)
    seeds = max((s.seeds for s in summary.largest), default=1)
    notes = []
    if summary.winner and (won := summary.winning):
        by = f" ({percent(won.validation)}%)" if won.validation is not None else ""
        notes.append(
            f"{STAR} {won.method} is the winner: {summary.winner.chosen}{by}. The test column had no part in it. "
            f"The saved one is fitted again on all {summary.winner.refit_on:,} labelled {summary.items}."
        )
        if luckier := summary.luckier:
            gap = summary.difference(luckier.key, won.key)
            unsure = gap is not None and not gap.distinguishable
            apart = f", a gap that these {summary.items} cannot tell from chance" if unsure else ""
            notes.append(
                f"{luckier.method} has the best test accuracy ({percent(luckier.accuracy_mean)}% against "
                f"{percent(won.accuracy_mean)}%{apart}), but did not have the best validation."
            )
    if any(s.accuracy for s in summary.largest):
        notes.append(
            f"[ ] 95% interval: paired bootstrap over {many:,} test {summary.items}"
            + (" in their groups" if summary.groups is not None else "")
            + f" and {seeds} seed{'s' if seeds != 1 else ''}."
        )
    return notes


def skipped_lines(summary: Summary) -> list[str]:
    """A line for each method that could not be had, with the reason."""
    return [f"{method}{f' ({at})' if at else ''}: {reason}" for method, at, reason in summary.skipped]


def render_table(summary: Summary, console: "Console") -> "RenderableType":
    """The table, its footnotes and what was skipped, as wide as the console allows."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from diptych.report.terminal import rich_table
    from diptych.report.words import clean

    table, left_out = rich_table(comparison_table(summary), console.width)
    notes = footnotes(summary)
    if left_out:
        notes.append(f"No room here for {joined(left_out)}; report.html has all.")
    parts: list[RenderableType] = [table] if summary.largest else [Text("no method finished")]
    parts += [Text(""), *(Text(clean(note), style="dim") for note in notes)]
    if lines := skipped_lines(summary):
        parts += [Text(""), Text("skipped", style="bold")]
        parts += [Padding(Text(clean(line)), (0, 0, 0, 2)) for line in lines]
    return Group(*parts)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f}"


def interval_words(interval: Interval) -> str:
    return f"{percent(interval.mean)} [{percent(interval.low)}–{percent(interval.high)}]"


def difference_words(interval: Interval | None) -> str:
    """Points with a sign: `+9.3 [+6.1, +12.4]`."""
    if interval is None:
        return "–"
    mean, low, high = (f"{v * 100:+.1f}".replace("-", "−") for v in interval)
    return f"{mean} [{low}, {high}]"


def seconds_number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def seconds_words(value: float) -> str:
    """`0.8 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if value < 60:
        return f"{seconds_number(value)} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if seconds else f"{minutes} min"


def count_words(value: float | None) -> str:
    if value is None:
        return "–"
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.0f}"


def joined(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = [*words] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _cell(text: str, value: float | None) -> Cell:
    return Cell(text, value, "muted" if text == "–" else "")
