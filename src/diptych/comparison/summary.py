"""A finished comparison as data: what was measured, and what follows from it. Table, pages and JSON read it."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.comparison.stats import Bootstrap, paired_bootstrap
from diptych.files import write_atomically
from diptych.metrics.calibration import correct
from diptych.metrics.intervals import Interval

REFERENCE = "zero_shot"  # what every method is compared with
Cell = tuple[str, int | str, int]  # method, shots, seed
Key = tuple[str, int | str]  # method, shots


@dataclass(frozen=True)
class Winner:
    method: str
    shots: int | str  # where it was chosen
    chosen: str  # how, in words: "the best out-of-fold validation inside the shots, mean of 3 seeds"
    config: Mapping[str, Any]
    refit_on: int  # labelled pictures that the saved file was fitted on
    file: str = ""


@dataclass(frozen=True)
class Standing:
    """One method at some shots over its seeds: means, and the highest peak."""

    method: str
    shots: int | str
    seeds: int
    accuracy: Interval | None  # None where no probabilities are at hand
    accuracy_mean: float
    versus_zero_shot: Interval | None
    versus_best: Interval | None  # the best test accuracy at the same shots
    macro_recall: float | None
    ece: float | None
    validation: float | None
    encode_seconds: float | None
    fit_seconds: float | None
    ms_per_image: float | None
    peak_mb: float | None
    trainable: float | None
    new_class_before: float | None
    new_class_after: float | None

    @property
    def key(self) -> Key:
        return self.method, self.shots


@dataclass(frozen=True)
class Summary:
    """
    rows: one mapping a (method, shots, seed), as in results.json; a skipped one has `skipped`, the reason.
    probabilities: (method, shots, seed) -> calibrated probabilities [N, C]; any mapping, it may load from disk.
    truth: class index of each test picture [N]. groups: of each test picture, where --group was given.
    thumbnail: test index -> small JPEG without EXIF.
    set_aside: (id, reason). duplicates: (ids, "exact" or "near").
    """

    rows: Sequence[Mapping[str, Any]]
    probabilities: Mapping[Cell, NDArray[np.floating]]
    truth: NDArray[np.integer]
    test_ids: Sequence[str]
    class_names: Sequence[str]
    winner: Winner | None = None
    title: str = "Which CLIP method is best for these pictures?"
    items: str = "pictures"  # or "videos"
    thumbnail: Callable[[int], bytes] | None = None
    groups: Sequence[str] | None = None
    warnings: Sequence[str] = ()
    set_aside: Sequence[tuple[str, str]] = ()
    duplicates: Sequence[tuple[Sequence[str], str]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    estimated_seconds: float | None = None  # what was said before the start
    seconds: float | None = None  # what it took, finished cells of an earlier run left out

    @cached_property
    def finished(self) -> dict[Key, list[Mapping[str, Any]]]:
        """The rows that hold figures, by method and shots, in the order of their seeds."""
        found: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: row.get("seed") or 0):
            if not row.get("skipped"):
                found[row["method"], row["shots"]].append(row)
        return dict(found)

    @cached_property
    def skipped(self) -> list[tuple[str, str, str]]:
        """(method, at which shots, reason), those of one method and reason together."""
        found: dict[tuple[str, str], list[int | str]] = defaultdict(list)
        for row in self.rows:
            if row.get("skipped"):
                at = found[row["method"], row["skipped"]]
                if row.get("shots") is not None and row["shots"] not in at:
                    at.append(row["shots"])
        done = {method for method, _ in self.finished}
        return [
            (method, ", ".join(shots_words(s) for s in sorted(at, key=shots_order)) if method in done else "", reason)
            for (method, reason), at in found.items()
        ]

    @cached_property
    def shots(self) -> list[int | str]:
        """All shots with a finished row, ascending, "all" last."""
        return sorted({shots for _, shots in self.finished}, key=shots_order)

    @cached_property
    def methods(self) -> list[str]:
        """Every method asked for, skipped ones too: a colour belongs to a method whatever came of it."""
        return sorted({row["method"] for row in self.rows})

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """Over all (method, shots) together: any two may be subtracted."""
        rights: dict[Key, NDArray[np.float32]] = {}
        seeds = sorted({row["seed"] for rows in self.finished.values() for row in rows})
        for key, rows in self.finished.items():
            own = [row["seed"] for row in rows if (*key, row["seed"]) in self.probabilities]
            right = {s: correct(self.probabilities[(*key, s)], self.truth) for s in own}
            missing = np.full(len(self.truth), np.nan)
            if len(own) == 1:  # no seed changes it (zero-shot), or the comparison has one seed
                rights[key] = np.stack([right[own[0]]]).astype(np.float32)
            elif own:
                rights[key] = np.stack([right.get(s, missing) for s in seeds]).astype(np.float32)
        return paired_bootstrap(rights, groups=self.groups)

    @cached_property
    def standings(self) -> dict[Key, Standing]:
        means = {key: _mean(rows, "accuracy") for key, rows in self.finished.items()}
        best = {shots: max((k for k in means if k[1] == shots), key=lambda k: means[k] or 0.0) for shots in self.shots}
        return {key: self._standing(key, rows, best[key[1]]) for key, rows in self.finished.items()}

    def _standing(self, key: Key, rows: Sequence[Mapping[str, Any]], best: Key) -> Standing:
        figures = {
            name: _mean(rows, name)
            for name in (
                "macro_recall", "ece", "validation", "encode_seconds", "fit_seconds", "ms_per_image", "trainable",
                "new_class_before", "new_class_after",
            )
        }  # fmt: skip
        known = key in self.bootstrap.mean
        peaks = [row["peak_mb"] for row in rows if number(row.get("peak_mb")) is not None]
        return Standing(
            *key,
            seeds=len(rows),
            accuracy=self.bootstrap.interval(key) if known else None,
            accuracy_mean=_mean(rows, "accuracy") or 0.0,
            versus_zero_shot=self.difference(key, self.reference(key[1])),
            versus_best=self.difference(key, best),
            peak_mb=max(peaks, default=None),
            **figures,
        )

    def reference(self, shots: int | str) -> Key | None:
        """Zero-shot at these shots, or the one there is: it is the same at all."""
        keys = [key for key in self.finished if key[0] == REFERENCE]
        return next((key for key in keys if key[1] == shots), keys[0] if keys else None)

    def difference(self, key: Key, reference: Key | None) -> Interval | None:
        """Accuracy of `key` minus that of `reference`; None for itself or without probabilities."""
        both = {key, reference}
        if len(both) < 2 or not both <= self.bootstrap.mean.keys():
            return None
        return self.bootstrap.difference(key, reference)

    @cached_property
    def largest(self) -> list[Standing]:
        """Each method at its largest shots, the most accurate first."""
        last: dict[str, Standing] = {}
        for standing in sorted(self.standings.values(), key=lambda s: shots_order(s.shots)):
            last[standing.method] = standing
        return sorted(last.values(), key=lambda s: (-s.accuracy_mean, s.method))

    @property
    def winning(self) -> Standing | None:
        return self.standings.get((self.winner.method, self.winner.shots)) if self.winner else None

    @property
    def runner_up(self) -> Standing | None:
        """The next best by validation at the winner's shots."""
        if not (first := self.winning):
            return None
        others = [s for s in self.standings.values() if s.shots == first.shots and s.method != first.method]
        return max(others, key=lambda s: (s.validation or -1.0, s.accuracy_mean), default=None)

    @property
    def luckier(self) -> Standing | None:
        """The method with a better test accuracy than the winner at its shots, if there is one."""
        if not (first := self.winning):
            return None
        same = [s for s in self.standings.values() if s.shots == first.shots]
        best = max(same, key=lambda s: s.accuracy_mean)
        return best if best.accuracy_mean > first.accuracy_mean else None

    def of_winner(self, key: Key | None = None) -> list[NDArray[np.floating]]:
        """The winner's (or another's) probabilities on the test pictures, one array a seed."""
        if key is None:
            key = (self.winner.method, self.winner.shots) if self.winner else ("", 0)
        cells = ((key[0], key[1], row["seed"]) for row in self.finished.get(key, []))
        return [np.asarray(self.probabilities[cell]) for cell in cells if cell in self.probabilities]


