"""What can be filtered by: the columns of an index that have few words, or numbers, and how these are spread."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.search.web.reading import Reading
from diptych.search.web.schema import Facet

if TYPE_CHECKING:
    import pyarrow as pa

NEVER = frozenset(("id", "path", "source", "text", "added", "size", "mtime", "digest"))
FIRST = ("label", "language", "width", "height", "aesthetic", "similarity", "punsafe", "pwatermark")
BINS, MOST_WORDS = 32, 100


def facets_of(reading: Reading, columns: Mapping[str, str]) -> list[Facet]:
    """Those of which at least two values are there, the usual ones first."""
    names = [name for name in columns if name not in NEVER]
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    table = reading.columns(names)
    found = (facet_of(name, columns[name], table[name]) for name in names)
    return [facet for facet in found if facet is not None]


def facet_of(name: str, kind: str, cells: "pa.ChunkedArray") -> Facet | None:
    import pyarrow.compute as pc

    count: Any = pc
    if kind == "number":
        values = cells.drop_null().to_numpy().astype(np.float64)
        values = values[np.isfinite(values)]
        if not len(values) or values.min() == values.max():
            return None
        counts, _ = np.histogram(values, BINS, (values.min(), values.max()))
        return Facet(column=name, kind="number", least=values.min(), most=values.max(), counts=counts.tolist())
    found = count.value_counts(cells.drop_null()).to_pylist()
    if len(found) < 2:
        return None
    if kind == "yes/no":
        return Facet(column=name, kind="yes/no", values=[(str(one["values"]).lower(), one["counts"]) for one in found])
    if len(found) > MOST_WORDS:
        return None
    words = sorted(((one["values"], one["counts"]) for one in found), key=lambda one: (-one[1], one[0]))
    return Facet(column=name, kind="text", values=words)
