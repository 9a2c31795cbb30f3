"""Symile: three or more modalities at once; the product of their rows sees what no pair of them shows.

Use it where a picture is told by its text and something else together (a language code, a sensor, lab values) and by
neither alone. Not for plain pairs: with two modalities it is clip.

Saporta et al., Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited Modalities,
NeurIPS 2024, arXiv 2411.01053, section 3. Any modality of a pair may be missing: it then has a placeholder that the
model can tell from what is there, and the pair stays in the loss. Products of M rows are multiplied by what they are
smaller than a cosine, so that two modalities keep CLIP's cosine and its temperature fits any number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.errors import DiptychError, nearest
from diptych.losses.multilinear import (
    multilinear_contrastive,
    multilinear_scores,
    pairwise_contrastive,
    pairwise_scores,
    permutations_of,
)
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairLike, PairsLike, Recipe

CHOICES = {"negatives": ("shuffled", "all"), "norm": ("unit", "layer"), "contrast": ("product", "pairs")}
MOST = 10_000  # pairs that means are taken of


@dataclass(frozen=True)
class Config:
    """modalities: what else a pair has, the names of vectors in its `extra`, between spaces; empty: all vectors of
    fractional numbers that there are. A pair may lack one (None, or no such key), or parts of it (NaN); or name what it
    lacks in `extra["missing"]`, "image" and "text" too, whatever stands there.

    negatives: "shuffled" is as many as the batch has pairs, "all" every combination of rows, B^(M - 1): small batches.
    norm: "unit" rows as in the paper's experiments on bits, or "layer": a layer norm behind each tower, as in others.
    hidden: width of a hidden layer in the towers of vectors, 0 for none. contrast: "product", or "pairs", CLIP's loss
    over each two modalities, which is what the paper compares with.
    """

    modalities: str = ""
    negatives: str = "shuffled"
    norm: str = "unit"
    hidden: int = 0
    contrast: str = "product"


class Vectors(nn.Module):
    """A tower for vectors [B, W]: a map of the standardised vector and of which of its parts are missing (NaN)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, size: int, hidden: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        if hidden:
            self.project = nn.Sequential(nn.Linear(2 * width, hidden), nn.GELU(), nn.Linear(hidden, size))
        else:
            self.project = nn.Linear(2 * width, size)

    def fit(self, vectors: np.ndarray) -> None:
        """Standardise by these [N, W]; what is missing becomes the mean."""
        there = np.isfinite(vectors).sum(0).clip(1)
        mean = np.nan_to_num(vectors).sum(0) / there
        deviation = np.sqrt(np.square(np.nan_to_num(vectors - mean)).sum(0) / there)
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(np.where(deviation > 0, deviation, 1)))

    def forward(self, vectors: Tensor) -> Tensor:
        gone = vectors.isnan()
        known = ((vectors - self.mean) / self.deviation).masked_fill(gone, 0)
        return self.project(torch.cat([known, gone.to(known.dtype)], 1))


class Towers(nn.Module):
    """What a CLIP has not: a tower for each further modality, a row for pictures that are missing, norms."""

    def __init__(self, widths: Mapping[str, int], size: int, hidden: int, *, norms: bool, no_image: bool) -> None:
        super().__init__()
        self.vectors = nn.ModuleDict({name: Vectors(width, size, hidden) for name, width in widths.items()})
        self.no_image = nn.Parameter(torch.randn(size) * size**-0.5) if no_image else None
        names = ("image", "text", *widths) if norms else ()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(size) for name in names})