def results_json(summary: Summary) -> dict[str, Any]:
    """Strict JSON: `rows`, `summary` (a standing a method and shots), `winner`, `data`, `provenance`; null for
    what is not known."""
    standings = [
        {name: value._asdict() if isinstance(value, Interval) else value for name, value in vars(s).items()}
        for s in summary.standings.values()
    ]
    for standing in standings:
        standing["accuracy"] = standing["accuracy"] or {"mean": standing["accuracy_mean"], "low": None, "high": None}
        del standing["accuracy_mean"]
    winner = None
    if summary.winner and (won := summary.winning):
        winner = dict(vars(summary.winner)) | {
            "validation": won.validation,
            "accuracy": won.accuracy._asdict() if won.accuracy else {"mean": won.accuracy_mean},
            "versus_zero_shot": won.versus_zero_shot._asdict() if won.versus_zero_shot else None,
        }
    data = {
        "classes": summary.class_names,
        "test_pictures": len(summary.truth),
        "set_aside": [{"id": name, "reason": reason} for name, reason in summary.set_aside],
        "duplicates": [{"ids": ids, "kind": kind} for ids, kind in summary.duplicates],
        "warnings": summary.warnings,
        "estimated_seconds": summary.estimated_seconds,
        "seconds": summary.seconds,
    }
    return _plain(
        {
            "rows": summary.rows,
            "summary": standings,
            "winner": winner,
            "data": data,
            "provenance": summary.provenance,
        }
    )


def write_json(summary: Summary, path: Path | str) -> Path:
    """results.json, whole or not at all."""
    text = json.dumps(results_json(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # a file name that is not UTF-8 holds half surrogates, which JSON may only have as \udcxx
    return write_atomically(path, text.encode("utf-8", "backslashreplace"))


def shots_order(shots: int | str) -> float:
    return math.inf if shots == "all" else float(shots)


def shots_words(shots: int | str) -> str:
    return "all shots" if shots == "all" else f"{shots} shot" if shots == 1 else f"{shots} shots"


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [v for row in rows if (v := number(row.get(name))) is not None]
    return sum(values) / len(values) if values else None


def _plain(value: Any) -> Any:
    """Only what JSON has; NaN and infinities are null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() | np.floating():
            return number(value)
        case np.integer() | np.bool_() | np.ndarray():
            return _plain(value.tolist())
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(v) for v in value]
        case _:
            return str(value)
