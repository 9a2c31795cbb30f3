"""Tip-Adapter and Tip-Adapter-F: keys, votes, the search, what training changes."""

import pytest
import torch
from looks import D, accuracy, head_of, shots
from tiny import tiny_clip
from torch.nn import functional as F

from diptych.core.heads import TextRows
from diptych.methods.adapt.parts import adapter, cache
from diptych.methods.adapt.parts.adapter import recipe_of, select
from diptych.methods.adapt.parts.cache import ALPHAS, BETAS, FALLBACK, STARTS, kept
from diptych.methods.adapt.tip_adapter import Config, TipAdapter


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
    assert min(BETAS) == min(ALPHAS) == 0.1 and max(BETAS) == 50.0 <= max(ALPHAS)
    assert FALLBACK["beta"] in BETAS and set(STARTS) <= {FALLBACK["alpha"], *ALPHAS}


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


def test_very_many_shots_are_thinned_class_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    support, _ = shots(30)
    assert kept(support) is support
    monkeypatch.setattr(cache, "MOST", 8)  # 16 a class is more
    few = kept(support)
    assert few.counts.tolist() == [16] * 4
    assert set(few.records.ids) <= set(support.records.ids) and len(set(few.records.ids)) == 64


def test_views_are_for_few_shots_unless_they_are_set() -> None:
    assert TipAdapter().suited(16).config.views == 10
    assert TipAdapter().suited(17).config.views == 0
    assert TipAdapter(Config(views=3)).suited(17).config.views == 3
    support, _ = shots(20)
    assert select(TipAdapter(Config(1.0, 1.0)), tiny_clip(), support).config.views == 0


def test_a_choice_holds_out_what_memory_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    support, _ = shots(200)
    everything = select(TipAdapter(Config(alpha=(0.0, 1.0), beta=1.0, views=0)), tiny_clip(), support)
    assert everything.held == 800
    monkeypatch.setattr(adapter, "LOGITS", 2 * 4 * 600)
    part = select(TipAdapter(Config(alpha=(0.0, 1.0), beta=1.0, views=0)), tiny_clip(), support)
    assert part.held == 600 and part.config == everything.config
