"""Factors, shape bias, the line over models, correspondence and the tables of tags, each with a known answer."""

import math

import numpy as np
import pytest
import torch

from diptych.metrics.correspondence import errors, matches, pck, recall_within
from diptych.metrics.factors import paired_differences, regression, within
from diptych.metrics.intervals import bootstrap, mean_interval
from diptych.metrics.robustness import (
    Line,
    coarse,
    effective_robustness,
    factor_accuracies,
    fit_line,
    relative_drop,
    shape_bias,
)  # fmt: skip


def test_factors_against_a_plain_count() -> None:
    rng = np.random.default_rng(1)
    tags = [tuple(t for t in ("pose", "small") if rng.random() < 0.4) for _ in range(300)]
    right = np.array([rng.random() < (0.3 if "pose" in t else 0.8) for t in tags])
    found = {f.name: f for f in factor_accuracies(right, tags)}
    for name, factor in found.items():
        own = [r for r, t in zip(right, tags, strict=True) if name in t]
        assert factor.count == len(own) and factor.accuracy.mean == pytest.approx(sum(own) / len(own))
        assert factor.sensitivity == pytest.approx((1 - sum(own) / len(own)) / (1 - right.mean()) - 1)
        assert factor.accuracy.low < factor.accuracy.mean < factor.accuracy.high
    assert next(iter(found)) == "pose" and found["pose"].sensitivity > 0.3 > found["small"].sensitivity
    assert factor_accuracies([1, 0], [("a",), ()]) == [], "too few pictures to say"
    assert math.isnan(factor_accuracies([1] * 20, [("a",)] * 20)[0].error_ratio), "nothing is wrong: no ratio"


def test_shape_bias_and_drops() -> None:
    bias, decided = shape_bias([0, 1, 2, 0, 3], [0, 0, 0, 0, 3], [1, 1, 1, 2, 3])
    assert bias == pytest.approx(2 / 3) and decided == pytest.approx(3 / 4), "the last has no conflict"
    assert math.isnan(shape_bias([2], [0], [1])[0])
    assert relative_drop(0.8, 0.6) == pytest.approx(0.25)
    assert coarse([[0.2, 0.4, 0.4]], [(0, 1), (2,)]).tolist() == [[pytest.approx(0.3), 0.4]]


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_the_line_is_found_and_what_lies_above_it(link) -> None:
    true = Line(0.8, -0.5, link)
    accuracy = np.linspace(0.3, 0.9, 8)
    line = fit_line(accuracy, true.expected(accuracy), link)
    assert (line.slope, line.intercept) == (pytest.approx(0.8), pytest.approx(-0.5))
    assert line.effective_robustness(0.5, true.expected(0.5) + 0.1) == pytest.approx(0.1)
    rng = np.random.default_rng(0)
    means = np.append(accuracy, 0.6)
    shifted = np.append(true.expected(accuracy), float(true.expected(0.6)) + 0.15)
    right, right_shifted = (rng.random((9, 3000)) < m[:, None] for m in (means, shifted))
    above = effective_robustness(right, right_shifted, range(8), link, rounds=200)
    assert above[8].low > 0.08 and above[8].high < 0.22
    assert all(abs(one.mean) < 0.05 for one in above[:8])


def test_bootstraps() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    found = mean_interval(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert bootstrap(lambda rows: float(values[rows].mean()), 400)[1:] == pytest.approx(found[1:], abs=1e-9)


def test_correspondence_against_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(12, 5, generator=generator), torch.randn(9, 5, generator=generator)
    index, sure = matches(first, second)
    for i in range(12):
        cosines = [float(torch.cosine_similarity(first[i], s, dim=0)) for s in second]
        order = sorted(range(9), key=lambda j: -cosines[j])
        assert int(index[i]) == order[0]
        one, two = (math.sqrt(2 - 2 * cosines[j]) for j in order[:2])
        assert float(sure[i]) == pytest.approx(1 - one / two, abs=1e-5)
    same, sure = matches(first, first)
    assert same.tolist() == list(range(12)) and float(sure.min()) == pytest.approx(1, abs=1e-6)
    error = errors(torch.tensor([[0, 0], [3, 4]]), torch.tensor([[0, 1], [0, 0]]))
    assert recall_within(error, (1, 5)) == {1: 0.5, 5: 1.0}
    boxes = torch.tensor([[10, 2], [49, 20]])
    assert pck(torch.tensor([[0, 0], [3, 4]]), torch.tensor([[0, 1], [0, 0]]), boxes) == 0.5


def zoo(rng: np.random.Generator, count: int = 48, confounded: bool = False) -> list[dict]:
    """The metric is accuracy + 0.1 for the source "big"; the architecture does nothing."""
    rows = []
    for i in range(count):
        tags = {"source": ("big", "small")[i % 2], "kind": ("vit", "conv")[i % 2 if confounded else (i // 2) % 2]}
        accuracy = rng.uniform(0.3, 0.8)
        effect = 0.1 * (tags["source"] == "big")
        rows.append({"tags": tags, "accuracy": accuracy, "auroc": accuracy + effect + rng.normal(0, 0.05)})
    return rows


def test_the_regression_covers_a_known_effect_in_nine_of_ten_draws() -> None:
    hits = []
    for trial in range(100):
        effects = {e.tag: e for e in regression(zoo(np.random.default_rng(trial)), "auroc", rounds=150, seed=trial)}
        source = effects["source"]
        sign = 1 if source.word == "big" else -1
        hits.append(source.effect.low <= sign * 0.1 <= source.effect.high)
        assert not source.observational
    assert sum(hits) >= 90


def test_what_never_changes_alone_is_observational() -> None:
    rows = zoo(np.random.default_rng(0), confounded=True)
    assert all(effect.observational for effect in regression(rows, "auroc", rounds=50))
    assert paired_differences(rows, "auroc") == []
    rows = zoo(np.random.default_rng(0))
    pairs = {(p.tag, p.word, p.other): p for p in paired_differences(rows, "auroc")}
    by_hand = [
        small["auroc"] - big["auroc"]
        for small in rows
        for big in rows
        if small["tags"] == big["tags"] | {"source": "small"} != big["tags"]
    ]
    found = pairs["source", "small", "big"]
    assert found.conclusive and found.pairs == len(by_hand) and found.mean == pytest.approx(sum(by_hand) / len(by_hand))
    assert regression(rows[:3], "auroc") == [], "fewer models than columns"
    assert set(within(rows, "source", "accuracy", "auroc")) == {"", "big", "small"}
