"""Chance that is a function of (seed, step, pair) alone, so that a batch in chunks or over processes draws alike."""

import numpy as np
import torch
from torch import Tensor


def mixed(x: np.ndarray) -> np.ndarray:
    """Bits of uint64 numbers well mixed (the finaliser of splitmix64, Steele et al., OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def chances(seed: int, step: int, index: Tensor, count: int) -> Tensor:
    """`count` uniform numbers of [0, 1) for each pair: index [B] -> [B, count] float64."""
    start = mixed(np.array([seed], np.uint64)) + np.uint64(step)
    rows = mixed(mixed(start) + index.cpu().numpy().astype(np.uint64))  # [B]
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return torch.from_numpy((mixed(rows[:, None] + steps) >> np.uint64(11)) * 2.0**-53)
