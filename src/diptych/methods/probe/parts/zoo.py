"""The table over models: one row a model with its tags and figures, and what of the tags explains which figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from diptych.metrics.factors import paired_differences, regression, within
from diptych.metrics.robustness import Link, effective_robustness

METRICS = ("ece", "auroc", "shape_bias", "relative_drop", "gap", "shifted", "retrieval")
LINE = 3  # baselines, at least, that a line is fitted to
BASELINE = "baseline"


def row_of(axes: Mapping[str, Any]) -> dict[str, Any]:
    """One model's figures, flat; what was skipped is not in it."""
    row: dict[str, Any] = {
        "tags": {name: word for name, word in axes["tags"].items() if name != BASELINE},
        "baseline": axes["tags"].get(BASELINE, "").lower() in ("yes", "true", "1"),
        "accuracy": axes["plain"]["accuracy"][0],
    }
    sets = axes["calibration"].get("sets", {})
    if "before" in sets:
        row["ece"] = sets["before"]["ece"][0]
    if "shifted before" in sets:
        row["shifted"] = sets["shifted before"]["accuracy"]
    detected = axes["ood"]
    if other := next((name for name in detected["sets"] if name != "noise"), None):
        row["auroc"] = detected["sets"][other]["scores"][detected["score"]]["auroc"]
    if "bias" in axes["shape"]:
        row["shape_bias"] = axes["shape"]["bias"][0]
    if "relative_drop" in axes["changes"]:
        row["relative_drop"] = axes["changes"]["relative_drop"]
    if "gap" in axes["modalities"]:
        row["gap"] = axes["modalities"]["gap"]
    if "image to text" in axes["modalities"].get("retrieval", {}):
        row["retrieval"] = axes["modalities"]["retrieval"]["text to image"]["R@1"]
    return row


def experiment(found: Mapping[str, Mapping[str, Any]], link: Link) -> dict[str, Any]:
    """Rows, paired differences, regressions, correlations within each source, and how far each model lies above the
    line of the baselines; each part that cannot be had with the reason."""
    rows = {name: row_of(axes) for name, axes in found.items()}
    plain = [{k: v for k, v in row.items() if k != "baseline"} for row in rows.values()]
    table: dict[str, Any] = {"rows": rows}
    if len(rows) < 2:
        return table | {"skipped": "needs several models with tags"}
    metrics = ("accuracy", *(m for m in METRICS if sum(m in row for row in plain) > 1))
    table["paired"] = {
        m: [{**asdict(p), "conclusive": p.conclusive} for p in paired_differences(plain, m)] for m in metrics
    }
    table["regression"] = {m: [asdict(e) for e in regression(plain, m)] for m in metrics if m != "accuracy"}
    table["correlation"] = {m: within(plain, "source", "accuracy", m) for m in metrics if m != "accuracy"}
    table["effective_robustness"] = above_the_line(found, rows, link)
    return table


def above_the_line(
    found: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]], link: Link
) -> dict[str, Any]:
    names = list(rows)
    baselines = [i for i, name in enumerate(names) if rows[name]["baseline"]]
    if len({rows[names[i]]["accuracy"] for i in baselines}) < LINE:
        return {"skipped": f"needs {LINE} models of different accuracy with the tag {BASELINE}=yes"}
    shifted = [found[name]["calibration"].get("right") for name in names]
    if any(one is None for one in shifted):
        return {"skipped": "needs pictures of the same classes as they come elsewhere"}
    plain = [found[name]["plain"]["right"] for name in names]
    above = effective_robustness(_array(plain), _array([s or "" for s in shifted]), baselines, link)
    return {name: list(interval) for name, interval in zip(names, above, strict=True)}


def _array(rows: Sequence[str]) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in rows], np.float64)
