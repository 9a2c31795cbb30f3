"""The head against the formulae of the card, written with loops in numpy."""

import math

import numpy as np
import pytest
import torch

from diptych.core.mini import Constants, PictureHead, TextHead, class_rows, closed_form

K, T, W, D = 9, 5, 7, 3
CONSTANTS = Constants(temperature=0.7, shrink=0.4, ridge=0.3, ridge_weight=0.6, detail=D, detail_weight=1.7)


@pytest.fixture
def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classifier weight [K, W], bias [K], unit class texts [K, T]."""
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(K, T)) + 0.5
    return rng.normal(size=(K, W)), rng.normal(size=K), texts / np.linalg.norm(texts, axis=1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / math.sqrt(sum(v * v for v in x))


def naive(f: np.ndarray, weight: np.ndarray, bias: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """One picture's features [W] -> its embedding in text space [T], then the length of its detail."""
    mu = np.array([sum(texts[k, t] for k in range(K)) / K for t in range(T)])
    covariance = sum(np.outer(texts[k] - mu, texts[k] - mu) for k in range(K)) / K
    shrunk = covariance + CONSTANTS.shrink * np.trace(covariance) / T * np.eye(T)
    logits = [sum(weight[k, j] * f[j] for j in range(W)) + bias[k] for k in range(K)]
    odds = [math.exp(logit / CONSTANTS.temperature) for logit in logits]
    guess = sum(odds[k] / sum(odds) * (texts[k] - mu) for k in range(K))
    # the positive root of the inverse, by Denman and Beavers' iteration
    y, z = shrunk, np.eye(T)
    for _ in range(60):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    guess = z @ guess
    # ridge regression of the logits on the texts, as least squares with penalty rows
    mean = weight.mean(0)
    target = np.array([sum((weight[k, j] - mean[j]) * f[j] for j in range(W)) for k in range(K)])
    design = np.vstack([texts - mu, math.sqrt(CONSTANTS.ridge) * np.eye(T)])
    linear = np.linalg.lstsq(design, np.concatenate([target, np.zeros(T)]), rcond=None)[0]
    return unit(unit(guess) + CONSTANTS.ridge_weight * unit(linear))


def test_equals_the_formulae(parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weight, bias, texts = parts
    form = closed_form(torch.tensor(weight), torch.tensor(texts), CONSTANTS)
    head = PictureHead(torch.tensor(weight).float(), torch.tensor(bias).float(), form, CONSTANTS, b"recipe")
    features = np.random.default_rng(1).normal(size=(4, W))
    ours = head(torch.tensor(features).float()).numpy()
    expected = np.stack([naive(f, weight, bias, texts) for f in features])
    assert np.abs(ours[:, :T] - expected).max() < 1e-5
    assert np.allclose(np.linalg.norm(ours[:, T:], axis=1), CONSTANTS.detail_weight, atol=1e-5)


def test_detail_keeps_the_directions_that_the_classifier_looks_at_most(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    weight, _, texts = parts
    detail = closed_form(torch.tensor(weight), torch.tensor(texts), CONSTANTS).detail.double().numpy()
    centred = weight - weight.mean(0)
    assert np.allclose(detail @ detail.T, np.eye(D), atol=1e-6)
    seen = np.linalg.norm(centred @ detail.T, axis=0)
    assert np.allclose(seen, np.sqrt(np.linalg.eigvalsh(centred.T @ centred)[::-1][:D]), atol=1e-5)
    again = closed_form(torch.tensor(-weight), torch.tensor(texts), CONSTANTS).detail.numpy()
    assert np.allclose(again, detail, atol=1e-5), "a singular vector's sign is chosen by us"


def test_texts_have_no_detail() -> None:
    pooled = torch.randn(2, T, generator=torch.Generator().manual_seed(0))
    centre = torch.full((T,), 0.1)
    found = TextHead(centre, D)(pooled)
    assert torch.allclose(found[:, :T], pooled / pooled.norm(dim=1, keepdim=True) - centre)
    assert not found[:, T:].any()


def test_a_class_row_weighs_names_synonyms_and_description_alike() -> None:
    known = {"a": [1.0, 0.0], "b": [0.0, 2.0], "c": [0.0, -3.0], "d": [3.0, 4.0]}
    groups = [[["a"], ["b", "c"]], [["a"], ["a", "b"], ["d"]]]
    rows = class_rows(groups, lambda texts: torch.tensor([known[text] for text in texts]))
    second = np.array([1 + 0.5 + 0.6, 0 + 0.5 + 0.8])
    assert torch.allclose(rows, torch.tensor(np.stack([[1, 0], second / np.linalg.norm(second)])).float())
