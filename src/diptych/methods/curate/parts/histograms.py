"""Histograms that add up: counted a batch at a time among a stage's tallies, drawn in its report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from diptych.report.sections import Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tallied(name: str, values: np.ndarray, step: float) -> dict[str, int]:
    """Values [N] in bins of `step`, NaN left out -> {"name at 0.3": how many are in [0.3, 0.3 + step)}."""
    bins, many = np.unique(bins_of(values, step), return_counts=True)
    return {f"{name} at {index * step:.10g}": int(n) for index, n in zip(bins, many, strict=True)}


def bins_of(values: np.ndarray, step: float) -> np.ndarray:
    """The number of each value's bin, int64; values at an edge belong above it, rounding aside. NaN left out."""
    finite = np.asarray(values, np.float64)
    return np.floor(finite[np.isfinite(finite)] / step + 1e-9).astype(np.int64)


def read(tallies: Mapping[str, int], step: float) -> dict[str, dict[int, int]]:
    """The inverse of `tallied`, of all names there are: {name: {bin: how many}}."""
    found: dict[str, dict[int, int]] = {}
    for key, many in tallies.items():
        name, at, edge = key.rpartition(" at ")
        if at:
            found.setdefault(name, {})[round(float(edge) / step)] = many
    return found


def plot(
    tallies: Mapping[str, int], step: float, label: str, marks: Mapping[str, float], title: str = ""
) -> Plot | None:
    """The histograms among the tallies, over each other, with lines at `marks`; None where there are none."""
    from diptych.report.plots import histogram

    found = read(tallies, step)
    if not found:
        return None
    low = min(min(bins) for bins in found.values())
    high = max(max(bins) for bins in found.values())
    edges = [index * step for index in range(low, high + 2)]
    counts = {name: [bins.get(index, 0) for index in range(low, high + 1)] for name, bins in sorted(found.items())}
    figure: Figure = histogram(edges, counts, label, marks)
    words = ", ".join(f"{name}: {sum(count):,}" for name, count in counts.items())
    return Plot(figure, f"histogram of {label} ({words})", title=title)
