"""What an adapter is given to fit on. It holds no test picture, by construction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from diptych.data.records import Records

if TYPE_CHECKING:
    from diptych.core.clip import CLIP
    from diptych.core.text import TextRecipe

CROP = (0.5, 1.0)  # share of the area that an augmented view keeps, as GDA and Tip-Adapter publish it


class FeatureSource(Protocol):
    """Where embeddings come from: a cache in front of the towers."""

    def images(self, clip: "CLIP", records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> Tensor:
        """Unit embeddings [N, D] of the plain pictures; with views, [N, views, D] of augmented ones."""
        ...

    def texts(self, clip: "CLIP", texts: Sequence[str]) -> Tensor:
        """Embeddings [len(texts), D], not normalised."""
        ...

    def pixels(
        self,
        clip: "CLIP",
        records: Records,
        *,
        rng: np.random.Generator | None = None,
        crop: tuple[float, float] = CROP,
    ) -> Tensor:
        """Pixels [N, 3, H, W]; with a generator, a fresh augmented view of each picture."""
        ...


@dataclass(frozen=True)
class Support:
    """Labelled shots, class names, an unlabelled pool.

    names: the words for each class, index = label; labels [N] int64; groups: equal numbers are one burst, patient
    or picture and its copies, never on both sides of a fold; templates: the user's own, None for a system's default.
    """

    names: tuple[str, ...]
    records: Records
    labels: Tensor
    source: FeatureSource
    groups: tuple[int, ...]
    seed: int = 0
    templates: tuple[str, ...] | None = None
    unlabelled: Records = field(default_factory=lambda: Records((), "nothing"))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def counts(self) -> Tensor:
        """Pictures a class [C]."""
        return torch.bincount(self.labels, minlength=len(self.names))

    def features(self, clip: "CLIP", views: int = 0, crop: tuple[float, float] = CROP) -> Tensor:
        """Unit embeddings [N, D]; with views, [N, views, D]."""
        return self.source.images(clip, self.records, views=views, crop=crop)

    def rows(self, clip: "CLIP", recipe: "TextRecipe") -> Tensor:
        """Text rows [C, D] of the classes."""
        from diptych.core.text import class_rows

        return class_rows(clip, self.names, recipe, lambda texts: self.source.texts(clip, texts))

    def pixels(
        self,
        clip: "CLIP",
        index: Sequence[int],
        rng: np.random.Generator | None = None,
        crop: tuple[float, float] = CROP,
    ) -> Tensor:
        """Pixels [len(index), 3, H, W] of some shots; augmented with a generator."""
        return self.source.pixels(clip, self.records[list(index)], rng=rng, crop=crop)

    def only(self, index: Sequence[int]) -> "Support":
        """Some of the shots, all of the classes."""
        index = list(index)
        groups = tuple(self.groups[i] for i in index)
        return replace(self, records=self.records[index], labels=self.labels[index], groups=groups)

    def of_classes(self, classes: Sequence[int]) -> "Support":
        """The shots and names of some classes, relabelled in the given order."""
        place = torch.full((len(self.names),), -1)
        place[list(classes)] = torch.arange(len(classes))
        labels = place[self.labels]
        part = self.only([i for i, label in enumerate(labels.tolist()) if label >= 0])
        return replace(part, names=tuple(self.names[c] for c in classes), labels=labels[labels >= 0])

    def folds(self, count: int = 4) -> list[tuple[list[int], list[int]]]:
        """(fit, held) index lists, stratified, deterministic; each shot is held once where its class has another group.

        Empty where no class has two groups: one shot leaves nothing to validate on.
        """
        rng = np.random.default_rng([self.seed, 0xF01D])
        labels = self.labels.tolist()
        members: list[dict[int, list[int]]] = [{} for _ in self.names]
        for i, label in enumerate(labels):
            members[label].setdefault(self.groups[i], []).append(i)
        count = min(count, max((len(groups) for groups in members), default=0))
        if count < 2:
            return []
        held: list[list[int]] = [[] for _ in range(count)]
        start = 0
        for groups in members:
            if len(groups) < 2:
                continue  # its only picture must stay in every fit
            keys = sorted(groups)
            for turn, k in enumerate(rng.permutation(len(keys))):
                held[(start + turn) % count] += groups[keys[k]]
            start += len(keys)
        everything = set(range(len(labels)))
        return [(sorted(everything - set(part)), sorted(part)) for part in held if part]

    def generator(self, salt: int = 0) -> torch.Generator:
        """A generator that depends on the seed alone."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)
