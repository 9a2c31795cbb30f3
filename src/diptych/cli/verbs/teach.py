"""Teach a CLIP one data set after the other; see what it forgets.

SYSTEM is a continual method (mod_x, replay, ...), or several with commas between, or all: then one report compares
them. Each --data is a session, in this order: shards, a folder of pictures with texts beside them, a table, a dataset
folder, or scenes. A part of each session is held out before anything is trained; after each session R@1 is measured on
what was held out of all. You get report.html with the matrix of sessions, forgetting and drift, results.json, and
model/. A stream that was stopped continues where it was, with the same result.
"""

import argparse
from typing import TYPE_CHECKING, Any

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import systems

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.training.stream import Taught

PLACE = 7
CONTINUES = True
EXAMPLES = """
diptych teach mod_x --from ViT-B-32:openai --data coco.csv --data flickr.csv --rate 1e-5
diptych teach fine_tune,mod_x,replay --from micro --data scenes:600 --data scenes:600:sketch --epochs 4 --batch 64
diptych teach all --from ViT-S-16 --data "a/{00..09}.tar" --data ./photos-with-texts --out runs/stream
diptych teach mod_x --from ./model --data one.csv --data two.csv --set mod_x.alpha=10 --set recipe.weight_decay=0
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("system", metavar="SYSTEM", help=f"how: {', '.join(systems('continual'))}; several with commas, or all")
    add("--data", required=True, action="append", metavar="D",
        help="a session; again for each further one. scenes:N:STYLE:LANGUAGE are built-in drawings")  # fmt: skip
    add("--from", required=True, dest="model", metavar="M",
        help="the model to go on from: NAME:TAG, a folder, or an open_clip architecture (fresh weights)")  # fmt: skip
    add("--image", metavar="COLUMN", help="the column of pictures, where the data are tables")
    add("--text", metavar="A,B", help="the column of captions, or several")
    add("--steps", type=read.whole("--steps"), metavar="N", help="updates of the weights in each session")
    add("--epochs", type=read.positive("--epochs"), metavar="N", help="instead: times through it (default 35)")
    add("--batch", type=read.whole("--batch", 2), metavar="N", help="pairs a step (default 280)")
    add("--rate", type=read.positive("--rate"), metavar="R", help="the peak learning rate (default 5e-4)")
    add("--held", type=read.whole("--held", 2), metavar="N",
        help="pictures of each session held out (default: a fifth, at most 500)")  # fmt: skip
    add("--set", type=read.teach_setting, action="append", default=[], metavar="S.F=V", dest="settings",
        help="a setting of a system (mod_x.alpha=10) or of the recipe (recipe.warmup_share=0.1)")  # fmt: skip
    add("--save-every", type=read.whole("--save-every"), metavar="N", help="steps between checkpoints")
    add("--seed", type=read.whole("--seed", 0), default=0, metavar="N", help="of what is held out, order and crops")
    add("--workers", type=read.whole("--workers", 0), default=2, metavar="N", help="threads that load (default 2)")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add("--out", type=read.run_folder, metavar="DIR", help="the stream's folder; one of the same stream is continued")


def run(given: argparse.Namespace) -> int:
    known = systems("continual")
    chosen = read.split(given.system, "SYSTEM", "names such as fine_tune,mod_x, or all")
    chosen = tuple(known) if chosen == ("all",) else chosen
    for name in chosen:
        if name not in known:
            raise DiptychError(f'no system "{name}"{nearest(name, known)}')
    read.model(given.model)
    from rich.console import Console

    from diptych.training.stream import teach

    console = Console(highlight=False)
    with Sessions(console) as progress:
        taught = teach(
            chosen,
            given.data,
            model=given.model,
            out=given.out or f"{chosen[0] if len(chosen) == 1 else 'teach'}-stream",
            settings=dict(given.settings),
            steps=given.steps,
            epochs=given.epochs,
            batch=given.batch,
            rate=given.rate,
            held=given.held,
            workers=given.workers,
            device=given.device,
            seed=given.seed,
            save_every=given.save_every,
            image_column=given.image,
            text_columns=given.text.split(",") if given.text else None,
            progress=progress,
            say=lambda words: console.print(words, markup=False, soft_wrap=True),
        )
    show(taught, console)
    return 0


class Sessions:
    """A bar for each session on a terminal."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.plan: Any = None
        self.task: Any = None

    def __enter__(self) -> "Sessions":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, row: dict[str, float], plan: Any) -> None:
        if plan is not self.plan:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.plan, self.task = plan, self.bars.add_task("", total=plan.steps)
        about = f"{plan.objective.system()} · loss {row['loss']:.3f}"
        self.bars.update(self.task, completed=int(row["step"]), description=about)


def show(taught: "Taught", console: "Console") -> None:
    from diptych.report.terminal import rich_table
    from diptych.training.stream_pages import comparison

    table = comparison(taught)
    shown, left_out = rich_table(table, console.width)
    console.print()
    console.print(shown)
    console.print(table.note + (f" Left out: {', '.join(left_out)}." if left_out else ""), markup=False)
    one = len(taught.courses) == 1
    models = [taught.folder / "model"] if one else [taught.folder / name / "model" for name in taught.courses]
    console.print(f"\n{taught.folder / 'report.html'}  {'  '.join(map(str, models))}", markup=False, soft_wrap=True)
    console.print(f"\nNext: diptych compare ./photos --model {models[-1]}", markup=False, soft_wrap=True)
