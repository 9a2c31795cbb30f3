"""What runs on sources and mixtures say: a line a mixture and shift, what dilutes, what ensembles predict, and advice.

Pure: from whether each run was right on each picture to figures that JSON can hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.data.mixture import parse_mixture
from diptych.errors import DiptychError, nearest
from diptych.metrics.intervals import Interval, interval_of
from diptych.metrics.trends import CHANCE, Trend, above, accuracies, difference, edge_of, fit_trend, matched

Figures = dict[str, Any]
Kind = Literal["input", "output"]
Key = tuple[Kind, str]  # a line: "input" is training on a mixture, "output" an ensemble of models of single sources
BASELINE = "baseline"


@dataclass(frozen=True)
class Tried:
    """One run, or one ensemble. right: shift -> whether it was right on each picture of the reference with a class of
    the shift, and of the shift: "1" or "0" a picture."""

    name: str
    mixture: str
    kind: Kind
    size: str
    seed: str
    baseline: bool
    right: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Shift:
    """Accuracies [1 + R, M] of all that was tried on a shift and on the reference, and the lines through them.

    dropped [M]: below twice chance on either. refused: why a line cannot be compared with others.
    """

    reference: NDArray[np.float64]
    shifted: NDArray[np.float64]
    dropped: NDArray[np.bool_]
    trends: Mapping[Key, Trend]
    refused: Mapping[Key, str]
    baseline: Trend | None

    @property
    def sound(self) -> dict[Key, Trend]:
        return {key: trend for key, trend in self.trends.items() if key not in self.refused}


def keys_of(tried: Sequence[Tried]) -> dict[Key, list[int]]:
    """The runs of each line; training before ensembles, single sources before mixtures."""
    found: dict[Key, list[int]] = {}
    for i, one in enumerate(tried):
        found.setdefault((one.kind, one.mixture), []).append(i)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1].count("="), item[0][1])))


def lines_of(
    tried: Sequence[Tried], name: str, classes: int, baseline: str, rounds: int, half: int | None = None
) -> Shift:
    """half: only every second picture, 0 or 1, of a chance order."""
    bits = [np.array([[c == "1" for c in one.right[name][side]] for one in tried]) for side in (0, 1)]
    if half is not None:
        orders = [np.random.default_rng([7, rows.shape[1]]).permutation(rows.shape[1]) for rows in bits]
        bits = [rows[:, order[half::2]] for rows, order in zip(bits, orders, strict=True)]
    reference, shifted = (accuracies(rows, rounds, seed) for seed, rows in zip((101, 102), bits, strict=True))
    edges = edge_of(bits[0].shape[1]), edge_of(bits[1].shape[1])
    dropped = np.minimum(reference[0], shifted[0]) < CHANCE / classes
    trends, refused = {}, {}

    def fit(rows: list[int], seed: int) -> Trend | None:
        kept = [i for i in rows if not dropped[i]]
        return fit_trend(reference[:, kept], shifted[:, kept], edges, seed) if len(kept) > 1 else None

    for number, (key, rows) in enumerate(keys_of(tried).items()):
        trend = fit(rows, number)
        if trend is not None:
            trends[key] = trend
        why = trend.refused if trend else f"{sum(not dropped[i] for i in rows)} runs above twice chance"
        if why:
            refused[key] = why
    own = [i for i, one in enumerate(tried) if one.baseline]
    line = fit(own, 9999) if own else trends.get(("input", baseline))
    return Shift(reference, shifted, dropped, trends, refused, line if line and not line.refused else None)


def analyse(
    tried: Sequence[Tried], classes: Mapping[str, int], *, baseline: str = "", target: str = "", at: float = 0.0,
    rounds: int = 500,
) -> Figures:  # fmt: skip
    """Everything that the runs say. classes: of each shift. baseline: the source whose line is the baseline, where no
    run is marked as one. target: the shift to advise for ("" all). at: the accuracy on the reference at which lines are
    read (0: the middle of what all reach). Raises DiptychError for a name that there is not."""
    singles = sorted({one.mixture for one in tried if one.kind == "input"})
    if baseline and baseline not in singles:
        raise DiptychError(f'mixing.baseline: no run has the source "{baseline}"{nearest(baseline, singles)}')
    if target and target not in classes:
        raise DiptychError(f'mixing.target: no shift is called "{target}"{nearest(target, classes)}')
    found: Figures = {"runs": [about(one) for one in tried], "shifts": {}}
    shifts = {name: lines_of(tried, name, count, baseline, rounds) for name, count in classes.items()}
    read_at = {name: at or (matched([*s.sound.values()]) if s.sound else 0.0) for name, s in shifts.items()}
    for name, shift in shifts.items():
        found["shifts"][name] = of_shift(tried, shift, read_at[name]) | {"classes": classes[name]}
        for row, one in zip(found["runs"], per_run(tried, shift), strict=True):
            row["shifts"][name] = one
    targets = [target] if target else [*classes]
    found["advice"] = advise(tried, classes, targets, {n: shifts[n].sound for n in targets}, read_at, rounds)
    return found


def about(one: Tried) -> Figures:
    return {k: getattr(one, k) for k in ("name", "mixture", "kind", "size", "seed", "baseline")} | {"shifts": {}}


def per_run(tried: Sequence[Tried], shift: Shift) -> list[Figures]:
    rows = []
    for i in range(len(tried)):
        a, b = shift.reference[:, i], shift.shifted[:, i]
        row: Figures = {"reference": a[0], "shifted": b[0], "dropped": bool(shift.dropped[i])}
        if shift.baseline is not None and not shift.dropped[i]:
            row["effective_robustness"] = list(above(shift.baseline, a, b))
        rows.append(row)
    return rows


def of_shift(tried: Sequence[Tried], shift: Shift, at: float) -> Figures:
    """Lines, read at one accuracy on the reference; the sound ones compared."""
    lines = []
    for (kind, mixture), rows in keys_of(tried).items():
        trend = shift.trends.get((kind, mixture))
        line: Figures = {"kind": kind, "mixture": mixture, "refused": shift.refused.get((kind, mixture), ""),
                         "dropped": int(shift.dropped[rows].sum())}  # fmt: skip
        if trend is not None:
            line |= {
                "slope": list(trend.slope), "intercept": list(trend.intercept), "r2": trend.r2, "runs": trend.runs,
                "low": trend.low, "high": trend.high, "at": list(trend.at(at)) if at else None,
                "reached": trend.reaches(at),
            }  # fmt: skip
        lines.append(line)
    sound = shift.sound
    order = sorted((k for k in sound if k[0] == "input"), key=lambda k: -float(sound[k].line.expected(at)))
    found: Figures = {"at": at, "lines": lines, "order": [mixture for _, mixture in order]}
    found["baseline"] = [shift.baseline.line.slope, shift.baseline.line.intercept] if shift.baseline else None
    return found | {"dilution": dilution(sound, at), "predicted": predicted(sound, at)}


def parts_of(mixture: str) -> list[str]:
    return [*parse_mixture(mixture, "a mixture")]


def dilution(sound: Mapping[Key, Trend], at: float) -> list[Figures]:
    """How far each mixture lies below the best of its sources, at the same accuracy on the reference."""
    rows = []
    for (kind, mixture), trend in sound.items():
        own = [sound["input", part] for part in parts_of(mixture) if ("input", part) in sound]
        if len(own) < 2:
            continue
        names = [part for part in parts_of(mixture) if ("input", part) in sound]
        best = max(range(len(own)), key=lambda i: float(own[i].line.expected(at)))
        by = difference(own[best], trend, at)
        rows.append({"kind": kind, "mixture": mixture, "best": names[best], "by": list(by), "sure": by.low > 0})
    return rows


def predicted(sound: Mapping[Key, Trend], at: float) -> list[Figures]:
    """Of each mixture that was trained on and put together: how far the ensemble's line is from the trained one's, and
    how far the nearest line of a single source is."""
    rows = []
    for (kind, mixture), ensemble in sound.items():
        trained = sound.get(("input", mixture))
        if kind != "output" or trained is None:
            continue
        singles = {part: difference(sound["input", part], trained, at) for part in parts_of(mixture)
                   if ("input", part) in sound}  # fmt: skip
        row: Figures = {"mixture": mixture, "by": list(difference(ensemble, trained, at))}
        if singles:
            close = min(singles, key=lambda part: abs(singles[part].mean))
            row |= {"single": close, "single_by": list(singles[close])}
            row["nearer"] = abs(row["by"][0]) < abs(singles[close].mean)
        rows.append(row)
    return rows


def advise(
    tried: Sequence[Tried], classes: Mapping[str, int], targets: Sequence[str],
    sound: Mapping[str, Mapping[Key, Trend]], at: Mapping[str, float], rounds: int,
) -> Figures:  # fmt: skip
    """The shares whose line is highest, over all targets. Chosen on one half of the pictures, stated on the other.

    Where a mixture was trained on, its own line counts and not the ensemble's.
    """
    found: Figures = {"targets": list(targets)}
    halves = [{n: lines_of(tried, n, classes[n], "", rounds, half).trends for n in targets} for half in (0, 1)]
    able = [key for key in keys_of(tried) if all(key in of[n] for of in (sound, *halves) for n in targets)]
    able = [key for key in able if key[0] == "input" or ("input", key[1]) not in able]
    if not targets or len(able) < 2:
        return found | {"refused": "fewer than two mixtures have lines that can be compared on all of these shifts"}
    chosen, stated = halves
    able.sort(key=lambda key: -over(chosen, key, at).mean)
    best, single = able[0], next((key for key in able if key[0] == "input" and "=" not in key[1]), None)
    found["candidates"] = [
        {
            "kind": key[0],
            "mixture": key[1],
            "choosing": over(chosen, key, at).mean,
            "stated": over(stated, key, at).mean,
        }
        for key in able
    ]
    found |= {"kind": best[0], "mixture": best[1], "stated": list(over(stated, best, at))}
    if single is not None and single != best:
        found |= {"single": single[1], "gain": list(over(stated, best, at, single))}
    return found


def over(
    half: Mapping[str, Mapping[Key, Trend]], key: Key, at: Mapping[str, float], less: Key | None = None
) -> Interval:
    """The mean over shifts of what a line says, or of how far it lies above another."""
    figures, draws = [], []
    for name, trends in half.items():
        figures.append(float(trends[key].line.expected(at[name])))
        draws.append(trends[key].draws_at(at[name]))
        if less is not None:
            figures[-1] -= float(trends[less].line.expected(at[name]))
            draws[-1] = draws[-1] - trends[less].draws_at(at[name])
    return interval_of(float(np.mean(figures)), np.mean(draws, 0))
