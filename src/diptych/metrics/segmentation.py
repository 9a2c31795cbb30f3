"""How good a segmentation is: mean IoU, panoptic quality, average precision of masks.

Each is an accumulator: `add` a picture, `merge` what another process has, read the figures. Shapes: K classes, H x W
pixels, D masks guessed, G true ones. What has no true occurrence has no figure (NaN) and is left out of means.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# numpy's, as COCO's tools have them: torch's differ in the last bit, and a recall may be exactly one of them
IOUS, RECALLS = torch.from_numpy(np.linspace(0.5, 0.95, 10)), torch.from_numpy(np.linspace(0, 1, 101))
TINY = 2.0**-52  # COCO's guard of 0 / 0
VOID = 0  # the number of no segment


def mean_of(values: Tensor) -> float:
    """The mean without NaNs; NaN where nothing else is there."""
    return values[~values.isnan()].mean().item()


class SemanticScores:
    """IoU of each class over all pixels of all pictures, and their mean (mIoU) over classes that truly occur.

    table [K, K + 1]: pixels by true class and guessed class, the last for none.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.table = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def add(self, guess: Tensor, truth: Tensor) -> None:
        """guess, truth [H, W] int: class numbers; -1 for no class in the guess, and for ignored in the truth."""
        judged = truth >= 0
        told = guess[judged].long()
        told = torch.where(told < 0, self.classes, told)
        pairs = truth[judged].long() * (self.classes + 1) + told
        self.table += torch.bincount(pairs, minlength=self.table.numel()).view_as(self.table).cpu()

    def merge(self, other: "SemanticScores") -> None:
        self.table += other.table

    @property
    def iou(self) -> Tensor:
        """[K] float64."""
        table = self.table.double()
        right, true, said = table.diagonal(), table.sum(1), table[:, :-1].sum(0)
        return torch.where(true > 0, right / (true + said - right), torch.nan)

    @property
    def miou(self) -> float:
        return mean_of(self.iou)

    @property
    def accuracy(self) -> float:
        """Share of pixels that are right."""
        return (self.table.diagonal().sum().double() / self.table.sum()).item()


class PanopticScores:
    """Panoptic quality of each class (Kirillov et al., Panoptic Segmentation, CVPR 2019, arXiv 1801.00868, equation 1).

    A guess and a truth of one class match where their IoU is above 0.5, void pixels of the truth left out of the union.
    A guess without a match that lies for more than half on void or a crowd of its class is no mistake.
    """

    def __init__(self, classes: int) -> None:
        self.overlap = torch.zeros(classes, dtype=torch.float64)  # the sum of the IoUs of matches
        self.matched, self.extra, self.missed = torch.zeros(3, classes, dtype=torch.int64)

    def add(
        self,
        guess: Tensor,
        guess_labels: Sequence[int],
        truth: Tensor,
        truth_labels: Sequence[int],
        crowds: Sequence[int] = (),
    ) -> None:
        """guess, truth [H, W] int: segment numbers from 1 on, 0 for none; their classes, in order; which true segments
        (counted from 0) are crowds: those are matched by nothing."""
        labels, true = torch.tensor(guess_labels, dtype=torch.int64), torch.tensor(truth_labels, dtype=torch.int64)
        rows, columns = len(true) + 1, len(labels) + 1
        shared = torch.bincount((truth.long() * columns + guess.long()).flatten(), minlength=rows * columns)
        shared = shared.view(rows, columns).double().cpu()  # [G + 1, D + 1]
        guessed, wanted, void = shared.sum(0)[1:], shared.sum(1)[1:], shared[VOID, 1:]
        inside = shared[1:, 1:]
        union = wanted[:, None] + guessed - inside - void
        crowd = torch.zeros(len(true), dtype=torch.bool)
        crowd[list(crowds)] = True
        same = true[:, None] == labels
        match = (inside > 0.5 * union) & same & ~crowd[:, None]  # at most one a row and a column
        g, d = match.nonzero(as_tuple=True)
        self.overlap.index_add_(0, true[g], inside[g, d] / union[g, d])
        self._count(self.matched, true[g])
        self._count(self.missed, true[~match.any(1) & ~crowd & (wanted > 0)])
        excused = void + (inside * (same & crowd[:, None])).sum(0)
        self._count(self.extra, labels[~match.any(0) & (guessed > 0) & (excused <= 0.5 * guessed)])

    @staticmethod
    def _count(counts: Tensor, labels: Tensor) -> None:
        counts += torch.bincount(labels, minlength=len(counts))

    def merge(self, other: "PanopticScores") -> None:
        for name in ("overlap", "matched", "extra", "missed"):
            getattr(self, name).add_(getattr(other, name))

    @property
    def _weight(self) -> Tensor:
        weight = self.matched + 0.5 * (self.extra + self.missed).double()
        return torch.where(weight > 0, weight, torch.nan)

    @property
    def pq(self) -> Tensor:
        """[K] float64: panoptic quality, which is sq times rq."""
        return self.overlap / self._weight

    @property
    def sq(self) -> Tensor:
        """[K]: the mean IoU of matches; 0 where nothing matched."""
        return torch.where(self._weight.isnan(), torch.nan, self.overlap / self.matched.clamp_min(1))

    @property
    def rq(self) -> Tensor:
        """[K]: matches over matches and half of the mistakes (F1)."""
        return self.matched / self._weight


