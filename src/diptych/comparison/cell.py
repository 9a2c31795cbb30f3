"""One row of the comparison: fit on the shots, judge the test pictures, say what was lost.

This is the only place where test labels are read, and nothing is chosen here.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.comparison.plan import Cell, Shots
from diptych.comparison.stats import accuracy, macro_recall
from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.records import Records
from diptych.data.support import Support
from diptych.data.task import Task
from diptych.engine.store import FeatureStore
from diptych.errors import Unsupported
from diptych.methods.adapt.parts.adapter import Adapter, config_hash, fit_path, last, select
from diptych.methods.discover import find
from diptych.metrics.calibration import ece


def support_of(task: Task, records: Records, store: FeatureStore, seed: int = 0) -> Support:
    """Labelled pictures as a `Support`."""
    groups = task.groups(records)
    return Support(
        names=task.names,
        records=records,
        labels=torch.tensor(task.labels(records), dtype=torch.int64),
        source=store,
        groups=tuple(groups),
        seed=seed,
        templates=task.templates,
        unlabelled=task.unlabelled,
        frames=task.frames,
    )


def draw(task: Task, shots: Shots, seed: int, store: FeatureStore) -> Support:
    return support_of(task, task.draw(None if shots == "all" else shots, seed), store, seed)


def run_cell(cell: Cell, clip: CLIP, task: Task, store: FeatureStore) -> tuple[dict[str, Any], np.ndarray]:
    """-> (row, calibrated test probabilities [N, C]). Raises Unsupported with the reason a row cannot be had."""
    adapter = cell.adapter
    support = draw(task, cell.shots, cell.seed, store)
    start = time.perf_counter()
    chosen = select(adapter, clip, support)
    fit_seconds = time.perf_counter() - start
    classifier = chosen.classifier
    probabilities, ms = judge_test(classifier, clip, task.test, store)
    truth = np.array(task.labels(task.test))
    before, after = new_classes(cell, clip, task, support, chosen.config, store)
    views, crop = max(single.views() for single in adapter.suited(len(support) / len(support.names)).singles())
    encode = store.seconds(clip, support.records) + store.seconds(clip, task.test)
    if views:
        encode += store.seconds(clip, support.records, views=views, crop=crop)
    row = {
        "method": adapter.system(),
        "config": classifier.config,
        "config_hash": config_hash(adapter.config),
        "shots": cell.shots,
        "seed": cell.seed,
        "accuracy": accuracy(probabilities, truth),
        "macro_recall": macro_recall(probabilities, truth),
        "ece": ece(probabilities, truth),
        "validation": chosen.validation,
        "validated_on": chosen.held,
        "encode_seconds": encode,
        "fit_seconds": fit_seconds,
        "ms_per_image": ms,
        "trainable": classifier.trainable,
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
        "new_class_before": before,
        "new_class_after": after,
    }
    return row, probabilities


def judge_test(classifier: Classifier, clip: CLIP, test: Records, store: FeatureStore) -> tuple[np.ndarray, float]:
    """Calibrated probabilities [N, C] and milliseconds a picture, decoding and towers included."""
    if classifier.on_base_features:
        features = store.images(clip, test)
        start = time.perf_counter()
        probabilities = classifier.probabilities(features)
        seconds = time.perf_counter() - start + store.seconds(clip, test)
    else:
        start = time.perf_counter()
        probabilities = embed_and(classifier, clip, test, store)
        seconds = time.perf_counter() - start
    return probabilities.cpu().float().numpy(), 1000 * seconds / len(test)


def embed_and(classifier: Classifier, clip: CLIP, records: Records, store: FeatureStore, batch: int = 32) -> Tensor:
    """Probabilities [N, C] through the edited image tower."""
    edited = classifier.clip(clip)
    batch = max(1, batch // max(1, store.frames))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(records), batch):
            pixels = store.pixels(clip, records[start : start + batch])
            parts.append(classifier.probabilities(edited.encode_image(pixels)))
    return torch.cat(parts)


def new_classes(
    cell: Cell, clip: CLIP, task: Task, support: Support, config: Any, store: FeatureStore
) -> tuple[float | None, float | None]:
    """Accuracy on classes held out of the fit, among themselves: zero-shot, and after fitting on the others.

    The split of CoOp: the first half of the sorted classes is fitted on, the rest is new. For systems that train a
    tower it is measured on the first seed. None where the system cannot name new classes or there are too few.
    """
    count = len(task.classes)
    base, new = list(range((count + 1) // 2)), list(range((count + 1) // 2, count))
    if not cell.adapter.names_new_classes or len(new) < 2 or (cell.seed and cell.adapter.cost != "features"):
        return None, None
    labels = task.labels(task.test)
    index = [i for i, label in enumerate(labels) if label >= new[0]]
    test, truth = task.test[index], np.array([labels[i] - new[0] for i in index])
    names = [task.names[c] for c in new]

    def score(adapter: Adapter, config: Any) -> float:
        fitted = last(fit_path(adapter, config, clip, support.of_classes(base)))
        probabilities, _ = judge_test(fitted.with_names(clip, names), clip, test, store)
        return accuracy(probabilities, truth)

    try:
        after = score(cell.adapter, config)
    except Unsupported:
        return None, None
    zero_shot = find("adapt", "zero_shot")()
    return score(zero_shot, zero_shot.config), after
