"""Tip-Adapter-F: what training the keys changes."""

from dataclasses import replace

import torch
from looks import accuracy, head_of, loss_of, shots
from tiny import tiny_clip

from diptych.methods.adapt.parts.adapter import recipe_of
from diptych.methods.adapt.parts.cache import build_cache, mean_keys
from diptych.methods.adapt.tip_adapter import Config, TipAdapter
from diptych.methods.adapt.tip_adapter_f import Config as TrainedConfig
from diptych.methods.adapt.tip_adapter_f import TipAdapterF, train_keys


def test_training_lowers_the_loss_of_the_whole_classifier() -> None:
    support, _ = shots(8)
    clip = tiny_clip()
    config = TrainedConfig(1.0, 1.0, views=4, batch=16, start_alpha=1.17)
    cache = build_cache(clip, support, support.rows(clip, recipe_of(support)), 4)
    keys = train_keys(cache, clip, support, config)
    cache = replace(cache, alpha=1.17)
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
    config = TrainedConfig(1.0, 1.0, views=0, epochs=1, rate=1e-3, weight_decay=0.0, start_alpha=1.17)
    cache = build_cache(clip, support, support.rows(clip, recipe_of(support)), 0)
    moved = train_keys(cache, clip, support, config) - cache.keys
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=1e-2, atol=0)


def test_all_shots_are_seen_whatever_the_batch() -> None:
    """The rest of a pass is a batch too, as in the release."""
    support, _ = shots(5)
    clip = tiny_clip()
    cache = build_cache(clip, support, support.rows(clip, recipe_of(support)), 0)
    config = TrainedConfig(1.0, 1.0, views=0, epochs=1, batch=15, weight_decay=0.0, start_alpha=1.17)
    moved = (train_keys(cache, clip, support, config) - cache.keys).abs()
    assert float(moved.max()) > 1.2e-3  # 20 shots, 15 a batch: two steps


def test_trained_keys_beat_untrained_ones_under_strong_noise() -> None:
    found = []
    for seed in range(3):
        support, queries = shots(16, seed, noise=0.45)
        config = TrainedConfig(2.0, 3.5, rate=1e-2, views=4, batch=16, start_alpha=1.17)
        trained = accuracy(head_of(TipAdapterF, config, support), queries)
        found.append(trained - accuracy(head_of(TipAdapter, Config(2.0, 3.5, views=4), support), queries))
    assert sum(found) / 3 > 0
