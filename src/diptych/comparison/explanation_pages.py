"""What `diptych explain` draws: coloured words, heat maps over pictures, the captions to look at first."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageColor
from rich.text import Text as Line

from diptych.comparison.explanations import REPORT, Explained, Explanations, short_id
from diptych.data.pairs import BadPair, Pairs
from diptych.data.pictures import BadPicture, thumbnail_jpeg
from diptych.engine.provenance import provenance
from diptych.errors import DiptychError, Unsupported
from diptych.files import write_atomically
from diptych.report import (
    Cell,
    Column,
    Facts,
    Gallery,
    Picture,
    Report,
    Section,
    Table,
    Text,
    Words,
    write_html,
)
from diptych.report.svg import COLOURS
from diptych.report.words import clean

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.core.preprocess import Preprocess
    from diptych.methods.explain.parts.explainer import Explainer, WordScore, WordScores

FOR, AGAINST = COLOURS[0], COLOURS[1]  # blue and orange: told apart by colour-blind eyes
SIDE, SHOWN, THUMBNAIL = 448, 24, 160
MAPS = "Blue speaks for the text, orange against it; the strongest place of each map has full colour. {where}"


def strengths(words: "Sequence[WordScore]") -> list[float | None]:
    """Scores as shares of the strongest: -1 to 1; None where a word was not read."""
    most = max((abs(word.score) for word in words if word.score is not None), default=0.0) or 1.0
    return [None if word.score is None else word.score / most for word in words]


def coloured(scores: "WordScores") -> Line:
    """The text for a terminal: wrong words bold, red and underlined, the others by what they speak for."""
    line, at = Line(), 0
    for word, share in zip(scores.words, strengths(scores.words), strict=True):
        style = "dim" if share is None else "" if abs(share) < 0.1 else "blue" if share > 0 else "yellow"
        line.append(clean(scores.text[at : word.start]) or " " * (word.start > at))
        line.append(clean(word.word), "bold red underline" if word.flagged else style)
        at = word.end
    return line


def overlay(image: Image.Image, heat: "Tensor", preprocess: "Preprocess", side: int = SIDE) -> bytes:
    """The part of the picture that the model sees, greyed, with the map [h, w] over it -> PNG."""
    seen = replace(preprocess, size=max(side, preprocess.size)).crop(image)
    values = heat.detach().cpu().numpy().astype(np.float32)
    share = values / (np.abs(values).max() or 1.0)
    grown = np.asarray(Image.fromarray(share).resize(seen.size, Image.Resampling.BICUBIC)).clip(-1, 1)[..., None]
    grey = np.asarray(seen.convert("L").convert("RGB"), np.float32) * 0.5 + np.asarray(seen, np.float32) * 0.5
    colours = np.where(grown > 0, *(np.array(ImageColor.getrgb(name), np.float32) for name in (FOR, AGAINST)))
    weight = 0.75 * np.abs(grown)
    out = io.BytesIO()
    Image.fromarray((grey * (1 - weight) + colours * weight).round().astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def facts_of(scores: "WordScores", measure: str) -> Facts:
    wrong = ", ".join(scores.phrases) or "nothing flagged"
    items = [("does not fit", wrong, f"of {len(scores.words)} words")]
    items += [(measure, f"{scores.score:.2g}", "0 is best"), ("CLIPScore", f"{scores.clip_score:.3f}", "2.5 x cosine")]
    return Facts(items)


def words_of(scores: "WordScores", title: str = "") -> Words:
    items = [(w.word, share, w.flagged) for w, share in zip(scores.words, strengths(scores.words), strict=True)]
    note = f"Not read, the text is too long for the model: {' '.join(scores.unread)}." if scores.unread else ""
    return Words(items, title=title, note=note)


def few_pages(place: Path, made: Explanations, explainer: "Explainer", pairs: Pairs, word: str | None) -> None:
    """report.html and the maps as NN-text.png and NN-word.png."""
    sections: list[Section] = []
    for number, row in enumerate(made.explained, 1):
        title = f"{number}. {short_id(row.id)}" if len(made.explained) > 1 else short_id(row.id)
        if row.scores is None:
            sections.append(Text(f"{row.id}: {row.error}", title=title, style="warning"))
            continue
        sections += [words_of(row.scores, title), facts_of(row.scores, made.measure), score_table(row.scores)]
        sections.append(maps_of(place, number, explainer, pairs[row.pair].picture(), row.scores, word))
    about = {"settings": made.settings, "model": made.model, **provenance()}
    write_html(Report("Which words fit the picture", sections, about, subtitle=made.model), place / REPORT)


def maps_of(
    place: Path, number: int, explainer: "Explainer", image: Image.Image, scores: "WordScores", word: str | None
) -> Section:
    """The maps of the whole text and of one word, written as PNG too; a line that says why where there are none."""
    said = [one for one in scores.words if one.score is not None]
    if word is not None and word.casefold() not in {one.word.casefold() for one in said}:
        raise DiptychError(f'"{word}" is no word of the text; its words are {", ".join(one.word for one in said)}')
    one = word or min(said, key=lambda one: one.score or 0.0).word
    look = explainer.clip.preprocess
    try:
        drawn = {name: overlay(image, explainer.heat(image, text), look)
                 for name, text in (("text", scores.text), ("word", one))}  # fmt: skip
    except Unsupported as error:
        return Text(f"No map: {error}.", style="warning")
    for name, png in drawn.items():
        write_atomically(place / f"{number:02d}-{name}.png", png)
    where = "Drawn over the part of the picture that the model sees."
    items = [Picture(drawn["text"], "the whole text"), Picture(drawn["word"], f'"{one}" alone')]
    return Gallery(items, note=MAPS.format(where=where))


def score_table(scores: "WordScores") -> Table:
    rows = [
        [str(i), word.word, Cell("not read", None) if word.score is None else Cell(f"{word.score:+.1e}", word.score),
         "does not fit" if word.flagged else ""]
        for i, word in enumerate(scores.words, 1)
    ]  # fmt: skip
    columns = [Column("word"), Column("", number=False), Column("score"), Column("", number=False)]
    return Table(columns, rows, fold="Every word's score")


def ranking(made: Explanations, count: int | None = None) -> Table:
    """The captions, worst first."""
    columns = [
        Column("rank"),
        Column("picture", number=False, drop=3),
        Column("text", number=False),
        Column("does not fit", number=False),
        Column(made.measure, "0: nothing speaks against the pair; the further below, the worse"),
        Column("CLIPScore", "2.5 times the cosine", drop=2),
    ]
    rows: list[list[Cell | str]] = []
    for rank, row in enumerate([row for row in made.explained if row.scores][:count], 1):
        assert row.scores is not None
        numbers = [
            Cell(f"{row.scores.score:.2g}", row.scores.score),
            Cell(f"{row.scores.clip_score:.3f}", row.scores.clip_score),
        ]
        rows.append([str(rank), short_id(row.id), row.text, ", ".join(row.scores.phrases), *numbers])
    return Table(columns, rows, title="Captions to look at first")


def many_pages(place: Path, made: Explanations, pairs: Pairs) -> None:
    """report.html: the worst with their pictures and coloured words, then all of them."""
    good = [row for row in made.explained if row.scores is not None]
    bad = [row for row in made.explained if row.scores is None]
    flagged = sum(bool(row.scores and row.scores.phrases) for row in good)
    items = [("captions", str(len(good)), f"of {len({row.pair for row in good})} pictures")]
    items.append(("with words that do not fit", f"{flagged / len(good):.1%}", str(flagged)))
    items.append(("could not be read", str(len(bad) + len(made.set_aside)), ""))
    if cut := sum(bool(row.scores and row.scores.unread) for row in good):
        items.append(("longer than the model reads", str(cut), "their last words were not read"))
    sections: list[Section] = [Facts(items, title="What came out"), thumbnails(good[:SHOWN], pairs)]
    sections.append(replace(ranking(made), title="All captions"))
    if bad or made.set_aside:
        reasons = [(row.id, row.error or "") for row in bad] + [(one.id, one.reason) for one in made.set_aside]
        columns = [Column("which", number=False), Column("why", number=False)]
        sections.append(Table(columns, [list(reason) for reason in reasons], title="Set aside"))
    about: dict[str, Any] = {"settings": made.settings, "model": made.model, "source": pairs.source, **provenance()}
    write_html(
        Report("Captions to look at first", sections, about, subtitle=f"{pairs.source}, {made.model}"), place / REPORT
    )


def thumbnails(rows: Sequence[Explained], pairs: Pairs) -> Gallery:
    items = []
    for rank, row in enumerate(rows, 1):
        assert row.scores is not None
        try:
            image = thumbnail_jpeg(pairs[row.pair].picture(), THUMBNAIL)
        except (BadPair, BadPicture):
            image = None  # gone since it was read
        wrong = ", ".join(row.scores.phrases)
        items.append(Picture(image, f"{rank}. {row.text}", guess=wrong, note=short_id(row.id)))
    return Gallery(items, title="Captions to look at first", note="In red: the words that do not fit.")
