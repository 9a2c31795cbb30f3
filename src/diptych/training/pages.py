"""The report of a training run: what came out, and the curves."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.report import Column, Facts, Plot, Report, Section, Table, Text, write_html
from diptych.report.plots import lines
from diptych.training.outcome import Trained
from diptych.training.plan import Plan

NAMES = {
    "loss": "loss",
    "temperature": "multiplier of the cosine",
    "gradient_norm": "norm of the gradient",
    "rate": "learning rate",
    "samples_per_second": "samples a second",
}


def write_report(
    path: Path,
    plan: Plan,
    source: str,
    pairs: int,
    made: Trained,
    about: Mapping[str, Any],
) -> Path:
    """Write report.html from the lines of metrics.csv."""
    rows, set_aside = made.rows, made.set_aside
    last = rows[-1]
    speeds = sorted(row["samples_per_second"] for row in rows)
    facts = [
        ("loss", f"{last['loss']:.3f}", f"{rows[0]['loss']:.3f} at the first step"),
        ("steps", f"{int(last['step'])}", f"{last['epoch']:.3g} epochs of {pairs} pairs"),
        ("samples a second", f"{speeds[len(speeds) // 2]:.0f}", f"batches of {plan.order.batch}"),
    ]
    judged = [row for row in rows if "accuracy" in row]
    if judged:
        best = max(row["accuracy"] for row in judged)
        facts.insert(0, ("zero-shot", f"{judged[-1]['accuracy']:.1%}", f"{best:.1%} at its best"))
    sections: list[Section] = [Facts(facts, title="What came out")]
    if made.facts:
        sections.append(Facts(made.facts))
    if judged:
        points = [(row["step"], row["accuracy"]) for row in judged]
        figure = lines({"zero-shot": points}, "step", "accuracy (%)", percent=True)
        sections.append(Plot(figure, "Zero-shot accuracy by step", title="Curves"))
    fixed = {*NAMES, "step", "epoch", "seconds", "accuracy"}
    terms = [name for name in rows[0] if name not in fixed]
    for name, label in NAMES.items():
        shown = [name, *terms] if name == "loss" and len(terms) > 1 else [name]
        series = {NAMES.get(one, one): [(row["step"], row[one]) for row in rows if one in row] for one in shown}
        title = "" if any(section.title == "Curves" for section in sections) else "Curves"
        sections.append(Plot(lines(series, "step", label), f"{label} by step", title=title))
    if set_aside:
        reasons = Counter(one.reason for one in set_aside).most_common()
        table = Table(
            [Column("reason", number=False), Column("pairs"), Column("the first", number=False)],
            [
                (reason, str(count), next(one.id for one in set_aside if one.reason == reason))
                for reason, count in reasons[:50]
            ],
            title="Set aside",
            note=f"{len(set_aside)} things could not be used and were left out.",
        )
        sections.append(table)
    sections.append(Text(f"Pairs: {source}", title="Data"))
    return write_html(Report(f"Training {plan.objective.system()}", sections, about), path)
