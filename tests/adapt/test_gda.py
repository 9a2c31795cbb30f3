"""GDA and its unsupervised variant: the estimates, their effect where a wrong one would show, refusals."""

from dataclasses import replace

import pytest
import torch
from mixtures import NAMES, D, accuracy, mixture, shots
from tiny import tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.heads import Cache, Gaussian, TextRows, gaussian_precision
from diptych.errors import DiptychError, Unsupported
from diptych.methods.adapt.gda import GDA, Config
from diptych.methods.adapt.parts.adapter import fit_path, judge, last, recipe_of, select
from diptych.methods.adapt.parts.gaussian import fit_classes


def test_estimates_are_the_papers() -> None:
    features, labels = mixture(40, 0)
    x = F.normalize(features, dim=-1).double()
    fitted = fit_classes(x, F.one_hot(torch.tensor(labels)))
    means = torch.stack([x[torch.tensor(labels) == c].mean(0) for c in range(4)])
    centred = x - means[labels]
    scatter = sum((torch.outer(row, row) for row in centred), torch.zeros(D, D).double()) / 39
    torch.testing.assert_close(fitted.means, means)
    torch.testing.assert_close(fitted.precision, gaussian_precision(scatter, 40), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(fitted.log_prior, torch.full((4,), 0.25).double().log())


def test_every_view_is_a_sample() -> None:
    support, _ = shots(4)
    clip = tiny_clip()
    head = last(fit_path(GDA(), Config(alpha=1.0, views=3), clip, support)).head
    assert isinstance(head, Gaussian)
    views = support.features(clip, 3)
    fitted = fit_classes(views.flatten(0, 1), F.one_hot(support.labels).repeat_interleave(3, 0))
    torch.testing.assert_close(head.precision, fitted.precision.float())
    averaged = fit_classes(views.mean(1), F.one_hot(support.labels))
    assert not torch.allclose(head.precision, averaged.precision.float(), rtol=0.1)


def test_a_prior_from_counts_is_on_the_scale_of_the_precision() -> None:
    features, labels = mixture(60, 0)
    rare = [i for i, label in enumerate(labels) if label or i < 8]
    weights = F.one_hot(torch.tensor([labels[i] for i in rare]), 4)
    fitted = fit_classes(features[rare], weights, "counts")
    share = weights.double().mean(0)
    torch.testing.assert_close(fitted.log_prior, share.log() * D / (len(rare) - 1))
    with pytest.raises(DiptychError, match="uniform"):
        fit_classes(features, F.one_hot(torch.tensor(labels)), "unifrom")


def test_counts_help_where_rare_classes_are_rare_in_life() -> None:
    """With broad classes and 30 to 1 counts, the prior wins on a test of the same counts."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.35 * torch.eye(4, D)

    def draw(each: list[int]) -> tuple[Tensor, Tensor]:
        labels = torch.repeat_interleave(torch.arange(4), torch.tensor(each))
        return centres[labels] + 0.2 * torch.randn(len(labels), D, generator=generator), labels

    x, labels = draw([300, 10, 10, 10])
    test, truth = draw([3000, 100, 100, 100])
    right = {}
    for prior in ("uniform", "counts"):
        fitted = fit_classes(x, F.one_hot(labels), prior)
        none = torch.zeros(4, D)
        tensors = (none, fitted.means.float(), fitted.precision.float(), fitted.log_prior.float(), none)
        head = Gaussian(*tensors, scale=0.0, alpha=1.0)
        right[prior] = (head.logits(test).argmax(1) == truth).float().mean().item()
    assert right["counts"] > right["uniform"] + 0.05


def test_alpha_to_zero_is_zero_shot() -> None:
    support, queries = shots(4)
    clip = tiny_clip()
    zero_shot = TextRows(support.rows(clip, recipe_of(support)), float(clip.logit_scale)).logits(queries.features(clip))
    at_zero = last(fit_path(GDA(), Config(alpha=0.0), clip, support)).head.logits(queries.features(clip))
    assert torch.equal(at_zero, zero_shot)
    near = last(fit_path(GDA(), Config(alpha=1e-9), clip, support)).head.logits(queries.features(clip))
    torch.testing.assert_close(near, zero_shot, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_zero_shot_nearest_means_and_a_cache(seed: int) -> None:
    support, queries = shots(16, seed)
    clip = tiny_clip()
    rows, scale = support.rows(clip, recipe_of(support)), float(clip.logit_scale)
    x = support.features(clip)
    means = F.normalize(torch.stack([x[support.labels == c].mean(0) for c in range(4)]), dim=-1)
    fitted = accuracy(select(GDA(), clip, support).classifier.head, queries)
    assert fitted > accuracy(TextRows(rows, scale), queries) + 0.05
    assert fitted > accuracy(TextRows(means, 1.0), queries) + 0.05
    caches = [Cache(rows, x, support.labels, scale, alpha, beta) for alpha in (0.5, 2.0, 10.0) for beta in (1.0, 5.5)]
    assert fitted > max(accuracy(cache, queries) for cache in caches) + 0.05


def test_the_precision_is_what_helps_against_a_shared_nuisance() -> None:
    support, queries = shots(16)
    head = select(GDA(), tiny_clip(), support).classifier.head
    assert isinstance(head, Gaussian)
    round_ = max(
        accuracy(replace(head, precision=scale * torch.eye(D)), queries) for scale in (1.0, 10.0, 100.0, 1000.0)
    )
    assert accuracy(head, queries) > round_ + 0.1


def test_one_shot_with_one_view_is_refused_in_words() -> None:
    support, _ = shots(1)
    for views in (0, 1):
        with pytest.raises(Unsupported, match="no scatter within a class at one shot"):
            select(GDA(Config(views=views)), tiny_clip(), support)
    assert select(GDA(), tiny_clip(), support).validation is None


def test_new_names_use_the_fit() -> None:
    """Classes held out of the fit are told apart by the nuisance-free metric of the others: better than by texts."""
    support, queries = shots(16)
    clip = tiny_clip()
    base = last(fit_path(GDA(), Config(alpha=0.1), clip, support.of_classes([0, 1])))
    renamed = base.with_names(clip, NAMES[2:])
    assert isinstance(renamed.head, Gaussian)
    assert renamed.head.means.shape == (2, D)
    assert judge(renamed, clip, queries).shape == (400, 2)
