"""mIoU, PQ and AP against COCO's tools, against plain loops, and on cases whose answer is known."""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.metrics.segmentation import IOUS, MaskPrecision, PanopticScores, SemanticScores

CLASSES = 4


# -- mIoU --------------------------------------------------------------------------------------------------------------


def test_miou_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    pictures = [(torch.randint(-1, 5, (7, 9)), torch.randint(-1, 4, (7, 9))) for _ in range(4)]
    whole, parts = SemanticScores(6), [SemanticScores(6), SemanticScores(6)]
    for i, (guess, truth) in enumerate(pictures):
        whole.add(guess, truth)
        parts[i % 2].add(guess, truth)
    expected = []
    for k in range(6):
        both = sum(int(((g == k) & (t == k)).sum()) for g, t in pictures)
        either = sum(int((((g == k) | (t == k)) & (t >= 0)).sum()) for g, t in pictures)
        expected.append(both / either if any((t == k).any() for _, t in pictures) else math.nan)
    assert np.allclose(whole.iou.numpy(), expected, rtol=1e-14, atol=0, equal_nan=True)
    assert math.isnan(expected[4]), "class 4 is guessed and never true: it has no IoU"
    assert whole.miou == pytest.approx(np.nanmean(expected), abs=1e-15)
    parts[0].merge(parts[1])
    assert torch.equal(parts[0].table, whole.table)


def test_miou_of_known_cases() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 1, -1]])
    scores = SemanticScores(3)
    scores.add(truth, truth)
    assert scores.miou == scores.accuracy == 1.0
    scores = SemanticScores(3)
    scores.add(torch.zeros(2, 4, dtype=torch.int64), truth)
    assert scores.iou[:2].tolist() == [4 / 7, 0.0] and scores.accuracy == 4 / 7
    scores = SemanticScores(3)
    scores.add(torch.full((2, 4), -1), truth)
    assert scores.iou[:2].tolist() == [0.0, 0.0], "no class is a miss and nobody's false alarm"
    assert math.isnan(SemanticScores(3).miou)


# -- PQ ----------------------------------------------------------------------------------------------------------------


def naive_panoptic(pictures: list[tuple[Any, ...]]) -> np.ndarray:
    """The formula of panopticapi, segment by segment: rows IoU sum, TP, FP, FN."""
    total = np.zeros((4, CLASSES))
    for guess, guess_labels, truth, truth_labels, crowds in pictures:
        g, t = guess.numpy(), truth.numpy()
        matched_guess, matched_truth = set(), set()
        for i, label in enumerate(truth_labels, 1):
            for j, said in enumerate(guess_labels, 1):
                if i - 1 in crowds or label != said:
                    continue
                both = int(((t == i) & (g == j)).sum())
                union = int((t == i).sum()) + int((g == j).sum()) - both - int(((t == 0) & (g == j)).sum())
                if both and both / union > 0.5:
                    total[0, label] += both / union
                    total[1, label] += 1
                    matched_truth.add(i)
                    matched_guess.add(j)
        for i, label in enumerate(truth_labels, 1):
            if i not in matched_truth and i - 1 not in crowds and (t == i).any():
                total[3, label] += 1
        for j, said in enumerate(guess_labels, 1):
            area = int((g == j).sum())
            if j in matched_guess or not area:
                continue
            off = int(((t == 0) & (g == j)).sum())
            off += sum(int(((t == i + 1) & (g == j)).sum()) for i in crowds if truth_labels[i] == said)
            if off / area <= 0.5:
                total[2, said] += 1
    return total


def blocks(rng: np.random.Generator, count: int) -> Tensor:
    """[12, 12]: rectangles numbered 1..count over each other on 0."""
    canvas = np.zeros((12, 12), np.int64)
    for number in range(1, count + 1):
        y, x = rng.integers(0, 9, 2)
        canvas[y : y + rng.integers(2, 8), x : x + rng.integers(2, 8)] = number
    return torch.from_numpy(canvas)


