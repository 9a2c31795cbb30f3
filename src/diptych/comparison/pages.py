"""The report of a comparison: a `Summary` told in sections."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diptych.comparison.stats import class_recall, confusion
from diptych.comparison.summary import REFERENCE, Standing, Summary, Winner, results_json, shots_words, write_json
from diptych.comparison.table import (
    comparison_table,
    count_words,
    footnotes,
    joined,
    percent,
    seconds_words,
    skipped_lines,
)
from diptych.errors import DiptychError
from diptych.metrics.calibration import reliability
from diptych.report import Cell, Column, Facts, Gallery, Picture, Plot, Report, Section, Table, Text, write_html
from diptych.report.plots import Band, bars, changes, curves, looks, matrix, scatter
from diptych.report.plots import reliability as reliability_plot

__all__ = ["Summary", "comparison_report", "results_json", "write_json", "write_report"]

MISTAKES = 24
LISTED = 200  # lines of a list on the page; results.json has all
BARS = 30  # classes with a bar of their own


def write_report(path: Path | str, summary: Summary) -> Path:
    """Write report.html, whole or not at all."""
    return write_html(comparison_report(summary), path)


def comparison_report(summary: Summary) -> Report:
    parts = (_verdict, _table, _curves, _lost, _confusion, _calibration, _mistakes, _classes, _data)
    sections = [section for part in parts for section in part(summary)]
    many, classes = len(summary.truth), len(summary.class_names)
    asked = f"{many:,} test {summary.items} that no method was fitted on"
    subtitle = f"{len(summary.methods)} methods · {classes:,} classes · {asked}"
    return Report(summary.title, sections, summary.provenance, subtitle)


def _verdict(summary: Summary) -> list[Section]:
    sections: list[Section] = []
    winner, won = summary.winner, summary.winning
    if winner and won:
        accuracy, versus, fit = won.accuracy, won.versus_zero_shot, won.fit_seconds
        interval = f"95% interval {percent(accuracy.low)} to {percent(accuracy.high)}" if accuracy else ""
        facts = [
            (
                "Winner",
                won.method,
                f"with all labelled {summary.items}" if won.shots == "all" else f"at {shots_words(won.shots)} a class",
            ),
            ("Test accuracy", f"{percent(won.accuracy_mean)}%", interval),
        ]
        if versus:
            small = f"points, {percent(versus.low)} to {percent(versus.high)}".replace("-", "−")
            facts.append(("Against zero-shot", _signed(versus.mean), small))
        if won.validation is not None:
            facts.append(("Validation", f"{percent(won.validation)}%", "what it was chosen by"))
        if fit is not None:
            trained = "" if won.trainable is None else f"{count_words(won.trainable)} parameters"
            facts.append(("Time to fit", seconds_words(fit), trained))
        settings = ", ".join(f"{name} = {value}" for name, value in winner.config.items())
        note = f"Settings of the saved winner: {settings}." if settings else ""
        sections += [Facts(facts, title="Verdict"), Text(_sentences(summary, winner, won), style="lead", note=note)]
    else:
        sections.append(Text("No method finished, so there is no winner.", title="Verdict"))
    if summary.warnings:
        sections.append(Text([*summary.warnings[:LISTED]], style="warning"))
    return sections


def _sentences(summary: Summary, winner: Winner, won: Standing) -> list[str]:
    validation = "" if won.validation is None else f" ({percent(won.validation)}%)"
    out = [
        f"**{won.method}** is the winner: {winner.chosen}{validation}. On {len(summary.truth):,} {summary.items} "
        f"that it had never met it is right on **{percent(won.accuracy_mean)}%**."
    ]
    if versus := won.versus_zero_shot:
        points = f"{abs(versus.mean) * 100:.1f} points (95% interval {_span(versus)})"
        word = "better" if versus.mean > 0 else "worse"
        if versus.distinguishable:
            out.append(f"That is **{word} than zero-shot** by {points}.")
        else:
            out.append(
                f"It **cannot be told apart from zero-shot** with this many {summary.items}: {word} by {points}."
            )
    if second := summary.runner_up:
        apart = summary.difference(won.key, second.key)
        name = f"The runner-up, **{second.method}** ({percent(second.accuracy_mean)}%)"
        if apart and apart.distinguishable:
            out.append(
                f"{name}, is told apart by these {summary.items}: {_signed(apart.mean)} points ({_span(apart)})."
            )
        elif apart:
            out.append(
                f"{name}, **cannot be told apart** from it with this many {summary.items}: a difference of "
                f"{_signed(apart.mean)} points ({_span(apart)}). Let time, memory or new classes decide."
            )
    if (luckier := summary.luckier) and luckier != summary.runner_up:
        out.append(
            f"{luckier.method} did better on the test {summary.items} ({percent(luckier.accuracy_mean)}%), but not in "
            "validation. Choosing by the test column would make its figure too good to be true."
        )
    out.append(
        f"The saved winner{f' ({Path(winner.file).name})' if winner.file else ''} was then fitted again on all "
        f"{winner.refit_on:,} labelled {summary.items}, those of the test too; the figures here are from before that."
    )
    return out


def _table(summary: Summary) -> list[Section]:
    table = comparison_table(summary, full=True)
    sections: list[Section] = [
        Table(table.columns, table.rows, table.chosen, title="All methods", note=" ".join(footnotes(summary)))
    ]
    if lines := skipped_lines(summary):
        sections.append(Text([f"Skipped: {line}" for line in lines], style="list"))
    names = [name for name in _ROW if any(name in row for row in summary.rows)]
    columns = [Column(name, number=name not in ("method", "config", "skipped")) for name in names]
    rows = [[_raw(row.get(name)) for name in names] for row in summary.rows]
    sections.append(
        Table(
            columns, rows, fold=f"All {len(rows):,} rows", note="One row a method, shots and seed, as in results.json."
        )
    )
    return sections


_ROW = (
    "method", "shots", "seed", "accuracy", "macro_recall", "ece", "validation", "encode_seconds", "fit_seconds",
    "ms_per_image", "peak_mb", "trainable", "new_class_before", "new_class_after", "config", "skipped",
)  # fmt: skip


def _raw(value: object) -> Cell | str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.4g}", float(value))
    return "" if value is None else str(value)


def _curves(summary: Summary) -> list[Section]:
    if not summary.largest:
        return []
    look, shots = looks(summary.methods), summary.shots
    series = {
        s.method: [
            _band(x, standing)
            for x, at in enumerate(shots)
            if (standing := summary.standings.get((s.method, at))) is not None
        ]
        for s in summary.largest
    }
    words = "; ".join(
        f"{name}: " + ", ".join(f"{percent(p.y)}% at {shots_words(shots[int(p.x)])}" for p in points)
        for name, points in series.items()
    )
    figure = curves(
        series, [str(s) for s in shots], f"labelled {summary.items} a class (shots)", "test accuracy (%)", look
    )
    sections: list[Section] = [
        Plot(
            figure,
            f"Test accuracy against shots. {words}.",
            title="Accuracy against shots and cost",
            note="Whiskers are 95% intervals. Those of two methods may overlap although their paired difference is "
            "clear: see the column against zero-shot.",
        )
    ]
    costs = {
        s.method: _band(max((s.encode_seconds or 0) + (s.fit_seconds or 0), 1e-3), s)
        for s in summary.largest
        if s.encode_seconds is not None or s.fit_seconds is not None
    }
    if costs:
        words = "; ".join(f"{name}: {percent(p.y)}% for {seconds_words(p.x)}" for name, p in costs.items())
        figure = scatter(costs, "time to encode and fit (logarithmic)", "test accuracy (%)", look, seconds=True)
        note = "Each method at its largest shots. Up and to the left is better."
        sections.append(Plot(figure, f"Test accuracy against time. {words}.", note=note))
    return sections


def _band(x: float, standing: Standing) -> Band:
    accuracy, mean = standing.accuracy, standing.accuracy_mean
    return Band(x, mean, accuracy.low, accuracy.high) if accuracy else Band(x, mean, mean, mean)


def _lost(summary: Summary) -> list[Section]:
    pairs = {
        s.method: (s.new_class_before, s.new_class_after)
        for s in summary.largest
        if s.new_class_before is not None and s.new_class_after is not None and s.method != REFERENCE
    }
    cannot = [s.method for s in summary.largest if s.new_class_after is None and s.method != REFERENCE]
    if not pairs:
        return []
    words = "; ".join(f"{name}: {percent(a)}% before, {percent(b)}% after" for name, (a, b) in pairs.items())
    note = "Accuracy on classes that were held out of the fit and then named: zero-shot, and after the fit."
    if cannot:
        note += f" {joined(cannot)} cannot name a new class."
    figure = changes(pairs, "accuracy on classes held out of the fit (%)", ("before", "after"), looks(summary.methods))
    return [Plot(figure, f"Accuracy on new classes. {words}.", title="What was lost", note=note)]


def _confusion(summary: Summary) -> list[Section]:
    if not (cells := summary.of_winner()):
        return []
    assert summary.winner
    names, total = summary.class_names, np.sum([confusion(p, summary.truth) for p in cells], axis=0)
    share = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    wrong = total - np.diag(np.diag(total))
    order = np.argsort(-wrong, axis=None, kind="stable")[:15]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    most = "; ".join(f"{names[i]} taken for {names[j]} {share[i, j]:.0%}" for i, j in pairs[:5])
    seeds = f", {len(cells)} seeds together" if len(cells) > 1 else ""
    figure = matrix(share, names, "taken for", "truth", "share of the class (%)")
    rows = [[names[i], names[j], Cell(f"{share[i, j]:.0%}", float(share[i, j])), f"{wrong[i, j]}"] for i, j in pairs]
    columns = [
        Column("truth", number=False),
        Column("taken for", number=False),
        Column("share of the class"),
        Column("times", f"over {len(cells)} seeds"),
    ]
    sections: list[Section] = [
        Plot(
            figure,
            f"Confusion matrix of {summary.winner.method}. Most frequent: {most or 'no mistake'}.",
            title="What the winner confuses",
            note=f"{summary.winner.method} at {shots_words(summary.winner.shots)}{seeds}. Each row adds up to 100%.",
        )
    ]
    if rows:
        sections.append(Table(columns, rows, half=True))
    return sections


def _calibration(summary: Summary) -> list[Section]:
    if not summary.winner:
        return []
    keys = [(summary.winner.method, summary.winner.shots), summary.reference(summary.winner.shots)]
    sections: list[Section] = []
    for key in dict.fromkeys(keys):
        if key is None or not (cells := summary.of_winner(key)):
            continue
        bins = reliability(np.concatenate(cells), np.tile(summary.truth, len(cells)))
        words = "; ".join(
            f"stated {c:.0%}, right {a:.0%} ({n} predictions)"
            for c, a, n in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
            if n
        )
        error = f"calibration error {percent(bins.ece)}%"
        sections.append(
            Plot(
                reliability_plot(
                    bins.edges,
                    bins.count,
                    bins.confidence,
                    bins.accuracy,
                    title=f"{key[0]}: {error}",
                    colour=looks(summary.methods)[key[0]].colour,
                ),
                f"Reliability of {key[0]}, {error}. {words}.",
                title="" if sections else "How far its probabilities can be trusted",
                note="" if sections else "Below the dashed line it is surer than right, above it too modest.",
            )
        )
    return sections


def _mistakes(summary: Summary) -> list[Section]:
    if not (cells := summary.of_winner()):
        return []
    stack = np.stack([p.max(axis=1) for p in cells])  # [seeds, N]
    guesses = np.stack([p.argmax(axis=1) for p in cells])
    wrong = guesses != summary.truth
    sure = np.where(wrong, stack, -1.0)
    worst = sure.argmax(axis=0)  # the seed that was wrong the most surely
    order = [int(n) for n in np.argsort(-sure.max(axis=0), kind="stable")[:MISTAKES]]
    names = summary.class_names
    items = [
        Picture(
            _thumbnail(summary, n),
            summary.test_ids[n],
            truth=names[int(summary.truth[n])],
            guess=names[int(guesses[worst[n], n])],
            score=float(sure[worst[n], n]),
            note=f"wrong with {wrong[:, n].sum()} of {len(cells)} seeds" if len(cells) > 1 else "",
        )
        for n in order
        if wrong[:, n].any()
    ]
    if not items:
        return [Text(f"The winner is right on all test {summary.items}.", title="Worst mistakes")]
    missed = int(wrong.any(axis=0).sum())
    note = (
        f"The {len(items)} surest wrong answers of the winner, of {missed:,} {summary.items} that it got wrong. "
        "A wrong label in the data shows up here too."
    )
    return [Gallery(items, title="Worst mistakes", note=note)]


def _thumbnail(summary: Summary, index: int) -> bytes | None:
    if summary.thumbnail is None:
        return None
    try:
        return summary.thumbnail(index)
    except (OSError, DiptychError):  # moved or changed since the run began: the page says so in its place
        return None


def _classes(summary: Summary) -> list[Section]:
    if not (cells := summary.of_winner()):
        return []
    assert summary.winner
    names, totals = summary.class_names, np.bincount(summary.truth, minlength=len(summary.class_names))
    recall = class_recall(np.sum([confusion(p, summary.truth) for p in cells], axis=0))
    zero = summary.of_winner(summary.reference(summary.winner.shots))
    zero_recall = class_recall(np.sum([confusion(p, summary.truth) for p in zero], axis=0)) if zero else None
    order = sorted((int(i) for i in np.flatnonzero(totals)), key=lambda i: (recall[i], i))
    shown = order[:BARS]
    title = "Recall of each class"
    note = f"The {BARS} classes found the least; the table has all." if len(order) > BARS else ""
    figure = bars(
        [(names[i], float(recall[i])) for i in shown],
        "share of the class that the winner finds (%)",
        looks(summary.methods)[summary.winner.method].colour,
    )
    words = "; ".join(f"{names[i]} {recall[i]:.0%}" for i in shown)
    columns = [Column("#"), Column("class", number=False), Column(f"test {summary.items}"), Column("recall %")]
    columns += [Column("zero-shot recall %")] if zero_recall is not None else []
    rows: list[Sequence[Cell | str]] = []
    for i in range(len(names)):
        figures = [recall[i], *([zero_recall[i]] if zero_recall is not None else [])]
        row: list[Cell | str] = [str(i + 1), names[i], Cell(str(totals[i]), float(totals[i]))]
        rows.append(row + [Cell("–", None, "muted") if np.isnan(v) else Cell(percent(v), float(v)) for v in figures])
    return [
        Plot(figure, f"Recall of each class. {words}.", title=title, note=note),
        Table(columns, rows, half=True),
    ]


def _data(summary: Summary) -> list[Section]:
    counts = np.bincount(summary.truth, minlength=len(summary.class_names))
    empty = [summary.class_names[int(i)] for i in np.flatnonzero(counts == 0)]
    few, most = counts.min(), counts.max()
    each = f"{few:,}" if few == most else f"{few:,} to {most:,}"
    lines = [f"{len(summary.truth):,} test {summary.items} in {len(summary.class_names):,} classes, {each} a class."]
    if empty:
        lines.append(
            f"No test picture: {joined(empty[:10])}{f' and {len(empty) - 10} more' if len(empty) > 10 else ''}."
        )
    lines.append(f"{_many(len(summary.set_aside), 'file')} could not be used and set aside.")
    exact = sum(kind == "exact" for _, kind in summary.duplicates)
    groups = f"{_many(exact, 'group')} of equal and {len(summary.duplicates) - exact:,} of nearly equal {summary.items}"
    lines.append(f"{groups}; each was kept on one side of the split.")
    if summary.estimated_seconds is not None and summary.seconds is not None:
        lines.append(
            f"Expected to take {seconds_words(summary.estimated_seconds)}, took {seconds_words(summary.seconds)}."
        )
    sections: list[Section] = [Text(lines, style="list", title=f"The {summary.items}")]
    if many := len(summary.set_aside):
        rows = [[name, reason] for name, reason in summary.set_aside[:LISTED]]
        columns = [Column("set aside", number=False), Column("reason", number=False)]
        sections.append(Table(columns, rows, fold="What was set aside", note=_more(many)))
    if many := len(summary.duplicates):
        rows = [[" = ".join(ids), kind] for ids, kind in summary.duplicates[:LISTED]]
        columns = [Column("duplicates", number=False), Column("kind", number=False)]
        sections.append(Table(columns, rows, fold="The duplicates", note=_more(many)))
    return sections


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _more(count: int) -> str:
    return f"{count - LISTED:,} more are in results.json." if count > LISTED else ""


def _signed(value: float) -> str:
    return f"{value * 100:+.1f}".replace("-", "−")


def _span(interval: Sequence[float]) -> str:
    return f"{_signed(interval[1])} to {_signed(interval[2])}"
