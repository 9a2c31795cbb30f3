"""What `diptych segment` shows and writes: a table, overlays with a legend, masks with the classes' numbers, JSON."""

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diptych.comparison.predict import printable, shared_folder
from diptych.comparison.segment import Segmented
from diptych.data.pictures import open_picture
from diptych.errors import DiptychError
from diptych.files import atomic_folder, write_atomically
from diptych.methods.dense.parts.evaluate import colour, paint
from diptych.report.words import clean, shorten

if TYPE_CHECKING:
    from rich.table import Table

RESULTS = "segments.json"
LARGEST = 1600  # pixels of an overlay's longer side


def check_place(out: Path | None, single: bool) -> None:
    """Refuse a place for what is to be written before anything is segmented."""
    if out is None:
        return
    if single and out.suffix.lower() in (".png", ".jpg", ".jpeg"):
        if out.is_dir():
            raise DiptychError(f"--out {out} is a folder")
        return
    if out.exists() and not out.is_dir():
        raise DiptychError(f"--out {out} is a file; it takes {'an overlay .png or ' if single else ''}a folder")
    if out.suffix:
        raise DiptychError(
            f"--out {out}: {'an overlay is a .png or .jpg' if single else 'several pictures need a folder'}"
        )
    if out.is_dir() and any(out.iterdir()) and not (out / RESULTS).is_file():
        raise DiptychError(f"--out {out} exists and holds something else; choose another folder")


def write(found: Iterable[Segmented], paths: Sequence[Path], out: Path, single: bool) -> list[Segmented]:
    """One overlay; or a folder, whole or not at all: overlays/, masks/ (index PNGs), classes.txt, segments.json.

    -> what was found, without its maps.
    """
    if single and out.suffix:
        (one,) = found
        data = io.BytesIO()
        overlay(one).save(data, "PNG" if out.suffix.lower() == ".png" else "JPEG")
        write_atomically(out, data.getvalue())
        return [slim(one)]
    files, kept = file_names(paths), []
    with atomic_folder(out) as place:
        for part in ("overlays", "masks"):
            (place / part).mkdir()
        for one, file in zip(found, files, strict=True):
            if not one.error:
                overlay(one).save(place / "overlays" / file)
                index_picture(one).save(place / "masks" / file)
            kept.append(slim(one))
        (place / "classes.txt").write_text("".join(f"{clean(name)}\n" for name in kept[0].names), "utf-8")
        (place / RESULTS).write_text(to_json(kept, files), "utf-8")
    return kept


def slim(one: Segmented) -> Segmented:
    """Without its maps: of many pictures they would fill the memory."""
    return replace(one, labels=one.labels[:0], segments=one.segments[:0])


def file_names(paths: Sequence[Path]) -> list[str]:
    """A PNG's name for each, by what tells it apart below their shared folder."""
    folder = shared_folder(list(paths)) or (str(paths[0].parent) if paths else "")
    taken: set[str] = set()
    found = []
    for path in paths:
        stem = printable(Path(os.path.relpath(path, folder)).with_suffix("")).replace("..", "_").replace(os.sep, "_")
        name, n = stem, 1
        while name.casefold() in taken:
            n += 1
            name = f"{stem}_{n}"
        taken.add(name.casefold())
        found.append(f"{name}.png")
    return found


def index_picture(one: Segmented) -> Image.Image:
    """The number of each pixel's class, from 0 in the order of the labels, in the overlays' colours."""
    if len(one.names) > 256:
        return Image.fromarray(one.labels)
    image = Image.fromarray(one.labels.astype(np.uint8), "P")
    image.putpalette([round(v) for k in range(len(one.names)) for v in colour(k)])
    return image


def overlay(one: Segmented) -> Image.Image:
    """The picture under its classes' colours, and a legend beside it: name, share of the picture, score."""
    image = open_picture(one.path)
    labels = Image.fromarray(one.labels)
    if max(image.size) > LARGEST:
        scale = LARGEST / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image, labels = image.resize(size), labels.resize(size, Image.Resampling.NEAREST)
    painted = paint(image, np.asarray(labels).astype(np.int64))
    step = max(12, min(28, painted.height // 14))
    font = ImageFont.load_default(step * 0.62)
    lines = [(shorten(a.name, 28), f"{a.share:.0%}  score {a.score:.2f}", one.names.index(a.name)) for a in one.areas]
    wide = max((font.getlength(f"{name}  {numbers}") for name, numbers, _ in lines), default=0)
    canvas = Image.new(
        "RGB", (painted.width + round(wide) + 3 * step, max(painted.height, (len(lines) + 1) * step)), "white"
    )
    canvas.paste(painted, (0, 0))
    draw, left = ImageDraw.Draw(canvas), painted.width + step // 2
    for i, (name, numbers, k) in enumerate(lines):
        top = step // 2 + i * step
        draw.rectangle((left, top, left + step * 0.7, top + step * 0.7), tuple(round(v) for v in colour(k)), "black")
        draw.text((left + step, top), f"{name}  {numbers}", "black", font)
    return canvas


def to_json(found: Iterable[Segmented], files: Sequence[str] | None = None) -> str:
    """A list of objects: path, classes (name, share, score), segments (id, name, share, score, thing), error."""
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(found):
        row: dict[str, Any] = {"path": printable(one.path)}
        if files is not None and not one.error:
            row |= {"overlay": f"overlays/{files[i]}", "mask": f"masks/{files[i]}"}
        row["classes"] = [{"name": a.name, "share": round(a.share, 6), "score": round(a.score, 6)} for a in one.areas]
        row["segments"] = [
            {"id": c.id, "name": c.name, "share": round(c.share, 6), "score": round(c.score, 6), "thing": c.thing}
            for c in one.counted
        ]
        rows.append(row | {"error": one.error})
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def table(found: Sequence[Segmented]) -> "Table":
    """For the terminal: each picture's classes with share and score, and how many there are of what is counted."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    folder, several = shared_folder([one.path for one in found]), len(found) > 1
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    if several:
        out.add_column(Text(f"picture in {clean(folder)}" if folder else "picture", overflow="fold"), overflow="fold")
    out.add_column("class")
    out.add_column("share", justify="right")
    out.add_column("score", justify="right")
    counts = any(c.thing for one in found for c in one.counted)
    if counts:
        out.add_column("counted", justify="right")
    for one in found:
        path = [Text(clean(os.path.relpath(one.path, folder) if folder else one.path))] if several else []
        if one.error:
            out.add_row(*path, Text(clean(one.error), style="yellow"))
        for area in one.areas:
            many = [c for c in one.counted if c.thing and c.name == area.name]
            row = [Text(clean(area.name), style="bold"), f"{area.share:.1%}", f"{area.score:.2f}"]
            out.add_row(*path, *row, *([str(len(many)) if many else ""] if counts else []))
            path = [Text("")] * several
    return out
