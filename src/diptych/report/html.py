"""A `Report` as one HTML file that opens offline: styles, plots and pictures inside, nothing fetched."""

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from diptych.files import write_atomically
from diptych.report.sections import Cell, Facts, Gallery, Picture, Plot, Report, Section, Table, Text, Words
from diptych.report.words import clean, shorten

WORD = 60  # columns of a word of a table or of a name under a picture; the whole is in its title

# Click on a column's head to sort; without JavaScript the table is as useful, only not sortable.
SCRIPT = """
document.querySelectorAll("table.sortable thead th").forEach((head) => {
  const sort = () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    const up = head.getAttribute("aria-sort") === "descending";
    const key = (row) => { const c = row.cells[column], v = c.dataset.v; return v === undefined ? c.textContent : +v; };
    const order = (a, b) => { const x = key(a), y = key(b);
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const d = typeof x === "number" ? x - y : x.localeCompare(y); return up ? d : -d; };
    [...body.rows].sort(order).forEach((row) => body.append(row));
    head.parentNode.querySelectorAll("th").forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  head.tabIndex = 0;
  head.onclick = sort;
  head.onkeydown = (e) => { if (e.key === "Enter") sort(); };
});
"""


def write_html(report: Report, path: Path | str) -> Path:
    """Write the report to `path`, whole or not at all."""
    return write_atomically(path, render(report).encode("utf-8"))


def render(report: Report) -> str:
    """The page. Every string of the report is escaped, and the policy in its head lets nothing be fetched
    and no script run but ours."""
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    sections = [*report.sections]
    body = "\n".join(_chapters(sections))
    links = "".join(f'<a href="#{_slug(s.title)}">{_text(s.title)}</a>' for s in sections if s.title)
    subtitle = f'<p class="subtitle">{_text(report.subtitle)}</p>' if report.subtitle else ""
    provenance = ""
    if report.provenance:
        inner = f"<details><summary>Show</summary>{_tree(report.provenance)}</details>"
        provenance = f'<section id="provenance"><h2>Provenance</h2>{inner}</section>'
        links += '<a href="#provenance">Provenance</a>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{_text(report.title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{_text(report.title)}</h1>{subtitle}<nav aria-label="Sections">{links}</nav></header>
<main>
{body}
{provenance}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _text(value: object) -> str:
    return escape(clean(value), quote=True)


