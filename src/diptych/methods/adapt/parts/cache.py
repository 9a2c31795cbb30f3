"""The key-value cache that `tip_adapter` and `tip_adapter_f` share."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.heads import Cache
from diptych.data.support import Support
from diptych.methods.adapt.parts.adapter import FEW

# The release searches each data set's own range: beta from 0.1 to between 7 and 50, alpha to between 3 and 50, in even
# steps. These cover all of them, and go on: votes as sharp as the largest betas make them are small, and only a large
# alpha lets them outvote a zero-shot that says nothing.
BETAS = (0.1, 1.0, 2.0, 4.0, 8.0, 14.0, 20.0, 30.0, 50.0)
ALPHAS = (0.1, 0.3, 1.17, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
MOST = 4096
STARTS = (1.17, 3.0, 10.0)  # alphas the release starts from, set by data set: 1.17 (ImageNet) to 10; beta is 1
# Without validation: the largest of them, for one shot casts one vote where those starts reckoned with sixteen.
FALLBACK: dict[str, Any] = {"alpha": 10.0, "beta": 1.0}


def kept(support: Support) -> Support:
    """The shots that become keys: all, or of very many as many as the paper's largest caches hold.

    At most 16 a class, or 4,096 where that is more, in the classes' own proportions. Beyond that a cache has more keys
    than it can search or train in reasonable time.
    """
    most = max(FEW * len(support.names), MOST)
    if len(support) <= most:
        return support
    by_class = support.labels.argsort(stable=True)
    return support.only(by_class[torch.linspace(0, len(support) - 1, most).long()].sort().values.tolist())


def mean_keys(views: Tensor) -> Tensor:
    """One key a shot: the mean of its views [N, V, D], normalised again -> [N, D]."""
    return F.normalize(views.mean(1), dim=-1)


def build_cache(clip: CLIP, support: Support, rows: Tensor, views: int) -> Cache:
    """The cache of the shots, before training and search: all tensors on the CPU."""
    keys = mean_keys(support.features(clip, views)) if views else support.features(clip)
    return Cache(
        rows=rows.cpu(),
        keys=keys.cpu(),
        labels=support.labels.to(torch.int64).cpu(),
        scale=float(clip.logit_scale),
        **FALLBACK,
    )
