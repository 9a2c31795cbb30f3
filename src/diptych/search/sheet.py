"""Found pictures on one sheet, the best first, each with its place, its score and its name."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diptych.data.pictures import BadPicture, decode
from diptych.files import atomic
from diptych.search.found import Hit
from diptych.search.sources import picture_at

SIDE, GAP, LINE, COLUMNS = 220, 12, 18, 5
PAPER, INK, SOFT = "#fefefe", "#1f2328", "#5d6570"


def sheet(hits: Sequence[Hit], path: Path, title: str = "") -> Path:
    """Write a PNG or JPEG. A picture that cannot be read leaves its frame empty, with the reason in it."""
    columns = max(1, min(COLUMNS, len(hits)))
    rows = -(-len(hits) // columns)
    cell = SIDE + 2 * LINE + GAP
    top = GAP + (LINE + GAP if title else 0)
    paper = Image.new("RGB", (columns * (SIDE + GAP) + GAP, top + max(rows, 1) * cell), PAPER)
    pen, font = ImageDraw.Draw(paper), letters(13)
    if title:
        pen.text((GAP, GAP), fitting(title, font, paper.width - 2 * GAP), INK, letters(15))
    for i, hit in enumerate(hits):
        left, upper = GAP + i % columns * (SIDE + GAP), top + i // columns * cell
        try:
            image = decode(picture_at(hit.row["path"] or ""), at_least=SIDE)[0]
            image.thumbnail((SIDE, SIDE))
            paper.paste(image, (left + (SIDE - image.width) // 2, upper + (SIDE - image.height) // 2))
        except BadPicture as error:
            pen.rectangle((left, upper, left + SIDE, upper + SIDE), outline=SOFT)
            pen.text((left + 8, upper + 8), fitting(str(error), font, SIDE - 16), SOFT, font)
        pen.text((left, upper + SIDE + 2), f"{i + 1}   {hit.score:.3f}", INK, font)
        pen.text((left, upper + SIDE + 2 + LINE), fitting(hit.row["text"] or hit.id, font, SIDE), SOFT, font)
    with atomic(path) as temporary:
        paper.save(temporary, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    return path


def letters(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is too long."""
    text = " ".join(text.split())[:300]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
