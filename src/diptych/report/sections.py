"""What a report is made of. Plain data; nothing here knows a method, HTML or a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class _Section:
    title: str = ""  # "" goes on under the title before
    note: str = ""  # a line of small print underneath
    fold: str = ""  # the words that open it, where it begins closed
    half: bool = False  # half the page wide where there is room: it shares a line with its neighbours


@dataclass(frozen=True)
class Text(_Section):
    """Paragraphs; `**words**` are strong."""

    body: str | Sequence[str]
    style: Literal["plain", "lead", "list", "warning"] = "plain"


@dataclass(frozen=True)
class Facts(_Section):
    """A strip of large figures: (label, value, small print)."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Column:
    """The head of a column. A narrow terminal drops those with the largest `drop` first, and never 0."""

    name: str
    help: str = ""
    number: bool = True  # set right
    drop: int = 0


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # what it sorts by, where the text does not say
    mark: Literal["", "best", "muted"] = ""


@dataclass(frozen=True)
class Table(_Section):
    """Rows of as many cells as columns; `chosen` is the row to point at."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    chosen: int | None = None


@dataclass(frozen=True)
class Plot(_Section):
    """A matplotlib figure (see `report.plots`) and the words for who cannot see it.

    `kind` "png" is for figures of very many marks.
    """

    figure: "Figure"
    alt: str
    kind: Literal["svg", "png"] = "svg"
    half: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class Picture:
    """One thumbnail (JPEG or PNG bytes; None where it could not be read) and what was said of it."""

    image: bytes | None
    caption: str
    truth: str = ""
    guess: str = ""
    score: float | None = None  # 0..1
    note: str = ""


@dataclass(frozen=True)
class Gallery(_Section):
    items: Sequence[Picture]


@dataclass(frozen=True)
class Words(_Section):
    """A text whose words are coloured by numbers from -1, against, to 1, for; None: it was not read. A third entry
    that is true marks the word as wrong."""

    items: Sequence[tuple[str, float | None, bool]]


Section: TypeAlias = Text | Facts | Table | Plot | Gallery | Words


@dataclass(frozen=True)
class Report:
    """`provenance` is shown last, folded: any nesting of mappings, lists and plain values."""

    title: str
    sections: Sequence[Section]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    subtitle: str = ""
