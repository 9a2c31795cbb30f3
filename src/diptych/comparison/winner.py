"""Choosing the winner by validation, and refitting it on everything labelled."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diptych.comparison.cell import support_of
from diptych.comparison.summary import REFERENCE
from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.task import Task
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError
from diptych.methods.adapt.parts.adapter import Adapter, fit_path, last, select


@dataclass(frozen=True)
class Choice:
    """The winning system at the most shots; validation: mean out-of-fold accuracy over seeds; why: in words."""

    method: str
    shots: int | str
    validation: float | None
    why: str


def choose(rows: Sequence[dict[str, Any]]) -> Choice:
    """The best mean out-of-fold accuracy at the most shots. Test columns are not read.

    A tie goes to fewer trained numbers, then to the name.

    Raises DiptychError when nothing was measured.
    """
    done = [row for row in rows if "skipped" not in row]
    if not done:
        reasons = "; ".join(sorted({f"{row['method']}: {row['skipped']}" for row in rows}))
        raise DiptychError(f"no method could be measured: {reasons}")
    most = max((row["shots"] for row in done), key=lambda s: float("inf") if s == "all" else s)
    at_most = [row for row in done if row["shots"] == most]
    seeds = max(len([r for r in at_most if r["method"] == row["method"]]) for row in at_most)
    candidates = {}
    for method in dict.fromkeys(row["method"] for row in at_most):
        own = [row for row in at_most if row["method"] == method]
        if len(own) == seeds and all(row["validation"] is not None for row in own):
            mean = sum(row["validation"] for row in own) / seeds
            candidates[method] = (mean, -own[0]["trainable"])
    if not candidates:
        method = REFERENCE if any(r["method"] == REFERENCE for r in at_most) else at_most[0]["method"]
        return Choice(method, most, None, "one shot a class leaves nothing to validate on: the first method is kept")
    method = max(sorted(candidates), key=lambda name: candidates[name])
    why = f"best out-of-fold accuracy inside the shots, mean of {seeds} seed{'s' if seeds > 1 else ''}"
    return Choice(method, most, candidates[method][0], why)


def refit(
    choice: Choice, adapter: Adapter, rows: Sequence[dict[str, Any]], clip: CLIP, task: Task, store: FeatureStore
) -> Classifier:
    """The winner fitted on everything labelled, pool and test alike.

    Systems on features choose and calibrate again, out of fold on all pictures. Systems that train a tower keep the
    setting and calibration found at the most shots, to be fitted once.
    """
    everything = replace(task.pool, items=(*task.pool.items, *task.test.items))
    support = support_of(task, everything, store)
    if adapter.cost == "features":
        classifier = select(adapter, clip, support).classifier
    else:
        row = next(r for r in rows if r["method"] == choice.method and r["shots"] == choice.shots)
        config = type(adapter.config)(**row["config"])
        fitted = last(fit_path(adapter, config, clip, support))
        classifier = replace(fitted, temperature=row["temperature"], threshold=row["threshold"])
    return replace(classifier, classes=task.classes)
