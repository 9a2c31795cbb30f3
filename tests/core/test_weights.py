"""Arithmetic on named tensors: both ends exact, counters copied, the smallest pruned, layers by name."""

import pytest
import torch

from diptych.core.weights import delta, interpolate, layers, prune, smallest
from diptych.errors import DiptychError

FIRST = {"a.0.w": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([[4.0]]), "count": torch.tensor(3)}
SECOND = {"a.0.w": torch.tensor([1.5, 2.0, 3.1]), "b": torch.tensor([[0.0]]), "count": torch.tensor(8)}


def test_a_line_ends_exactly_and_counters_are_copied() -> None:
    for alpha, end in ((0, FIRST), (1.0, SECOND)):
        made = interpolate(FIRST, SECOND, alpha)
        assert all(torch.equal(made[name], end[name]) for name in end)
        made["b"].zero_()
        assert end is SECOND or float(FIRST["b"]) == 4, "the ends are copies"
    middle = interpolate(FIRST, SECOND, 0.25)
    assert torch.allclose(middle["a.0.w"], 0.75 * FIRST["a.0.w"] + 0.25 * SECOND["a.0.w"])
    assert middle["count"].item() == 8 and middle["count"].dtype == torch.int64
    half = interpolate({"w": torch.tensor([1.0]).half()}, {"w": torch.tensor([2.0]).half()}, 0.5)
    assert half["w"].dtype == torch.float16 and half["w"].item() == 1.5
    assert set(delta(FIRST, SECOND)) == {"a.0.w", "b"} and float(delta(FIRST, SECOND)["b"]) == -4


def test_the_smallest_are_pruned_together_over_tensors() -> None:
    to_zero = prune(SECOND, 0.5, ["a.0.w", "b", "count"])
    assert to_zero["a.0.w"].tolist() == [0.0, 2.0, pytest.approx(3.1)] and to_zero["b"].item() == 0
    back = prune(SECOND, 0.5, ["a.0.w", "b"], FIRST)  # moved by 0.5, 4, 0.1 and 4
    assert back["a.0.w"].tolist() == [1.0, 2.0, 3.0] and back["b"].item() == 0
    assert SECOND["a.0.w"][0] == 1.5, "what is given stays"
    assert torch.equal(prune(SECOND, 1.0, ["b"], FIRST)["b"], FIRST["b"])
    assert not any(mask.any() for mask in smallest(FIRST, 0.0).values())


def test_layers_are_blocks_by_their_numbers() -> None:
    names = ["conv1.weight", "transformer.resblocks.1.attn.w", "transformer.resblocks.1.mlp.b", "blocks.2.1.w", "proj"]
    assert layers(names) == {
        "conv1": ["conv1.weight"],
        "transformer.resblocks.1": names[1:3],
        "blocks.2": ["blocks.2.1.w"],
        "proj": ["proj"],
    }


def test_unlike_models_and_shares_beyond_one_are_refused() -> None:
    with pytest.raises(DiptychError, match="only one has b"):
        interpolate(FIRST, {"a.0.w": SECOND["a.0.w"]}, 0.5)
    with pytest.raises(DiptychError, match=r"b is \[1, 1\] and \[2\]"):
        interpolate(FIRST, {**SECOND, "b": torch.zeros(2)}, 0.5)
    with pytest.raises(DiptychError, match="from 0 to 1"):
        prune(FIRST, 1.5, ["b"])
