"""What the verbs that train share: their options, their processes, their progress, and the words at the end."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.training.outcome import Trained

JOIN = 900  # seconds that the machines of a run wait for each other at its start
LINES = 20  # of progress, where the output is no terminal


def data_options(parser: Parser, needed: bool = True) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=needed,
        metavar="D",
        help="shards, a folder, a table, a dataset folder; scenes:N: built-in drawings",
    )
    add("--image", metavar="COLUMN", help="the column of pictures, where the data is a table")
    add("--text", metavar="A,B", help="the column of captions, or several")


def training_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--steps", type=read.whole("--steps"), metavar="N", help="updates of the weights")
    add("--epochs", type=read.positive("--epochs"), metavar="N",
        help="instead: times through the data (default: the published)")  # fmt: skip
    add("--batch", type=read.whole("--batch", 2), metavar="N", help="pairs a step (default: the published)")
    add("--rate", type=read.positive("--rate"), metavar="R", help="the peak learning rate (default: the published)")
    add("--set", type=read.train_setting, action="append", default=[], metavar="S.F=V", dest="settings",
        help="a setting of the system (clip.max_scale=50) or of the recipe (recipe.weight_decay=0.1)")  # fmt: skip
    add("--check", action="store_true", help="first learn 32 pairs by heart: whether this can work at all")
    add("--eval", metavar="DIR", help="a folder with one folder a class: zero-shot accuracy as it trains")
    add("--eval-every", type=read.whole("--eval-every"), metavar="N", help="steps (default: a tenth of the run)")
    add("--save-every", type=read.whole("--save-every"), metavar="N", help="steps between checkpoints")
    add("--seed", type=read.whole("--seed", 0), default=0, metavar="N", help="of weights, order and crops (default 0)")
    add("--workers", type=read.whole("--workers", 0), default=2, metavar="N",
        help="threads that load (default 2); they change nothing else and may outnumber the shards")  # fmt: skip
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add("--devices", type=read.whole("--devices"), default=1, metavar="N", help="processes on this machine")
    add("--nodes", type=read.whole("--nodes"), default=1, metavar="N",
        help="machines; each runs this command with NODE_RANK, MASTER_ADDR and MASTER_PORT set")  # fmt: skip
    add("--strategy", choices=("ddp", "fsdp"), help="ddp: each process has the whole model (default); fsdp: a part")
    add("--out", type=read.run_folder, metavar="DIR", help="the run's folder; one of the same run is continued")


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """What `--set` says. Raises DiptychError for a setting of another system, and for processes that there are not."""
    for key, _ in given.settings:
        if key.partition(".")[0] not in (given.system, "recipe"):
            raise DiptychError(f"--set {key} has no effect: this run has {given.system}.FIELD and recipe.FIELD")
    if given.strategy and given.devices * given.nodes == 1 and "WORLD_SIZE" not in os.environ:
        raise DiptychError("--strategy is for several processes: give --devices or --nodes too")
    return dict(given.settings)


def in_processes(given: argparse.Namespace) -> int | None:
    """Where several processes are asked for and this is none of them: starts them, -> their exit code."""
    if given.devices * given.nodes == 1 or "WORLD_SIZE" in os.environ:
        return None
    return launch(given.devices, given.nodes)


def arguments(given: argparse.Namespace) -> dict[str, Any]:
    """The options of both functions above, as `diptych.train` calls them."""
    names = ("steps", "epochs", "batch", "rate", "workers", "device", "seed", "save_every", "eval_every", "check")
    return {name: getattr(given, name) for name in names} | {
        "strategy": given.strategy or "ddp",
        "evaluate": given.eval,
        "image_column": given.image,
        "text_columns": given.text.split(",") if given.text else None,
    }


def launch(devices: int, nodes: int) -> int:
    """The same words again, in several processes, by torchrun; -> the exit code of the first that failed."""
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words, where = [f"--nproc-per-node={devices}"], "here"
    if nodes == 1:
        words.append("--standalone")
    else:
        needed = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in os.environ]
        if missing:
            raise DiptychError(f"--nodes {nodes} needs {', '.join(missing)} in the environment of each machine")
        rank, address, port = (os.environ[name] for name in needed)
        words += [f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]
        words.append(f"--rdzv-conf=timeout={JOIN}")
        where = f"at {address}:{port}"
    try:
        torchrun.run(torchrun.parse_args([*words, "-m", "diptych", *sys.argv[1:]]))
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        raise KeyboardInterrupt from error
    except DistError as error:
        reason = str(error).splitlines()[0]
        raise DiptychError(f"the {nodes} machines of this run did not find each other {where}: {reason}") from error
    return 0


@contextlib.contextmanager
def progress() -> "Iterator[tuple[Console, Progress]]":
    """A console, silent in all processes but the first, and what shows on it how far a training is."""
    from rich.console import Console

    console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    with Progress(console) as shown:
        yield console, shown


class Progress:
    """What is going on: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.console = console
        self.bars = Bars(*columns, console=console, disable=not console.is_terminal)
        self.task: Any = None

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, row: dict[str, float], plan: Any) -> None:
        step = int(row["step"])
        if self.task is None:
            self.task = self.bars.add_task("", total=plan.steps)
        self.bars.update(self.task, completed=step, description=words_of(row))
        now_and_then = step % max(1, plan.steps // LINES) == 0 or "accuracy" in row
        if not self.console.is_terminal and (now_and_then or step == 1):
            self.console.print(f"{step}/{plan.steps}  {words_of(row)}", soft_wrap=True)


FIXED = ("step", "epoch", "loss", "rate", "temperature", "gradient_norm", "samples_per_second", "seconds", "accuracy")


def words_of(row: dict[str, float]) -> str:
    """`loss 2.31 · temperature 14.2 · gradient 1.4 · 210 samples/s`"""
    terms = [f"{name} {value:.3f}" for name, value in row.items() if name not in FIXED]
    parts = [f"loss {row['loss']:.3f}", *(terms if len(terms) > 1 else ())]
    parts += [f"temperature {row['temperature']:.1f}", f"gradient {row['gradient_norm']:.2g}"]
    parts += [f"{row['samples_per_second']:.0f} samples/s"]
    return " · ".join(parts + ([f"zero-shot {row['accuracy']:.1%}"] if "accuracy" in row else []))


def show(made: "Trained", console: "Console") -> None:
    from diptych.core.forms import said
    from diptych.data.pairs import summary

    if made.set_aside:
        console.print(summary(made.set_aside), markup=False)
    for what, value, note in made.facts:
        console.print(f"{what}: {value}" + (f" ({note})" if note else ""), markup=False, soft_wrap=True)
    model = made.folder / "model"
    report = f"{made.folder / 'report.html'}  " if made.rows else "Nothing was trained: there was no data.  "
    console.print(f"{report}{model}", markup=False, soft_wrap=True)
    if made.forms:
        console.print(f"This model {said(made.forms)}", markup=False, soft_wrap=True)
    console.print(f"\nNext: diptych compare ./photos --model {model}", markup=False, soft_wrap=True)
