"""The plots of a report: data in, matplotlib figure out. No global state (no pyplot), no window.

Values are fractions of one and drawn as percent. `Look` keeps a method in one colour and marker in all plots.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.report.svg import COLOURS, INK, MARKERS, PAGE, SOFT, house_style, to_png, to_svg
from diptych.report.words import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Band", "Look", "bars", "changes", "curves", "histogram", "lines", "looks", "matrix", "probits", "reliability",
    "scatter", "to_png", "to_svg",
]  # fmt: skip

WIDE, HIGH = 5.4, 4.0  # inches; small, so that the letters can be read on a phone
POINTS = 500  # of a line
NUMBERED = 25  # above so many names an axis shows numbers


class Look(NamedTuple):
    colour: str
    marker: str


class Band(NamedTuple):
    """A point of a curve or scatter: where, how high, and its interval (equal to `y` where there is none)."""

    x: float
    y: float
    low: float
    high: float


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A colour and marker for each name, by its place in the alphabet, whatever else a plot shows."""
    return {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, name in enumerate(sorted(names))
    }


def curves(
    series: Mapping[str, Sequence[Band]],
    ticks: Sequence[str],
    x_label: str,
    y_label: str,
    look: Mapping[str, Look],
) -> "Figure":
    """One line a name over ordered ticks (x = 0, 1, ...), intervals as whiskers, the name at the line's end."""
    with house_style():
        figure, axes = _axes(WIDE, HIGH)
        many = len(series)
        for i, (name, points) in enumerate(series.items()):
            colour, marker = look[name]
            # whiskers stand beside each other, not in one another
            shift = (i - (many - 1) / 2) * min(0.05, 0.36 / max(many, 1))
            x = np.array([p.x for p in points]) + shift
            y = np.array([p.y for p in points])
            error = np.array([[p.y - p.low for p in points], [p.high - p.y for p in points]])
            axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=5.5, label=name)
            axes.errorbar(x, y, yerr=error.clip(0), fmt="none", ecolor=colour, alpha=0.5, elinewidth=1.2)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.35, max(len(ticks) - 1, 0) + 0.3)
        _percent(axes.yaxis)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        ends = {name: (points[-1].x, points[-1].y) for name, points in series.items() if points}
        _end_labels(axes, ends, look)
    return figure


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, *, percent: bool = False
) -> "Figure":
    """One line a name through its (x, y); long ones as the means of at most POINTS pieces."""
    with house_style():
        figure, axes = _axes(WIDE, HIGH)
        for i, (name, points) in enumerate(series.items()):
            pieces = np.array_split(np.asarray(points, dtype=float), min(len(points), POINTS)) if points else []
            means = np.array([piece.mean(0) for piece in pieces]).reshape(-1, 2)
            marker = "o" if len(means) <= NUMBERED else ""
            axes.plot(means[:, 0], means[:, 1], color=COLOURS[i % len(COLOURS)], linewidth=1.6, marker=marker,
                markersize=4, label=name)  # fmt: skip
        if percent:
            _percent(axes.yaxis)
        if len(series) > 1:
            axes.legend(frameon=False)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    return figure


def probits(
    points: Mapping[str, Sequence[tuple[float, float]]], slopes: Mapping[str, tuple[float, float]], x_label: str,
    y_label: str, look: Mapping[str, Look],
) -> "Figure":  # fmt: skip
    """Points of each name on probit axes, given as probits, with its line (slope, intercept) over their reach."""
    from statistics import NormalDist

    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    normal = NormalDist()
    marks = [normal.inv_cdf(p / 100) for p in (0.1, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.9)]
    with house_style():
        figure, axes = _axes(WIDE, HIGH)
        for name, own in points.items():
            x, y = np.asarray(own, dtype=float).reshape(-1, 2).T
            colour, marker = look[name]
            axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle="none", alpha=0.8, label=name)
            if name in slopes:
                reach = np.array([x.min(), x.max()])
                axes.plot(reach, slopes[name][0] * reach + slopes[name][1], color=colour, linewidth=1.4)
        for axis, values in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            axis.set_major_locator(FixedLocator([m for m in marks if values[0] <= m <= values[1]]))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda z, _: f"{100 * normal.cdf(z):.3g}"))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    return figure


def scatter(
    points: Mapping[str, Band], x_label: str, y_label: str, look: Mapping[str, Look], *, seconds: bool = False
) -> "Figure":
    """One named point each on a logarithmic x (> 0); `seconds` writes its ticks as 1 s, 1 min, 1 h."""
    with house_style():
        figure, axes = _axes(WIDE, HIGH)
        axes.set_xscale("log")
        for name, p in points.items():
            colour, marker = look[name]
            error = [[max(p.y - p.low, 0)], [max(p.high - p.y, 0)]]
            axes.errorbar([p.x], [p.y], yerr=error, fmt="none", ecolor=colour, alpha=0.5, elinewidth=1.2)
            axes.plot([p.x], [p.y], color=colour, marker=marker, markersize=8, linestyle="none")
        xs = [p.x for p in points.values()]
        axes.set_xlim(min(xs) / 1.8, max(xs) * 1.8)
        if seconds:
            _second_ticks(axes, min(xs) / 1.8, max(xs) * 1.8)
        _percent(axes.yaxis)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _point_labels(axes, points, look)
    return figure


