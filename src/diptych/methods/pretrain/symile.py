"""Symile: three or more modalities at once; the product of their rows sees what no pair of them shows.

Use it where a picture is told by its text and something else together (a language code, a sensor, lab values) and by
neither alone. Not for plain pairs: with two modalities it is clip.

Saporta et al., Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited Modalities,
NeurIPS 2024, arXiv 2411.01053, section 3. Rows are of unit length as in the paper's experiments on bits, and the
product is multiplied by D^((M - 2) / 2), by which products of M unit rows shrink: two modalities keep CLIP's cosine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.errors import DiptychError, nearest
from diptych.losses.multilinear import multilinear_contrastive, multilinear_scores, permutations_of
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairLike, PairsLike, Recipe

NEGATIVES = ("shuffled", "all")
MOST = 10_000  # pairs that means are taken of


@dataclass(frozen=True)
class Config:
    """modalities: what else a pair has, the names of vectors in its `extra`, between spaces; empty: all that there
    are. A pair may lack some of them.

    negatives: "shuffled" is as many as the batch has pairs, "all" every combination of rows, B^(M - 1): small batches.
    """

    modalities: str = ""
    negatives: str = "shuffled"


class Vectors(nn.Module):
    """A tower for vectors [B, W]: a linear map of the vector, or the mean where it is missing (NaN), and of which."""

    mean: Tensor

    def __init__(self, mean: Tensor, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.missing = nn.Embedding(2, len(mean))
        self.project = nn.Linear(2 * len(mean), size)

    def forward(self, vectors: Tensor) -> Tensor:
        gone = vectors.isnan().any(1)
        known = torch.where(gone[:, None], self.mean, vectors)
        return self.project(torch.cat([known, self.missing(gone.long())], 1))


class Symile(Objective):
    Config = Config
    recipe = Recipe(weight_decay=0.01, beta2=0.999, eps=1e-8, warmup=0)
    needs = "pairs with further modalities"
    trains = ("both towers", "temperature", "a linear tower for each further modality")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.names: tuple[str, ...] = ()
        self.widths: dict[str, int] = {}
        if self.config.negatives not in NEGATIVES:
            hint = nearest(self.config.negatives, NEGATIVES)
            raise DiptychError(f'symile.negatives cannot be "{self.config.negatives}"{hint}')
        if {"image", "text"} & set(self.config.modalities.split()):
            raise DiptychError("symile.modalities are further ones: image and text are there in any case")

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        torch.manual_seed(seed)
        extras = [pairs[i].extra for i in range(min(len(pairs), MOST))]
        found = {name for extra in extras for name, value in extra.items() if is_vector(value)}
        self.names = tuple(self.config.modalities.split()) or tuple(sorted(found))
        if not self.names:
            raise DiptychError(f"{pairs.source}: no pair has a vector in its extra, a modality beside picture and text")
        heads = {}
        for name in self.names:
            values = [extra[name] for extra in extras if extra.get(name) is not None]
            known = [np.asarray(value, np.float32) for value in values if is_vector(value)]
            if not known or len(known) < len(values) or len({len(vector) for vector in known}) > 1:
                raise DiptychError(
                    f'{pairs.source}: "{name}" must be a vector of the same length in each pair\'s extra'
                )
            self.widths[name] = len(known[0])
            heads[name] = Vectors(torch.from_numpy(np.mean(known, axis=0)), clip.embed_dim)
        self.heads = nn.ModuleDict(heads).to(clip.device)

    def extra_of(self, pair: PairLike, index: int) -> dict[str, np.ndarray]:
        """A vector that is missing is NaN."""
        gone = {name: np.full(width, np.nan, np.float32) for name, width in self.widths.items()}
        found = {name: pair.extra.get(name) for name in self.names}
        return gone | {name: np.asarray(v, np.float32) for name, v in found.items() if v is not None}

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        assert isinstance(self.heads, nn.ModuleDict)
        rows = super().embed(clip, batch)
        return rows | {name: tower(batch.extra[name]) for name, tower in self.heads.items()}

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        rows = [F.normalize(row.float(), dim=-1) for row in embeddings.values()]
        permutations = None
        if self.config.negatives == "shuffled":
            # of the step alone, so that all processes have the same
            permutations = permutations_of(len(rows), len(rows[0]), torch.Generator().manual_seed(batch.step))
        scale = clip.logit_scale * stretch(rows)
        return {"multilinear": multilinear_contrastive(rows, scale, permutations, part=batch.own)}


def is_vector(value: Any) -> bool:
    """An array or a list of numbers."""
    array = np.asarray(value)
    return array.ndim == 1 and array.size > 0 and array.dtype.kind in "fiub"


def stretch(rows: list[Tensor]) -> float:
    """How much a product of these unit rows is smaller than one of two."""
    return rows[0].shape[1] ** ((len(rows) - 2) / 2)


def scores(known: list[Tensor], candidates: Tensor) -> Tensor:
    """What the known modalities' rows [Q, D] say of each candidate [C, D] of the one that is asked for: [Q, C]."""
    rows = [F.normalize(row, dim=-1) for row in (*known, candidates)]
    return multilinear_scores(rows[:-1], rows[-1]) * stretch(rows)
