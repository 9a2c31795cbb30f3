import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.engine import clustering
from diptych.engine.clustering import kmeans, means_of, nearest
from diptych.errors import DiptychError

N, K, D = 60, 5, 3


def cloud(count: int = N, seed: int = 0) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(each: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Six far directions, `each` rows around every one of them."""
    corners = torch.cat([torch.eye(D), -torch.eye(D)]).double()
    labels = torch.arange(6).repeat_interleave(each)
    return corners[labels] + 0.05 * cloud(6 * each, seed), labels


def naive(rows: list[list[float]], centres: list[list[float]], cosine: bool, steps: int):
    """Loops over floats: -> centres, labels, sum of distances."""

    def unit(v: list[float]) -> list[float]:
        return [x / math.sqrt(sum(y * y for y in v)) for x in v]

    def distance(v: list[float], w: list[float]) -> float:
        if cosine:
            return 1 - sum(x * y for x, y in zip(v, w, strict=True))
        return sum((x - y) ** 2 for x, y in zip(v, w, strict=True))

    if cosine:
        rows, centres = [unit(r) for r in rows], [unit(c) for c in centres]

    def assign() -> list[int]:
        return [min(range(len(centres)), key=lambda k: distance(row, centres[k])) for row in rows]

    labels = assign()
    for _ in range(steps):
        own = [distance(row, centres[label]) for row, label in zip(rows, labels, strict=True)]
        farthest = sorted(range(len(rows)), key=lambda i: -own[i])
        fresh = []
        for k in range(len(centres)):
            members = [row for row, label in zip(rows, labels, strict=True) if label == k]
            if members:
                mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
            else:
                mean = rows[farthest.pop(0)]
            fresh.append(unit(mean) if cosine else mean)
        centres, before = fresh, labels
        labels = assign()
        if labels == before:
            break
    return centres, labels, sum(distance(r, centres[k]) for r, k in zip(rows, labels, strict=True))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 100])
@pytest.mark.parametrize("empty", [False, True])
def test_it_is_the_loop(cosine: bool, steps: int, empty: bool):
    rows = cloud() + torch.tensor([2.0, 0, 0]).double()
    start = rows[[3, 10, 20, 30, 40]].clone()
    if empty:
        start[1:3] = torch.tensor([-50.0, 3, 1]).double()  # no row is near these two
    found = kmeans(rows, K, cosine=cosine, steps=steps, start=start)
    centres, labels, spread = naive(rows.tolist(), start.tolist(), cosine, steps)
    assert found.labels.tolist() == labels
    torch.testing.assert_close(found.centres, torch.tensor(centres).double())
    assert found.spread == pytest.approx(spread)
    assert found.sizes.tolist() == [labels.count(k) for k in range(K)] and 0 not in found.sizes.tolist()


@pytest.mark.parametrize("cosine", [False, True])
def test_memory_is_bounded_and_pieces_change_nothing(cosine: bool, monkeypatch: pytest.MonkeyPatch):
    whole = kmeans(cloud(), K, cosine=cosine)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                largest = max(largest, found.numel())
            return found

    monkeypatch.setattr(clustering, "CELLS", 35)
    with Watch():
        found = kmeans(cloud(), K, cosine=cosine)
    assert torch.equal(found.labels, whole.labels) and largest == N * D < N * K


@pytest.mark.parametrize("cosine", [False, True])
def test_blobs_are_found(cosine: bool):
    rows, labels = blobs()
    found = kmeans(rows, 6, cosine=cosine, seed=1, restarts=3)
    pairs = set(zip(labels.tolist(), found.labels.tolist(), strict=True))
    assert len(pairs) == 6 == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    means, sizes = means_of(F.normalize(rows, dim=1) if cosine else rows, found.labels, 6)
    assert sizes.tolist() == [40] * 6
    torch.testing.assert_close(found.centres, F.normalize(means, dim=1) if cosine else means)
    assert kmeans(rows.float(), 6, cosine=cosine, seed=1, restarts=3).labels.tolist() == found.labels.tolist()


def test_the_best_restart_is_kept_and_the_seed_decides():
    rows = cloud(200)
    single = [kmeans(rows, 12, seed=s, apart=False, steps=50).spread for s in range(8)]
    assert len(set(single)) > 1
    spreads = [kmeans(rows, 12, seed=0, apart=False, steps=50, restarts=r).spread for r in (1, 4, 8)]
    assert spreads == sorted(spreads, reverse=True) and spreads[0] > spreads[2] and spreads[0] == single[0]
    assert torch.equal(kmeans(rows, 12, seed=3).labels, kmeans(rows, 12, seed=3).labels)


def test_starts_apart_miss_no_blob():
    rows, _ = blobs(each=5)
    starts = [clustering.draw(rows, 6, True, torch.Generator().manual_seed(s)) for s in range(20)]
    by_chance = [clustering.draw(rows, 6, False, torch.Generator().manual_seed(s)) for s in range(20)]

    def complete(start: Tensor) -> bool:
        return len({(int(r.abs().argmax()), bool(r.sum() > 0)) for r in start}) == 6

    assert sum(map(complete, starts)) >= 18 > 5 >= sum(map(complete, by_chance))


def test_one_cluster_is_the_mean_and_as_many_as_rows_are_the_rows():
    rows = cloud()
    one = kmeans(rows, 1)
    torch.testing.assert_close(one.centres[0], rows.mean(0))
    assert one.spread == pytest.approx(float((rows - rows.mean(0)).square().sum()))
    every = kmeans(rows, N)
    assert every.spread == pytest.approx(0, abs=1e-9) and sorted(every.labels.tolist()) == list(range(N))


def test_fewer_distinct_rows_than_clusters():
    rows = cloud(3).repeat(5, 1)
    for apart in (True, False):
        found = kmeans(rows, 6, apart=apart)
        assert found.spread == pytest.approx(0, abs=1e-9) and int((found.sizes > 0).sum()) == 3


def test_the_nearest_centres_in_order():
    rows, centres = F.normalize(cloud(), dim=1), F.normalize(cloud(K, seed=1), dim=1)
    for cosine in (False, True):
        labels, distances = nearest(rows, centres, 3, cosine=cosine)
        right = 1 - rows @ centres.T if cosine else torch.cdist(rows, centres).square()
        assert torch.equal(labels, right.argsort(1)[:, :3])
        torch.testing.assert_close(distances, right.sort(1).values[:, :3])


def test_means_of_turned_rows_are_turned_means():
    rows, other = cloud(), torch.linalg.qr(cloud(D, seed=2)).Q
    found = kmeans(rows, K)
    torch.testing.assert_close(means_of(rows @ other, found.labels, K)[0], found.centres @ other)
    assert means_of(rows, torch.zeros(N, dtype=torch.int64), 2)[0][1].tolist() == [0.0] * D


def test_what_cannot_be_clustered_is_said():
    with pytest.raises(DiptychError, match="60 rows cannot"):
        kmeans(cloud(), 61)
    rows = cloud()
    rows[7, 1] = torch.nan
    with pytest.raises(DiptychError, match="1 of 60 rows"):
        kmeans(rows, 3)
