"""Tip-Adapter and Tip-Adapter-F: keys, votes, the search, what training changes."""

import pytest
import torch
from tiny import MadeUp, support_of, tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.heads import Cache, TextRows
from diptych.data.support import Support
from diptych.methods.adapt.parts.adapter import fit_path, last, recipe_of, select
from diptych.methods.adapt.parts.cache import ALPHAS, BETAS, START, build_cache, mean_keys
from diptych.methods.adapt.tip_adapter import Config, TipAdapter
from diptych.methods.adapt.tip_adapter_f import Config as TrainedConfig
from diptych.methods.adapt.tip_adapter_f import TipAdapterF, train_keys

NAMES = ("cat", "polar bear", "dog", "old oak tree")
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


def test_a_key_is_the_mean_of_its_views() -> None:
    support, _ = shots(2)
    views = support.features(tiny_clip(), 5)
    head = head_of(TipAdapter, Config(1.0, 1.0, views=5), support)
    for key, own in zip(head.keys, views, strict=True):
        mean = sum(own, torch.zeros(D)) / 5
        torch.testing.assert_close(key, mean / mean.norm())
    plain = head_of(TipAdapter, Config(1.0, 1.0, views=0), support)
    torch.testing.assert_close(plain.keys, support.features(tiny_clip()))


def test_alpha_zero_is_zero_shot() -> None:
    support, queries = shots(4)
    clip = tiny_clip()
    rows = TextRows(support.rows(clip, recipe_of(support)), float(clip.logit_scale))
    x = queries.features(clip)
    assert torch.equal(head_of(TipAdapter, Config(0.0, 5.5), support).logits(x), rows.logits(x))


def test_the_search_covers_the_published_ranges_and_its_start() -> None:
    assert min(BETAS) == min(ALPHAS) == 0.1 and max(BETAS) == max(ALPHAS) == 50.0
    assert START["beta"] in BETAS and START["alpha"] in ALPHAS


@pytest.mark.parametrize("seed", range(3))
def test_classes_of_two_looks(seed: int) -> None:
    """Where a class has two looks, votes of single pictures beat zero-shot and the nearest mean."""
    support, queries = shots(16, seed)
    clip = tiny_clip()
    chosen = select(TipAdapter(), clip, support)
    rows = support.rows(clip, recipe_of(support))
    x = support.features(clip)
    means = F.normalize(torch.stack([x[support.labels == c].mean(0) for c in range(4)]), dim=-1)
    found = accuracy(chosen.classifier.head, queries)
    assert found > accuracy(TextRows(rows, 1.0), queries) + 0.2
    assert found > accuracy(TextRows(means, 1.0), queries) + 0.05
    assert chosen.validation is not None and abs(chosen.validation - found) < 0.15


def loss_of(cache: Cache, keys: Tensor, x: Tensor, labels: Tensor) -> float:
    affinity = (-cache.beta * (1 - x @ keys.T)).exp()
    logits = cache.scale * x @ cache.rows.T + cache.alpha * affinity @ F.one_hot(cache.labels, 4).float()
    return float(F.cross_entropy(logits, labels))


def test_training_lowers_the_loss_of_the_whole_classifier() -> None:
    support, _ = shots(8)
    clip = tiny_clip()
    config = TrainedConfig(1.0, 1.0, views=4, batch=16)
    cache = build_cache(clip, support, support.rows(clip, recipe_of(support)), 4)
    keys = train_keys(cache, clip, support, config)
    x, labels = support.features(clip, 4).flatten(0, 1), support.labels.repeat_interleave(4)
    before = loss_of(cache, cache.keys, x, labels)
    assert loss_of(cache, keys, x, labels) < before - 0.02
    assert torch.equal(cache.keys, mean_keys(support.features(clip, 4))), "the cache itself stays"


def test_no_epochs_is_tip_adapter() -> None:
    support, queries = shots(4)
    x = queries.features(tiny_clip())
    trained = head_of(TipAdapterF, TrainedConfig(2.0, 3.5, epochs=0), support)
    assert torch.equal(trained.logits(x), head_of(TipAdapter, Config(2.0, 3.5), support).logits(x))


def test_one_step_is_adamw() -> None:
    """One batch, one step: the first step of AdamW moves each number by the rate, and decays it."""
    support, _ = shots(2)
    clip = tiny_clip()
    config = TrainedConfig(1.0, 1.0, views=0, epochs=1, rate=1e-3, weight_decay=0.0)
    cache = build_cache(clip, support, support.rows(clip, recipe_of(support)), 0)
    moved = train_keys(cache, clip, support, config) - cache.keys
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=1e-2, atol=0)


def test_all_shots_are_seen_whatever_the_batch() -> None:
    """The rest of a pass is a batch too, as in the release."""
    support, _ = shots(5)
    clip = tiny_clip()
    cache = build_cache(clip, support, support.rows(clip, recipe_of(support)), 0)
    config = TrainedConfig(1.0, 1.0, views=0, epochs=1, batch=15, weight_decay=0.0)
    moved = (train_keys(cache, clip, support, config) - cache.keys).abs()
    assert float(moved.max()) > 1.2e-3  # 20 shots, 15 a batch: two steps


def test_trained_keys_beat_untrained_ones_under_strong_noise() -> None:
    found = []
    for seed in range(3):
        support, queries = shots(16, seed, noise=0.45)
        config = TrainedConfig(2.0, 3.5, rate=1e-2, views=4, batch=16)
        trained = accuracy(head_of(TipAdapterF, config, support), queries)
        found.append(trained - accuracy(head_of(TipAdapter, Config(2.0, 3.5, views=4), support), queries))
    assert sum(found) / 3 > 0
