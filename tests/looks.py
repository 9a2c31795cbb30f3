"""Classes of two unlike looks, which one mean would blur, for the tests of `tip_adapter` and `tip_adapter_f`."""

import torch
from tiny import NAMES, MadeUp, support_of, tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.heads import Cache
from diptych.data.support import Support
from diptych.methods.adapt.parts.adapter import fit_path, last

D = 12


def shots(each: int, seed: int = 0, noise: float = 0.25) -> tuple[Support, Support]:
    """(shots, 400 queries): every class has two looks, far from each other and from its text."""
    generator = torch.Generator().manual_seed(seed)
    looks = F.normalize(torch.randn(8, D, generator=torch.Generator().manual_seed(7)), dim=-1)
    labels = [i % 4 for i in range(4 * each + 400)]
    look = torch.tensor(labels) + 4 * torch.randint(2, (len(labels),), generator=generator)
    source = MadeUp(looks[look] + noise * torch.randn(len(labels), D, generator=generator), noise=0.1)
    support = support_of(source, labels[: 4 * each], NAMES, seed)
    return support, support_of(source, labels[4 * each :], NAMES, first=4 * each)


def accuracy(head, support: Support) -> float:
    return (head.logits(support.features(None)).argmax(1) == support.labels).float().mean().item()  # type: ignore[arg-type]


def head_of(adapter: type, config: object, support: Support) -> Cache:
    head = last(fit_path(adapter(), config, tiny_clip(), support)).head
    assert isinstance(head, Cache)
    return head


def loss_of(cache: Cache, keys: Tensor, x: Tensor, labels: Tensor) -> float:
    affinity = (-cache.beta * (1 - x @ keys.T)).exp()
    logits = cache.scale * x @ cache.rows.T + cache.alpha * affinity @ F.one_hot(cache.labels, 4).float()
    return float(F.cross_entropy(logits, labels))
