"""What the user has: pictures by name, with their class word, split and group. No pixels."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload


@dataclass(frozen=True)
class Record:
    """One picture, or one video. `id` is unique in its Records: the path below the root, or "row 17" of a table."""

    id: str
    path: Path | None  # the file; None where `read` gives the bytes
    label: str | None  # the class word as found (folder name or cell); None when unlabelled
    split: str | None = None  # "train", "val" or "test": the data set's own split
    group: str | None = None  # burst, patient, product: never on both sides of a split
    read: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Records:
    """An immutable sequence of `Record`s; selecting from it copies no picture."""

    items: tuple[Record, ...]
    source: str  # what the user gave, for messages
    warnings: tuple[str, ...] = ()  # what was seen while reading and does not stop the work
    videos: bool = False  # every item is a clip of frames

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice | Iterable[int]) -> "Records": ...
    def __getitem__(self, index: int | slice | Iterable[int]) -> "Record | Records":
        if isinstance(index, slice):
            return replace(self, items=self.items[index])
        if isinstance(index, Iterable):
            return replace(self, items=tuple(self.items[i] for i in index))
        return self.items[index]

    @property
    def labels(self) -> tuple[str, ...]:
        """The class words in use, sorted."""
        return tuple(sorted({record.label for record in self.items if record.label is not None}))

    @property
    def ids(self) -> list[str]:
        return [record.id for record in self.items]

    def filter(self, keep: Callable[[Record], bool]) -> "Records":
        return replace(self, items=tuple(record for record in self.items if keep(record)))