def _strong(value: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", _text(value))


def _breakable(value: str) -> str:
    """Words too long for a narrow column may break; what is copied from the page stays the same."""
    words = re.split(r"(\S{30,})", clean(value))
    return "".join(
        "<wbr>".join(escape(word[at : at + 15], quote=True) for at in range(0, len(word), 15))
        if i % 2
        else escape(word)
        for i, word in enumerate(words)
    )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def _chapters(sections: Sequence[Section]) -> list[str]:
    """A title opens a <section>; what has none goes on in it."""
    chapters: list[list[Section]] = []
    for section in sections:
        if section.title or not chapters:
            chapters.append([])
        chapters[-1].append(section)
    return [_chapter(chapter) for chapter in chapters]


def _chapter(chapter: list[Section]) -> str:
    title = chapter[0].title
    head = f'<section id="{_slug(title)}"><h2>{_text(title)}</h2>' if title else "<section>"
    parts = []
    for half, group in groupby(chapter, key=lambda s: s.half):
        inner = [_section(s) for s in group]
        parts += [f'<div class="halves">{"".join(f"<div>{part}</div>" for part in inner)}</div>'] if half else inner
    return head + "".join(parts) + "</section>"


def _section(section: Section) -> str:
    match section:
        case Text():
            inner = _paragraphs(section)
        case Facts():
            inner = _facts(section)
        case Table():
            inner = _table(section)
        case Plot():
            inner = _plot(section)
        case Gallery():
            inner = '<ul class="gallery">' + "".join(_picture(p) for p in section.items) + "</ul>"
        case Words():
            inner = f'<p class="words">{" ".join(_word(*item) for item in section.items)}</p>'
    if section.note and not isinstance(section, Plot):
        inner += f'<p class="note">{_strong(section.note)}</p>'
    return f"<details><summary>{_text(section.fold)}</summary>{inner}</details>" if section.fold else inner


def _paragraphs(section: Text) -> str:
    body = [section.body] if isinstance(section.body, str) else section.body
    if section.style == "list":
        return "<ul>" + "".join(f"<li>{_strong(line)}</li>" for line in body) + "</ul>"
    inner = "".join(f"<p>{_strong(line)}</p>" for line in body)
    return inner if section.style == "plain" else f'<div class="{section.style}">{inner}</div>'


def _word(word: str, value: float | None, wrong: bool) -> str:
    kind = "unread" if value is None else "for" if value > 0 else "against"
    share = "" if value is None else f' style="--share: {min(1.0, abs(value)):.0%}"'
    return f'<span class="{kind}{" wrong" if wrong else ""}"{share}>{_text(word)}</span>'


def _facts(section: Facts) -> str:
    items = (
        f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd><dd class=small>{_text(small)}</dd></div>"
        for label, value, small in section.items
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def _table(table: Table) -> str:
    def head(column: Any) -> str:
        title = f' title="{_text(column.help)}"' if column.help else ""
        name = "<br>".join(map(_text, column.name.split("\n")))
        return f'<th scope="col"{"" if column.number else " class=word"}{title}>{name}</th>'

    def cell(i: int, value: Cell | str) -> str:
        value = value if isinstance(value, Cell) else Cell(value)
        word = "" if table.columns[i].number else "word" if cell_len(value.text) <= 28 else "word long"
        classes = " ".join(filter(None, [word, value.mark]))
        attributes = f' class="{classes}"' if classes else ""
        attributes += f' data-v="{value.value:.6g}"' if value.value is not None else ""
        shown = " ".join(shorten(word, WORD) for word in value.text.split())
        attributes += f' title="{_text(value.text)}"' if shown != clean(value.text) else ""
        tag = 'th scope="row"' if i == 0 else "td"
        return f"<{tag}{attributes}>{_breakable(shown)}</{tag[:2]}>"

    rows = "".join(
        f"<tr{' class=chosen' if n == table.chosen else ''}>" + "".join(cell(i, c) for i, c in enumerate(row)) + "</tr>"
        for n, row in enumerate(table.rows)
    )
    heads = "".join(map(head, table.columns))
    # the region scrolls sideways on a phone, so the keyboard must reach it
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(table.title or "table")}">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _plot(plot: Plot) -> str:
    from diptych.report.plots import to_png, to_svg

    if plot.kind == "svg":
        image = to_svg(plot.figure, _text(plot.alt))
    else:
        uri = base64.b64encode(to_png(plot.figure)).decode()
        image = f'<img src="data:image/png;base64,{uri}" alt="{_text(plot.alt)}">'
    note = f"<figcaption>{_strong(plot.note)}</figcaption>" if plot.note else ""
    return f"<figure>{image}{note}</figure>"


def _picture(picture: Picture) -> str:
    if picture.image is None:
        image = '<div class="missing">picture not readable any more</div>'
    else:
        alt = f"Picture {picture.caption}" + (f", taken for {picture.guess}" if picture.guess else "")
        image = f'<img loading="lazy" src="{picture_uri(picture.image)}" alt="{_text(alt)}">'
    lines = []
    if picture.guess:
        score = "" if picture.score is None else f' <span class="score">{picture.score:.0%}</span>'
        lines.append(f'<div class="guess"><span class="key">guess</span>{_name(picture.guess)}{score}</div>')
    if picture.truth:
        lines.append(f'<div class="truth"><span class="key">truth</span>{_name(picture.truth)}</div>')
    small = " · ".join(filter(None, [picture.caption, picture.note]))
    lines.append(f'<div class="small" title="{_text(picture.caption)}">{_text(small)}</div>')
    return f"<li>{image}{''.join(lines)}</li>"


def _name(name: str) -> str:
    return f'<b title="{_text(name)}">{_text(shorten(name, WORD))}</b>'


def picture_uri(data: bytes) -> str:
    """A data URI of the picture's pixels alone: EXIF, comments and profiles are dropped."""
    if data.startswith(b"\xff\xd8"):
        return "data:image/jpeg;base64," + base64.b64encode(_bare_jpeg(data)).decode()
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        pixels = image.convert("RGB")
    buffer = io.BytesIO()
    pixels.info.clear()
    pixels.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _bare_jpeg(data: bytes) -> bytes:
    """Without APP1-13, APP15 and comments; APP0 and APP14 (Adobe) say how to read the pixels."""
    out, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # 0xDA: the pixels begin
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            out.append(data[at:end])
        at = end
    return b"".join([*out, data[at:]])


def _tree(value: Any) -> str:
    if isinstance(value, Mapping):
        items = (f"<dt>{_text(key)}</dt><dd>{_tree(inner)}</dd>" for key, inner in value.items())
        return f'<dl class="tree">{"".join(items)}</dl>'
    if isinstance(value, (list, tuple)):
        return _text(", ".join(str(v) for v in value)) or "none"
    return "none" if value is None or value == "" else _text(value)