def changes(
    pairs: Mapping[str, tuple[float, float]], x_label: str, names: tuple[str, str], look: Mapping[str, Look]
) -> "Figure":
    """Before (hollow) and after (filled) of each name, on one line each."""
    with house_style():
        figure, axes = _axes(WIDE, 1.3 + 0.42 * len(pairs))
        for row, (name, (before, after)) in enumerate(pairs.items()):
            colour = look[name].colour
            axes.plot([before, after], [row, row], color=colour, linewidth=2.5, alpha=0.45)
            axes.plot(
                [before], [row], marker="o", color=colour, markerfacecolor=PAGE, markersize=8, markeredgewidth=1.8
            )
            axes.plot([after], [row], marker="o", color=colour, markersize=8)
            text = f"{(after - before) * 100:+.1f}".replace("-", "−")
            axes.annotate(text, (max(before, after), row), (9, 0), textcoords="offset points", va="center", fontsize=9)
        _rows(axes, [*pairs])
        axes.margins(x=0.12)
        _percent(axes.xaxis)
        axes.set_xlabel(x_label)
        handles = [
            axes.plot([], [], marker="o", color=SOFT, markerfacecolor=fill, linestyle="none", label=word)[0]
            for word, fill in zip(names, (PAGE, SOFT), strict=True)
        ]
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderpad=0)
    return figure


