"""A Bloom filter: which of many things were seen before, at 1.8 bytes a thing, wrong for one new thing in a thousand.

Bloom, Space/Time Trade-offs in Hash Coding with Allowable Errors, CACM 1970. For n things and an error rate p:
m = n ln(1 / p) / ln(2)^2 bits and k = m / n ln(2) hashes. The k places of a thing are made of the two halves of one
64-bit hash (Kirsch and Mitzenmacher 2006), and all is arithmetic on arrays.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

BLOCK = 1 << 16  # things looked at together


class Bloom:
    """For `expected` things with an error rate of `error` when all of them are in."""

    def __init__(self, expected: int, error: float = 1e-3) -> None:
        self.bits = max(64, math.ceil(max(expected, 1) * math.log(1 / error) / math.log(2) ** 2))
        self.hashes = max(1, round(self.bits / max(expected, 1) * math.log(2))) if expected else 1
        self.table = np.zeros(-(-self.bits // 8), np.uint8)

    def error_at(self, count: int) -> float:
        """The chance that a new thing is taken for a known one when `count` are in."""
        return (1 - math.exp(-self.hashes * count / self.bits)) ** self.hashes

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """hashes: uint64 [N] -> bool [N]: in it, or by `error_at` mistaken for something that is."""
        return np.all(self._set(self._places(hashes)), axis=1)

    def seen(self, hashes: np.ndarray) -> np.ndarray:
        """Put all of them in, one after the other; bool [N]: was it there when its turn came?"""
        found = [self._seen(hashes[start : start + BLOCK]) for start in range(0, len(hashes), BLOCK)]
        return np.concatenate([np.zeros(0, bool), *found])

    def _seen(self, hashes: np.ndarray) -> np.ndarray:
        places = self._places(hashes)  # [B, k]
        before = self._set(places)
        # A bit that was not set before the block is set, within it, by the first thing that has it.
        distinct, first, inverse = np.unique(places, return_index=True, return_inverse=True)
        setter = (first // self.hashes)[inverse].reshape(places.shape)
        np.bitwise_or.at(self.table, distinct >> 3, np.uint8(1) << (distinct & 7).astype(np.uint8))
        return np.all(before | (setter < np.arange(len(hashes))[:, None]), axis=1)

    def _places(self, hashes: np.ndarray) -> np.ndarray:
        low, high = hashes & np.uint64(0xFFFFFFFF), hashes >> np.uint64(32)
        steps = np.arange(self.hashes, dtype=np.uint64)
        # An odd step, and a cube beside it: with few bits the plain sum repeats its places (Dillinger 2004).
        sums = low[:, None] * np.uint64(0x9E3779B1) + steps * (high[:, None] | np.uint64(1)) + (steps**3 - steps) // 6
        return ((sums % np.uint64(self.bits)).astype(np.int64)).reshape(-1, self.hashes)

    def _set(self, places: np.ndarray) -> np.ndarray:
        return (self.table[places >> 3] >> (places & 7).astype(np.uint8)) & 1 > 0


def hash64(words: Sequence[str]) -> np.ndarray:
    """uint64 [N], the same on every machine."""
    digests = (hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in words)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
