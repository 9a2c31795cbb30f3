"""GDA without labels: the mixture finds the classes, and labels are not used."""

from dataclasses import replace

import pytest
import torch
from mixtures import D, mixture, pool_of, shots
from tiny import tiny_clip
from torch.nn import functional as F

from diptych.core.heads import Gaussian
from diptych.data.support import Support
from diptych.errors import Unsupported
from diptych.methods.adapt.gda_unsupervised import Config as MixtureConfig
from diptych.methods.adapt.gda_unsupervised import GDAUnsupervised, fit_mixture
from diptych.methods.adapt.parts.adapter import fit_path, judge, last, select


def test_mixture_finds_the_classes_without_labels() -> None:
    """Started right three times of four, expectation maximisation under the true metric ends nearly right."""
    features, labels = mixture(600, 3)
    truth = torch.tensor(labels)
    x = F.normalize(features, dim=-1)
    guess = truth.clone()
    guess[::4] = (guess[::4] + 1 + torch.arange(150) % 3) % 4
    fitted = fit_mixture(x, F.one_hot(guess, 4).float() * 0.7 + 0.1, rounds=10)
    weight = fitted.means @ fitted.precision
    found = (x.double() @ weight.T - 0.5 * (weight * fitted.means).sum(1)).argmax(1)
    assert (found == truth).float().mean() > 0.9


def test_the_unsupervised_variant_needs_a_pool() -> None:
    support, queries = shots(4)
    clip = tiny_clip()
    with pytest.raises(Unsupported, match="unlabelled"):
        select(GDAUnsupervised(), clip, support)
    fitted = last(fit_path(GDAUnsupervised(), MixtureConfig(alpha=1.0), clip, pool_of(support, 300)))
    assert judge(fitted, clip, queries).shape == (400, 4)


def test_the_pool_is_used_and_the_labels_are_not() -> None:
    support, _ = shots(4)
    clip = tiny_clip()
    config = MixtureConfig(alpha=1.0)

    def head(given: Support) -> Gaussian:
        found = last(fit_path(GDAUnsupervised(), config, clip, given)).head
        assert isinstance(found, Gaussian)
        return found

    fitted = head(pool_of(support, 300))
    assert torch.equal(head(pool_of(support.only([0, 1]), 300)).means.isfinite(), torch.ones(4, D).bool())
    other = replace(pool_of(support, 300), labels=support.labels.flip(0))
    assert torch.equal(head(other).means, fitted.means)
    assert not torch.equal(head(pool_of(support, 100)).means, fitted.means)
