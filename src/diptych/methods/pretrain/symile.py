"""Symile: pictures, texts and a third kind of data learn together, and see what no two of them show.

Use it where each picture and text come with numbers (a sensor, laboratory values, a sound's features, a language) and
what belongs together is a matter of all three, also where some are missing. Not for pictures and texts alone, which is
clip; and not where one kind is to be searched by another alone: its score needs all the others.

Saporta et al., Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited Modalities,
arXiv 2411.01053 (NeurIPS 2024), sections 3 and 4. The third kind is a vector of each pair, `extra[field]`, with a
linear head of its own. Its score is the sum over dimensions of the product of all rows (`score`), not the cosine.
Published: above pairwise CLIP in all experiments, also with missing modalities; an exclusive or, which pairs cannot
learn, is solved.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.losses.multilinear import multilinear_contrastive, multilinear_scores, permutations_of
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairLike, PairsLike, Recipe

KINDS = ("image", "text", "third")
PROBE = 1000  # pairs whose vectors give the mean


@dataclass(frozen=True)
class Config:
    """field: of a pair's extra, a vector; a pair without it lacks the third kind, and extra["missing"] may name
    "image" or "text". all_negatives: every combination of the batch instead of as many as pairs; its memory is the
    cube of the batch. norm: of rows, "layer" (published for towers) or "unit"; scale: where the multiplier of the
    score starts, 0 for one that brings the scores of random rows to about 1; missing: the text where there is none.
    """

    field: str = "vector"
    all_negatives: bool = False
    norm: str = "layer"
    scale: float = 0.0
    missing: str = "[missing]"


class Third(nn.Module):
    """A vector [B, V] and whether it is there [B] -> rows [B, D]: linear, on the vector and a learned word for
    whether it is there; where it is not, the mean of the data stands for it."""

    def __init__(self, mean: Tensor, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.known = nn.Embedding(2, len(mean))
        self.linear = nn.Linear(2 * len(mean), size)

    def forward(self, vectors: Tensor, there: Tensor) -> Tensor:
        filled = torch.where(there[:, None].bool(), vectors, self.get_buffer("mean"))
        return self.linear(torch.cat([filled, self.known(there.long())], dim=1))


class Symile(Objective):
    Config = Config
    recipe = Recipe(weight_decay=0.01, beta2=0.999, eps=1e-8)
    needs = "pairs with a vector each, some of which may be missing"
    trains = ("both towers", "temperature", "a head for the vectors")

    @torch.no_grad()
    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        self.seed = seed
        found = [self.vector(pairs[i]) for i in range(min(PROBE, len(pairs)))]
        found = [vector for vector in found if vector is not None]
        if not found:
            field = self.config.field
            raise DiptychError(f'symile needs a third kind of data: no pair of {pairs.source} has extra["{field}"]')
        self.width, size = len(found[0]), clip.embed_dim
        self.heads = Third(torch.from_numpy(np.mean(found, axis=0)), size).to(clip.device)
        spread = size**0.5 if self.config.norm == "layer" else 1 / size  # of the product of three random rows
        clip.log_scale.fill_(math.log(self.config.scale or 1 / spread))

    def vector(self, pair: PairLike) -> np.ndarray | None:
        found = pair.extra.get(self.config.field)
        return None if found is None else np.asarray(found, np.float32).reshape(-1)

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        return {"text": self.config.missing if "text" in pair.extra.get("missing", ()) else pair.texts[0]}

    def extra_of(self, pair: PairLike, index: int) -> dict[str, np.ndarray]:
        vector = self.vector(pair)
        if vector is not None and len(vector) != self.width:
            raise DiptychError(f"{pair.id}: a vector of {len(vector)} numbers; the others have {self.width}")
        seen = "image" not in pair.extra.get("missing", ())
        return {
            "vector": np.zeros(self.width, np.float32) if vector is None else vector,
            "has_vector": np.array(vector is not None),
            "has_image": np.array(seen),
        }

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        assert self.heads is not None
        pixels = batch.pixels * batch.extra["has_image"][:, None, None, None]  # 0 is the mean colour
        return {
            "image": clip.image(pixels).embedding,
            "text": clip.text(batch.texts["text"]).embedding,
            "third": self.heads(batch.extra["vector"], batch.extra["has_vector"]),
        }

    def rows(self, embedding: Tensor) -> Tensor:
        """As the score takes them: [B, D]."""
        unit = self.config.norm == "unit"
        return F.normalize(embedding, dim=-1) if unit else F.layer_norm(embedding, embedding.shape[-1:])

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        rows = [self.rows(embeddings[kind]) for kind in KINDS]
        orders = None
        if not self.config.all_negatives:
            generator = torch.Generator().manual_seed((self.seed << 32) + batch.step)  # the same in all processes
            orders = permutations_of(len(rows), len(batch), generator)
        return {"multilinear": multilinear_contrastive(rows, clip.logit_scale, orders)}

    def score(self, clip: CLIP, queries: list[Tensor], candidates: Tensor) -> Tensor:
        """What two kinds, embeddings [Q, D] each, say of candidates [C, D] of the other: [Q, C] logits."""
        return clip.logit_scale * multilinear_scores([self.rows(q) for q in queries], self.rows(candidates))

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        return super().requirements() | {"cost": "both towers and a linear head"}
