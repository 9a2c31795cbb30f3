"""Make a better set of pictures with texts: filter, balance, score.

RECIPE is a system of the family; `diptych curate` alone lists them. IN is Parquet or CSV, webdataset shards (as
img2dataset writes them), a folder of pictures with texts beside them, WAT or WARC archives, a folder of any of these,
or several with names, a=PATH,b=PATH. OUT gets shards (webdataset where there are pictures, else Parquet),
removed.parquet with the stage and the reason of every row that is gone, report.html with examples, and report.json.
Work that was stopped, however, continues with the same command and gives the same result.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import describe, systems

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.curation.run import Curated

PLACE = 10
CONTINUES = True
EXAMPLES = """
diptych curate
diptych curate metaclip captions.parquet balanced --set metaclip.metadata=entries.txt --workers 2
diptych curate metaclip captions.csv balanced --set metaclip.wordnet=/usr/share/wordnet --set metaclip.wiki=wiki.xml.bz2
diptych curate metaclip "shards/{00000..00099}.tar" balanced --dry-run --rows 10000
diptych curate laion ./archives candidates --stages links,language
diptych curate mixing web=./web,books=./books mixed --engine ray
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help=f"how: {', '.join(systems('curate')) or 'none is there yet'}")
    add("source", nargs="?", metavar="IN", help="files, folders, shards, archives, or a=PATH,b=PATH")
    add("out", nargs="?", metavar="OUT", help="a new folder, or that of the same run, which is continued")
    add("--set", type=setting, action="append", default=[], metavar="R.F=V", dest="settings",
        help="a setting of the recipe, such as metaclip.t=20000")  # fmt: skip
    add("--stages", metavar="A,B", help="only these stages of the recipe")
    add("--dry-run", action="store_true", help="say what would be removed and why; leave nothing behind")
    add("--rows", type=read.whole("--rows"), metavar="N", help="only the first N rows (of archives: N archives)")
    add("--text", metavar="A,B", help="the column of captions, or several, where IN is a table")
    add("--image", metavar="COLUMN", help="the column of pictures or their paths, likewise")
    add("--workers", type=read.whole("--workers"), default=1, metavar="N", help="processes (default 1)")
    add("--engine", default="local", metavar="E", help="local, or ray: a cluster (RAY_ADDRESS), OUT on shared storage")
    add("--seed", type=read.whole("--seed", 0), default=0, metavar="N", help="of what is drawn by chance (default 0)")
    add("--json", action="store_true", help="print report.json's figures and nothing else")


def setting(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (equals and "." in name):
        raise DiptychError(f'--set takes RECIPE.FIELD=VALUE, such as metaclip.t=20000; not "{word}"')
    return name.strip(), value.strip()


def run(given: argparse.Namespace) -> int:
    if given.recipe is None:
        for system in describe("curate"):
            print(f"{system.name:<12}{system.summary}")
        print("\n`diptych systems NAME` shows a recipe's settings.")
        return 0
    if given.recipe not in systems("curate"):
        raise DiptychError(f'no recipe "{given.recipe}"{nearest(given.recipe, systems("curate"))}')
    if given.source is None or (given.out is None and not given.dry_run):
        raise DiptychError(f"diptych curate {given.recipe} IN OUT: give what to curate and a folder, or --dry-run")
    if given.out is not None and given.dry_run:
        raise DiptychError("--dry-run writes nothing: leave OUT away")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diptych.curation.run import curate

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        tasks: dict[str, int] = {}

        def progress(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)  # type: ignore[assignment]
                if not errors.is_terminal:
                    print(f"{what} ({of})", file=sys.stderr, flush=True)
            bars.update(tasks[what], completed=done, total=of)  # type: ignore[arg-type]

        done = curate(
            given.recipe,
            given.source,
            given.out,
            settings=dict(given.settings),
            stages=read.split(given.stages, "--stages", "names of stages") if given.stages else (),
            dry_run=given.dry_run,
            rows=given.rows,
            workers=given.workers,
            engine=given.engine,
            seed=given.seed,
            text=read.split(given.text, "--text", "names of columns") if given.text else (),
            image=given.image,
            progress=progress,
        )
    if given.json:
        print(json.dumps(done.summary(), indent=1, ensure_ascii=False))
    else:
        show(done, Console(highlight=False))
    return 0


def show(done: "Curated", console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from diptych.curation.pages import table_of
    from diptych.report.terminal import rich_table

    table, left_out = rich_table(table_of(done.lines), console.width)
    console.print(table)
    reasons = Table.grid(padding=(0, 2, 0, 0))
    reasons.add_column(no_wrap=True)
    reasons.add_column(no_wrap=True, justify="right")
    reasons.add_column()  # of as many lines as it takes
    for line in done.lines:
        for why, count in line.why.items():
            reasons.add_row(Text(line.name), Text(f"{count:,}"), Text(why))
    if reasons.rows:
        console.print("\nWhy rows were removed:")
        console.print(reasons)
    share = done.rows_out / max(1, done.rows_in)
    console.print(f"\n{done.rows_out:,} of {done.rows_in:,} rows are left ({share:.1%}), {done.seconds:.1f} s")
    if left_out:
        console.print(f"Left out: {', '.join(left_out)}; the report has them.", style="dim")
    if done.out is None:
        console.print("A dry run: nothing was written.")
    else:
        console.print(f"{done.out / 'report.html'}", markup=False, soft_wrap=True)
