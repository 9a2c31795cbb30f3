"""Copies of one picture: the same bytes, or resized, re-compressed, brightened a little, cropped a little.

Three steps, from cheap to sure. Pictures whose coarse frequencies agree are candidates. Each pair is laid over the
other by least squares (scale and shift each way). What is left of the difference, then, decides: a copy differs by a
little everywhere, two drawings on white or two frames of a film differ much in one place.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from diptych.data.records import Records
from diptych.data.scan import PRINT_SIDE as SIDE
from diptych.data.scan import Scanned
from diptych.paths import cache_dir

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
BLOCK = 8  # blocks along a side, over which differences are looked at
FREQUENCIES = 8
LIKELY = 0.7  # cosine of the coarse frequencies
NEIGHBOURS = 6  # candidates kept for a picture
PAIRS = 512  # pairs compared at once

# Thresholds were set on photographs, sketches, emoji, 32-pixel pictures and frames of driving, and their copies.
PROMISING = 0.85  # correlation after a first, coarse registration
SAME_FRAME = {"correlation": 0.975, "spread": 0.27, "spot": 0.30}
CROPPED = {"correlation": 0.955, "spread": 0.60, "spot": 0.30}


@dataclass(frozen=True)
class Duplicate:
    """Pictures that are copies of one another."""

    ids: tuple[str, ...]
    kind: str  # "exact": the same bytes; "near": some differ


def duplicate_groups(records: Records, scanned: Mapping[str, Scanned]) -> list[Duplicate]:
    """All sets of copies among the records, each record in one at most."""
    by_digest: dict[str, list[str]] = {}
    for record in records:
        by_digest.setdefault(scanned[record.id].digest, []).append(record.id)
    digests = sorted(by_digest)
    prints = np.frombuffer(b"".join(scanned[by_digest[d][0]].print for d in digests), np.uint8)
    near = _remembered_pairs(prints.reshape(-1, SIDE, SIDE, 3))

    sets = Sets(len(digests))
    for a, b in near:
        sets.join(int(a), int(b))
    groups = []
    for members in sets.groups():
        ids = [id_ for member in members for id_ in by_digest[digests[member]]]
        if len(ids) > 1:
            groups.append(Duplicate(tuple(sorted(ids)), "exact" if len(members) == 1 else "near"))
    return sorted(groups, key=lambda group: group.ids)


class Sets:
    """Disjoint sets of 0..n-1 (union-find)."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)

    def groups(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for item in range(len(self.parent)):
            found.setdefault(self.find(item), []).append(item)
        return list(found.values())


def _remembered_pairs(prints: np.ndarray) -> np.ndarray:
    """`near_pairs`, kept in the cache: it takes a minute for 50,000 pictures, and a comparison is often run again."""
    if len(prints) < 1000:
        return near_pairs(prints)
    rules = repr((PROMISING, SAME_FRAME, CROPPED, LIKELY, NEIGHBOURS)).encode()
    file = cache_dir() / "copies" / f"{hashlib.sha256(rules + prints.tobytes()).hexdigest()}.npy"
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError):  # not there, or damaged
        pairs = near_pairs(prints)
    with contextlib.suppress(OSError):  # no place to write: found again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        with open(part, "wb") as out:
            np.save(out, pairs)
        os.replace(part, file)
    return pairs


def near_pairs(prints: np.ndarray) -> np.ndarray:
    """[P, 2] indices of near copies among fingerprints [N, SIDE, SIDE, 3] uint8."""
    if len(prints) < 2:
        return np.empty((0, 2), int)
    pairs = _candidates(prints)
    kept = [some[_are_copies(prints[some[:, 0]], prints[some[:, 1]])] for some in _chunks(pairs)]
    return np.concatenate([np.empty((0, 2), int), *kept])


def _chunks(pairs: np.ndarray) -> Iterator[np.ndarray]:
    return (pairs[start : start + PAIRS] for start in range(0, len(pairs), PAIRS))


# -- candidates --------------------------------------------------------------------------------------------------


