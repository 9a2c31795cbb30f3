"""What a model says of pictures: logits over the classes, through the cache of features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diptych.core.heads import TextRows
from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.data.records import Records
from diptych.engine.store import FeatureStore, Progress
from diptych.errors import DiptychError
from diptych.methods.probe.parts.data import Data
from diptych.methods.probe.parts.probe import Model


@dataclass(frozen=True)
class Answers:
    """embeddings [N, D] unit; logits [N, C]; cosines [N, C] with the classes' texts, None for a head without texts;
    temperature: of the probabilities, as the model came."""

    embeddings: Tensor
    logits: Tensor
    cosines: Tensor | None
    temperature: float = 1.0

    def probabilities(self, temperature: float | None = None) -> NDArray[np.float64]:
        """softmax(logits / temperature) [N, C]; by default the model's own."""
        return (self.logits.double() / (temperature or self.temperature)).softmax(1).numpy()

    def guesses(self) -> NDArray[np.int64]:
        return self.logits.argmax(1).numpy()

    def columns(self, kept: Sequence[int]) -> "Answers":
        """As if only these classes were known."""
        index = list(kept)
        cosines = None if self.cosines is None else self.cosines[:, index]
        return replace(self, logits=self.logits[:, index], cosines=cosines)


@dataclass(frozen=True)
class Judge:
    """A model that answers for the classes of some data. rows [C, D]: the texts of the classes, unit; None where the
    model has none. scale: its logits are the cosines times this."""

    model: Model
    head: Callable[[Tensor], Tensor]
    rows: Tensor | None
    scale: float | None
    temperature: float
    progress: Progress | None = None

    def __call__(self, records: Records, digests: dict[str, str]) -> Answers:
        store = FeatureStore(digests, progress=self.progress)
        with torch.inference_mode():
            x = store.images(self.model.clip, records).float().cpu()
            logits = self.head(x)
            cosines = None if self.rows is None else x @ self.rows.T
        return Answers(x.clone(), logits.clone(), None if cosines is None else cosines.clone(), self.temperature)


def judge(model: Model, data: Data, progress: Progress | None = None) -> Judge:
    """Zero-shot by the names of the classes, or the classifier's own head. Raises DiptychError where a classifier knows
    other classes than the data."""
    clip = model.clip
    if model.classifier is None:
        recipe = TextRecipe(data.templates or ENSEMBLE)
        rows = class_rows(clip, data.names, recipe).float().cpu()
        scale, bias = float(clip.logit_scale), 0.0 if clip.logit_bias is None else float(clip.logit_bias)
        return Judge(model, lambda x: scale * x @ rows.T + bias, rows, scale, 1.0, progress)
    fitted = model.classifier
    if missing := [name for name in data.classes if name not in fitted.classes]:
        raise DiptychError(
            f'{model.name} does not know the class "{missing[0]}" of {data.records.source}; '
            f"it knows {', '.join(fitted.classes[:8])}"
        )
    order = [fitted.classes.index(name) for name in data.classes]
    head = fitted.head.to("cpu")
    rows = F.normalize(head.rows, dim=1)[order] if isinstance(head, TextRows) else None
    scale = head.scale if isinstance(head, TextRows) else None
    return Judge(model, lambda x: head.logits(x)[:, order], rows, scale, fitted.temperature, progress)
