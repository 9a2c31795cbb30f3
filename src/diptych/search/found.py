"""What an index says: of the model that made it, of itself, and of what it found."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Model:
    """What made the vectors. name, source: what people call it and what `load` opens; hash: `CLIP.fingerprint`;
    classifier: the winner file whose tower edits it has, or ""; preprocess: hash of the preprocessing alone."""

    name: str
    hash: str
    source: str = ""
    classifier: str = ""
    preprocess: str = ""

    def __str__(self) -> str:
        tuned = f" with {self.classifier}" if self.classifier else ""
        return f'"{self.name}"{tuned} ({self.hash[:12]})'


@dataclass(frozen=True)
class Measured:
    """kind: "exact", "hnsw" or "ivf_pq"; recall10, milliseconds: of `queries` of the index's own rows, at one time
    `rows`. effort: what a query spends: candidates of hnsw (its ef), lists of ivf_pq. space: what was searched, the
    vectors of "pictures" or of "captions"."""

    kind: str
    rows: int
    recall10: float
    milliseconds: float
    queries: int
    effort: int = 0
    space: str = "pictures"


@dataclass(frozen=True)
class How:
    """How vectors are searched; see `Measured`."""

    kind: str
    effort: int
    rows: int


@dataclass(frozen=True)
class Info:
    model: Model
    dim: int
    rows: int
    measured: Measured | None  # of pictures; None: not yet
    captions: int | None  # rows with a vector of their text; None: the index holds pictures alone


@dataclass(frozen=True)
class Hit:
    """score: the cosine with the query; row: all other columns."""

    id: str
    score: float
    row: dict[str, Any] = field(repr=False)