def test_pq_equals_panopticapis_formula() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for trial in range(200):
        true = int(rng.integers(0, 6))
        truth = blocks(rng, true)
        labels = rng.integers(0, CLASSES, true).tolist()
        guess, said = blocks(rng, int(rng.integers(0, 6))), []
        if trial % 2 and true:  # near the truth, so that much matches; the last has no pixel
            guess = torch.roll(truth, int(rng.integers(0, 2)), 0)
            said = [label if rng.random() < 0.8 else int(rng.integers(CLASSES)) for label in labels] + [1]
        said = said or rng.integers(0, CLASSES, int(guess.max())).tolist()
        crowds = [i for i in range(true) if rng.random() < 0.2]
        pictures.append((guess, said, truth, labels, crowds))
    whole, parts = PanopticScores(CLASSES), [PanopticScores(CLASSES), PanopticScores(CLASSES)]
    for i, picture in enumerate(pictures):
        whole.add(*picture)
        parts[i % 3 == 0].add(*picture)
    overlap, matched, extra, missed = naive_panoptic(pictures)
    assert whole.matched.tolist() == matched.tolist() and whole.matched.sum() > 50
    assert whole.extra.tolist() == extra.tolist() and whole.missed.tolist() == missed.tolist()
    assert np.allclose(whole.pq, overlap / (matched + extra / 2 + missed / 2), rtol=1e-12)
    assert np.allclose(whole.sq * whole.rq, whole.pq, rtol=1e-12)
    parts[0].merge(parts[1])
    assert torch.allclose(parts[0].pq, whole.pq, rtol=1e-12)


def test_pq_of_known_cases() -> None:
    truth = torch.zeros(4, 4, dtype=torch.int64)
    truth[:2], truth[2:, :2] = 1, 2
    scores = PanopticScores(3)
    scores.add(truth, [0, 1], truth, [0, 1])
    assert scores.pq[:2].tolist() == [1.0, 1.0] and scores.pq[2].isnan()
    scores = PanopticScores(3)
    scores.add(truth, [1, 0], truth, [0, 1])
    assert scores.pq[:2].tolist() == [0.0, 0.0]
    half = torch.zeros(4, 4, dtype=torch.int64)
    half[0] = 1  # IoU 0.5 is no match; on void alone is no mistake
    half[2:, 2:] = 2
    scores = PanopticScores(3)
    scores.add(half, [0, 2], truth, [0, 1])
    assert (scores.matched.tolist(), scores.extra.tolist(), scores.missed.tolist()) == ([0] * 3, [1, 0, 0], [1, 1, 0])


# -- AP ----------------------------------------------------------------------------------------------------------------


