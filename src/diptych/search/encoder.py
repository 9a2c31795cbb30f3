"""The model of an index: pictures and texts to unit vectors, and a query out of text, picture and what it is not."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diptych.data.pictures import decode
from diptych.errors import DiptychError
from diptych.search.found import Model

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.core.clip import CLIP


class Encoder:
    """model: what it is called in an index, with its hash; clip: what computes."""

    def __init__(self, clip: "CLIP", classifier: str = "") -> None:
        preprocess = hashlib.sha256(json.dumps(asdict(clip.preprocess), sort_keys=True).encode()).hexdigest()[:32]
        self.clip = clip
        self.model = Model(clip.name, clip.fingerprint, clip.source, classifier, preprocess)
        self.dim = clip.embed_dim

    @classmethod
    def open(cls, model: str, device: str | None = None, base: str | None = None) -> "Encoder":
        """What `diptych.load` opens, or a winner file of `diptych compare`, whose tower edits count; base: where the
        model is that the winner was fitted on, if not where it was."""
        from diptych.core.device import choose_device
        from diptych.core.load import load

        if Path(model).suffix == ".safetensors" and Path(model).expanduser().is_file():
            from diptych.core.classifier import Classifier

            path = Path(model).expanduser().resolve()
            classifier = Classifier.load(path)
            clip = classifier.base_clip(model=base).to(choose_device(device))
            return cls(classifier.clip(clip), str(path))
        return cls(load(model, device))

    @classmethod
    def of(cls, made_by: Model, device: str | None = None, model: str | None = None) -> "Encoder":
        """The model that made an index, or `model` in its place, which the index then judges."""
        try:
            return cls.open(model or made_by.classifier or made_by.source, device)
        except DiptychError as error:
            if model:
                raise
            raise DiptychError(
                f"this index was made by the model {made_by}, which could not be opened: {error}; "
                "say where it is with --model"
            ) from error

    def pixels(self, data: bytes) -> tuple["Tensor", tuple[int, int]]:
        """A picture's bytes -> ([3, H, W], its true width and height). Raises BadPicture."""
        image, size = decode(data, at_least=self.clip.preprocess.size)
        return self.clip.preprocess(image), size

    def pictures(self, pixels: Sequence["Tensor"]) -> np.ndarray:
        """N of [3, H, W] -> unit vectors [N, D]."""
        import torch

        with torch.inference_mode():
            return units(self.clip.encode_image(torch.stack(list(pixels))).float().cpu().numpy())

    def picture(self, data: bytes) -> np.ndarray:
        """-> a unit vector [D]. Raises BadPicture."""
        return self.pictures([self.pixels(data)[0]])[0]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """-> unit vectors [N, D]."""
        return units(self.clip.encode_text(texts).float().cpu().numpy())


def units(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def combined(wanted: Sequence[np.ndarray], unwanted: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Unit vectors [D] of texts and pictures -> one query [D].

    It is the mean q of what is wanted, less the mean over the unwanted n of n - (n.q) q: the part of each that q does
    not share. So "a dog" without "an animal" still finds dogs, and a query without itself is itself.
    """
    query = units(np.mean(wanted, axis=0))
    if not len(unwanted):
        return query
    return units(query - np.mean([one - (one @ query) * query for one in unwanted], axis=0))