def _candidates(prints: np.ndarray) -> np.ndarray:
    """[P, 2], a < b: each picture with its nearest few by coarse frequencies.

    All pairs are multiplied, in blocks: seconds for 50,000 pictures, and nothing is missed as with banded hashes.
    """
    rows = np.concatenate([_frequencies(prints[i : i + 4096]) for i in range(0, len(prints), 4096)])
    found = []
    for start in range(0, len(rows), 1024):
        likeness = rows[start : start + 1024] @ rows[start:].T  # [1024, N - start]
        corner = likeness[:, : len(likeness)]
        corner[np.tri(len(corner), dtype=bool)] = -1  # each pair once, none with itself
        a, b = np.nonzero(likeness > LIKELY)
        order = np.lexsort((-likeness[a, b], a))
        a, b = a[order], b[order]
        rank = np.arange(len(a)) - np.searchsorted(a, a)
        found.append(np.stack([a, b], 1)[rank < NEIGHBOURS] + start)
    return np.concatenate(found)


def _frequencies(prints: np.ndarray) -> np.ndarray:
    """[N, SIDE, SIDE, 3] -> unit rows [N, F]: the low cosine frequencies of the luma, without its mean."""
    waves = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(FREQUENCIES)[:, None] / SIDE).astype(np.float32)
    spectrum = waves @ (prints.astype(np.float32) @ LUMA) @ waves.T
    radius = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])
    inside = (radius > 0) & (radius < FREQUENCIES)
    rows = (spectrum[:, inside] * np.sqrt(radius[inside])).astype(np.float32)  # the lowest are alike in all pictures
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


# -- registration ------------------------------------------------------------------------------------------------


