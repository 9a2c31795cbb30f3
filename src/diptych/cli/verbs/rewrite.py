"""Say captions in other words, by a language model or by rules.

`diptych train laclip` learns from them. CAPTIONS is a .txt with a caption on each line, or any data that train reads.
What is said is checked (not empty, not too long, no copy, no echo of the prompt, half of the words kept); where it
fails, the caption stands in. A server's key is read from DIPTYCH_LLM_KEY. Work that was stopped continues with the same
command.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli import options as read
from diptych.cli.options import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.data.rewrite_store import RewriteReport

PLACE = 9
CONTINUES = True
SHOWN = 3  # examples at the end
EXAMPLES = """
diptych rewrite captions.csv --with rules --out rewrites.jsonl
diptych rewrite captions.csv --with ./model.gguf --n 2 --out rewrites.parquet
diptych rewrite "shards/{00000..00099}.tar" --with http://localhost:8000/v1 --model llama --out rewrites.parquet
diptych train laclip --data captions.csv --set laclip.rewrites=rewrites.parquet
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("captions", metavar="CAPTIONS", help="a .txt, a table, a folder, shards, a dataset folder")
    add("--with", dest="by", required=True, metavar="W",
        help="rules, a .gguf file, a folder of a language model, or the http address of a server")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE", help="the store: .jsonl, .json or .parquet")
    add("--n", type=read.whole("--n"), default=4, metavar="N", help="rewrites of each caption (default 4)")
    add("--model", default="", metavar="NAME", help="which model of the server")
    add("--text", metavar="A,B", help="the column of captions, where they are a table")
    add("--limit", type=read.whole("--limit"), metavar="N", help="only the first N captions")
    add("--seed", type=read.whole("--seed", 0), default=0, metavar="N", help="of the examples shown (default 0)")


def run(given: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diptych.data.rewrite_store import make_rewrites

    console, errors = Console(highlight=False), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("rewrite", total=None)

        def progress(done: int, of: int) -> None:
            bars.update(bar, completed=done, total=of)
            if not errors.is_terminal and done % max(1, of // 20) == 0:
                print(f"{done}/{of}", file=sys.stderr, flush=True)

        made = make_rewrites(
            given.captions,
            given.by,
            given.out,
            n=given.n,
            model=given.model,
            seed=given.seed,
            text_columns=given.text.split(",") if given.text else None,
            limit=given.limit,
            progress=progress,
        )
    show(made, console)
    return 0


def show(made: "RewriteReport", console: "Console") -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("answers")
    table.add_column("", justify="right")
    table.add_column("share", justify="right")
    for outcome, count in made.outcomes.items():
        name = outcome if outcome == "kept" else f"refused: {outcome}"
        table.add_row(name, str(count), f"{count / max(1, len(made.rows)):.1%}")
    console.print(table)
    kept = [row for row in made.rows if not row.refused]
    for row in kept[:: max(1, len(kept) // SHOWN)][:SHOWN]:
        console.print(Text(f"{row.text}\n  {row.style}: {row.rewrite}"), soft_wrap=True)
    speed = f", {made.asked} of them now, {made.asked / made.seconds:.1f} a second" if made.asked else ""
    console.print(f"\n{made.store}: {len(made.rows)} rewrites of {made.captions} captions{speed}", soft_wrap=True)
    console.print(
        f"\nNext: diptych train laclip --data ... --set laclip.rewrites={made.store}", markup=False, soft_wrap=True
    )
