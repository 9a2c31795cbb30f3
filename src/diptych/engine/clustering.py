"""k-means over embeddings, in bounded memory; what clusters mean for another set of rows.

Lloyd, Least squares quantization in PCM, 1982; starts after Arthur and Vassilvitskii, k-means++, 2007.
Shapes: N rows [N, D], K clusters. A function of the rows and the seed (on one device; several processes take the
clusters of one of them, `distributed.of_first`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import DiptychError
from diptych.losses.precision import in_float32

CELLS = 2**23  # scores held at a time: 32 MB


@dataclass(frozen=True)
class Clusters:
    """centres [K, D] (unit rows with cosine); labels [N] int64, each row's nearest centre; spread: sum of distances."""

    centres: Tensor
    labels: Tensor
    spread: float

    @property
    def sizes(self) -> Tensor:
        """Rows of each cluster [K]."""
        return torch.bincount(self.labels, minlength=len(self.centres))


@torch.no_grad()
@in_float32
def kmeans(
    rows: Tensor,
    count: int,
    *,
    cosine: bool = False,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
    start: Tensor | None = None,
    apart: bool = True,
) -> Clusters:
    """The best of some restarts, each until nothing moves or for so many steps.

    cosine: rows and centres are normalised and the distance is 1 - cosine; else it is the squared Euclidean one.
    A cluster that loses all its rows starts again from the row farthest from its own centre.
    start: [K, D], the first centres, instead of rows drawn by chance. apart: draw them far apart (k-means++), which
    takes `count` passes over the rows; False for thousands of clusters.
    Raises DiptychError for fewer rows than clusters and for rows that are not finite.
    """
    if not 1 <= count <= len(rows):
        raise DiptychError(f"{len(rows)} rows cannot be put into {count} clusters: ask for 1 to {len(rows)}")
    if not bool(rows.isfinite().all()):
        raise DiptychError(f"{int((~rows.isfinite()).any(1).sum())} of {len(rows)} rows to cluster are not finite")
    rows = F.normalize(rows, dim=1) if cosine else rows
    generator = torch.Generator().manual_seed(seed)
    best: Clusters | None = None
    for _ in range(1 if start is not None else restarts):
        first = start.clone() if start is not None else draw(rows, count, apart, generator)
        found = settle(rows, F.normalize(first, dim=1) if cosine else first, cosine, steps)
        if best is None or found.spread < best.spread:
            best = found
    assert best is not None
    return best


def settle(rows: Tensor, centres: Tensor, cosine: bool, steps: int) -> Clusters:
    """Nearest centres and means in turn."""
    labels, distances = nearest_one(rows, centres, cosine)
    for _ in range(steps):
        centres, sizes = means_of(rows, labels, len(centres))
        empty = (sizes == 0).nonzero()[:, 0]
        centres[empty] = rows[distances.topk(len(empty)).indices]
        if cosine:
            centres = F.normalize(centres, dim=1)
        before = labels
        labels, distances = nearest_one(rows, centres, cosine)
        if torch.equal(labels, before):
            break
    return Clusters(centres, labels, float(distances.sum()))


def nearest_one(rows: Tensor, centres: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """Each row's nearest centre and its distance, [N] and [N]."""
    labels, distances = nearest(rows, centres, 1, cosine=cosine)
    return labels[:, 0], distances[:, 0]


def nearest(rows: Tensor, centres: Tensor, top: int, *, cosine: bool = False) -> tuple[Tensor, Tensor]:
    """The `top` nearest centres of each row, the nearest first, and their distances: [N, top] and [N, top].

    With cosine both must be unit rows.
    """
    half = torch.zeros_like(centres[:, 0]) if cosine else centres.square().sum(1) / 2
    labels, distances = [], []
    for part in rows.split(max(1, CELLS // len(centres))):
        closeness, found = torch.addmm(-half, part, centres.T).topk(top, dim=1)  # Euclid: dot - |centre|^2 / 2
        labels.append(found)
        apart = 1 - closeness if cosine else part.square().sum(1, keepdim=True) - 2 * closeness
        distances.append(apart.clamp_min(0))
    return torch.cat(labels), torch.cat(distances)


def means_of(rows: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean of each cluster's rows [K, D], zero where it has none, and its size [K].

    With the rows of another modality this says where the clusters of one lie in the other (ProtoCLIP's back
    translation).
    """
    sizes = torch.bincount(labels, minlength=count)
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, labels, rows)
    return sums / sizes.clamp_min(1)[:, None], sizes


def draw(rows: Tensor, count: int, apart: bool, generator: torch.Generator) -> Tensor:
    """Rows to start from: any, or each with a chance in proportion to its squared distance from those before."""
    if not apart:
        return rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)].clone()
    chosen = [int(torch.randint(len(rows), (), generator=generator))]
    distances = (rows - rows[chosen[0]]).square().sum(1)
    for _ in range(count - 1):
        mass = distances.double().cumsum(0)
        point = torch.rand((), generator=generator, dtype=torch.float64) * mass[-1].cpu()
        chosen.append(min(int(torch.searchsorted(mass, point.to(mass.device), right=True)), len(rows) - 1))
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square().sum(1))
    return rows[chosen].clone()
