"""`diptych explain`: pictures and their texts -> scores of words, the captions to look at first, maps, a report."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.comparison.folder import RunFolder
from diptych.comparison.predict import find_pictures, harmless, printable
from diptych.data.pairs import BadPair, Pair, Pairs, digest_of, read_pairs
from diptych.data.pictures import BadPicture, open_picture
from diptych.data.scan import SetAside
from diptych.errors import DiptychError, nearest
from diptych.files import write_atomically
from diptych.methods.discover import find

if TYPE_CHECKING:
    from diptych.core.clip import CLIP
    from diptych.methods.explain.parts.explainer import Explainer, WordScores

LINES, RANKED, RESULTS, REPORT = "rows.jsonl", "captions.csv", "results.json", "report.html"
RANKS = ("clip_score", "measure")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Explained:
    """One text against one picture. id: the picture's file, or its row in the table; scores: None where the picture or
    the text could not be used, and error says why. pair: its number in the source."""

    id: str
    text: str
    scores: "WordScores | None"
    error: str | None = None
    pair: int = 0


@dataclass(frozen=True)
class Explanations:
    """explained: in the order given, or the worst first where a table was read; measure: what `scores.score` is;
    set_aside: what was left out, with the reasons; report: where it was written."""

    explained: tuple[Explained, ...]
    measure: str
    settings: dict[str, Any]
    model: str
    set_aside: tuple[SetAside, ...] = ()
    report: Path | None = None


def explain(
    pictures: "str | Path | Sequence[str | Path] | Pairs",
    text: str | Sequence[str] | None = None,
    *,
    clip: "CLIP | None" = None,
    model: str = "mini",
    system: str = "clip4dm",
    settings: Mapping[str, Any] | None = None,
    calibrate: "str | Path | Pairs | None" = None,
    word: str | None = None,
    rank: str = "clip_score",
    out: str | Path | None = None,
    image_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Explanations:
    """Which words of a text do not fit the picture.

    pictures: files or folders, all of them with each `text`; without one, pairs: a table with a column of captions or
    whatever else `diptych.pairs` reads, which come back with the worst first. settings: "<system>.<field>" -> value.
    rank: what puts the worst first, "clip_score" or the system's own "measure" (of clip4dm, F-CLIPScore).
    calibrate: pairs that match, on which the threshold is set. out: a folder for the report, with maps of the pictures
    where a text was given (of the whole text and of `word`, by default its lowest); pairs continue there after a stop.
    A picture that cannot be read is an Explained with an error. Raises DiptychError where none could be read.
    """
    declared = find("explain", system)
    if rank not in RANKS:
        raise DiptychError(f'rank is "{rank}"{nearest(rank, RANKS)}')
    pairs = listed(pictures, image_column, text_columns) if text is None else told(pictures, text)
    matched = None if calibrate is None else listed(calibrate, image_column, text_columns)
    place = Path(out) if out is not None else None
    if place is not None and place.exists() and not place.is_dir():
        raise DiptychError(f"{place} is a file; out takes a folder")
    if clip is None:
        from diptych.core.load import load

        clip = load(model)
    explainer = declared(clip, configured(declared, clip, settings or {}))
    if matched is not None:
        explainer = explainer.calibrated(usable(matched))
    about = {"settings": asdict(explainer.config), "model": clip.name, "measure": explainer.measure}
    if text is not None:
        rows = [
            row
            for index in range(len(pairs))
            for row in ticked(explained(explainer, pairs, index), index, pairs, progress)
        ]
        refuse_nothing(rows)
        made = Explanations(tuple(rows), set_aside=pairs.set_aside, **about)
        if place is None:
            return made
        from diptych.comparison.explanation_pages import few_pages

        few_pages(place, made, explainer, pairs, word)
    else:
        if word is not None:
            raise DiptychError(f"a map of {word!r} is drawn for a picture with a text, not for a table")
        folder = None
        if place is not None:
            identity = {
                "explain": system,
                **about,
                "model": clip.fingerprint,
                "source": pairs.digest,
                "pairs": len(pairs),
            }
            folder = RunFolder(place, identity)
            folder.open()
        rows = continued(explainer, pairs, folder, progress)
        refuse_nothing(rows)
        made = Explanations(tuple(sorted(rows, key=partial(badness, rank=rank))), set_aside=pairs.set_aside, **about)
        if place is None:
            return made
        from diptych.comparison.explanation_pages import many_pages

        write_atomically(place / RANKED, to_csv(made).encode())
        many_pages(place, made, pairs)
    write_atomically(place / RESULTS, to_json(made).encode())
    return replace(made, report=place / REPORT)


# -- what is read ------------------------------------------------------------------------------------------------------


def told(pictures: Any, text: str | Sequence[str]) -> Pairs:
    """Each picture with the same texts."""
    texts = [text] if isinstance(text, str) else list(text)
    if isinstance(pictures, Pairs):
        raise DiptychError("these pairs have texts of their own; give no other")
    if not texts or not all(one.strip() for one in texts):
        raise DiptychError("the text is empty: say what the picture should show")
    paths = find_pictures(pictures)

    def get(index: int) -> Pair:
        return Pair(str(paths[index]), partial(open_picture, paths[index]), tuple(texts))

    return Pairs("pictures", len(paths), get, digest=digest_of(paths))


def listed(source: Any, image_column: str | None, text_columns: Sequence[str] | None) -> Pairs:
    """Pairs of a table, a folder, shards."""
    if isinstance(source, Pairs):
        return source
    if not isinstance(source, str | Path):
        if len(source) != 1:
            raise DiptychError("several sources, and no text: give one table of captions, or a text for the pictures")
        [source] = source
    from diptych.data.pictures import EXTENSIONS

    if Path(source).suffix.lower() in EXTENSIONS:
        raise DiptychError(f'{source} is a picture: say its text too, such as diptych explain {source} "a brown dog"')
    return read_pairs(source, image_column=image_column, text_columns=text_columns)


def usable(pairs: Pairs) -> "Iterator[tuple[Any, str]]":
    """Pictures with texts, without those that cannot be read."""
    for index in range(len(pairs)):
        try:
            pair = pairs[index]
            picture = pair.picture()
        except (BadPair, BadPicture):
            continue  # what is left decides; none at all is refused by the explainer
        yield from ((picture, text) for text in pair.texts)


def configured(declared: "type[Explainer]", clip: "CLIP", settings: Mapping[str, Any]) -> Any:
    """The system's settings for this CLIP, some of them changed. Raises DiptychError naming the nearest valid one."""
    from diptych.methods.settings import changed

    own: dict[str, Any] = {}
    for key, value in settings.items():
        name, dot, field = key.partition(".")
        if not dot or name != declared.system():
            raise DiptychError(f"--set {key}: this run has the settings {declared.system()}.FIELD")
        own[field] = value
    return changed(declared.config_for(clip), own, declared.system())


