"""Say which words of a caption do not fit the picture.

PICTURES are files or folders, and TEXT what they should show: its words are printed in colours, with F-CLIPScore (0 is
best) and CLIPScore; --out draws maps of the pictures too. Or give a table of captions, or whatever train reads, and no
TEXT: you get the captions to look at first, and with --out a report, and a run that continues where it was stopped.
On mini and micro CLIPScore puts false captions first more surely, and F-CLIPScore's words say what is wrong in them.
Thresholds are known for mini and micro; for another model, --calibrate takes pairs that match.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import systems

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.comparison.explanations import Explanations
    from diptych.methods.explain.parts.explainer import WordScores

PLACE = 3
CONTINUES = True
TOP = 10  # of a table
EXAMPLES = """
diptych explain photo.jpg "a brown dog and a cat"
diptych explain photo.jpg "a brown dog and a cat" --out explained --word cat
diptych explain captions.csv --out look-at-these
diptych explain captions.csv --model ViT-B-32:laion2b_s34b_b79k --calibrate checked.csv
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("pictures", metavar="PICTURES", help="a picture or a folder of them; or a table of captions, without TEXT")
    add("text", nargs="*", metavar="TEXT", help="what the picture should show; several are explained one by one")
    add("--model", default="mini", metavar="M",
        help="mini (default), micro, open_clip NAME:TAG, a file or folder; its texts need a transformer")  # fmt: skip
    add("--method", default="clip4dm", metavar="S", help=f"how: {', '.join(systems('explain'))}")
    add("--set", type=setting, action="append", default=[], metavar="S.F=V", dest="settings",
        help="a setting, such as clip4dm.layers=2; `diptych systems clip4dm` lists them")  # fmt: skip
    add("--calibrate", metavar="D", help="pairs that match: a table or what train reads; the threshold is set on them")
    add("--word", metavar="W", help="draw the map of this word (default: the one that fits least)")
    add("--out", type=Path, metavar="DIR", help="a folder for the report, the maps, captions.csv and results.json")
    add("--image", metavar="COLUMN", help="the column of pictures, where the captions are a table")
    add("--text-column", metavar="A,B", help="the column of captions, or several")
    add("--top", type=read.whole("--top"), default=TOP, metavar="N", help=f"captions of a table shown (default {TOP})")
    add("--rank", choices=("clip_score", "measure"), default="clip_score",
        help="what puts the worst of a table first: CLIPScore (default) or F-CLIPScore, the measure")  # fmt: skip
    add("--json", action="store_true", help="everything, as JSON")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")


def setting(word: str) -> tuple[str, str]:
    """`clip4dm.layers=2`; the field is checked later, by its Config."""
    name, equals, value = word.partition("=")
    system, dot, field = name.strip().partition(".")
    if not (equals and dot and field and value.strip()):
        raise DiptychError(f'--set takes SYSTEM.FIELD=VALUE, such as clip4dm.layers=2; not "{word}"')
    if system not in systems("explain"):
        raise DiptychError(f'--set {word}: no system "{system}"{nearest(system, systems("explain"))}')
    return f"{system}.{field}", value.strip()


def run(given: argparse.Namespace) -> int:
    read.model(given.model)
    if given.method not in systems("explain"):
        raise DiptychError(f'no system "{given.method}"{nearest(given.method, systems("explain"))}')
    if given.out:
        (read.new_folder(given.out, "--out") if given.text else read.run_folder(str(given.out)))
    if given.word and not (given.text and given.out):
        raise DiptychError("--word draws a map: it needs a TEXT, and --out for the drawing")
    if given.text and (given.image or given.text_column):
        raise DiptychError("--image and --text-column are for tables; this is a picture with a TEXT")
    from diptych.comparison.explanations import explain, listed, told

    columns = given.text_column.split(",") if given.text_column else None
    # what is not there is said before a model is opened
    pairs = None if given.text else listed(given.pictures, given.image, columns)
    if given.text:
        told(given.pictures, given.text)
    from rich.console import Console
    from rich.progress import Progress

    from diptych.core import load
    from diptych.core.device import choose_device, keep_freed_memory

    keep_freed_memory()
    errors = Console(stderr=True)
    clip = load.load(given.model, choose_device(given.device))
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("explain", total=None)

        def progress(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        made = explain(
            given.pictures if pairs is None else pairs,
            given.text or None,
            clip=clip,
            system=given.method,
            settings=dict(given.settings),
            calibrate=given.calibrate,
            word=given.word,
            rank=given.rank,
            out=given.out,
            image_column=given.image,
            text_columns=columns,
            progress=progress,
        )
    if given.json:
        from diptych.comparison.explanations import to_json

        sys.stdout.write(to_json(made))
    elif given.text:
        show_few(made, Console(highlight=False))
    else:
        show_many(made, Console(highlight=False), given.top)
    unread = len(made.set_aside) + sum(row.scores is None for row in made.explained)
    if unread:
        print(f"{unread} could not be read and were set aside", file=sys.stderr)
    if made.report and not given.json:
        print(made.report)
    return 0


def show_few(made: "Explanations", console: "Console") -> None:
    """Every text in colours, then its figures."""
    from rich.text import Text

    from diptych.comparison.explanation_pages import coloured
    from diptych.report.words import clean

    for row in made.explained:
        console.print(Text(clean(row.id), "dim"), soft_wrap=True)
        if row.scores is None:
            console.print(Text(f"  {clean(row.error)}", "yellow"), soft_wrap=True)
            continue
        console.print(Text("  ") + coloured(row.scores), soft_wrap=True)
        console.print()
        for word in row.scores.words:
            score = "not read" if word.score is None else f"{word.score:+.1e}"
            console.print(
                Text(f"  {score:>9}  {clean(word.word)}{'  does not fit' if word.flagged else ''}"), soft_wrap=True
            )
        wrong = f"does not fit: {', '.join(row.scores.phrases)}" if row.scores.phrases else fits_least(row.scores)
        figures = f"CLIPScore {row.scores.clip_score:.3f} · {made.measure} {row.scores.score:.2g}"
        console.print(Text(f"\n  {clean(wrong)} · {figures}\n"), soft_wrap=True)
        if row.scores.unread:
            unread = clean(" ".join(row.scores.unread))
            print(f"the text is longer than {made.model} reads; not read: {unread}", file=sys.stderr)


def fits_least(scores: "WordScores") -> str:
    read = [word for word in scores.words if word.score is not None]
    return (
        f"nothing is flagged; fits least: {min(read, key=lambda w: w.score or 0.0).word}"
        if read
        else "nothing was read"
    )


def show_many(made: "Explanations", console: "Console", top: int) -> None:
    from diptych.comparison.explanation_pages import ranking
    from diptych.report.terminal import rich_table

    table, _ = rich_table(ranking(made, top), console.width)
    console.print(table)
    read = [row for row in made.explained if row.scores]
    flagged = sum(bool(row.scores and row.scores.phrases) for row in read)
    console.print(
        f"{flagged} of {len(read)} captions have words that do not fit; the worst {min(top, len(read))} are shown"
    )
    cut = sum(bool(row.scores and row.scores.unread) for row in read)
    if cut:
        print(f"{cut} of them are longer than {made.model} reads: their last words were not read", file=sys.stderr)
