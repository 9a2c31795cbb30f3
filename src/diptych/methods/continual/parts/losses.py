"""What the losses of sessions share: CLIP's own on a session's pairs, and the same batch seen by an older model."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.losses.contrastive import groups_of
from diptych.methods.pretrain.parts.contrast import Contrast
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairLike

Rows = tuple[Tensor, Tensor]  # unit embeddings [B, D] of pictures and texts


class SessionContrast(Contrast):
    """CLIP's loss on one session. Of a picture's captions one is drawn each time; pairs that show one picture (rows of
    a table that name the same file) or have one text are not told from each other."""

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        return {"text": pair.texts[int(rng.integers(len(pair.texts)))]}

    def extra_of(self, pair: PairLike, index: int) -> dict[str, np.ndarray]:
        known = pair.extra.get("picture")  # the file that several rows may name
        return {"picture": np.array(index if known is None else number_of(str(known)), np.int64)}

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        return super().loss(embeddings, clip, grouped(batch))


class WithOld(SessionContrast):
    """... and with what an older, frozen model says of the same batch: rows `old_image` and `old_text`.

    old: None where there is no older model, and then the loss is CLIP's own.
    """

    def __init__(self, config: Any, old: CLIP | None) -> None:
        super().__init__(config)
        self.old = old

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        found = super().embed(clip, batch)
        if self.old is not None:
            with torch.no_grad():
                found["old_image"] = self.old.image(batch.pixels).embedding
                found["old_text"] = self.old.text(batch.texts["text"]).embedding
        return found

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        terms = super().loss(embeddings, clip, batch)
        if self.old is not None:
            unit = {name: F.normalize(rows, dim=-1) for name, rows in embeddings.items()}
            new, old = (unit["image"], unit["text"]), (unit["old_image"], unit["old_text"])
            ids = grouped(batch).same
            same = None if ids is None else ids[:, None] == ids
            terms["distillation"] = self.distillation(new, old, clip, self.old, same)
        return terms

    def distillation(self, new: Rows, old: Rows, clip: CLIP, before: CLIP, same: Tensor | None) -> Tensor:
        """A scalar. new, old: unit rows of both models; same [B, B]: true where two pairs are alike."""
        raise NotImplementedError


def number_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def grouped(batch: Batch) -> Batch:
    """With the same number in `same` where two rows are one pair, have one text or show one picture."""
    keys = [key for key in (batch.same, batch.extra.get("picture")) if key is not None]
    return replace(batch, same=groups_of(*keys)) if keys else batch
