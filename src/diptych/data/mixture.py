"""Mixtures of named sources: shares from words, whole rows from shares."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diptych.errors import DiptychError

OF = "rows of "  # begins what `curate mixing` counts of each source, in its report.json


def parse_mixture(words: str, where: str) -> dict[str, float]:
    """ "a=3,b=1" -> {a: 0.75, b: 0.25}; "a" alone is all of it. Raises DiptychError saying what would be right."""
    found: dict[str, float] = {}
    for word in words.split(","):
        name, equals, number = word.partition("=")
        name = name.strip()
        try:
            value = float(number) if equals else 1.0 if "," not in words else -1.0
        except ValueError:
            value = -1.0
        if not name or not 0 <= value < float("inf"):
            raise DiptychError(f'{where} takes NAME=SHARE, such as a=0.75,b=0.25; not "{word.strip()}"')
        if name in found:
            raise DiptychError(f'{where} names "{name}" twice')
        found[name] = value
    total = sum(found.values())
    if not total:
        raise DiptychError(f"{where} are all 0; give at least one source a share")
    return {name: value / total for name, value in found.items()}


def name_of(mixture: Mapping[str, float]) -> str:
    """The same words for the same shares: "a", or "a=0.75,b=0.25" in the order of the names."""
    some = {name: share for name, share in sorted(mixture.items()) if share > 0}
    return next(iter(some)) if len(some) == 1 else ",".join(f"{name}={share:.4g}" for name, share in some.items())


def largest_remainder(shares: np.ndarray, count: int) -> np.ndarray:
    """Shares [S] of sum 1 -> whole numbers [S] of sum `count`, each within one of its share of it: those with the
    largest remainders are rounded up, of equal ones the first."""
    exact = np.asarray(shares, np.float64) * count
    found = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - found), kind="stable")
    found[order[: count - int(found.sum())]] += 1
    return found


def achievable(shares: np.ndarray, rows: np.ndarray) -> int:
    """How many rows sources of so many rows [S] give at these shares [S], none of them short of its share."""
    some = shares > 0
    count = int(np.floor((rows[some] / shares[some]).min() + 1e-9)) if some.any() else 0
    while count and (largest_remainder(shares, count) > rows).any():
        count -= 1
    return count


def mixture_of(source: str | Path) -> str:
    """What `curate mixing` says of the set that it left in this folder ("a=0.75,b=0.25"); "" of all others."""
    about = Path(source).expanduser() / "report.json"
    try:
        stages = json.loads(about.read_text("utf-8"))["stages"]
        rows = {word.removeprefix(OF): float(n) for stage in stages for word, n in stage["tallies"].items()
                if word.startswith(OF)}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    total = sum(rows.values())
    return name_of({name: count / total for name, count in rows.items()}) if total else ""