# -- the work ----------------------------------------------------------------------------------------------------------


def explained(explainer: "Explainer", pairs: Pairs, index: int) -> list[Explained]:
    """All texts of one pair; one row with an error where it cannot be used."""
    try:
        pair = pairs[index]
    except BadPair as error:
        return [Explained(f"pair {index + 1}", "", None, str(error), index)]
    try:
        picture = pair.picture()
    except BadPicture as error:
        return [Explained(pair.id, text, None, str(error), index) for text in pair.texts]
    return [Explained(pair.id, text, explainer.explain(picture, text), None, index) for text in pair.texts]


def ticked(rows: list[Explained], index: int, pairs: Pairs, progress: Progress | None) -> list[Explained]:
    if progress:
        progress(index + 1, len(pairs))
    return rows


def continued(
    explainer: "Explainer", pairs: Pairs, folder: RunFolder | None, progress: Progress | None
) -> list[Explained]:
    """Every pair in order; in a folder, a line a pair, so that a stopped run goes on behind the last whole line."""
    rows: list[Explained] = []
    if folder is None:
        for index in range(len(pairs)):
            rows += ticked(explained(explainer, pairs, index), index, pairs, progress)
        return rows
    path = folder.path / LINES
    done, whole = read_lines(path)
    rows += [row for line in done for row in line]
    with open(path, "ab") as file, closing(file):
        file.truncate(whole)
        for index in range(len(done), len(pairs)):
            found = explained(explainer, pairs, index)
            file.write(json.dumps([as_dict(row) for row in found]).encode() + b"\n")
            file.flush()
            rows += ticked(found, index, pairs, progress)
    return rows


