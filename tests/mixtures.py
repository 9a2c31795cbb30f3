"""Features of Gaussian classes with strong directions that say nothing, for the tests of `gda` and its variant."""

from dataclasses import replace

import torch
from tiny import NAMES, MadeUp, support_of, tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.data.records import Record, Records
from diptych.data.support import Support

D = 12  # the joint size of the tiny model


def mixture(count: int, seed: int, nuisance: float = 0.9, clip: CLIP | None = None) -> tuple[Tensor, list[int]]:
    """Features in a cone, as CLIP's are: a small step for each class, and two strong directions that say nothing."""
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize((clip or tiny_clip()).encode_text([f"a photo of a {name}." for name in NAMES]), dim=-1)
    fixed = torch.randn(7, D, generator=torch.Generator().manual_seed(99))
    axes = torch.linalg.qr(fixed.T)[0].T  # [7, D]: the cone, two nuisances, four classes
    labels = [i % 4 for i in range(count)]
    noise = 0.08 * torch.randn(count, D, generator=generator)
    strength = nuisance * torch.randn(count, 2, generator=generator)
    return 2 * axes[0] + 0.1 * rows[labels] + 0.25 * axes[3:][labels] + strength @ axes[1:3] + noise, labels


def shots(each: int, seed: int = 0, nuisance: float = 0.9) -> tuple[Support, Support]:
    """(shots, 400 queries) of one source."""
    features, labels = mixture(4 * each + 400, seed, nuisance)
    source = MadeUp(features, noise=0.02)
    support = support_of(source, labels[: 4 * each], NAMES, seed)
    return support, support_of(source, labels[4 * each :], NAMES, first=4 * each)


def accuracy(head, support: Support) -> float:
    return (head.logits(support.features(None)).argmax(1) == support.labels).float().mean().item()  # type: ignore[arg-type]


def pool_of(support: Support, count: int) -> Support:
    items = tuple(Record(str(i), None, None) for i in range(len(support), len(support) + count))
    return replace(support, unlabelled=Records(items, "pool"))
