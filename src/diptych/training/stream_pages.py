"""What came of a stream: the table in the terminal, results.json, and report.html with a matrix for each system."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.metrics import continual as measures
from diptych.report import Cell, Column, Facts, Plot, Report, Section, Table, write_html
from diptych.report.plots import Band, curves, looks, matrix
from diptych.training.stream import Course, Taught

MEASURES = {
    "average": "mean R@1 over all sessions at the end",
    "old sessions": "mean R@1 over all sessions but the last at the end",
    "last session": "R@1 on the last session at the end",
    "forgetting": "mean over old sessions: the best since it was learned, less the end",
    "backward transfer": "mean over old sessions: the end, less right after it was learned",
    "forward transfer": "mean over later sessions: just before it is learned, less the start",
}
WAYS = ("image to text", "text to image")


def measured(course: Course) -> dict[str, float]:
    """The measures of a course by name, as shares of one."""
    scores, start = course.scores, course.start
    return {
        "average": measures.average(scores),
        "old sessions": measures.old_average(scores),
        "last session": scores[-1, -1].item(),
        "forgetting": measures.forgetting(scores),
        "backward transfer": measures.backward_transfer(scores),
        "forward transfer": measures.forward_transfer(scores, start),
    }


def comparison(taught: Taught) -> Table:
    """One line a system; what is best in a column stands out."""
    found = {name: measured(course) for name, course in taught.courses.items()}
    best = {
        what: (min if what == "forgetting" else max)(by[what] for by in found.values()) if len(found) > 1 else None
        for what in MEASURES
    }
    order = ("average", "old sessions", "last session", "forgetting", "backward transfer", "forward transfer")
    columns = [Column("system", number=False)]
    columns += [Column(what, MEASURES[what], drop=max(0, i - 3)) for i, what in enumerate(order)]
    rows = [
        [name, *(Cell(points(by[what]), by[what], "best" if by[what] == best[what] else "") for what in order)]
        for name, by in found.items()
    ]
    note = "R@1 in percent, the mean of picture to text and text to picture, on what was held out of each session."
    return Table(columns, rows, title="What is left of each session", note=note)


def write_results(taught: Taught, about: Mapping[str, Any]) -> None:
    """results.json and report.html in the stream's folder."""
    record = {
        "about": dict(about),
        "sessions": taught.names,
        "systems": {
            name: {"measures": measured(course), "before": course.before, "after": course.after}
            for name, course in taught.courses.items()
        },
        "provenance": provenance(),
    }
    write_atomically(taught.folder / "results.json", json.dumps(record, indent=1).encode())
    write_report(taught, dict(about) | provenance())


def write_report(taught: Taught, about: Mapping[str, Any]) -> Path:
    first = next(iter(taught.courses.values()))
    found = measured(first)
    sections: list[Section] = []
    if len(taught.courses) == 1:
        facts = [
            ("average", points(found["average"]), MEASURES["average"]),
            ("forgetting", points(found["forgetting"]), "points of R@1, of all sessions but the last"),
            ("last session", points(found["last session"]), f"R@1 on {taught.names[-1]}"),
        ]
        sections.append(Facts(facts, title="What came out"))
    sections.append(comparison(taught))
    sections += overview(taught)
    for name, course in taught.courses.items():
        sections += of_course(name, course, taught.names)
    title = f"Teaching {len(taught.names)} sessions with {', '.join(taught.courses)}"
    return write_html(Report(title, sections, about), taught.folder / "report.html")


def overview(taught: Taught) -> list[Section]:
    """All systems by session: what is known so far, and what of the first session is left."""
    if len(taught.names) < 2:
        return []
    ticks, look = taught.names, looks(list(taught.courses))

    def series(value: Any) -> dict[str, list[Band]]:
        return {
            name: [Band(i, v, v, v) for i in range(len(ticks)) for v in [float(value(course.scores, i))]]
            for name, course in taught.courses.items()
        }

    so_far = curves(series(lambda s, i: s[i, : i + 1].mean()), ticks, "after session", "R@1 so far (%)", look)
    oldest = curves(series(lambda s, i: s[i, 0]), ticks, "after session", f"R@1 on {ticks[0]} (%)", look)
    return [
        Plot(so_far, "Mean R@1 over the sessions so far, after each session", title="Session by session"),
        Plot(oldest, f"R@1 on {ticks[0]} after each session"),
    ]


def of_course(name: str, course: Course, names: list[str]) -> list[Section]:
    """The matrix, the recalls and the drift of one system."""
    figure = matrix(course.scores.numpy(), names, "tried on", "after session", "R@1")
    columns = [Column("after", number=False), *(Column(one) for one in names)]
    rows = [["before", *(points(on["mean"]["1"]) for on in course.before)]]
    rows += [[step["session"], *(points(on["mean"]["1"]) for on in step["recalls"])] for step in course.after]
    last = course.after[-1]["recalls"]
    both = [Column("at the end", number=False)]
    both += [Column(f"{way}\nR@{k}") for way in WAYS for k in ("1", "5", "10")]
    ends = [
        [one, *(points(on[way][k]) for way in WAYS for k in ("1", "5", "10"))]
        for one, on in zip(names, last, strict=True)
    ]
    kinds = list(course.after[0]["drift"])

    def moved(name: str, by: Mapping[str, float]) -> list[str]:
        return [name, *(points(by[kind]) if "flip" in kind else f"{by[kind]:.1f}" for kind in kinds)]

    drift = [moved(step["session"], step["drift"]) for step in course.after]
    drift.append(moved("from the start", course.after[-1]["drift from the start"]))
    note = (
        f"On what was held out of {names[0]}, against the model before the session. Angles in degrees: how far "
        "embeddings turned, how much angles within a modality changed, and how far apart the rotations of pictures and "
        "texts are (deviation); share in percent of queries whose best match is another one."
    )
    return [
        Plot(figure, f"R@1 of {name} after each session (rows) on each session (columns)", title=name),
        Table(columns, rows, note="R@1 in percent, mean of both directions.", half=True),
        Table(both, ends),
        Table([Column("session", number=False), *map(Column, kinds)], drift, note=note, title=f"Drift of {name}"),
    ]


def points(share: float) -> str:
    return f"{100 * share:.1f}"