def read_lines(path: Path) -> tuple[list[list[Explained]], int]:
    """The finished pairs of a stopped run, and the bytes they take: a line cut off in the middle counts as undone."""
    done: list[list[Explained]] = []
    whole = 0
    if not path.exists():
        return done, whole
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            done.append([from_dict(row) for row in json.loads(line)])
        except (ValueError, KeyError, TypeError):
            break
        whole += len(line)
    return done, whole


def refuse_nothing(rows: Sequence[Explained]) -> None:
    if all(row.scores is None for row in rows):
        reasons = "; ".join(dict.fromkeys(f"{row.id}: {row.error}" for row in rows[:3]))
        raise DiptychError(f"no pair could be read: {reasons}{'; ...' if len(rows) > 3 else ''}")


def badness(row: Explained, rank: str) -> tuple[bool, float, float]:
    """Sorts the worst first, by one figure and then by the other; what could not be read, last."""
    if row.scores is None:
        return True, 0.0, 0.0
    cosine, measure = row.scores.cosine, row.scores.score
    return (False, cosine, measure) if rank == "clip_score" else (False, measure, cosine)


# -- what is written ---------------------------------------------------------------------------------------------------


def as_dict(row: Explained) -> dict[str, Any]:
    """JSON-able; `from_dict` is the inverse."""
    found: dict[str, Any] = {"id": printable(row.id), "text": row.text, "error": row.error, "pair": row.pair}
    if (scores := row.scores) is not None:
        found |= {
            "read_as": scores.text,
            "score": scores.score,
            "clip_score": scores.clip_score,
            "cosine": scores.cosine,
            "flagged": list(scores.phrases),
            "words": [asdict(word) for word in scores.words],
        }
    return found


def from_dict(found: Mapping[str, Any]) -> Explained:
    from diptych.methods.explain.parts.explainer import WordScore, WordScores

    scores = None
    if found["error"] is None:
        words = tuple(WordScore(**word) for word in found["words"])
        scores = WordScores(found["read_as"], words, found["cosine"], found["score"], tuple(found["flagged"]))
    return Explained(found["id"], found["text"], scores, found["error"], found["pair"])


def to_json(made: Explanations) -> str:
    """model, measure, settings, rows (id, text, score, clip_score, cosine, flagged, words), set_aside."""
    whole = {
        "model": made.model,
        "measure": made.measure,
        "settings": made.settings,
        "rows": [as_dict(row) for row in made.explained],
        "set_aside": [asdict(one) for one in made.set_aside],
    }
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def to_csv(made: Explanations) -> str:
    """rank, id, text, flagged phrases, the measure, CLIPScore, error; no cell is a formula to a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rank", "picture", "text", "does_not_fit", made.measure, "CLIPScore", "error"])
    for rank, row in enumerate(made.explained, 1):
        scores = row.scores
        numbers = ["", ""] if scores is None else [f"{scores.score:.6g}", f"{scores.clip_score:.4f}"]
        wrong = "" if scores is None else "; ".join(scores.phrases)
        writer.writerow([rank, *map(harmless, (row.id, row.text, wrong)), *numbers, harmless(row.error or "")])
    return out.getvalue()


def short_id(identifier: str) -> str:
    """A file without its folders."""
    return os.path.basename(identifier) or identifier
