import pytest

from diptych.comparison.winner import choose
from diptych.errors import DiptychError


def row(method, shots, seed, accuracy, validation, trainable=0):
    return {
        "method": method, "shots": shots, "seed": seed, "accuracy": accuracy, "validation": validation,
        "trainable": trainable,
    }  # fmt: skip


def test_validation_chooses_and_the_test_column_does_not():
    rows = [row("a", 16, s, 0.99, 0.70) for s in (0, 1)] + [row("b", 16, s, 0.10, 0.80) for s in (0, 1)]
    assert choose(rows).method == "b"
    for r in rows:
        del r["accuracy"]  # not even there
    assert choose(rows).method == "b"


def test_the_most_shots_decide_and_all_is_the_most():
    rows = [
        row("a", 16, 0, 0.5, 0.9),
        row("b", 16, 0, 0.5, 0.8),
        row("a", "all", 0, 0.5, 0.6),
        row("b", "all", 0, 0.5, 0.7),
    ]
    assert (choose(rows).method, choose(rows).shots) == ("b", "all")


def test_a_tie_goes_to_fewer_trained_numbers():
    assert choose([row("a", 4, 0, 0.5, 0.9, trainable=9), row("b", 4, 0, 0.5, 0.9, trainable=1)]).method == "b"


def test_a_method_without_all_seeds_cannot_win():
    rows = [row("a", 4, 0, 1, 1.0), *(row("b", 4, s, 0.5, 0.5) for s in (0, 1))]
    assert choose(rows).method == "b"


def test_one_shot_leaves_zero_shot():
    rows = [row("gda", 1, 0, 0.9, None), row("zero_shot", 1, 0, 0.5, None)]
    choice = choose(rows)
    assert choice.method == "zero_shot"
    assert "nothing to validate" in choice.why


def test_nothing_measured_says_why():
    with pytest.raises(DiptychError, match="lora: needs a transformer"):
        choose([{"method": "lora", "shots": 1, "seed": 0, "skipped": "needs a transformer"}])
