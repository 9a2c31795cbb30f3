"""The parts of mask-query segmenters: deformable attention, decoders, the pairing, and what a segmentation gives."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.losses.masks import pairwise_bce, pairwise_dice, random_points, sample
from diptych.methods.dense.parts.mask_decoder import MaskDecoder, MaskGenerator
from diptych.methods.dense.parts.matcher import UNNAMED, SetLoss, Truth
from diptych.methods.dense.parts.pixel_decoder import (
    DeformableAttention,
    PixelDecoder,
    PyramidDecoder,
    centres,
    deformable,
)
from diptych.methods.dense.parts.segmenter import Segment, Segmentation, synonyms


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- deformable attention --------------------------------------------------------------------------------------------


def test_deformable_attention_is_that_of_a_plain_loop():
    sizes = [(2, 3), (4, 5)]
    batch, queries, heads, width, points = 2, 3, 2, 4, 3
    values = some(batch, 26, heads, width)
    locations = some(batch, queries, heads, 2, points, 2, seed=1) * 0.4 + 0.5  # some outside
    weights = some(batch, queries, heads, 2 * points, seed=2).softmax(-1).unflatten(-1, (2, points))
    found = deformable(values, sizes, locations, weights)
    starts = [0, 6]
    for b, q, m in itertools.product(range(batch), range(queries), range(heads)):
        total = torch.zeros(width, dtype=torch.float64)
        for level, (h, w) in enumerate(sizes):
            for p in range(points):
                x, y = locations[b, q, m, level, p].tolist()
                at_x, at_y = x * w - 0.5, y * h - 0.5
                for i in (math.floor(at_y), math.floor(at_y) + 1):
                    for j in (math.floor(at_x), math.floor(at_x) + 1):
                        if 0 <= i < h and 0 <= j < w:
                            share = (1 - abs(at_y - i)) * (1 - abs(at_x - j)) * weights[b, q, m, level, p]
                            total += share * values[b, starts[level] + i * w + j, m]
        torch.testing.assert_close(found[b, q, m * width : (m + 1) * width], total, rtol=1e-9, atol=1e-9)


def test_it_begins_by_looking_one_to_p_cells_away():
    attention = DeformableAttention(8, heads=4, levels=1, points=2)
    reference, size = centres((5, 5), torch.device("cpu"))[12:13], [(5, 5)]  # the middle cell
    values = torch.zeros(1, 25, 8)
    torch.nn.init.eye_(attention.value.weight)
    torch.nn.init.eye_(attention.out.weight)
    values[0, :, 0] = torch.arange(25.0)  # the first head looks right: cells 13 and 14
    found = attention(torch.zeros(1, 1, 8), reference, values, size)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(13.5))


@pytest.mark.parametrize("decoder", [PixelDecoder, PyramidDecoder])
def test_decoders_give_features_at_the_finest_map_and_maps_coarse_to_fine(decoder):
    maps = [torch.randn(2, c, s, s + 2) for c, s in ((3, 16), (5, 8), (6, 4), (7, 2))]
    generator = MaskGenerator(decoder((3, 5, 6, 7), 16), MaskDecoder(queries=6, width=16, layers=4, heads=2, inner=8))
    features, layers = generator(maps)
    assert features.shape == (2, 16, 16, 18)
    assert [m.shape[-1] for m in generator.pixels(maps)[1]] == [4, 6, 10]
    assert len(layers) == 5 and layers[0].masks.shape == (2, 6, 16, 18) and layers[0].queries.shape == (2, 6, 16)
    sum(layer.masks.sum() + layer.queries.sum() for layer in layers).backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_a_query_looks_inside_its_mask_and_everywhere_where_that_is_empty():
    decoder = MaskDecoder(queries=2, width=8, layers=1, heads=2, inner=8)
    masks = torch.full((1, 2, 2, 2), -1.0)
    masks[0, 0, 0, 1] = 1.0
    blocked = decoder.blocked(masks.requires_grad_(), (2, 2))
    assert blocked.tolist() == [[[True, False, True, True], [False] * 4]] * 2
    assert not blocked.requires_grad


# -- pairing and loss ------------------------------------------------------------------------------------------------


def case(segments: int = 3, queries: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Truth]:
    logits, masks = some(1, queries, 6, seed=seed).float(), some(1, queries, 5, 7, seed=seed + 1).float()
    truth = (some(segments, 10, 14, seed=seed + 2) > 0).float()
    counted = (some(10, 14, seed=seed + 3) > -1).float()
    return logits, masks, Truth(truth, torch.arange(segments) % 5, counted)


def test_pairs_are_the_cheapest_of_all_and_the_loss_that_of_a_loop(monkeypatch):
    """All pairings of three segments with four queries are tried; all losses are worked out one by one."""
    drawn = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(9))
    shared = torch.rand(40, 2, generator=torch.Generator().manual_seed(8))
    module = "diptych.methods.dense.parts.matcher"
    monkeypatch.setattr(f"{module}.random_points", lambda *_: shared)
    monkeypatch.setattr(f"{module}.uncertain_points", lambda *_: drawn)
    logits, masks, truth = case()
    criterion = SetLoss(points=40)
    rows, columns = criterion.pair(logits[0], masks[0], truth, torch.Generator())

    p = logits[0].softmax(-1)
    read, true, known = sample(masks[0], shared), sample(truth.masks, shared), sample(truth.counted[None], shared)[0]
    bce, dice = pairwise_bce(read, true, known), pairwise_dice(read, true, known)

    def cost(order: tuple[int, ...]) -> float:
        return sum(float(-2 * p[q, truth.labels[n]] + 5 * bce[q, n] + 5 * dice[q, n]) for n, q in enumerate(order))

    best = min(itertools.permutations(range(4), 3), key=cost)
    assert {int(n): int(q) for q, n in zip(rows, columns, strict=True)} == dict(enumerate(best))

    terms = criterion(logits, masks, [truth], torch.Generator())
    target = {q: int(truth.labels[n]) for n, q in enumerate(best)}
    weighted = [(1.0, -math.log(p[q, target[q]])) if q in target else (0.1, -math.log(p[q, 5])) for q in range(4)]
    expected = 2 * sum(w * v for w, v in weighted) / sum(w for w, _ in weighted)
    assert math.isclose(terms["class"], expected, rel_tol=1e-4)
    total_bce = total_dice = 0.0
    for at, q in zip(drawn, sorted(target), strict=True):
        n = best.index(q)
        m, t, c = (sample(field[None], at)[0].tolist() for field in (masks[0, q], truth.masks[n], truth.counted))
        s = [1 / (1 + math.exp(-v)) for v in m]
        rows_of = list(zip(s, t, c, strict=True))
        total_bce -= sum(k * (y * math.log(x) + (1 - y) * math.log(1 - x)) for x, y, k in rows_of) / sum(c)
        top = 2 * sum(k * k * x * y for x, y, k in rows_of) + 1
        total_dice += 1 - top / (sum(k * x for x, _, k in rows_of) + sum(k * y for _, y, k in rows_of) + 1)
    assert math.isclose(terms["mask"], 5 * total_bce / 3, rel_tol=1e-4)
    assert math.isclose(terms["dice"], 5 * total_dice / 3, rel_tol=1e-4)


def test_the_order_of_the_truth_does_not_matter():
    logits, masks, truth = case(segments=3, queries=8)
    order = torch.tensor([2, 0, 1])
    mixed = Truth(truth.masks[order], truth.labels[order], truth.counted)
    logits, masks = logits.expand(2, -1, -1), masks.expand(2, -1, -1, -1)
    found = [
        SetLoss(points=64)(logits, masks, truths, torch.Generator().manual_seed(4))
        for truths in ([truth, mixed], [mixed, truth])
    ]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-6)


def test_what_is_not_told_does_not_count():
    """Truth that differs where nothing counts gives the same terms."""
    logits, masks, truth = case()
    counted = torch.zeros(10, 14)
    counted[:, :6] = 1
    other = truth.masks.clone()
    other[:, :, 8:] = 1 - other[:, :, 8:]  # two cells away: points are read between cells
    found = [
        SetLoss(points=64)(logits, masks, [Truth(m, truth.labels, counted)], torch.Generator().manual_seed(1))
        for m in (truth.masks, other)
    ]
    torch.testing.assert_close(found[0], found[1])


def test_a_picture_of_nothing_teaches_to_say_so():
    logits, masks, truth = case(segments=0)
    leaf = logits.requires_grad_()
    terms = SetLoss(points=16)(leaf, masks.requires_grad_(), [truth], torch.Generator())
    expected = 2 * F.cross_entropy(logits[0], torch.full((4,), 5))
    torch.testing.assert_close(terms["class"], expected)
    assert float(terms["mask"]) == float(terms["dice"]) == 0


def test_an_unnamed_segment_teaches_its_mask_and_that_all_classes_are_alike():
    logits, masks, truth = case(segments=2)
    unnamed = Truth(truth.masks, torch.tensor([1, UNNAMED]), truth.counted)
    leaf, criterion = logits.clone().requires_grad_(), SetLoss(points=32)
    rows, columns = criterion.pair(logits[0], masks[0], unnamed, torch.Generator().manual_seed(0))
    query = {int(n): int(q) for q, n in zip(rows, columns, strict=True)}
    terms = criterion(leaf, masks, [unnamed], torch.Generator().manual_seed(0))
    logs, weighted = logits[0].log_softmax(-1), []
    for q in range(4):
        if q == query[1]:
            weighted.append((1.0, float(logs[q, :5].mean())))
        else:
            weighted.append((1.0, float(logs[q, 1])) if q == query[0] else (0.1, float(logs[q, 5])))
    expected = -2 * sum(w * v for w, v in weighted) / sum(w for w, _ in weighted)
    assert math.isclose(terms["class"], expected, rel_tol=1e-5)
    terms["class"].backward()
    assert leaf.grad is not None and leaf.grad[0, query[1], 5] > 0, "it is pushed away from nothing"
    no_class = SetLoss(classes=0.0, points=32).pair(logits[0], masks[0], truth, torch.Generator().manual_seed(0))
    every = Truth(truth.masks, torch.tensor([UNNAMED, UNNAMED]), truth.counted)
    found = criterion.pair(logits[0], masks[0], every, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(found, no_class, strict=True)), "paired by their masks alone"


# -- what a segmentation gives ---------------------------------------------------------------------------------------


def halves() -> Segmentation:
    """Four masks on 4 x 8 pixels: left and right half as things, all of it as faint stuff, and one of nothing."""
    masks = torch.zeros(4, 4, 8)
    masks[0, :, :4], masks[1, :, 4:] = 0.9, 0.8
    masks[2], masks[3, :, 6:] = 0.6, 1.0
    scores = torch.tensor([[0.8, 0.1], [0.7, 0.1], [0.1, 0.5], [0.1, 0.1]])
    return Segmentation(masks, scores, ("cat", "sky"), (True, False))


def test_semantic_weighs_masks_by_their_classes():
    found = halves()
    expected = sum(found.scores[q, :, None, None] * found.masks[q] for q in range(4))
    torch.testing.assert_close(found.evidence(), expected)
    assert torch.equal(found.semantic(), expected.argmax(0))


def test_panoptic_keeps_what_keeps_its_area():
    ids, segments = halves().panoptic()
    assert segments == [Segment(1, 0, pytest.approx(0.8), True), Segment(2, 0, pytest.approx(0.7), True)]
    assert (ids[:, :4] == 1).all() and (ids[:, 4:] == 2).all()
    assert halves().panoptic(least=0.75)[1] == segments[:1]


def test_panoptic_makes_one_of_stuff_and_counts_things():
    scores = torch.tensor([[0.1, 0.8], [0.1, 0.7], [0.0, 0.0], [0.0, 0.0]])
    found = Segmentation(halves().masks, scores, ("cat", "sky"), (True, False))
    ids, segments = found.panoptic()
    assert [(s.label, s.thing) for s in segments] == [(1, False)] and (ids == 1).all()
    counted = Segmentation(found.masks, scores, found.names, (True, True)).panoptic()
    assert [s.label for s in counted[1]] == [1, 1] and set(counted[0].unique().tolist()) == {1, 2}


def test_panoptic_of_nothing_is_empty():
    ids, segments = Segmentation(torch.ones(1, 2, 2), torch.tensor([[0.2, 0.1]]), ("a", "b"), (True, True)).panoptic()
    assert segments == [] and not ids.any()


def test_instances_are_things_alone_best_first():
    masks, labels, scores = halves().instances(top=3)
    assert labels.tolist() == [0, 0, 0] and masks.dtype == torch.bool
    torch.testing.assert_close(scores, torch.tensor([0.72, 0.56, 0.1]))
    assert torch.equal(masks[0], halves().masks[0] > 0.5)
    assert len(Segmentation(masks.float(), scores[:, None], ("sky",), (False,)).instances()[0]) == 0


def test_synonyms_are_told_apart_by_a_line():
    assert synonyms(" cat |tabby  cat|cat") == ("cat", "tabby cat")
    with pytest.raises(Exception, match="has a name"):
        synonyms(" | ")
    assert random_points((2,), torch.Generator().manual_seed(0), torch.device("cpu")).min() >= 0
