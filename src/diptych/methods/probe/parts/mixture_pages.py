"""The report of `mixing`: figures in, tables and plots out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diptych.data.mixture import parse_mixture
from diptych.methods.probe.parts.pages import number, percent, spread
from diptych.metrics.robustness import linked
from diptych.report import Cell, Column, Facts, Plot, Report, Section, Table, Text
from diptych.report.plots import Band, curves, looks, probits

KINDS = {"input": "trained", "output": "ensemble"}
Figures = Mapping[str, Any]


def mixing_report(figures: Figures) -> Report:
    data, shifts = figures["data"], figures["shifts"]
    sections: list[Section] = [*advice(figures["advice"])]
    if not shifts:
        sections.append(Text("No pictures as they come elsewhere were given: there is no line.", style="warning"))
    for name, shift in shifts.items():
        sections += [*lines_section(figures, name, shift), *mixed(name, shift)]
    sections.append(runs(figures["runs"], shifts, len(data["classes"])))
    subtitle = f"{data['source']}: {data['pictures']} pictures of {len(data['classes'])} classes; " + ", ".join(
        f"{name} {count}" for name, (count, _) in data["shifted"].items()
    )
    return Report(
        "Mixing", sections, {"config": figures["config"], "data": data, **figures.get("provenance", {})}, subtitle
    )


def advice(found: Figures) -> list[Section]:
    where = ", ".join(found["targets"]) or "nothing"
    if "refused" in found:
        return [Text(f"For {where} nothing is recommended: {found['refused']}.", title="What to mix", style="warning")]
    facts = [
        ("recommended", found["mixture"], f"for {where}; {KINDS[found['kind']]}"),
        ("accuracy there", f"{percent(found['stated'][0])}%", f"{spread(found['stated'])}, on the other half"),
    ]
    if "gain" in found:
        facts.append((f"over {found['single']}", f"{100 * found['gain'][0]:+.1f}", spread(found["gain"])))
    note = "Chosen on one half of the pictures, stated on the other; read from the lines at one reference accuracy."
    if found["kind"] == "output":
        note += " It is what an ensemble says: train on the mixture to be sure."
    rows = [[c["mixture"], KINDS[c["kind"]], cell(c["choosing"]), cell(c["stated"])] for c in found["candidates"]]
    columns = [
        Column("mixture", number=False),
        Column("", number=False),
        Column("choosing half %"),
        Column("other half %"),
    ]
    return [Facts(facts, title="What to mix", note=note), Table(columns, rows, chosen=0, fold="All candidates")]


def lines_section(figures: Figures, name: str, shift: Figures) -> list[Section]:
    sound = [line for line in shift["lines"] if not line["refused"]]
    height = f"at {percent(shift['at'])}%" if shift["at"] else "height"
    columns = [Column("mixture", number=False), Column("", number=False), Column("runs", drop=1),
               Column("slope", drop=3), Column("intercept", drop=4), Column("R\u00b2", drop=2), Column(height),
               Column("", number=False)]  # fmt: skip
    rows = []
    for line in shift["lines"]:
        about = [line["mixture"], KINDS[line["kind"]]]
        if "slope" not in line:
            rows.append([*about, "", "", "", "", "", f"refused: {line['refused']}"])
            continue
        say = f"refused: {line['refused']}" if line["refused"] else "" if line["reached"] else "beyond its runs"
        say += f"; {line['dropped']} dropped" if line["dropped"] else ""
        rows.append([
            *about, str(line["runs"]), interval(line["slope"]), interval(line["intercept"]), number(line["r2"]),
            Cell(spread(line["at"]), line["at"][0]) if line["at"] else "", say.strip("; "),
        ])  # fmt: skip
    order = ", then ".join(shift["order"]) if len(shift["order"]) > 1 else ""
    note = f"By the height of the line at one accuracy on the reference: {order}. " if order else ""
    note += "Runs below twice chance on either axis are dropped. Intervals: bootstrap over pictures and runs, 95%."
    sections: list[Section] = [Table(columns, rows, title=f"Lines on {name}", note=note)]
    trained = [line for line in sound if line["kind"] == "input"]
    if trained:
        sections.append(plot(figures, name, trained))
    return sections


def plot(figures: Figures, name: str, trained: Sequence[Figures]) -> Plot:
    points: dict[str, list[tuple[float, float]]] = {}
    edge = 0.5 / max(figures["data"]["shifted"][name][0], 1)
    known = {line["mixture"] for line in trained}
    for run in figures["runs"]:
        one = run["shifts"][name]
        if run["kind"] == "input" and run["mixture"] in known and not one["dropped"]:
            both = linked([one["reference"], one["shifted"]], "probit", edge)
            points.setdefault(run["mixture"], []).append((float(both[0]), float(both[1])))
    slopes = {line["mixture"]: (line["slope"][0], line["intercept"][0]) for line in trained}
    figure = probits(points, slopes, "accuracy on the reference (%)", f"accuracy on {name} (%)", looks(list(points)))
    words = "; ".join(f"{line['mixture']} {percent(line['at'][0])}%" for line in trained)
    return Plot(figure, f"Runs and their lines, on probit axes. At {percent(figures['shifts'][name]['at'])}%: {words}.")


def mixed(name: str, shift: Figures) -> list[Section]:
    sections: list[Section] = []
    if shift["dilution"]:
        columns = [Column("mixture", number=False), Column("", number=False), Column("best source", number=False),
                   Column("below it by"), Column("", number=False)]  # fmt: skip
        rows = [
            [one["mixture"], KINDS[one["kind"]], one["best"], Cell(spread(one["by"]), one["by"][0]), verdict(one["by"])]
            for one in shift["dilution"]
        ]
        sections.append(Table(columns, rows, note=f"Points on {name}, at {percent(shift['at'])}% on the reference."))
    if shift["predicted"]:
        columns = [Column("mixture", number=False), Column("ensemble less trained"), Column("nearest single source",
                   number=False), Column("that less trained"), Column("", number=False)]  # fmt: skip
        rows = [
            [one["mixture"], Cell(spread(one["by"]), one["by"][0]), one.get("single", ""),
             Cell(spread(one["single_by"]), one["single_by"][0]) if "single_by" in one else "",
             "" if "nearer" not in one else "the ensemble is nearer" if one["nearer"] else "the source is nearer"]
            for one in shift["predicted"]
        ]  # fmt: skip
        sections.append(Table(columns, rows, title=f"What ensembles predict on {name}"))
    for pair in pairs(shift["lines"]):
        sections.append(over_shares(name, shift, pair))
    return sections


def verdict(by: Sequence[float]) -> str:
    return "diluted" if by[1] > 0 else "better than its best source" if by[2] < 0 else "not told apart"


def pairs(lines: Sequence[Figures]) -> list[tuple[str, str]]:
    """Every two sources of which a mixture was trained on."""
    found = (
        tuple(parse_mixture(line["mixture"], "")) for line in lines if line["kind"] == "input" and not line["refused"]
    )
    return sorted({(parts[0], parts[1]) for parts in found if len(parts) == 2})


def over_shares(name: str, shift: Figures, pair: tuple[str, str]) -> Plot:
    """How high the lines of mixtures of two sources lie, over the share of the second."""
    heights: dict[str, dict[float, Sequence[float]]] = {}
    for line in shift["lines"]:
        shares = parse_mixture(line["mixture"], "")
        if set(shares) <= set(pair) and not line["refused"]:
            share = round(shares.get(pair[1], 0.0), 4)
            for kind in ("input", "output") if len(shares) == 1 else (line["kind"],):
                heights.setdefault(KINDS[kind], {})[share] = line["at"]
    ticks = sorted({share for of in heights.values() for share in of})
    series = {
        kind: [Band(float(ticks.index(share)), *of[share]) for share in sorted(of)] for kind, of in heights.items()
    }
    figure = curves(series, [f"{100 * t:.3g}" for t in ticks], f"share of {pair[1]} beside {pair[0]} (%)",
                    f"accuracy on {name} (%)", looks(list(series)))  # fmt: skip
    words = "; ".join(f"{100 * s:.3g}%: {percent(at[0])}" for s, at in sorted(heights.get("trained", {}).items()))
    return Plot(figure, f"Height of the lines by the share of {pair[1]}, trained: {words}.")


def runs(rows: Sequence[Figures], shifts: Mapping[str, Figures], classes: int) -> Table:
    """Of a shift with fewer classes, the accuracy on the reference among those stands beside it."""
    columns = [
        Column("run", number=False),
        Column("mixture", number=False),
        Column("n", drop=1),
        Column("seed", drop=1),
    ]
    whole = next((name for name, shift in shifts.items() if shift["classes"] == classes), None)
    shown: list[tuple[str, str]] = [(whole, "reference")] if whole else []
    columns += [Column("reference %")] if whole else []
    for name, shift in shifts.items():
        own = [] if shift["classes"] == classes else [("reference", f"reference, {name} %", 2)]
        for what, title, drop in (*own, ("shifted", f"{name} %", 0), ("above", f"{name}, above the baseline", 3)):
            shown.append((name, what))
            columns.append(Column(title, drop=drop))
    table = []
    for row in rows:
        if row["kind"] == "input":
            about = [row["name"], row["mixture"], row["size"], row["seed"]]
            table.append([*about, *(of_run(row["shifts"][name], what) for name, what in shown)])
    note = "Grey: below twice chance, and in no line. Above the baseline: effective robustness, in points."
    return Table(columns, table, title="Runs", note=note, fold=f"{len(table)} runs")


def of_run(one: Figures, what: str) -> Cell:
    if what == "above":
        above = one.get("effective_robustness")
        return Cell(f"{100 * above[0]:+.1f}", above[0]) if above else Cell("")
    return Cell(percent(one[what]), one[what], "muted" if one["dropped"] else "")


def interval(value: Sequence[float]) -> Cell:
    if any(np.isnan(v) for v in value):
        return Cell("" if np.isnan(value[0]) else f"{value[0]:.2f}", value[0])
    return Cell(f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})", value[0])


def cell(value: float) -> Cell:
    return Cell(percent(value), value)
