"""Subset: the rows you want out of a large set, by a condition, by words, by what their pictures show.

Use it on what `laion` or any other run wrote, or on a table with embeddings and scores: high-resolution pictures
(`where="width >= 1024 and height >= 1024"`), clean ones (`punsafe < 0.5 and pwatermark < 0.8`), beautiful ones, or the
thousand nearest to each of some texts. Scores that lie in a file of their own are joined first, by LAION's hash of url
and text, and rows without a score are an error unless you allow some. Not for balancing a set, which is `metaclip`, nor
for looking around in one, which `diptych search` and `diptych serve` are better at.

LAION-5B, arXiv 2210.08402: subsets such as high-resolution (170 million at 1024 pixels) and aesthetics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diptych.errors import DiptychError, nearest
from diptych.methods.curate.parts.choose import Near, Nearest, Where, Words
from diptych.methods.curate.parts.join import JoinScores, read_scores
from diptych.methods.curate.parts.pipeline import Pipeline, Source, Stage
from diptych.search.filters import names_in


@dataclass(frozen=True)
class Config:
    """where: a condition on columns. words: whole words, one of which the text must have. queries: texts, to which the
    picture must be near; top: only so many of the nearest to each; least: at least so near, as a cosine. model: of the
    embeddings, where their column does not say. scores: a Parquet file to join by hash first; joined: the share of rows
    that must find theirs."""

    where: str = ""
    words: tuple[str, ...] = ("",)
    queries: tuple[str, ...] = ("",)
    top: int = 0
    least: float = -1.0
    model: str = ""
    scores: str = ""
    joined: float = 1.0


class Subset(Pipeline):
    Config = Config
    needs = "a table with the columns that it is cut by"

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Source | Stage]:
        c = self.config
        words, queries = ([one.strip() for one in given if one.strip()] for given in (c.words, c.queries))
        steps: list[Stage] = [JoinScores(c.scores, c.joined)] if c.scores else []
        if words:
            steps.append(Words(words))
        if c.where.strip():
            there = [*columns, *(read_scores(c.scores).columns.schema.names if c.scores else [])]
            for name in names_in(c.where):
                if name not in there:
                    raise DiptychError(f'subset.where: no column "{name}"{nearest(name, there)}')
            steps.append(Where(c.where))
        if queries and c.top:
            steps.append(Nearest(queries, c.top, c.least, c.model))
        elif queries:
            if c.least <= -1:
                raise DiptychError("subset.queries take every picture: say how many with subset.top, or how near with "
                    "subset.least")  # fmt: skip
            steps.append(Near(queries, c.least, c.model))
        if not steps:
            raise DiptychError('subset: say what to keep, such as --set subset.where="width >= 1024"; or subset.words, '
                "subset.queries with subset.top or subset.least")  # fmt: skip
        if c.top < 0 or not 0 <= c.joined <= 1:
            raise DiptychError(f"subset.top is 0 or more, subset.joined a share from 0 to 1; not {c.top}, {c.joined}")
        return steps