class MaskPrecision:
    """Average precision of scored masks as COCO counts it: 10 IoUs from 0.5 to 0.95, 101 recalls, all areas.

    In each picture the `most` best masks of a class count. Best first, each takes the free truth of its class with the
    largest IoU; one that takes a crowd instead, which many may, is neither right nor wrong.
    """

    def __init__(self, classes: int, most: int = 100) -> None:
        self.most = most
        self.truths = torch.zeros(classes, dtype=torch.int64)
        self.found: list[tuple[int, Tensor, Tensor, Tensor]] = []  # class, scores [D], right and ignored [10, D]

    def add(
        self,
        masks: Tensor,
        labels: Tensor,
        scores: Tensor,
        truth: Tensor,
        truth_labels: Sequence[int],
        crowds: Tensor | None = None,
        crowd_labels: Sequence[int] = (),
    ) -> None:
        """masks [D, H, W] bool with labels and scores [D]; truth [G, H, W] and crowds [C, H, W] bool, their classes."""
        every = truth if crowds is None or not len(crowds) else torch.cat([truth, crowds])
        classes = torch.tensor([*truth_labels, *crowd_labels], dtype=torch.int64)
        crowd = torch.arange(len(classes)) >= len(truth)
        self.truths += torch.bincount(classes[~crowd], minlength=len(self.truths))
        labels, scores = labels.cpu(), scores.cpu().double()
        for label in labels.unique().tolist():
            own = (labels == label).nonzero().flatten()
            own = own[scores[own].argsort(descending=True, stable=True)][: self.most]
            true = (classes == label).nonzero().flatten()
            right, ignored = assign(mask_ious(masks[own], every[true], crowd[true]), crowd[true])
            self.found.append((label, scores[own], right, ignored))

    def merge(self, other: "MaskPrecision") -> None:
        self.truths += other.truths
        self.found += other.found

    @property
    def precision(self) -> Tensor:
        """[10, K] float64: average precision at each IoU of `IOUS`."""
        values = torch.full((len(IOUS), len(self.truths)), torch.nan, dtype=torch.float64)
        for label in self.truths.nonzero().flatten().tolist():
            own = [rest for number, *rest in self.found if number == label]
            if not own:
                values[:, label] = 0.0
                continue
            scores, right, ignored = (torch.cat(parts, dim=-1) for parts in zip(*own, strict=True))
            order = scores.argsort(descending=True, stable=True)
            values[:, label] = average_precision(right[:, order], ignored[:, order], int(self.truths[label]))
        return values

    @property
    def ap(self) -> float:
        """Over all IoUs and classes."""
        return mean_of(self.precision)

    @property
    def ap50(self) -> float:
        return mean_of(self.precision[0])

    @property
    def ap75(self) -> float:
        return mean_of(self.precision[5])


def mask_ious(masks: Tensor, truth: Tensor, crowd: Tensor) -> Tensor:
    """[D, H, W] and [G, H, W] bool -> IoU [D, G] float64; of a crowd, the share of the mask that lies in it."""
    exact = torch.float32 if masks[0].numel() < 2**24 else torch.float64  # counts of pixels are whole numbers
    a, b = (m.flatten(1).to(exact) for m in (masks, truth))
    shared, own, true = (a @ b.T).double().cpu(), a.sum(1).double().cpu(), b.sum(1).double().cpu()
    union = torch.where(crowd, own[:, None], own[:, None] + true - shared)
    return shared / union.clamp_min(1)


def assign(ious: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor]:
    """Which masks, best first, take a truth, and which take a crowd: ious [D, G], crowd [G] bool -> two [10, D] bool.

    The last of equally good truths is taken, as by COCO's tools.
    """
    count, number = len(ious), torch.arange(ious.shape[1])
    taken, ignored = torch.zeros(2, len(IOUS), count, dtype=torch.bool)
    if not ious.shape[1]:
        return taken, ignored
    free = ~crowd.expand(len(IOUS), -1).clone()  # [10, G]
    least = IOUS[:, None]
    for d in range(count):
        good = (ious[d] >= least) & free
        best = torch.where(good, ious[d], -1.0).amax(1, keepdim=True)
        which = torch.where(good & (ious[d] == best), number, -1).amax(1)  # [10]
        hit = which >= 0
        free[hit, which[hit]] = False
        ignored[:, d] = ~hit & ((ious[d] >= least) & crowd).any(1)
        taken[:, d] = hit | ignored[:, d]
    return taken, ignored


def average_precision(right: Tensor, ignored: Tensor, truths: int) -> Tensor:
    """Masks of all pictures, best first: [T, D] bool each -> [T]: the mean over `RECALLS` of the best precision there
    or beyond."""
    hits = (right & ~ignored).cumsum(1).double()
    misses = (~right & ~ignored).cumsum(1).double()
    precision = (hits / (hits + misses + TINY)).flip(1).cummax(1).values.flip(1)
    precision = torch.cat([precision, precision.new_zeros(len(precision), 1)], dim=1)
    place = torch.searchsorted(hits / truths, RECALLS.expand(len(hits), -1).contiguous())
    return precision.gather(1, place).mean(1)
