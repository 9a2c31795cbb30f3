"""What the page and the server say to each other; /openapi.json is made from it. Unknown fields are refused."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Space = Literal["pictures", "captions", "words"]
ADDRESS = re.compile(r"\s*(?:(?:https?|ftp|file):/|data:)\S+\s*", re.IGNORECASE)
DEEPEST = 10_000  # rows of a ranking that can be scrolled to
MOST_EXPORTED = 1_000_000


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Condition(Closed):
    """One filter: `{"column": "width", "least": 512}`, `{"column": "language", "among": ["en", "de"]}`."""

    column: str = Field(max_length=200)
    least: float | None = Field(None, allow_inf_nan=False)
    most: float | None = Field(None, allow_inf_nan=False)
    among: tuple[str, ...] = Field((), max_length=100)
    yes: bool | None = None


class Question(Closed):
    """What is looked for. Without text, like and picture: everything that passes the filters, in the index's order."""

    text: str = Field("", max_length=1000, description="words, in any order, or a sentence")
    without: str = Field("", max_length=1000, description="words for what the picture should not show")
    like: tuple[str, ...] = Field((), max_length=50, description="ids of pictures of the index")
    picture: str | None = Field(None, pattern="^[0-9a-f]{32}$", description="what POST /api/picture answered")
    space: Space = Field("pictures", description="compare with pictures or captions, or find words in captions")
    filters: tuple[Condition, ...] = Field((), max_length=50)
    where: str = Field("", max_length=5000, description="a condition such as: width > 500 and punsafe < 0.5")
    fold: bool = Field(True, description="show one of pictures that are almost the same")
    safe: bool = Field(True, description="only pictures known to be safe, where the index has the score punsafe")

    @field_validator("text", "without")
    @classmethod
    def no_address(cls, value: str) -> str:
        if ADDRESS.fullmatch(value):
            raise ValueError("this server fetches nothing from other places: save the picture and drop the file here")
        return value.strip()

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.without or self.like or self.picture)


class Ask(Question):
    offset: int = Field(0, ge=0, le=DEEPEST)
    limit: int = Field(60, ge=1, le=200)

    def question(self) -> Question:
        return Question.model_construct(**{name: getattr(self, name) for name in Question.model_fields})


class Found(Closed):
    """id, score (the cosine; none in browsing); row: what the index knows of it; folded: near-duplicates under it."""

    id: str
    score: float | None
    row: dict[str, Any]
    folded: list[str]
    version: str = Field(description="of the picture: /thumb?id=ID&v=VERSION may be kept for good")


class Answer(Closed):
    results: list[Found]
    next: int | None = Field(description="the offset of the next page; null: this was the last")
    matching: int = Field(description="rows of the index that pass the filters")
    milliseconds: float = Field(description="that the server took, waiting included")


class Facet(Closed):
    """A column that can be filtered by. kind number: least, most, and `counts` of equal bins between them. kind text:
    `values` with how often each is there, the most frequent first."""

    column: str
    kind: Literal["number", "text", "yes/no"]
    least: float | None = None
    most: float | None = None
    counts: list[int] = []
    values: list[tuple[str, int]] = []


class About(Closed):
    name: str
    rows: int
    model: str
    spaces: list[Space]
    facets: list[Facet]
    columns: dict[str, str]
    has_safety: bool = Field(description="whether the index has the score punsafe")
    always_safe: bool = Field(description="whether the server was started with --safe")
    version: str


class Uploaded(Closed):
    picture: str = Field(description="to be asked with, until the server forgets it")
    width: int
    height: int


class Wish(Closed):
    """A subset: the rows named in ids, or, where there are none, the first `most` of the question's ranking whose score
    is at least `least`."""

    format: Literal["parquet", "csv", "webdataset"]
    ids: tuple[str, ...] = Field((), max_length=DEEPEST)
    question: Question = Field(default_factory=lambda: Question.model_validate({}))
    most: int = Field(1000, ge=1, le=MOST_EXPORTED)
    least: float | None = Field(None, ge=-1, le=1)


class Ready(Closed):
    """A file to fetch at GET /api/export/{token}, once or more, until the server forgets it."""

    token: str
    name: str
    rows: int
    failed: dict[str, int] = Field(description="pictures that could not be read, by reason")
    bytes: int