class Symile(Objective):
    Config = Config
    recipe = Recipe(weight_decay=0.01, beta2=0.999, eps=1e-8, warmup=0)
    needs = "pairs with further modalities"
    trains = ("both towers", "temperature", "a tower for each further modality")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.widths: dict[str, int] = {}
        for name, valid in CHOICES.items():
            if (given := getattr(self.config, name)) not in valid:
                raise DiptychError(f'symile.{name} cannot be "{given}"{nearest(given, valid)}')
        if {"image", "text"} & set(self.config.modalities.split()):
            raise DiptychError("symile.modalities are further ones: image and text are there in any case")

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        torch.manual_seed(seed)
        extras = [pairs[i].extra for i in range(min(len(pairs), MOST))]
        found = {n for extra in extras for n, value in extra.items() if is_vector(value) and n not in lacks(extra)}
        names = tuple(self.config.modalities.split()) or tuple(sorted(found))
        if not names:
            raise DiptychError(f"{pairs.source}: no pair has a vector in its extra, a modality beside picture and text")
        known = {}
        for name in names:
            values = [extra[name] for extra in extras if extra.get(name) is not None and name not in lacks(extra)]
            vectors = [np.asarray(value, np.float32) for value in values]
            if not vectors or {v.shape for v in vectors} != {(vectors[0].size,)}:
                raise DiptychError(
                    f'{pairs.source}: "{name}" must be a vector of the same length in each pair\'s extra'
                )
            known[name] = np.stack(vectors)
        self.widths = {name: vectors.shape[1] for name, vectors in known.items()}
        no_image = any("image" in lacks(extra) for extra in extras)
        norms = self.config.norm == "layer"
        heads = Towers(self.widths, clip.embed_dim, self.config.hidden, norms=norms, no_image=no_image)
        for name, vectors in known.items():
            heads.vectors[name].fit(vectors)  # type: ignore[operator]
        self.heads = heads.to(clip.device)

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        """A missing text is the empty one, which no pair has."""
        return {"text": ""} if "text" in lacks(pair.extra) else super().words(pair, rng)

    def extra_of(self, pair: PairLike, index: int) -> dict[str, np.ndarray]:
        """A vector that is missing is NaN."""
        assert isinstance(self.heads, Towers)
        gone = lacks(pair.extra)
        if "image" in gone and self.heads.no_image is None:
            raise DiptychError(f"{pair.id} has no picture, but of the first {MOST} pairs each has: mix them")
        found: dict[str, np.ndarray] = {"no image": np.array("image" in gone)}
        for name, width in self.widths.items():
            value = None if name in gone else pair.extra.get(name)
            found[name] = np.full(width, np.nan, np.float32) if value is None else np.asarray(value, np.float32)
        return found

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        assert isinstance(self.heads, Towers)
        rows = super().embed(clip, batch)
        if self.heads.no_image is not None:
            rows["image"] = torch.where(batch.extra["no image"][:, None], self.heads.no_image, rows["image"])
        return rows | {name: tower(batch.extra[name]) for name, tower in self.heads.vectors.items()}

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        rows = [self.normed(name, row) for name, row in embeddings.items()]
        if self.config.contrast == "pairs":
            return {"pairs": pairwise_contrastive(rows, clip.logit_scale)}
        permutations = None
        if self.config.negatives == "shuffled":
            # of the step alone, so that all processes have the same
            permutations = permutations_of(len(rows), len(rows[0]), torch.Generator().manual_seed(batch.step))
        return {"multilinear": multilinear_contrastive(rows, clip.logit_scale * stretch(rows), permutations)}

    def normed(self, name: str, rows: Tensor) -> Tensor:
        """Rows [B, D] of unit length, or of about that behind a layer norm."""
        if self.config.norm == "unit":
            return F.normalize(rows.float(), dim=-1)
        assert isinstance(self.heads, Towers)
        return self.heads.norms[name](rows.float()) * rows.shape[1] ** -0.5

    def scores(self, known: Embeddings, asked: str, candidates: Tensor, clip: CLIP) -> Tensor:
        """What the known modalities' rows [Q, D] say of candidates [C, D] of the one that is asked for: [Q, C].

        Rows are those of `embed`. A softmax over the candidates gives the probabilities that the loss asks for.
        """
        queries, of = [self.normed(name, rows) for name, rows in known.items()], self.normed(asked, candidates)
        if self.config.contrast == "pairs":
            return clip.logit_scale * pairwise_scores(queries, of)
        return clip.logit_scale * stretch([*queries, of]) * multilinear_scores(queries, of)

    def restore(self, heads: Mapping[str, Tensor], clip: CLIP) -> None:
        """Take up the towers of a finished training without its pairs; heads: of its last checkpoint."""
        means = {key.split(".")[1]: len(mean) for key, mean in heads.items() if key.endswith(".mean")}
        norms = self.config.norm == "layer"
        made = Towers(means, clip.embed_dim, self.config.hidden, norms=norms, no_image="no_image" in heads)
        made.load_state_dict(dict(heads))
        self.heads, self.widths = made.to(clip.device).eval(), means


def lacks(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """Modalities that a pair names as missing."""
    return tuple(extra.get("missing") or ())


def is_vector(value: Any) -> bool:
    """Fractional numbers in a row; whole ones and truth values are labels."""
    array = np.asarray(value)
    return array.ndim == 1 and array.size > 0 and array.dtype.kind == "f"


def stretch(rows: list[Tensor]) -> float:
    """How much a product of these unit rows is smaller than one of two."""
    return rows[0].shape[1] ** ((len(rows) - 2) / 2)
