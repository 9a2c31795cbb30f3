"""The report of `robustness`: figures in, tables and plots out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diptych.report import Cell, Column, Facts, Plot, Report, Section, Table, Text
from diptych.report.plots import Band, bars, curves, histogram, lines, looks
from diptych.report.plots import reliability as reliability_plot

AXES = {
    "factors": "What makes it fail",
    "shape": "Shape against texture",
    "ood": "Pictures of nothing it knows",
    "calibration": "How far its probabilities can be trusted",
    "modalities": "Between pictures and texts",
    "changes": "Changed pictures",
    "places": "Places in two views",
}
LEFT_OUT = "Use inside a language model is not measured: it needs one."
Axes = Mapping[str, Any]


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def spread(interval: Sequence[float]) -> str:
    return f"{percent(interval[0])} ({percent(interval[1])} to {percent(interval[2])})"


def number(value: float | None, digits: int = 3) -> Cell:
    return Cell("–", None, "muted") if value is None or np.isnan(value) else Cell(f"{value:.{digits}f}", value)


def robustness_report(figures: Mapping[str, Any]) -> Report:
    models: Mapping[str, Axes] = figures["models"]
    data = figures["data"]
    sections: list[Section] = [overview(models), *(Text(w, style="warning") for w in data["warnings"][:5])]
    draw = {
        "factors": factors, "shape": shape, "ood": ood, "calibration": calibration, "modalities": modalities,
        "changes": changes, "places": places,
    }  # fmt: skip
    for axis, title in AXES.items():
        own = {name: axes[axis] for name, axes in models.items() if "skipped" not in axes[axis]}
        left_out = {name: axes[axis]["skipped"] for name, axes in models.items() if "skipped" in axes[axis]}
        parts = draw[axis](own, title) if own else []
        same = set(left_out.values())
        if left_out:
            who = "" if len(same) == 1 and not own else ", ".join(left_out) + ": "
            parts.append(Text(f"{who}left out: {'; '.join(sorted(same))}.", title="" if parts else title))
        sections += parts
    sections += experiment(figures["zoo"])
    sections.append(Text(LEFT_OUT, title="What is not here"))
    subtitle = f"{data['source']}: {data['pictures']} pictures of {len(data['classes'])} classes"
    about = {"config": figures["config"], "data": data, **figures.get("provenance", {})}
    return Report("Robustness", sections, about, subtitle)


def overview(models: Mapping[str, Axes]) -> Section:
    columns = [
        Column("model", number=False), Column("accuracy %", "with its 95% interval"),
        Column("calibration error %", "15 bins, as it came"), Column("AUROC", "of what is not its classes"),
        Column("drop %", "mean relative drop over changed pictures"), Column("worst factor", number=False),
    ]  # fmt: skip
    rows = []
    for name, axes in models.items():
        detected = axes["ood"]
        other = next((s for s in detected["sets"] if s != "noise"), None)
        score = detected["sets"][other]["scores"][detected["score"]]["auroc"] if other else None
        ece = axes["calibration"].get("sets", {}).get("before", {}).get("ece", [None])[0]
        worst = axes["factors"]["rows"][0] if "rows" in axes["factors"] else None
        rows.append([
            name, Cell(spread(axes["plain"]["accuracy"]), axes["plain"]["accuracy"][0]), Cell(percent(ece), ece),
            number(score), Cell(percent(axes["changes"].get("relative_drop")), axes["changes"].get("relative_drop")),
            f"{worst['name']} ({percent(worst['accuracy'][0])}%)" if worst else "–",
        ])  # fmt: skip
    return Table(columns, rows, title="The models")


def factors(found: Mapping[str, Axes], title: str) -> list[Section]:
    sections: list[Section] = []
    measured = any(axes["measured"] for axes in found.values())
    note = "Sensitivity is (errors here / errors everywhere) - 1: 0 is as good as anywhere. "
    note += "Measured of the pictures themselves, a fifth of them at each end." if measured else ""
    for name, axes in found.items():
        rows = axes["rows"]
        words = "; ".join(f"{r['name']} {r['accuracy'][0]:.0%}" for r in rows)
        table = [
            [r["name"], Cell(str(r["count"]), r["count"]), Cell(spread(r["accuracy"]), r["accuracy"][0]),
             number(r["sensitivity"], 2)]
            for r in rows
        ]  # fmt: skip
        columns = [Column("factor", number=False), Column("pictures"), Column("accuracy %"), Column("sensitivity")]
        sections.append(Table(columns, table, title="" if sections else title, note=note, half=True))
        figure = bars([(r["name"], r["accuracy"][0]) for r in rows], f"accuracy of {name} on such pictures (%)")
        sections.append(Plot(figure, f"Accuracy by factor. {words}."))
        note = ""
    return sections


def shape(found: Mapping[str, Axes], title: str) -> list[Section]:
    rows = [
        [name, Cell(spread(axes["bias"]), axes["bias"][0]), Cell(percent(axes["decided"]), axes["decided"])]
        for name, axes in found.items()
    ]
    columns = [Column("model", number=False), Column("shape bias %"), Column("decided %")]
    note = "Of decisions for the class of the shape or of the texture, those for the shape; and how many were such."
    return [Table(columns, rows, title=title, note=note)]


def ood(found: Mapping[str, Axes], title: str) -> list[Section]:
    columns = [
        Column("model", number=False), Column("against", number=False), Column("score", number=False),
        Column("AUROC"), Column("FPR95 %"), Column("AUPR in"), Column("AUPR out"),
    ]  # fmt: skip
    rows, sections = [], []
    for name, axes in found.items():
        for other, one in axes["sets"].items():
            for score, d in one["scores"].items():
                mark = "" if score == axes["score"] else "muted"
                rows.append([
                    Cell(name, None, mark), other, score, number(d["auroc"]), Cell(percent(d["fpr95"]), d["fpr95"]),
                    number(d["aupr_in"]), number(d["aupr_out"]),
                ])  # fmt: skip
    note = "The share of pairs in which the known picture scores higher; the score that counts is not faint."
    if overlap := sorted({label for axes in found.values() for label in axes.get("overlap", [])}):
        note += f" These classes are among the known ones: {', '.join(overlap)}."
    sections.append(Table(columns, rows, title=title, note=note))
    series = {
        f"{name}, {other}": [(x, y) for x, y in one["roc"]]
        for name, axes in found.items()
        for other, one in axes["sets"].items()
    }
    figure = lines(series, "share of the others kept", "share of the known kept (%)", percent=True)
    sections.append(Plot(figure, f"Receiver operating curves of {', '.join(series)}."))
    name, axes = next(iter(found.items()))
    other, one = next(iter(axes["sets"].items()))
    figure = histogram(one["edges"], {"known": one["inside"], other: one["outside"]}, f"{axes['score']} of {name}")
    sections.append(Plot(figure, f"Histogram of {axes['score']} for known pictures and {other}."))
    return sections


def calibration(found: Mapping[str, Axes], title: str) -> list[Section]:
    columns = [
        Column("model", number=False), Column("pictures of", number=False), Column("T"), Column("ECE %"),
        Column("equal mass %"), Column("NLL"), Column("Brier"), Column("surer than right %"),
    ]  # fmt: skip
    rows, sections = [], []
    look = looks(list(found))
    for name, axes in found.items():
        for which, one in axes["sets"].items():
            temperature = axes["best"] if which.endswith("after") else axes["temperature"]
            rows.append([
                name, which.replace("before", "as it came").replace("after", "with the best T"),
                number(temperature, 2), Cell(spread(one["ece"]), one["ece"][0]),
                Cell(percent(one["equal_mass"]), one["equal_mass"]), number(one["nll"]), number(one["brier"]),
                Cell(f"{100 * one['over']:+.1f}", one["over"]),
            ])  # fmt: skip
    scales = ", ".join(f"{n} {a['scale']:.1f}" for n, a in found.items() if a["scale"] is not None)
    note = (
        "The temperature T is found on one half of the pictures, the other half is judged; shifted pictures with the "
    )
    note += f"same T. Logits are cosines times: {scales}." if scales else "same T."
    sections.append(Table(columns, rows, title=title, note=note))
    for name, axes in found.items():
        for which, one in axes["sets"].items():
            edges, count, confidence, right = (np.array(part) for part in one["bins"])
            words = f"{name}, {which}: calibration error {percent(one['ece'][0])}%"
            figure = reliability_plot(edges, count, confidence, right, words, look[name].colour)
            sections.append(Plot(figure, f"Reliability. {words}."))
    return sections


def modalities(found: Mapping[str, Axes], title: str) -> list[Section]:
    columns = [Column("model", number=False), Column("gap"), Column("image to text R@1, 5, 10"),
               Column("text to image R@1, 5, 10")]  # fmt: skip
    rows = []
    for name, axes in found.items():
        ways = axes["retrieval"]
        cells = [
            ", ".join(percent(ways[way][f"R@{k}"]) for k in (1, 5, 10)) if way in ways else "–"
            for way in ("image to text", "text to image")
        ]
        rows.append([name, number(axes["gap"]), *cells])
    note = "The distance between the mean picture and the mean text, both of length one."
    if reasons := sorted({a["retrieval"]["skipped"] for a in found.values() if "skipped" in a["retrieval"]}):
        note += f" Retrieval is left out: {'; '.join(reasons)}."
    return [Table(columns, rows, title=title, note=note)]


def changes(found: Mapping[str, Axes], title: str) -> list[Section]:
    first = next(iter(found.values()))
    kinds, severities = list(first["kinds"]), list(next(iter(first["kinds"].values())))
    columns = [Column("change", number=False), *(Column(f"{n} {s}") for n in found for s in severities)]
    rows = [
        [kind, *(Cell(percent(a["kinds"][kind][s]["accuracy"][0]), a["kinds"][kind][s]["accuracy"][0])
                 for a in found.values() for s in severities)]
        for kind in kinds
    ]  # fmt: skip
    depth = "the scenes' own depth" if first["depth"] else "a flat wall, since no depth is known"
    clean = ", ".join(f"{name} {percent(axes['clean'])}" for name, axes in found.items())
    note = f"Accuracy (%) by severity, on {first['pictures']} pictures; without a change: {clean}. Depth: {depth}."
    sections: list[Section] = [Table(columns, rows, title=title, note=note)]
    for name, axes in found.items():
        hardest = sorted(kinds, key=lambda k, a=axes: a["kinds"][k][severities[-1]]["accuracy"][0])[:8]
        series = {
            kind: [Band(0, axes["clean"], axes["clean"], axes["clean"])]
            + [Band(i, *_ordered(axes["kinds"][kind][s]["accuracy"])) for i, s in enumerate(severities, 1)]
            for kind in hardest
        }
        figure = curves(series, ["none", *severities], f"severity ({name})", "accuracy (%)", looks(hardest))
        words = "; ".join(f"{kind} {axes['kinds'][kind][severities[-1]]['accuracy'][0]:.0%}" for kind in hardest)
        sections.append(Plot(figure, f"Accuracy by severity of the hardest changes, at the last: {words}."))
    return sections


def _ordered(interval: Sequence[float]) -> tuple[float, float, float]:
    return interval[0], interval[1], interval[2]


def places(found: Mapping[str, Axes], title: str) -> list[Section]:
    first = next(iter(found.values()))
    columns = [Column("camera moved by"), *(Column(f"{name}, within {t}") for name in found for t in ("1", "2"))]
    rows = [
        [Cell(shift, float(shift)), *(Cell(percent(a["shifts"][shift][t])) for a in found.values() for t in ("1", "2"))]
        for shift in first["shifts"]
    ]
    note = "Recall (%): how many patches on a thing have their nearest patch within so many patches of where it went."
    return [Table(columns, rows, title=title, note=note)]


def experiment(zoo: Mapping[str, Any]) -> list[Section]:
    title = "What explains it"
    if "skipped" in zoo:
        return [Text(f"left out: {zoo['skipped']}.", title=title)]
    names = sorted({key for row in zoo["rows"].values() for key in row if key not in ("tags", "baseline")})
    tags = sorted({tag for row in zoo["rows"].values() for tag in row["tags"]})
    columns = [Column("model", number=False), *(Column(t, number=False) for t in tags), *map(Column, names)]
    rows = [
        [name, *(row["tags"].get(t, "–") for t in tags), *(number(row.get(m)) for m in names)]
        for name, row in zoo["rows"].items()
    ]
    sections: list[Section] = [Table(columns, rows, title=title)]
    pairs = [
        [m, p["tag"], f"{p['word']} - {p['other']}", Cell(f"{p['mean']:+.3f}", p["mean"]), str(p["pairs"]),
         "" if p["conclusive"] else "observational"]
        for m, found in zoo["paired"].items() for p in found
    ]  # fmt: skip
    if pairs:
        columns = [Column("figure", number=False), Column("tag", number=False), Column("words", number=False),
                   Column("difference"), Column("pairs"), Column("", number=False)]  # fmt: skip
        note = "Models that differ in this tag alone. Fewer than three pairs show, and do not prove."
        sections.append(Table(columns, pairs, note=note))
    effects = [
        [m, e["tag"], f"{e['word']} - {e['other']}", Cell("{:+.3f} ({:+.3f} to {:+.3f})".format(*e["effect"])),
         "observational" if e["observational"] else ""]
        for m, found in zoo["regression"].items() for e in found
    ]  # fmt: skip
    if effects:
        columns = [Column("figure", number=False), Column("tag", number=False), Column("words", number=False),
                   Column("effect"), Column("", number=False)]  # fmt: skip
        sections.append(Table(columns, effects, note="Least squares beside accuracy and the other tags."))
    above = zoo["effective_robustness"]
    if "skipped" in above:
        sections.append(Text(f"Effective robustness is left out: {above['skipped']}."))
    else:
        facts = [
            (name, f"{100 * one[0]:+.1f}", f"{100 * one[1]:+.1f} to {100 * one[2]:+.1f}") for name, one in above.items()
        ]
        sections.append(Facts(facts, note="Effective robustness: points above what the baselines' line expects."))
    return sections
