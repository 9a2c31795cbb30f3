"""The explorer without its web: questions to pages of results, the model asked once for all that wait."""

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.search.encoder import Encoder, combined
from diptych.search.filters import Filter, literal, parse
from diptych.search.fold import fold
from diptych.search.index import Index
from diptych.search.web.facets import facets_of
from diptych.search.web.reading import Reading, Slice
from diptych.search.web.schema import DEEPEST, About, Answer, Ask, Condition, Found, Question, Space

if TYPE_CHECKING:
    from torch import Tensor

SAFE = "punsafe <= 0.5"  # LAION-5B's cut; a row without the score is not known to be safe
WINDOWS = (120, 360, 840, 1800, 3600, 6000, DEEPEST)  # how deep a ranking is read; a page is folded in whole windows
FRESH = 1.0  # seconds for which the index is taken to be as it was
INTERNAL = ("digest", "mtime")  # columns that say nothing to people
PLACES = ("path", "source")  # columns that tell about this machine
Vector = NDArray[np.float32]
V = TypeVar("V")


class Recent(Generic[V]):
    """The `most` last used, for several threads."""

    def __init__(self, most: int) -> None:
        self.most, self.lock = most, threading.Lock()
        self.kept: OrderedDict[Any, V] = OrderedDict()

    def find(self, key: Any) -> V | None:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def keep(self, key: Any, value: V) -> None:
        with self.lock:
            self.kept[key] = value
            self.kept.move_to_end(key)
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)

    def forget(self, *keys: Any) -> None:
        """These; without any, all."""
        with self.lock:
            for key in keys or tuple(self.kept):
                self.kept.pop(key, None)


@dataclass
class Ranking:
    """What is known of one question's ranking. shown: (row, score) that stand for themselves; folded: ids below each;
    vectors: theirs; depth: how many rows were looked at."""

    shown: list[tuple[dict[str, Any], float | None]] = field(default_factory=list)
    folded: list[list[str]] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)
    depth: int = 0
    ended: bool = False

    def grow(self, part: Slice, asked: int, folding: bool) -> None:
        rows, old = part.rows.to_pylist(), len(self.shown)
        scores = [None] * len(rows) if part.scores is None else part.scores.tolist()
        leader = np.arange(old + len(rows))
        if folding and len(rows):
            before = np.array(self.vectors, np.float32).reshape(old, part.vectors.shape[1])
            leader = fold(np.concatenate([before, part.vectors]), shown=old)
        place = {i: i for i in range(old)}
        for i, row in enumerate(rows):
            if leader[old + i] == old + i:
                place[old + i] = len(self.shown)
                self.shown.append((row, scores[i]))
                self.folded.append([])
                self.vectors.append(part.vectors[i])
            else:
                self.folded[place[int(leader[old + i])]].append(row["id"])
        self.depth += len(rows)
        self.ended = len(rows) < asked or self.depth >= DEEPEST


def deepen(ranking: Ranking, part: Callable[[int, int], Slice], most: int, folding: bool) -> Ranking:
    """With at least `most` rows shown, where there are as many; part: the rows between two places of the ranking."""
    while not ranking.ended and len(ranking.shown) < most:
        stop = next(window for window in WINDOWS if window > ranking.depth)
        ranking.grow(part(ranking.depth, stop), stop - ranking.depth, folding)
    return ranking


