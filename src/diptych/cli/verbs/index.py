"""Embed pictures into an index that can be searched and filtered.

SOURCE is a folder of pictures (x.txt beside x.jpg is its text, the folder its class), webdataset shards (a .tar, a
folder of them, shards/{00000..00009}.tar) or a table (.parquet, .csv) with a column of pictures, whose other columns
can be filtered by. The same command again adds what is new, embeds again what has changed and removes what is gone;
a stopped run continues with it. The index keeps the hash of its model and refuses others. --captions embeds the texts
too, for `search --in captions`; an index that has them keeps them up to date without it. --db takes a folder or object
storage (s3://bucket/my.lance).
"""

import argparse
import sys
from typing import TYPE_CHECKING

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from diptych.search.embed import Outcome
    from diptych.search.embed import Progress as Tell

PLACE = 7.2
CONTINUES = True
SHOWN = 5  # pictures set aside, with their reasons
EXAMPLES = """
diptych index ./photos --db my.lance
diptych index ./photos ./scans --db my.lance --model ViT-B-32:laion2b_s34b_b79k
diptych index "shards/{00000..00009}.tar" --db my.lance
diptych index captions.csv --db my.lance --captions
diptych index ./photos --db tuned.lance --model winner.safetensors
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="folders, shards, tables")
    add("--db", required=True, metavar="DB", help="the index: a folder, or object storage")
    add("--model", metavar="M", help="mini (default), micro, open_clip's NAME:TAG, a folder, or a winner of `compare`")
    add("--base", metavar="M", help="where the base model of a winner is, if not where it was")
    add("--captions", action="store_true", help="embed the pictures' texts too, to be searched in by meaning")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add("--json", action="store_true", help="what was done, as JSON")


def run(given: argparse.Namespace) -> int:
    if given.model and not given.model.endswith(".safetensors"):
        read.model(given.model)
    if given.base and not (given.model or "").endswith(".safetensors"):
        raise DiptychError("--base belongs to a --model that is a winner file of `diptych compare`")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diptych.core.device import keep_freed_memory
    from diptych.search.embed import as_json
    from diptych.search.run import index

    keep_freed_memory()
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    speed = TextColumn("{task.fields[speed]}/s")
    with Progress(*columns, speed, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as bars:

        def bar_of(name: str) -> "Tell":
            bar = bars.add_task(name[-40:], total=None, speed="")

            def tell(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total, speed=f"{bars.tasks[bar].speed or 0:.0f}")

            return tell

        options = {"model": given.model, "base": given.base, "device": given.device, "captions": given.captions}
        made, outcomes = index(given.sources, given.db, **options, progress=bar_of)
    if given.json:
        sys.stdout.write(as_json(made, outcomes))
        return 0
    for name, outcome in outcomes.items():
        print(f"{name}: {said(outcome)}")
        tell_set_aside(outcome)
    about = made.info
    captions = "" if about.captions is None else f" and {about.captions} captions"
    print(f"{given.db}: {about.rows} pictures{captions} by {made.model}")
    return 0


def said(outcome: "Outcome") -> str:
    """`1990 new, 3 changed, 7 gone, 12 as before; 57 pictures/s (read 12.1 s, infer 30.2 s, write 0.5 s of 35.0 s)`"""
    parts = [("new", outcome.new), ("changed", outcome.changed), ("gone", outcome.gone), ("as before", outcome.same)]
    words = ", ".join(f"{count} {word}" for word, count in parts if count) or "nothing"
    if outcome.copies:
        words += f"; {outcome.copies} known by their bytes"
    if outcome.done:
        s = outcome.seconds
        words += f"; {outcome.done / max(s.whole, 1e-9):.1f} pictures/s"
        words += f" (read {s.read:.1f} s, infer {s.infer:.1f} s, write {s.write:.1f} s of {s.whole:.1f} s)"
    if outcome.captions:
        words += f"; {outcome.captions} captions in {outcome.seconds.captions:.1f} s"
    return words


def tell_set_aside(outcome: "Outcome") -> None:
    from diptych.data.pairs import summary
    from diptych.report.words import clean

    if outcome.set_aside:
        print(clean(summary(outcome.set_aside)), file=sys.stderr)
        for one in outcome.set_aside[:SHOWN]:
            print(f"  {clean(one.id)}: {clean(one.reason)}", file=sys.stderr)
    for column, count in outcome.misfits.items():
        print(f'{count} cells do not fit column "{column}" and were left empty', file=sys.stderr)
