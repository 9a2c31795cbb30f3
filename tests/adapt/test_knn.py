"""k nearest neighbours: votes and k by validation."""

import torch
from tiny import MadeUp, support_of, tiny_clip
from torch.nn import functional as F

from diptych.data.support import Support
from diptych.methods.adapt.knn import KNN, Config
from diptych.methods.adapt.parts.adapter import fit_path, last, select

NAMES = ("cat", "polar bear", "dog", "old oak tree")


def shots(each: int, wrong: float, seed: int = 0) -> tuple[Support, Support]:
    """Tight classes of which a share of the shots is labelled wrongly: (shots, clean queries)."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(4 * each + 200) % 4
    centres = F.normalize(torch.randn(4, 12, generator=torch.Generator().manual_seed(3)), dim=-1)
    source = MadeUp(centres[truth] + 0.25 * torch.randn(len(truth), 12, generator=generator))
    noisy = torch.rand(len(truth), generator=generator) < wrong
    labels = torch.where(noisy, (truth + 1) % 4, truth).tolist()
    return support_of(source, labels[: 4 * each], NAMES), support_of(source, truth[4 * each :].tolist(), first=4 * each)


def accuracy(k: int, support: Support, queries: Support) -> float:
    fitted = last(fit_path(KNN(), Config(k=k), tiny_clip(), support))
    return (fitted.logits(queries.features(tiny_clip())).argmax(1) == queries.labels).float().mean().item()


def test_wrong_labels_ask_for_more_neighbours() -> None:
    support, queries = shots(24, wrong=0.3)
    chosen = select(KNN(), tiny_clip(), support)
    assert chosen.config.k > 1
    assert accuracy(chosen.config.k, support, queries) > accuracy(1, support, queries) + 0.05


def test_one_shot_takes_the_nearest() -> None:
    support, _ = shots(1, wrong=0.0)
    assert select(KNN(), tiny_clip(), support).config.k == 1


def test_k_beyond_the_shots_is_all_of_them() -> None:
    support, queries = shots(3, wrong=0.0)
    assert accuracy(200, support, queries) == accuracy(12, support, queries)