class Explorer:
    """An index and its own model. safe: nothing that is not known to be safe leaves it, whatever is asked. local: only
    people at this machine ask, who may know where its files lie."""

    def __init__(self, index: Index, encoder: Encoder, *, safe: bool = False, local: bool = True) -> None:
        index.check(encoder.model)
        self.index, self.encoder, self.safe = index, encoder, safe
        self.hidden = frozenset(INTERNAL if local else (*INTERNAL, *PLACES))
        self.reading = Reading(index)
        self.version, self.refreshed = self.reading.version, time.monotonic()
        self.scored = self.reading.has("punsafe")
        if safe and not self.scored:
            raise DiptychError(f"--safe needs the score punsafe, which no picture of {index.uri} has")
        self.columns = index.columns  # Lance answers through another thread: not asked again with every question
        self.texts: Recent[Vector] = Recent(8192)
        self.pictures: Recent[Vector] = Recent(1024)
        self.rankings: Recent[Ranking] = Recent(256)
        self.counts: Recent[int] = Recent(256)
        self.rows: Recent[dict[str, Any]] = Recent(
            20_000
        )  # of which a page was sent: their pictures are asked for next
        self.about_it: About | None = None

    # -- what it answers -----------------------------------------------------------------------------------------------

    def answer(self, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """A page for each, or what is wrong with it."""
        started = time.perf_counter()
        self.refresh()
        self.encode([text for ask in asks if kind_of(ask) == "near" for text in (ask.text, ask.without) if text])
        rankings: list[Ranking | Exception] = [self.guarded(self.ranking_of, ask) for ask in asks]
        while growing := [i for i, r in enumerate(rankings) if isinstance(r, Ranking) and self.lacks(r, asks[i])]:
            groups: dict[Any, list[int]] = {}
            for i in growing:
                ask, ranking = asks[i], rankings[i]
                assert isinstance(ranking, Ranking)
                alone = kind_of(ask) != "near"
                groups.setdefault(i if alone else (self.where_of(ask), space_of(ask), ranking.depth), []).append(i)
            for members in groups.values():
                self.grow([(asks[i], rankings[i]) for i in members], members, rankings)
        pages: list[Answer | Exception] = []
        for ask, ranking in zip(asks, rankings, strict=True):
            taken = (time.perf_counter() - started) * 1000
            pages.append(ranking if isinstance(ranking, Exception) else self.page(ask, ranking, taken))
        return pages

    def guarded(self, work: Callable[..., V], *words: Any) -> V | Exception:
        try:
            return work(*words)
        except DiptychError as error:
            return error

    def ranking_of(self, ask: Ask) -> Ranking:
        key = (ask.question(), self.version)
        found = self.rankings.find(key)
        if found is None:
            self.filter_of(ask)  # what does not read is said before anything is looked for
            if kind_of(ask) == "near":
                self.index.column(space_of(ask))
            found = Ranking()
            self.rankings.keep(key, found)
        return found

    def lacks(self, ranking: Ranking, ask: Ask) -> bool:
        return not ranking.ended and len(ranking.shown) <= ask.offset + ask.limit

    def grow(self, work: Sequence[tuple[Ask, Any]], places: Sequence[int], rankings: list[Any]) -> None:
        """One window more for questions of the same filters, space and depth, in one pass over the vectors."""
        first, depth = work[0][0], work[0][1].depth
        stop = next(window for window in WINDOWS if window > depth)
        where = self.filter_of(first)
        if kind_of(first) == "browse":
            parts = [self.reading.browse(where, depth, stop)]
        elif kind_of(first) == "words":
            parts = [self.guarded(self.reading.containing, first.text, where, depth, stop)]
        else:
            queries = [self.guarded(self.vector_of, ask) for ask, _ in work]
            good = [q for q in queries if not isinstance(q, Exception)]
            near = iter(self.reading.nearest(np.stack(good), where, depth, stop, space_of(first)) if good else ())
            parts = [q if isinstance(q, Exception) else next(near) for q in queries]
        for (ask, ranking), place, part in zip(work, places, parts, strict=True):
            if isinstance(part, Exception):
                rankings[place] = part
                self.rankings.forget((ask.question(), self.version))
            elif ranking.depth == depth:  # two may have asked the same at once
                ranking.grow(part, stop - depth, ask.fold)

    def page(self, ask: Ask, ranking: Ranking, taken: float) -> Answer:
        stop = ask.offset + ask.limit
        results = []
        for (row, score), folded in zip(
            ranking.shown[ask.offset : stop], ranking.folded[ask.offset : stop], strict=True
        ):
            self.rows.keep(row["id"], row)
            results.append(
                Found.model_construct(
                    id=row["id"],
                    score=None if score is None else round(score, 4),
                    row=self.visible(row),
                    folded=folded,
                    version=version_of(row),
                )
            )
        more = stop if len(ranking.shown) > stop else None
        return Answer.model_construct(
            results=results, next=more, matching=self.matching(ask), milliseconds=round(taken, 1)
        )

    def visible(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if value is not None and name not in self.hidden}

    def row(self, identifier: str) -> dict[str, Any] | None:
        """A row that may be seen, or None."""
        row = self.rows.find(identifier)
        if row is None:
            row = next(iter(self.index.rows([identifier])), None)
        if row is None or (self.safe and not is_safe(row)):
            return None
        self.rows.keep(identifier, row)
        return row

    # -- filters -------------------------------------------------------------------------------------------------------

    def where_of(self, question: Question) -> str:
        """All filters of a question as one condition. Texts become literals: nothing in them is read as a condition."""
        parts = [part for part in map(self.condition, question.filters) if part]
        if question.where.strip():
            parse(question.where, self.columns)  # alone, so that it cannot close our parenthesis and open its own
            parts.append(f"({question.where})")
        if self.safe or (question.safe and self.scored):
            parts.append(SAFE)
        return " and ".join(parts)

    def filter_of(self, question: Question) -> Filter | None:
        where = self.where_of(question)
        return parse(where, self.columns) if where else None

    def condition(self, one: Condition) -> str:
        if "`" in one.column:
            raise DiptychError(f"no column {one.column!r}")
        column, parts = f"`{one.column}`", []
        if one.least is not None:
            parts.append(f"{column} >= {number(one.least)}")
        if one.most is not None:
            parts.append(f"{column} <= {number(one.most)}")
        if one.among:
            parts.append(f"{column} in ({', '.join(literal(word) for word in one.among)})")
        if one.yes is not None:
            parts.append(f"{column} = {str(one.yes).lower()}")
        return " and ".join(parts)

    def matching(self, question: Question) -> int:
        where = self.where_of(question)
        found = self.counts.find((where, self.version))
        if found is None:
            found = self.reading.count(parse(where, self.columns) if where else None)
            self.counts.keep((where, self.version), found)
        return found

    # -- vectors -------------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> None:
        fresh = [text for text in dict.fromkeys(texts) if self.texts.find(text) is None]
        if fresh:
            for text, vector in zip(fresh, self.encoder.texts(fresh), strict=True):
                self.texts.keep(text, vector)

    def encode_pictures(self, pictures: Sequence[tuple[str, "Tensor"]]) -> list[str]:
        """(token, pixels [3, S, S]) -> the tokens, by which questions may name them."""
        fresh = {token: pixels for token, pixels in pictures if self.pictures.find(token) is None}
        if fresh:
            for token, vector in zip(fresh, self.encoder.pictures(list(fresh.values())), strict=True):
                self.pictures.keep(token, vector)
        return [token for token, _ in pictures]

    def text_vector(self, text: str) -> Vector:
        self.encode([text])
        found = self.texts.find(text)
        assert found is not None
        return found

    def vector_of(self, question: Question) -> Vector:
        """The query, [D]."""
        wanted = [self.text_vector(question.text)] if question.text else []
        if question.picture:
            found = self.pictures.find(question.picture)
            if found is None:
                raise Forgotten("the picture that was dropped is no longer here; drop it again")
            wanted.append(found)
        if question.like:
            part = self.reading.of(question.like)
            seen = [vector for vector, row in zip(part.vectors, part.rows.to_pylist(), strict=True)
                    if not self.safe or is_safe(row)]  # fmt: skip
            if len(seen) < len(set(question.like)):
                raise Forgotten("a picture to be like is not in the index")
            wanted += seen
        unwanted = [self.text_vector(question.without)] if question.without else []
        if not wanted:
            return -unwanted[0]
        return combined(wanted, unwanted).astype(np.float32)

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        if time.monotonic() - self.refreshed < FRESH:
            return
        version = self.reading.refresh()
        if version != self.version:
            self.version, self.about_it, self.columns = version, None, self.index.columns
            self.scored = self.reading.has("punsafe")
            self.rankings.forget()
            self.rows.forget()
        self.refreshed = time.monotonic()

    def about(self) -> About:
        if self.about_it is None:
            from diptych import __version__

            columns = self.columns
            spaces: list[Space] = ["pictures"]
            if self.index.holds_captions and self.index.count("captions"):
                spaces.append("captions")
            if self.reading.has("text"):
                spaces.append("words")
            self.about_it = About(
                name=re.split(r"[\\/]", self.index.uri.rstrip("\\/"))[-1],
                rows=self.reading.count(None),
                model=self.index.model.name,
                spaces=spaces,
                facets=facets_of(self.reading, columns),
                columns={name: kind for name, kind in columns.items() if name not in self.hidden},
                has_safety=self.scored,
                always_safe=self.safe,
                version=__version__,
            )
        return self.about_it


def kind_of(question: Question) -> str:
    """How it is answered: "browse", "words" by full text, "near" by vectors."""
    if question.is_empty:
        return "browse"
    return "words" if question.space == "words" and question.text else "near"


def space_of(question: Question) -> str:
    """What its vector is compared with; pictures too where words were to be found and none are given."""
    return "captions" if question.space == "captions" else "pictures"


class Forgotten(DiptychError):
    """What was there once is not any more."""


def number(value: float) -> str:
    """Lance compares a column of whole numbers with whole numbers alone."""
    return str(int(value)) if value == int(value) else repr(value)


def is_safe(row: Mapping[str, Any]) -> bool:
    score = row.get("punsafe")
    return score is not None and score <= 0.5


def version_of(row: Mapping[str, Any]) -> str:
    """Changes when the picture does."""
    said = row.get("digest") or f"{row.get('path')} {row.get('size')} {row.get('mtime')}"
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
