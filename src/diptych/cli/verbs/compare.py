"""Find the best method for your pictures or videos; keep the winner.

SOURCE is a folder with one folder of pictures, or of videos, for each class (with or without train, val and test above
them), a table (.csv, .tsv, .parquet) with a column of pictures and one of labels, or a Hugging Face dataset folder.
Without it, a small comparison runs on built-in drawings. You get a table, report.html, results.json and
winner.safetensors. A run that was stopped continues where it was.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.comparison.run import Comparison
    from diptych.data.task import Task

PLACE = 1
CONTINUES = True
SMALL_SHOTS, SMALL_SEEDS, SEEDS = (1, 4), 2, 3
EXAMPLES = """
diptych compare ./photos
diptych compare ./photos --methods all --budget 30m
diptych compare ./photos --model ViT-B-32:laion2b_s34b_b79k --shots 1,4,16,all
diptych compare ./clips --frames 16
diptych compare scans.csv --group patient --out runs/scans
diptych compare ./photos --set knn.k=1,5,20 --methods zero_shot,knn
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="your pictures; without it, the built-in drawings")
    add("--names", metavar="FILE", help="the words for each class: a CSV, TSV or JSON, such as n01440764,tench")
    add("--templates", action="append", metavar="T",
        help='a file with one a line, or one such as "a photo of a {}." (repeat for several)')  # fmt: skip
    add("--image", metavar="COLUMN", help="the column of pictures, where the source is a table")
    add("--label", metavar="COLUMN", help="the column of labels")
    add("--split", metavar="COLUMN", help="the column that says train, val or test (default: split, if there is one)")
    add("--group", metavar="COLUMN", help="pictures of one burst, patient or product: never on both sides of a split")
    add("--frames", type=read.whole("--frames"), metavar="T", help="frames looked at of each video (default 8)")
    add("--model", default="mini", metavar="M", help="mini (default), micro, an open_clip NAME:TAG, a file or folder")
    add(
        "--methods",
        type=read.methods,
        metavar="A,B",
        help='names (see `diptych systems`) or "all"; default: quick ones',
    )
    add("--shots", type=read.shots, metavar="1,4,all", help="labelled pictures a class (default 1,4,16)")
    add("--seeds", type=read.whole("--seeds"), metavar="N", help=f"draws of the shots (default {SEEDS})")
    add("--set", type=read.setting, action="append", default=[], metavar="S.F=V", dest="settings",
        help="a setting of a method; several values are a grid, chosen on validation: knn.k=1,5")  # fmt: skip
    add("--budget", type=read.seconds, metavar="10m", help="leave out what would take longer than 90s, 10m, 1.5h")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add("--out", type=read.run_folder, metavar="DIR", help="the run's folder; one of the same run is continued")
    add("--json", action="store_true", help="print results.json and nothing else; messages go to stderr")


def run(given: argparse.Namespace) -> int:
    check(given)
    from rich.console import Console

    console = Console(stderr=given.json, highlight=False)
    small = given.source is None
    if small:
        console.print(
            "No folder given: a [bold]small comparison[/] on built-in OpenMoji drawings (1 and 4 shots, 2 draws, quick "
            "methods).\nYours: [bold]diptych compare ./photos[/] with one folder of pictures for each class.\n"
        )
    task = read_task(given, console)
    from diptych.core.device import choose_device
    from diptych.engine.isolate import can_fork, hold_to_one_thread

    hold_to_one_thread()
    device = choose_device(given.device)
    clip = open_model(given.model, console)
    from diptych.comparison.run import compare

    comparison = compare(
        clip,
        task,
        methods=given.methods,
        shots=given.shots or (SMALL_SHOTS if small else None),
        seeds=given.seeds or (SMALL_SEEDS if small else SEEDS),
        settings=dict(given.settings),
        budget=given.budget,
        out=given.out,
        device=device,
        isolate=can_fork(),
        console=console,
    )
    if given.json:
        sys.stdout.write((comparison.folder / "results.json").read_text(encoding="utf-8"))
    else:
        show(comparison, console)
    return 0


def check(given: argparse.Namespace) -> None:
    """What can be seen to be wrong without torch, pictures or a model."""
    from diptych.data.names import read_templates

    if given.templates:
        given.templates = read_templates(given.templates[0] if len(given.templates) == 1 else given.templates)
    columns = [o for o in ("image", "label", "group") if getattr(given, o)]
    if given.source is not None and not given.source.strip():
        raise DiptychError("SOURCE is empty; give a folder with one folder of pictures for each class")
    if columns and given.source is None:
        raise DiptychError(f"--{columns[0]} names a column of a table, and no table is given")
    if given.names is not None and not Path(given.names).expanduser().is_file():
        raise DiptychError(f"--names {given.names}: no such file")
    twice = [key for key, _ in given.settings]
    if again := next((key for key in twice if twice.count(key) > 1), None):
        raise DiptychError(f"--set {again} is given twice; several values are one list: --set {again}=1,2")
    read.model(given.model)
    if given.settings:  # the fields are in the systems' files, which need torch
        from diptych.comparison.plan import choose_systems

        choose_systems(given.methods, dict(given.settings))


def read_task(given: argparse.Namespace, console: "Console") -> "Task":
    """The pictures, looked at once, with progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from diptych.data.task import make_task

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as bars:
        bar = bars.add_task("look at the pictures", total=None)

        def progress(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total, refresh=done % 50 == 0)

        return make_task(
            given.source,
            names=given.names,
            templates=given.templates,
            group=given.group,
            image_column=given.image,
            label_column=given.label,
            split_column=given.split,
            frames=given.frames,
            progress=progress,
        )


def open_model(name: str, console: "Console") -> Any:
    from diptych.core.load import load

    with console.status(f"open {name}") if console.is_terminal else console.capture():
        return load(name, device="cpu")  # a process that started CUDA cannot be forked: the children move it


def show(comparison: "Comparison", console: "Console") -> None:
    from rich.text import Text

    from diptych.comparison.table import render_table

    folder = comparison.folder
    console.print()
    console.print(render_table(comparison.summary, console))
    console.print()
    outputs = {
        "report.html": "curves, mistakes, what was lost",
        "results.json": "every figure",
        "winner.safetensors": "the winner",
    }
    width = max(len(str(folder / name)) for name in outputs)
    for name, what in outputs.items():
        console.print(Text(f"{folder / name!s:<{width}}", style="bold"), Text(what, style="dim"), soft_wrap=True)
    console.print(
        "\nNext:", f"diptych predict {quoted(folder / 'winner.safetensors')} photo.jpg", markup=False, soft_wrap=True
    )


def quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
