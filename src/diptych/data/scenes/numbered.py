"""Items by number: what all sets of scenes are."""

from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Numbered(Generic[Item]):
    """A sequence of `count` items; `make` gives number i without the others."""

    count: int

    def make(self, index: int) -> Item:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        if not -self.count <= index < self.count:
            raise IndexError(f"number {index} of {self.count}")
        return self.make(index % self.count)

    def __iter__(self) -> Iterator[Item]:
        return (self.make(index) for index in range(self.count))