def bars(values: Sequence[tuple[str, float]], x_label: str, colour: str = COLOURS[0]) -> "Figure":
    """One horizontal bar a name, the first on top."""
    with house_style():
        figure, axes = _axes(WIDE, 1.1 + 0.28 * len(values))
        axes.barh(range(len(values)), [v for _, v in values], height=0.68, color=colour)
        for row, (_, value) in enumerate(values):
            axes.annotate(f"{value:.0%}", (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        _rows(axes, [name for name, _ in values])
        axes.set_xlim(0, 1.08)
        axes.set_xticks(np.linspace(0, 1, 6))
        _percent(axes.xaxis, locate=False)
        axes.set_xlabel(x_label)
    return figure


def histogram(
    edges: Sequence[float],
    counts: Mapping[str, Sequence[float]],
    x_label: str,
    marks: Mapping[str, float] | None = None,
) -> "Figure":
    """The share of each name's values in bins between `edges`, one over the other; marks: of a name, its threshold,
    as a line in its colour."""
    with house_style():
        figure, axes = _axes(WIDE, HIGH)
        left, width = np.asarray(edges[:-1]), np.diff(edges)
        for i, (name, count) in enumerate(counts.items()):
            share = np.asarray(count, dtype=float) / max(sum(count), 1)
            axes.bar(left, share, width, align="edge", color=COLOURS[i % len(COLOURS)], alpha=0.5, label=name)
            if marks and name in marks:
                axes.axvline(marks[name], color=COLOURS[i % len(COLOURS)], linewidth=1.6, linestyle=(0, (4, 3)))
        axes.legend(frameon=False)
        _percent(axes.yaxis)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share (%)")
    return figure


def matrix(values: NDArray[Any], names: Sequence[str], x_label: str, y_label: str, value_label: str) -> "Figure":
    """A square matrix of shares [C, C]; numbers in its cells up to 12 classes, numbered axes above 25."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import FuncFormatter

    count = len(names)
    with house_style():
        side = min(max(0.32 * count + 2.2, 4.2), 7.0)
        figure, axes = _axes(side + 0.4, side)
        # from see-through, so that it fits a light page and a dark one
        ramp = LinearSegmentedColormap.from_list("ramp", [COLOURS[0] + "00", COLOURS[0] + "ff"])
        # nearest keeps one wrong picture of a thousand classes visible as a cell, not a blur
        image = axes.imshow(np.nan_to_num(values), cmap=ramp, vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        axes.spines[["top", "right"]].set_visible(True)
        if count <= NUMBERED:
            labels = [shorten(name, 18) for name in names]
            axes.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(count), labels)
        else:
            step = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if count / s <= 16)
            at = [0, *range(step - 1, count, step)]
            axes.set_xticks(at, [str(i + 1) for i in at])
            axes.set_yticks(at, [str(i + 1) for i in at])
            x_label, y_label = f"{x_label} (number of the class)", f"{y_label} (number of the class)"
        axes.tick_params(length=0)
        if count <= 12:
            for i, j in zip(*np.nonzero(np.nan_to_num(values) >= 0.005), strict=True):
                # white reads on the strong blue of both themes, the page's ink on the rest
                colour = "white" if values[i, j] > 0.75 else INK
                axes.text(j, i, f"{values[i, j] * 100:.0f}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03, format=FuncFormatter(lambda v, _: f"{v:.0%}"))
        bar.set_label(value_label, color=SOFT)
        bar.outline.set_visible(False)  # type: ignore[union-attr]
    return figure


def reliability(
    edges: NDArray[Any], count: NDArray[Any], confidence: NDArray[Any], right: NDArray[Any], title: str, colour: str
) -> "Figure":
    """Accuracy against stated probability, bin by bin, and how many predictions each bin holds underneath."""
    with house_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.6, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        width, full = np.diff(edges), count > 0
        upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        upper.annotate(
            "as sure as right", (0.03, 0.03), (0, 7), textcoords="offset points", fontsize=8, color=SOFT,
            rotation=45, rotation_mode="anchor", transform_rotates_text=True,
        )  # fmt: skip
        place = edges[:-1][full]
        upper.bar(place, right[full], width[full], align="edge", color=colour, alpha=0.35)
        upper.plot(confidence[full], right[full], color=colour, marker="o", markersize=5, linewidth=1.4)
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("accuracy (%)")
        upper.set_title(title, fontsize=10, loc="left")
        lower.bar(edges[:-1], count / count.sum(), width, align="edge", color=colour, alpha=0.75)
        lower.set_ylabel("share (%)")
        lower.set_xlabel("stated probability (%)")
        lower.set_xlim(0, 1)
        for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
            _percent(axis)
        for axes in (upper, lower):
            axes.grid(True)
    return figure


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True)
    return figure, axes


def _percent(axis: Any, locate: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if locate:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v * 100:.3g}"))


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shorten(name, 24) for name in names])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")


def _second_ticks(axes: "Axes", low: float, high: float) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    coarse = {
        0.001: "1 ms", 0.01: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min",
        3600: "1 h", 36000: "10 h",
    }  # fmt: skip
    fine = {s * k: f"{s * k:g} s" for s in (0.001, 0.01, 0.1, 1, 10) for k in (1, 2, 5) if s * k < 50}
    fine |= {60 * m: f"{m} min" for m in (1, 2, 5, 10, 20)} | {3600 * h: f"{h} h" for h in (1, 2, 5, 10, 24)}
    steps = coarse if high / low > 1000 else fine
    inside = {s: word for s, word in steps.items() if low <= s <= high}
    axes.xaxis.set_major_locator(FixedLocator([*inside]))
    axes.xaxis.set_major_formatter(FixedFormatter([*inside.values()]))
    axes.xaxis.set_minor_locator(NullLocator())


def _end_labels(axes: "Axes", ends: Mapping[str, tuple[float, float]], look: Mapping[str, Look]) -> None:
    """Names right of the axes, in the order of the lines' ends and pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    height = HIGH * 72 * 0.84  # points of the axes; a label needs about 13 of them
    order = sorted(ends, key=lambda name: ends[name][1])
    wanted = [(ends[name][1] - low) / (high - low) * height for name in order]
    for name, y in zip(order, _apart(wanted, 13.0, height), strict=True):
        axes.annotate(
            shorten(name, 22), (1.0, y / height), (6, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", color=look[name].colour, fontsize=10, annotation_clip=False,
        )  # fmt: skip


def _apart(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending places at least `gap` apart, near those wanted, none above `top` where they fit."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    over = top
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], over)
        over = placed[i] - gap
    return placed


def _point_labels(axes: "Axes", points: Mapping[str, Band], look: Mapping[str, Look]) -> None:
    """Names beside their points, on the first of eight sides where they cover no point and no other name."""
    (x0, x1), (y0, y1) = np.log(axes.get_xlim()), axes.get_ylim()
    wide, high = WIDE * 72 * 0.86, HIGH * 72 * 0.82  # points of the axes
    at = {n: ((np.log(p.x) - x0) / (x1 - x0) * wide, (p.y - y0) / (y1 - y0) * high) for n, p in points.items()}
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
    sides = [(9, 0), (-9, 0), (8, 12), (-8, 12), (8, -12), (-8, -12), (8, 24), (8, -24), (-8, 24), (-8, -24)]
    for name, (x, y) in sorted(at.items(), key=lambda item: item[1][1], reverse=True):
        length = 6.3 * len(shorten(name, 22))

        def box(side: tuple[int, int], x: float = x, y: float = y, length: float = length) -> tuple[float, ...]:
            left = x + side[0] - (length if side[0] < 0 else 0)
            return (left, y + side[1] - 6, left + length, y + side[1] + 6)

        def cost(b: tuple[float, ...]) -> float:
            covered = sum(b[0] < t[2] and t[0] < b[2] and b[1] < t[3] and t[1] < b[3] for t in taken)
            return covered + 2 * (b[0] < 0 or b[2] > wide) + 2 * (b[1] < 0 or b[3] > high)

        side = min(sides, key=lambda s: cost(box(s)))
        taken.append(tuple(box(side)))  # type: ignore[arg-type]
        axes.annotate(
            shorten(name, 22), (points[name].x, points[name].y), side, textcoords="offset points", fontsize=9.5,
            va="center", ha="right" if side[0] < 0 else "left", color=look[name].colour,
        )  # fmt: skip
