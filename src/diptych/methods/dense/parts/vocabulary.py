"""Class names as rows of text: one row a synonym, and a class is as likely as its most likely synonym."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.core.text import TextRecipe, class_rows
from diptych.methods.dense.parts.segmenter import synonyms

# ViLD's (arXiv 2104.13921) for things in a scene.
SCENE = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)


@dataclass(frozen=True)
class Vocabulary:
    """K classes: groups, each class's synonyms; rows [R, D], unit, a synonym each; owner [R]: the class of each row."""

    groups: tuple[tuple[str, ...], ...]
    rows: Tensor
    owner: Tensor

    @classmethod
    def of(cls, clip: CLIP, names: Sequence[str], templates: Sequence[str] = SCENE) -> "Vocabulary":
        """A row is the normalised mean of the normalised embeddings of its templates."""
        groups = tuple(synonyms(name) for name in names)
        words = [word for group in groups for word in group]
        owner = [k for k, group in enumerate(groups) for _ in group]
        with torch.no_grad():
            rows = class_rows(clip, words, TextRecipe(tuple(templates)))
        return cls(groups, rows, torch.tensor(owner, device=rows.device))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group[0] for group in self.groups)

    def best(self, values: Tensor) -> Tensor:
        """Of each class, its best synonym's: [..., R] -> [..., K]."""
        if len(self.owner) == len(self.groups):
            return values
        start = values.new_full((*values.shape[:-1], len(self.groups)), -torch.inf)
        return start.scatter_reduce(-1, self.owner.expand(values.shape), values, "amax")

    def seen(self, known: Sequence[str]) -> Tensor:
        """[K] bool: classes of which a synonym is, to the letter, one of those of the `known` classes."""
        words = {word for name in known for word in synonyms(name)}
        return torch.tensor([bool(words & set(group)) for group in self.groups], device=self.owner.device)
