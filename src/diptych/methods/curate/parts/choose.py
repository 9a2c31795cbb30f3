"""Choosing rows: by a condition on their columns, by words in their text, by what their picture looks like."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.errors import DiptychError
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.vectors import maker_of, text_vectors, vectors_of, with_column
from diptych.report.sections import Column, Section, Table
from diptych.search.filters import Filter, parse


class Where(Stage):
    """Keeps the rows for which a condition is true, such as `width >= 1024 and punsafe < 0.5` (`search.filters`)."""

    name = "where"
    about = "rows for which the condition is not true"

    def __init__(self, where: str) -> None:
        self.where = where

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        keep = condition(self.where, batch.schema).mask(pa.Table.from_batches([batch]))
        return Verdict(batch, keep, ["" if kept else "condition not true" for kept in keep])


def condition(where: str, schema: pa.Schema) -> Filter:
    """The condition, read for columns of these types; those of other types than text, number, yes/no have no name."""
    kinds = {field.name: kind for field in schema if (kind := kind_of(field.type))}
    return parse(where, kinds)


def kind_of(type_: pa.DataType) -> str:
    """ "text", "number", "yes/no"; "" for all else."""
    kinds = pa.types
    if kinds.is_string(type_) or kinds.is_large_string(type_):
        return "text"
    if kinds.is_boolean(type_):
        return "yes/no"
    return "number" if kinds.is_integer(type_) or kinds.is_floating(type_) else ""


class Words(Stage):
    """Keeps the rows whose text has one of the words, whole and whatever its case; a word may be several."""

    name = "words"
    about = "texts without any of the words"
    needs = ("text",)

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        known = {word.casefold(): word for word in self.words}
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(known, key=len, reverse=True)))})(?!\w)")
        found = [set(pattern.findall((text or "").casefold())) for text in batch.column("text").to_pylist()]
        tallies = {word: sum(key in one for one in found) for key, word in known.items()}
        return Verdict(
            batch,
            np.array([bool(one) for one in found], bool),
            ["" if o else "none of the words" for o in found],
            tallies,
        )

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        rows = [[word, f"{tallies.get(word, 0):,}"] for word in self.words]
        note = "where a word lies within another, what is found is the longer one"
        return [Table((Column("word", number=False), Column("texts")), rows, title="Texts with each word", note=note)]


class Near(Stage):
    """Keeps the rows whose picture is like one of the queries: cosine to its text at least `least`.

    Adds `query`, the one it is nearest to, and `query_similarity`.
    """

    name = "near"
    about = "pictures that are unlike every query"
    needs = ("embedding",)
    adds = ("query", "query_similarity")

    def __init__(self, queries: Sequence[str], least: float = -1.0, model: str = "") -> None:
        """model: of the embeddings, where the column does not say."""
        self.queries, self.least, self.model = tuple(queries), least, model

    def cosines(self, batch: pa.RecordBatch) -> np.ndarray:
        """[N, Q]; a row without an embedding, or below `least`, has -inf."""
        texts = text_vectors(maker_of(batch.schema, model=self.model), self.queries).astype(np.float32)
        vectors = vectors_of(batch)
        if len(vectors) and vectors.shape[1] != texts.shape[1]:
            raise DiptychError(f"the embeddings have {vectors.shape[1]} numbers, those of the queries {texts.shape[1]}")
        # Not a product of matrices: the last bits of that depend on how many rows there are.
        found = np.einsum("nd,qd->nq", vectors, texts) if len(vectors) else np.zeros((0, len(texts)), np.float32)
        return np.where(found >= np.float32(self.least), found, -np.inf)

    def chosen(self, cosines: np.ndarray, place: Place, counts: Counts) -> np.ndarray:
        """bool [N, Q]: which rows each query takes."""
        return np.isfinite(cosines)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        cosines = self.cosines(batch)
        taken = self.chosen(cosines, place, counts)
        keep = np.asarray(taken.any(1))
        best = np.where(taken, cosines, -np.inf).argmax(1)
        names: Any = pa.array([self.queries[i] for i in best], pa.string(), mask=~keep)
        batch = with_column(batch, "query", names)
        nearest = cosines[np.arange(len(best)), best].astype(np.float32)
        batch = with_column(batch, "query_similarity", pa.array(nearest, pa.float32(), mask=~keep))
        tallies = {query: int(taken[:, i].sum()) for i, query in enumerate(self.queries)}
        return Verdict(batch, keep, ["" if kept else "unlike every query" for kept in keep], tallies)

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        rows = [[query, f"{tallies.get(query, 0):,}"] for query in self.queries]
        return [Table((Column("query", number=False), Column("pictures")), rows, title="Pictures of each query")]


class Nearest(Near):
    """Keeps the `top` rows nearest to each query, of those that reach `least`. Of equal ones the earlier are kept."""

    counts = True

    def __init__(self, queries: Sequence[str], top: int, least: float = -1.0, model: str = "") -> None:
        super().__init__(queries, least, model)
        self.top = top

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        cosines = self.cosines(batch).T  # [Q, N]
        where = np.broadcast_to(place.row + np.arange(cosines.shape[1]), cosines.shape)
        return self.first(cosines.astype(np.float32), np.full(cosines.shape, place.piece), where)

    def merge(self, counts: Sequence[Counts]) -> Counts:
        return self.first(*(np.concatenate([one[part] for one in counts], 1) for part in ("cosine", "piece", "row")))

    def first(self, cosine: np.ndarray, piece: np.ndarray, row: np.ndarray) -> Counts:
        """The top of each query among candidates [Q, M]; a place without one has -inf."""
        order = np.lexsort((row, piece, -cosine), axis=1)[:, : self.top]
        parts = {"cosine": cosine, "piece": piece, "row": row}
        return {name: np.take_along_axis(part, order, 1) for name, part in parts.items()}

    def chosen(self, cosines: np.ndarray, place: Place, counts: Counts) -> np.ndarray:
        taken = np.zeros(cosines.shape, bool)
        for q in range(len(self.queries)):
            mine = (counts["piece"][q] == place.piece) & np.isfinite(counts["cosine"][q])
            rows = counts["row"][q][mine] - place.row
            taken[rows[(rows >= 0) & (rows < len(cosines))], q] = True
        return taken