def coco_figures(pictures: list[dict[str, Any]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """pycocotools' precision [10, 101, K] -> ([10, K] with NaN for no truth, the first three summaries)."""
    from pycocotools import mask as tools
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def packed(mask: Tensor) -> dict[str, Any]:
        return tools.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    images, marks, found = [], [], []
    for number, p in enumerate(pictures, 1):
        images.append({"id": number, "height": 12, "width": 12})
        for masks, labels, crowd in (
            (p["truth"], p["truth_labels"], 0),
            (p["crowds"], p["crowd_labels"], 1),
        ):
            for mask, label in zip(masks, labels, strict=True):
                area = float(mask.sum())
                marks.append({
                    "id": len(marks) + 1, "image_id": number, "category_id": label + 1, "iscrowd": crowd,
                    "area": area, "segmentation": packed(mask), "bbox": [0, 0, 1, 1],
                })  # fmt: skip
        for mask, label, score in zip(p["masks"], p["labels"].tolist(), p["scores"].tolist(), strict=True):
            found.append({"image_id": number, "category_id": label + 1, "score": score, "segmentation": packed(mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {}, "images": images, "annotations": marks,
            "categories": [{"id": k + 1, "name": str(k)} for k in range(CLASSES)],
        }  # fmt: skip
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "segm")
        judge.params.maxDets = [1, 1, most]  # they sort it
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 2].mean(1)
    return np.where(precision < 0, np.nan, precision), precision


def random_picture(rng: np.random.Generator) -> dict[str, Any]:
    def masks(count: int) -> Tensor:
        return torch.stack([blocks(rng, 1) > 0 for _ in range(count)]) if count else torch.zeros(0, 12, 12).bool()

    true, crowd = int(rng.integers(0, 5)), int(rng.integers(0, 2))
    truth, labels = masks(true), rng.integers(0, CLASSES - 1, true).tolist()
    guess, said = masks(int(rng.integers(0, 7))), []
    if true and rng.random() < 0.8:
        near = torch.stack([torch.roll(mask, int(rng.integers(0, 2)), 1) for mask in truth for _ in range(2)])
        guess, said = torch.cat([near, guess]), [label for label in labels for _ in range(2)]
    said = said + rng.integers(0, CLASSES, len(guess) - len(said)).tolist()
    return {
        "masks": guess, "labels": torch.tensor(said, dtype=torch.int64),
        "scores": torch.from_numpy(rng.integers(1, 5, len(guess)) / 5),  # many ties
        "truth": truth, "truth_labels": labels,
        "crowds": masks(crowd), "crowd_labels": rng.integers(0, CLASSES - 1, crowd).tolist(),
    }  # fmt: skip


@pytest.mark.parametrize("most", [100, 2])
def test_ap_equals_pycocotools(most: int) -> None:
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(most)
    pictures = [random_picture(rng) for _ in range(60)]
    whole, parts = MaskPrecision(CLASSES, most), [MaskPrecision(CLASSES, most), MaskPrecision(CLASSES, most)]
    for i, picture in enumerate(pictures):
        whole.add(**picture)
        parts[i >= 20].add(**picture)
    expected, _ = coco_figures(pictures, most)
    found = whole.precision.numpy()
    assert np.array_equal(np.isnan(found), np.isnan(expected)) and np.isnan(expected[:, -1]).all()
    assert np.nanmax(np.abs(found - expected)) < 1e-12
    assert 0.1 < whole.ap < whole.ap50 < 0.9 and whole.ap == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert whole.ap75 == pytest.approx(np.nanmean(expected[5]), abs=1e-12)
    parts[0].merge(parts[1])
    assert torch.equal(parts[0].precision.nan_to_num(-1), whole.precision.nan_to_num(-1))


def square(side: int) -> Tensor:
    mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    mask[0, :side, :side] = True
    return mask


@pytest.mark.parametrize(
    ("guess", "expected"),
    [
        (lambda: square(10), [1.0] * 10),
        (lambda: square(8), [1.0, 1.0, 1.0] + [0.0] * 7),  # IoU 0.64
        (lambda: square(0), [0.0] * 10),
    ],
)
def test_ap_of_known_cases(guess: Callable[[], Tensor], expected: list[float]) -> None:
    scores = MaskPrecision(2)
    scores.add(guess(), torch.tensor([0]), torch.tensor([0.3]), square(10), [0])
    assert torch.allclose(scores.precision[:, 0], torch.tensor(expected, dtype=torch.float64))
    assert scores.precision[:, 1].isnan().all() and len(IOUS) == 10


def test_ap_where_nothing_is_guessed_or_true() -> None:
    none = torch.zeros(0, 10, 10, dtype=torch.bool)
    scores = MaskPrecision(2)
    scores.add(none, torch.zeros(0, dtype=torch.int64), torch.zeros(0), square(10), [1])
    scores.add(square(3), torch.tensor([0]), torch.tensor([0.5]), none, [])
    assert scores.ap == 0.0 and scores.precision[:, 0].isnan().all()
