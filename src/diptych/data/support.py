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
        """Pixels [N, 3, H, W], of videos [N, T, 3, H, W]; with a generator, a fresh augmented view of each."""
        ...


@dataclass(frozen=True)
class Support:
    """Labelled shots, class names, an unlabelled pool.

    names: the words for each class, index = label; labels [N] int64; groups: equal numbers are one burst, patient
    or picture and its copies, never on both sides of a fold; templates: the user's own, None for a system's default;
    frames: looked at of each video, 0 where the shots are pictures.
    """

    names: tuple[str, ...]
    records: Records
    labels: Tensor
    source: FeatureSource
    groups: tuple[int, ...]
    seed: int = 0
    templates: tuple[str, ...] | None = None
    unlabelled: Records = field(default_factory=lambda: Records((), "nothing"))
    frames: int = 0

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
        """Pixels [N, 3, H, W] of some shots, of videos [N, T, 3, H, W]; augmented with a generator."""
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
        """(fit, held) index lists, stratified: every class is in every fit, every group on one side.

        Each shot is held once, unless its group is all that one of its classes has. A function of the seed, the names
        and the pictures' ids, whatever their order. Empty where nothing can be held: one shot.
        """
        rng = np.random.default_rng([self.seed, 0xF01D])
        labels = self.labels.tolist()
        members: dict[int, list[int]] = {}  # group -> its shots
        for i in sorted(range(len(self)), key=lambda i: self.records[i].id):
            members.setdefault(self.groups[i], []).append(i)
        classes = {group: sorted({labels[i] for i in shots}) for group, shots in members.items()}
        groups = {c: [g for g in members if c in classes[g]] for c in range(len(self.names))}
        count = min(count, max((len(found) for found in groups.values()), default=0))
        held: list[list[int]] = [[] for _ in range(count)]
        spread = np.zeros((count, len(self.names)), dtype=int)  # groups of each class that each fold holds
        placed: set[int] = set()
        for c in sorted(groups, key=lambda c: self.names[c]):
            for turn in rng.permutation(len(groups[c])):
                group = groups[c][turn]
                own = classes[group]
                if group in placed:
                    continue
                fold = min(range(count), key=lambda f: (spread[f, own].sum(), len(held[f]), f))
                if any(spread[fold, k] + 1 == len(groups[k]) for k in own):
                    continue  # without it a class would be missing from this fit
                held[fold] += members[group]
                spread[fold, own] += 1
                placed.add(group)
        everything = set(range(len(self)))
        return [(sorted(everything - set(part)), sorted(part)) for part in held if part]

    def generator(self, salt: int = 0) -> torch.Generator:
        """A generator that depends on the seed alone."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)
