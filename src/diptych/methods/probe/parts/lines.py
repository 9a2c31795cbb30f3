"""The report of `weight_space`: figures in, tables and plots out."""

from collections.abc import Mapping
from typing import Any

from diptych.methods.probe.parts.pages import number, percent
from diptych.report import Cell, Column, Facts, Plot, Report, Section, Table, Text
from diptych.report.plots import bars, lines

NAMES = {"id": "like the fine-tuning", "ood": "as they come elsewhere"}


def weight_report(figures: Mapping[str, Any]) -> Report:
    config, alphas = figures["config"], figures["config"]["alphas"]
    first, second = figures["models"]
    sections: list[Section] = [
        *path(figures, alphas, first, second), *sharpness(figures, first, second), *layers(figures),
        *repair(figures, alphas),
    ]  # fmt: skip
    data = figures["data"]
    counts = ", ".join(f"{count} pictures {NAMES[name]}" for name, count in data["pictures"].items())
    subtitle = f"From {first} (0) to {second} (1): {counts}; {data['choosing']} others to choose on"
    return Report("Weight space", sections, {"config": config, "data": data, **figures.get("provenance", {})}, subtitle)


def path(figures: Mapping[str, Any], alphas: list[float], first: str, second: str) -> list[Section]:
    found, summary = figures["path"], figures["summary"]
    facts = []
    for name, one in found.items():
        s = summary[name]
        ends = f"{percent(one['accuracy'][0])} and {percent(one['accuracy'][-1])}% at the ends"
        facts.append((f"best, {NAMES[name]}", f"{percent(max(one['accuracy']))}%", f"at {s['best']:g}; {ends}"))
        facts.append((f"gain, {NAMES[name]}", f"{100 * s['gain']:+.1f}", f"barrier {100 * s['barrier']:.1f}"))
    facts.append(("chosen share", f"{summary['chosen']:g}", "the best on the choosing half"))
    sections: list[Section] = [Facts(facts, title="The line")]
    if "failed" in summary:
        word = "**The line fails**: no point of it is better than both ends" if summary["failed"] else (
            "The line helps: some point of it is better than both ends")  # fmt: skip
        style = "warning" if summary["failed"] else "plain"
        sections.append(Text(f"{word} on pictures as they come elsewhere.", style=style))
    for what, label in (("accuracy", "accuracy (%)"), ("loss", "loss")):
        series = {NAMES[n]: list(zip(alphas, one[what], strict=True)) for n, one in found.items()}
        figure = lines(series, f"share of {second}", label, percent=what == "accuracy")
        sections.append(Plot(figure, f"{label} along the line from {first} to {second}."))
    columns = [Column("share")] + [Column(f"{n} {w}") for n in found for w in ("accuracy %", "loss")]
    rows = [
        [Cell(f"{a:g}", a), *(c for one in found.values() for c in (
            Cell(percent(one["accuracy"][i]), one["accuracy"][i]), number(one["loss"][i])))]
        for i, a in enumerate(alphas)
    ]  # fmt: skip
    sections.append(Table(columns, rows, note="id: like the fine-tuning; ood: as they come elsewhere."))
    return sections


def sharpness(figures: Mapping[str, Any], first: str, second: str) -> list[Section]:
    found, config = figures["sharpness"], figures["config"]
    columns = [Column("model", number=False), Column("worst"), Column("average"), Column("error at the worst %")]
    rows = [
        [name, number(one["worst"]), number(one["average"]), Cell(percent(one["error"]), one["error"])]
        for name, one in zip((first, second), found.values(), strict=True)
    ]
    kind = "of each weight's own size" if config["adaptive"] else "absolute"
    note = f"How much the loss can rise within {config['rho']:g} ({kind}), on the choosing half."
    series = {
        name: [(float(rho), value) for rho, value in one["curve"].items()]
        for name, one in zip((first, second), found.values(), strict=True)
    }
    return [
        Table(columns, rows, title="Sharpness", note=note),
        Plot(lines(series, "radius", "rise of the loss, at worst"), "Worst rise of the loss by radius."),
    ]


def layers(figures: Mapping[str, Any]) -> list[Section]:
    found, chosen = figures["layers"], figures["stragglers"]
    order = sorted(found, key=lambda layer: -found[layer]["lag"])
    columns = [Column("layer", number=False), Column("lag"), Column("moved"), Column("worst rise"), Column("average"),
               Column("", number=False)]  # fmt: skip
    rows = []
    for layer in order:
        one = found[layer]
        own = one.get("sharpness", {})
        rows.append([
            layer, number(one["lag"], 4), number(one["moved"], 2), number(own.get("worst")),
            number(own.get("average")), "straggler" if layer in chosen else "",
        ])  # fmt: skip
    most = max(max(found[layer]["lag"] for layer in order), 1e-12)
    figure = bars([(layer, found[layer]["lag"] / most) for layer in order[:12]], "lag, as a share of the largest (%)")
    note = "Lag: how much the loss rises, on average, while this layer alone goes from the first model to the second."
    words = "; ".join(f"{layer} {found[layer]['lag']:.3f}" for layer in order[:5])
    return [Table(columns, rows, title="Layers", note=note), Plot(figure, f"Lag by layer. {words}.")]


def repair(figures: Mapping[str, Any], alphas: list[float]) -> list[Section]:
    found, plain = figures["repair"], figures["path"]
    columns = [Column("share")] + [Column(f"{name}, {w}") for name in plain for w in ("plain %", "pruned %")]
    rows = [
        [Cell(f"{a:g}", a), *(c for n in plain for c in (
            Cell(percent(plain[n]["accuracy"][i])), Cell(percent(found["path"][n]["accuracy"][i]))))]
        for i, a in enumerate(alphas)
    ]  # fmt: skip
    scan = "; ".join(f"{s}: {percent(v)}%" for s, v in found["scan"].items())
    what = "moved least, back to the first model" if figures["config"]["mode"] == "delta" else "are smallest, to zero"
    named = ", ".join(figures["stragglers"]) or "there are none"
    note = (
        f"Of the stragglers ({named}), the share {found['sparsity']:g} of weights that "
        f"{what}. "
        f"Chosen by the best accuracy on the choosing half: {scan}."
    )
    return [Table(columns, rows, title="Stragglers pruned", note=note)]
