"""The linear probe against scikit-learn, and its C by validation."""

import numpy as np
import pytest
import torch
from tiny import MadeUp, support_of, tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.heads import Linear
from diptych.data.support import Support
from diptych.methods.adapt.linear_probe import DECADES, LinearProbe, regress
from diptych.methods.adapt.parts.adapter import fit_path, judge_path, last, select

NAMES = ("cat", "polar bear", "dog", "old oak tree")
D = 12


def shots(each: int, classes: int = 4, noise: float = 0.3) -> Support:
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(classes, D, generator=generator), dim=-1)
    labels = [i % classes for i in range(classes * each)]
    features = centres[labels] + noise * torch.randn(len(labels), D, generator=generator)
    return support_of(MadeUp(features), labels, NAMES[:classes])


def start(classes: int) -> Tensor:
    return torch.zeros(classes, D + 1, dtype=torch.float64)


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_equals_scikit_learn(C: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    support = shots(20)
    x, y = support.features(tiny_clip()).double(), support.labels
    found = regress(x, y, C, start(4), 1000)
    theirs = linear_model.LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(found[:, :-1].numpy(), theirs.coef_, atol=2e-2 * np.abs(theirs.coef_).max())
    ours = (x @ found[:, :-1].T + found[:, -1]).softmax(1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(x.numpy()), atol=5e-3)


def test_the_gradient_is_the_losses() -> None:
    """At the optimum the gradient of the loss, written again with autograd, vanishes."""
    support = shots(10)
    x, y = support.features(tiny_clip()).double(), support.labels
    found = regress(x, y, 1.0, start(4), 1000).requires_grad_()
    loss = F.cross_entropy(x @ found[:, :-1].T + found[:, -1], y) + found[:, :-1].square().sum() / (2 * len(x))
    loss.backward()
    assert found.grad is not None and float(found.grad.abs().max()) < 1e-4


def test_each_start_gives_the_same_end() -> None:
    support = shots(10)
    x, y = support.features(tiny_clip()).double(), support.labels
    cold = regress(x, y, 10.0, start(4), 1000)
    warm = regress(x, y, 10.0, regress(x, y, 0.01, start(4), 1000), 1000)
    torch.testing.assert_close(cold, warm, atol=2e-2, rtol=2e-2)


def test_two_classes() -> None:
    support = shots(10, classes=2)
    classifier = last(fit_path(LinearProbe(), LinearProbe.Config(C=1.0), tiny_clip(), support))
    assert isinstance(classifier.head, Linear) and classifier.head.weight.shape == (2, D)
    assert classifier.trainable == 2 * (D + 1)
    assert (classifier.logits(support.features(tiny_clip())).argmax(1) == support.labels).float().mean() > 0.9


def test_the_chosen_C_is_the_best_out_of_fold() -> None:
    support, clip = shots(12, noise=0.5), tiny_clip()
    chosen = select(LinearProbe(), clip, support)
    right = dict.fromkeys(DECADES, 0)
    for fit, held in support.folds(LinearProbe.folds):
        rest = support.only(held)
        for config, logits in judge_path(
            fit_path(LinearProbe(), LinearProbe.Config(), clip, support.only(fit)), clip, rest
        ):
            right[config.C] += int((logits.argmax(1) == rest.labels).sum())
    assert right[chosen.config.C] == max(right.values())
    assert chosen.validation == max(right.values()) / len(support)


def test_where_all_are_right_the_threshold_still_lets_them_pass() -> None:
    support = shots(6, noise=0.03)
    chosen = select(LinearProbe(), tiny_clip(), support)
    assert chosen.validation == 1.0 and chosen.classifier.threshold is not None
    top = chosen.classifier.probabilities(support.features(tiny_clip())).amax(1)
    assert chosen.classifier.threshold < 0.999
    assert (top >= chosen.classifier.threshold).float().mean() > 0.7
