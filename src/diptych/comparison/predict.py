"""`diptych predict`: a classifier on new pictures -> class, calibrated probability, or "none of these"."""

import csv
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.data.pictures import EXTENSIONS, BadPicture, open_picture
from diptych.data.video import VIDEOS, crops, read_frames
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table
    from torch import Tensor

    from diptych.core.classifier import Classifier
    from diptych.core.clip import CLIP

NONE = "none of these"


@dataclass(frozen=True)
class Prediction:
    """What one picture shows.

    label: the class, or None for "none of these". probability: calibrated, of the most likely class, whether it is
    given or not. top: the most likely classes with their probabilities. error: why the picture could not be read;
    the rest is empty then.
    """

    path: Path
    label: str | None
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str | None = None


def predict(
    classifier: "Classifier | str | Path",
    pictures: str | Path | Sequence[str | Path],
    *,
    clip: "CLIP | None" = None,
    model: str | None = None,
    top: int = 5,
    threshold: float | None = None,
    batch: int = 32,
    views: tuple[int, int] = (1, 1),
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """The classifier's answer for every picture, in the order given; a folder's pictures by name, each once.

    clip: the base model, or `model`, what `load` opens; by default what the classifier names. threshold: in place of
    the classifier's own; 0 always names a class. views: of a video, so many draws of frames times so many crops along
    its long side, whose probabilities are averaged; 4, 3 is usual. What cannot be read is a Prediction with an error.
    Raises DiptychError for another base model, paths that are not there, and when no picture could be read.
    """
    from diptych.core.classifier import Classifier

    if min(views) < 1:
        raise DiptychError(f"views are whole numbers from 1, not {views[0]} and {views[1]}")
    if top < 1 or batch < 1:
        raise DiptychError(f"top and batch are whole numbers from 1, not {top} and {batch}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise DiptychError(f"a threshold is a probability from 0 to 1, not {threshold}")
    if not isinstance(classifier, Classifier):
        classifier = Classifier.load(classifier)
    if views != (1, 1) and not classifier.frames:
        raise DiptychError("several views are of videos, and this classifier was fitted on pictures")
    paths = find_pictures(pictures)
    edited = classifier.clip(classifier.base_clip(clip, model))
    if threshold is None:
        threshold = classifier.threshold
    found = []
    for prediction in answers(classifier, edited, paths, top, threshold, batch, views):
        found.append(prediction)
        if progress:
            progress(len(found), len(paths))
    if all(p.error for p in found):
        reasons = "; ".join(f"{p.path}: {p.error}" for p in found[:3])
        many = "the picture" if len(found) == 1 else f"any of the {len(found)} pictures"
        raise DiptychError(f"cannot read {many}: {reasons}{'; ...' if len(found) > 3 else ''}")
    return found


def find_pictures(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files as they are given, folders as the pictures in them and below, sorted; each path once.

    Raises DiptychError for paths that are not there, and for a folder without pictures.
    """
    if isinstance(given, str | Path):
        given = [given]
    if not given:
        raise DiptychError("no pictures given: name files or folders")
    paths = [Path(one).expanduser() for one in given]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        names = ", ".join(f"{path}{beside(path)}" for path in missing[:5])
        raise DiptychError(f"no such file or folder: {names}{f' and {len(missing) - 5} more' if missing[5:] else ''}")
    found: dict[str, Path] = {}
    for path in paths:
        inside = list(below(path)) if path.is_dir() else [path]
        if not inside:
            raise DiptychError(f"no pictures in {path} or below, nor videos ({', '.join(sorted(EXTENSIONS)[:6])}, ...)")
        for one in inside:
            found.setdefault(os.path.abspath(one), one)
    return list(found.values())


def below(folder: Path) -> Iterator[Path]:
    """The pictures and videos in a folder and its folders, sorted; hidden ones are passed over, loops of links cut."""
    seen = set()

    def refuse(error: OSError) -> None:
        raise DiptychError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from error

    for at, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS | VIDEOS:
                yield Path(at, name)


def beside(path: Path) -> str:
    """A hint at what lies there with a name like it."""
    try:
        close = get_close_matches(path.name, os.listdir(path.parent), n=1)
    except OSError:
        return ""
    return f' (did you mean "{path.parent / close[0]}"?)' if close else ""


def answers(
    classifier: "Classifier",
    edited: "CLIP",
    paths: Sequence[Path],
    top: int,
    threshold: float | None,
    batch: int,
    views: tuple[int, int] = (1, 1),
) -> Iterator[Prediction]:
    """One Prediction a path, in order. At most three batches of pixels are held at a time."""
    import torch

    top, frames = min(top, len(classifier.classes)), classifier.frames
    for part, pixels in decoded(edited, paths, max(1, batch // max(frames * views[0] * views[1], 1)), frames, views):
        good = [p for p in pixels if not isinstance(p, str)]
        rows: Iterator[tuple[list[float], list[int]]] = iter(())
        if good:
            with torch.inference_mode():
                pixels_of = torch.cat(good)  # [N * views, ...]
                rows_of = classifier.probabilities(edited.encode_image(pixels_of))
                values, index = rows_of.unflatten(0, (len(good), -1)).mean(1).topk(top)
            rows = zip(values.tolist(), index.tolist(), strict=True)
        for path, picture in zip(part, pixels, strict=True):
            if isinstance(picture, str):
                yield Prediction(path, None, 0.0, (), picture)
                continue
            best = tuple((classifier.classes[i], p) for p, i in zip(*next(rows), strict=True))
            known = threshold is None or best[0][1] >= threshold
            yield Prediction(path, best[0][0] if known else None, best[0][1], best)


def decoded(
    clip: "CLIP", paths: Sequence[Path], batch: int, frames: int, views: tuple[int, int]
) -> Iterator[tuple[Sequence[Path], "list[Tensor | str]"]]:
    """Batches of paths with their pixels, or with the reason why there are none; decoded ahead in threads."""
    workers = min(4, os.cpu_count() or 1)

    def read(path: Path) -> "Tensor | str":
        try:
            if frames:
                return videos(clip, path, frames, views)
            return clip.preprocess(open_picture(path))[None]
        except BadPicture as error:
            return str(error)

    parts = (paths[i : i + batch] for i in range(0, len(paths), batch))
    waiting: deque[tuple[Sequence[Path], list[Future[Tensor | str]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for part in parts:
                waiting.append((part, [pool.submit(read, path) for path in part]))
                if len(waiting) == 3:
                    part, futures = waiting.popleft()
                    yield part, [f.result() for f in futures]
            while waiting:
                part, futures = waiting.popleft()
                yield part, [f.result() for f in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def videos(clip: "CLIP", path: Path, frames: int, views: tuple[int, int]) -> "Tensor":
    """One video as [views, T, 3, H, W]: draws of frames times crops. A single crop is the model's own."""
    import torch

    draws, places = views

    def look(image: "Image") -> "Tensor":
        squares = [image] if places == 1 else crops(image, places)
        return torch.stack([clip.preprocess(square) for square in squares])  # [crops, 3, H, W]

    drawn = [torch.stack(read_frames(path, frames, look, view=(k, draws)), 1) for k in range(draws)]
    return torch.cat(drawn)


def to_json(predictions: Iterable[Prediction]) -> str:
    """A list of objects: path, label (null: none of these), probability, top, error."""
    rows = [
        {
            "path": printable(p.path),
            "label": p.label,
            "probability": None if p.error else round(p.probability, 6),
            "top": [{"class": name, "probability": round(value, 6)} for name, value in p.top],
            "error": p.error,
        }
        for p in predictions
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def to_csv(predictions: Iterable[Prediction]) -> str:
    """path, label (empty: none of these, or an error), probability, error, then the most likely classes.

    Cells that a spreadsheet would run as a formula get an apostrophe before them.
    """
    rows = list(predictions)
    most = max((len(p.top) for p in rows), default=0)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ranked = [f"{what}_{i}" for i in range(1, most + 1) for what in ("class", "probability")]
    writer.writerow(["path", "label", "probability", "error", *ranked])
    for p in rows:
        probability = "" if p.error else f"{p.probability:.6f}"
        pairs = [cell for name, value in p.top for cell in (harmless(name), f"{value:.6f}")]
        pairs += [""] * (2 * most - len(pairs))
        writer.writerow([harmless(p.path), harmless(p.label or ""), probability, harmless(p.error or ""), *pairs])
    return out.getvalue()


def table(predictions: Iterable[Prediction]) -> "Table":
    """For the terminal: picture, class, probability, and the next most likely classes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from diptych.report.words import clean

    found = list(predictions)
    folder = shared_folder([p.path for p in found])
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    out.add_column(Text(f"picture in {clean(folder)}" if folder else "picture", overflow="fold"), overflow="fold")
    out.add_column("class")
    out.add_column("probability", justify="right")
    out.add_column("next")
    for p in found:
        path = Text(clean(os.path.relpath(p.path, folder) if folder else p.path))
        if p.error:
            out.add_row(path, Text(clean(p.error), style="yellow"), "", "")
            continue
        label = Text(clean(p.label), style="bold") if p.label is not None else Text(NONE, style="dim")
        others = p.top[1:] if p.label is not None else p.top
        after = ", ".join(f"{clean(name)} {value:.1%}" for name, value in others)
        out.add_row(path, label, f"{p.probability:.1%}", Text(after, style="dim"))
    return out


def shared_folder(paths: Sequence[Path]) -> str:
    """The folder that several pictures lie in or below; empty where that is nothing to say."""
    if len(paths) < 2 or len({path.is_absolute() for path in paths}) > 1:
        return ""
    return os.path.commonpath([path.parent for path in paths]).rstrip(os.sep)


def harmless(cell: object) -> str:
    """Text that no spreadsheet takes for a formula."""
    text = printable(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def printable(text: object) -> str:
    """Without the half surrogates of a file name that is not UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
