"""The Bloom filter: against a plain one that goes bit by bit, and against the theory of its mistakes."""

import math

import numpy as np
import pytest

from diptych.methods.curate.parts.bloom import Bloom, hash64


def plain(hashes: np.ndarray, expected: int, error: float) -> list[bool]:
    """One thing after the other, with a set for the bits; places as the filter has them."""
    bloom, bits, seen = Bloom(expected, error), set(), []
    for places in bloom._places(hashes).tolist():
        seen.append(bits.issuperset(places))
        bits.update(places)
    return seen


@pytest.mark.parametrize("expected", [3, 40, 300])  # far too small, small, right
def test_what_was_seen_is_what_a_loop_says(expected: int):
    rng = np.random.default_rng(0)
    hashes = hash64([f"http://x/{n}" for n in rng.integers(0, 200, 300)])
    assert Bloom(expected, 0.05).seen(hashes).tolist() == plain(hashes, expected, 0.05)


def test_it_goes_block_by_block(monkeypatch: pytest.MonkeyPatch):
    hashes = hash64([str(n % 700) for n in range(1000)])
    whole = Bloom(1000).seen(hashes)
    monkeypatch.setattr("diptych.methods.curate.parts.bloom.BLOCK", 64)
    assert (Bloom(1000).seen(hashes) == whole).all()
    assert whole[700:].all()


@pytest.mark.parametrize("error", [0.1, 0.01, 0.001])
def test_it_errs_as_often_as_the_theory_says(error: float):
    count, asked = 20_000, 200_000
    bloom = Bloom(count, error)
    bloom.seen(hash64([f"in {n}" for n in range(count)]))
    assert bloom.holds(hash64([f"in {n}" for n in range(count)])).all()
    wrong = bloom.holds(hash64([f"out {n}" for n in range(asked)])).mean()
    theory = bloom.error_at(count)
    assert theory < 1.05 * error
    assert abs(wrong - theory) < 4 * math.sqrt(theory / asked)  # four standard errors


def test_its_size_is_the_textbooks():
    bloom = Bloom(1_000_000, 1e-3)
    assert bloom.bits == math.ceil(1_000_000 * 14.377587588)
    assert bloom.hashes == 10
    assert len(bloom.table) < 1.8e6


def test_it_serves_for_nothing():
    assert Bloom(0).seen(hash64([])).tolist() == []
    assert Bloom(1).seen(hash64(["a", "a"])).tolist() == [False, True]
