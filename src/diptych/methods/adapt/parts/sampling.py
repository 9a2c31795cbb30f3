"""Which pictures a training step sees: a function of (seed, step) and of the pictures' ids, not of their order."""

import numpy as np
import torch
from torch import Tensor

from diptych.data.support import Support


class Batches:
    """Shuffled passes over the shots in batches of `size`; the rest of a pass is dropped.

    Fewer shots than `size` make one batch a pass (the toolbox of CoOp, whose loader drops the last batch only where
    there is a full one).
    """

    def __init__(self, support: Support, size: int) -> None:
        ids = [record.id for record in support.records.items]
        self.order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))
        self.size = min(size, len(ids))
        self.seed = support.seed

    @property
    def per_epoch(self) -> int:
        return len(self.order) // self.size

    def __getitem__(self, step: int) -> Tensor:
        """Indices into the support [size]."""
        epoch, part = divmod(step, self.per_epoch)
        shuffled = self.generator(epoch).permutation(len(self.order))
        return self.order[torch.from_numpy(shuffled[part * self.size : (part + 1) * self.size])]

    def generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0xBA7C4, *key])

    def views(self, step: int, count: int) -> Tensor:
        """Which of `count` views each picture of the batch shows [size]."""
        return torch.from_numpy(self.generator(1, step).integers(count, size=self.size))

    def crops(self, step: int) -> np.random.Generator:
        """What fresh augmented views of the batch are drawn with."""
        return self.generator(2, step)


def steps_of(count: int, size: int, epochs: int) -> int:
    """Steps of `epochs` passes over `count` pictures."""
    return epochs * (count // min(size, count))