def _are_copies(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[P, SIDE, SIDE, 3] uint8 twice -> [P] bool."""
    result = np.zeros(len(first), bool)
    a, b = first.astype(np.float32), second.astype(np.float32)
    luma_a, luma_b = a @ LUMA, b @ LUMA
    unmoved = np.tile(np.array([1, 0, 1, 0], np.float32), (len(a), 1))  # scale, shift down; scale, shift across
    warp, correlation = _register(_halved(luma_a), _halved(luma_b), unmoved, steps=4)
    hope = np.flatnonzero(correlation > PROMISING)
    if len(hope):
        a, b, luma_a, luma_b = a[hope], b[hope], luma_a[hope], luma_b[hope]
        warp, _ = _register(_blur(luma_a), _blur(luma_b), warp[hope] * np.array([1, 2, 1, 2], np.float32), steps=9)
        result[hope] = _judge(a, b, luma_a, luma_b, warp)
    return result


def _halved(luma: np.ndarray) -> np.ndarray:
    return (luma[:, ::2, ::2] + luma[:, 1::2, ::2] + luma[:, ::2, 1::2] + luma[:, 1::2, 1::2]) / 4


def _register(a: np.ndarray, b: np.ndarray, warp: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(best warp [P, 4], its correlation) by Gauss-Newton on a = gain * b(warp) + bias, all pairs [P, S, S] at once."""
    best, best_warp = np.full(len(a), -2, np.float32), warp.copy()
    side = a.shape[1]
    along = np.arange(side, dtype=np.float32) - (side - 1) / 2
    reach = side / 8
    for step in range(steps + 1):
        moved, inside = _moved(b, warp)
        fit = _fit(a, moved, inside)
        better = fit.correlation > best
        best = np.where(better, fit.correlation, best)
        best_warp[better] = warp[better]
        if step == steps:
            break
        gain = np.maximum(fit.gain, 0.1)[:, None, None]
        down = gain * np.gradient(moved, axis=1) / warp[:, 0, None, None]
        across = gain * np.gradient(moved, axis=2) / warp[:, 2, None, None]
        parts = [down * along[:, None], down, across * along, across, moved, np.ones_like(moved)]
        slopes = (np.stack(parts, -1) * inside[..., None]).reshape(len(a), -1, 6)
        wrong = ((a - fit.predict(moved)) * inside).reshape(len(a), -1, 1)
        normal = slopes.transpose(0, 2, 1) @ slopes
        damping = 1e-3 + 5e-5 * np.trace(normal, axis1=1, axis2=2) / 6
        normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
        change = np.linalg.solve(normal, slopes.transpose(0, 2, 1) @ wrong)[:, :4, 0]
        warp = warp + np.clip(change, [-0.05, -1, -0.05, -1], [0.05, 1, 0.05, 1])
        warp = np.clip(warp, [0.8, -reach, 0.8, -reach], [1.25, reach, 1.25, reach]).astype(np.float32)
    return best_warp, best


def _moved(b: np.ndarray, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(b [P, S, S] resampled, mask of where it lies inside b)."""
    down, inside_down = _resampling(b.shape[1], warp[:, 0], warp[:, 1])
    across, inside_across = _resampling(b.shape[1], warp[:, 2], warp[:, 3])
    return down @ b @ across.transpose(0, 2, 1), inside_down[:, :, None] & inside_across[:, None, :]


def _resampling(side: int, scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([P, S, S] linear interpolation along one axis about its middle, [P, S] whether inside)."""
    axis, middle = np.arange(side, dtype=np.float32), (side - 1) / 2
    at = (axis - middle) * scale[:, None] + middle + shift[:, None]
    inside = (at > -0.01) & (at < side - 1 + 0.01)
    return np.maximum(0, 1 - np.abs(at[:, :, None] - axis)), inside


@dataclass(frozen=True)
class _Fit:
    """a = gain * (b - mean_b) + mean_a by least squares over a mask; each [P]."""

    gain: np.ndarray
    mean_a: np.ndarray
    mean_b: np.ndarray
    spread_a: np.ndarray  # standard deviation
    correlation: np.ndarray

    def predict(self, b: np.ndarray) -> np.ndarray:
        shape = (-1, *(1,) * (b.ndim - 1))
        return self.gain.reshape(shape) * (b - self.mean_b.reshape(shape)) + self.mean_a.reshape(shape)


def _fit(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> _Fit:
    count = np.maximum(mask.sum((1, 2)), 1)
    mean_a, mean_b = (a * mask).sum((1, 2)) / count, (b * mask).sum((1, 2)) / count
    da, db = (a - mean_a[:, None, None]) * mask, (b - mean_b[:, None, None]) * mask
    aa, bb, ab = (da * da).sum((1, 2)), (db * db).sum((1, 2)), (da * db).sum((1, 2))
    correlation = ab / np.sqrt(np.maximum(aa * bb, 1e-6))
    return _Fit(ab / np.maximum(bb, 1e-6), mean_a, mean_b, np.sqrt(aa / count), correlation)


def _blur(luma: np.ndarray) -> np.ndarray:
    """Binomial 3 x 3: makes the way to the right registration smooth."""
    wide = np.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="edge")
    tall = wide[:, :-2] / 4 + wide[:, 1:-1] / 2 + wide[:, 2:] / 4
    return tall[:, :, :-2] / 4 + tall[:, :, 1:-1] / 2 + tall[:, :, 2:] / 4


# -- judgement ---------------------------------------------------------------------------------------------------


def _judge(a: np.ndarray, b: np.ndarray, luma_a: np.ndarray, luma_b: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """Whether a registered pair is one picture [P]: by what differs, in the worst block, against the contrast."""
    moved, inside = _moved(luma_b, warp)
    overall = _fit(luma_a, moved, inside)
    # Brightening drives light parts into white, where the gain no longer holds; drawings on white keep all pixels.
    burnt = _burnt(luma_a, moved)
    unburnt = inside & ~burnt
    few = unburnt.sum((1, 2)) < 0.25 * SIDE * SIDE
    fit = _fit(luma_a, moved, np.where(few[:, None, None], inside, unburnt))
    colours = np.stack([_moved(np.ascontiguousarray(b[..., c]), warp)[0] for c in range(3)], -1)
    expected = np.clip(replace(fit, gain=np.clip(fit.gain, 0.6, 1.6)).predict(colours), 0, 255)
    rest = (a - expected) * (inside[..., None] & ~_burnt(a, colours))
    contrast = np.maximum(overall.spread_a, 12)
    spread = _blocks(np.abs(rest @ LUMA)[..., None]).max(1) / contrast  # every difference counts
    spot = np.abs(_blocks(rest)).max(1) / contrast  # noise and edges cancel within a block: colour and shape remain

    same_frame = (np.abs(warp[:, [0, 2]] - 1).max(1) < 0.025) & (np.abs(warp[:, [1, 3]]).max(1) < 0.5)
    limits = {key: np.where(same_frame, SAME_FRAME[key], CROPPED[key]) for key in SAME_FRAME}
    modest = (overall.gain > 0.6) & (overall.gain < 1.6) & (inside.mean((1, 2)) > 0.7)
    agree = (overall.correlation > limits["correlation"]) & (spread < limits["spread"]) & (spot < limits["spot"])
    return modest & agree


def _burnt(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (np.maximum(a, b) >= 248) & (np.minimum(a, b) >= 190)


def _blocks(values: np.ndarray) -> np.ndarray:
    """[P, SIDE, SIDE, C] -> means over blocks [P, BLOCK * BLOCK * C]."""
    size = SIDE // BLOCK
    return values.reshape(len(values), BLOCK, size, BLOCK, size, -1).mean((2, 4)).reshape(len(values), -1)
