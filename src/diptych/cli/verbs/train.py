"""Train a CLIP on pairs of pictures and texts.

SYSTEM is a way of pretraining (clip, siglip, ...). Pairs come from webdataset shards ("shards/{00000..00099}.tar"), a
folder of pictures with texts beside them (x.jpg and x.txt), a table with a column of captions, or a Hugging Face
dataset folder; none of it is unpacked or copied. You get metrics.csv, report.html and model/, which compare, predict
and open_clip read. A run that was stopped continues where it was, with the same result.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import systems

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.training.run import Trained

PLACE = 3
JOIN = 900  # seconds that the machines of a run wait for each other at its start
LINES = 20  # of progress, where the output is no terminal
EXAMPLES = """
diptych train clip --data scenes:4096 --model ViT-S-16 --epochs 2
diptych train clip --data ./photos-with-texts --model ViT-B-16 --out runs/first
diptych train siglip --data "shards/{00000..00099}.tar" --batch 1024 --epochs 10 --eval ./classes
diptych train clip --data captions.csv --text caption --model ViT-B-32:laion2b_s34b_b79k --rate 1e-5
diptych train clip --data captions.csv --set recipe.freeze=towers.image.* --check
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("system", metavar="SYSTEM", help=f"how: {', '.join(systems('pretrain'))}")
    add(
        "--data",
        required=True,
        metavar="D",
        help="shards, a folder, a table, a dataset folder; scenes:N: built-in drawings",
    )
    add("--image", metavar="COLUMN", help="the column of pictures, where the data is a table")
    add("--text", metavar="A,B", help="the column of captions, or several")
    add("--model", default="ViT-B-16", metavar="M",
        help="an open_clip architecture, with fresh weights (default ViT-B-16), or a model to go on from: NAME:TAG, "
        "NAME:FILE or a folder")  # fmt: skip
    add("--steps", type=read.whole("--steps"), metavar="N", help="updates of the weights")
    add("--epochs", type=read.positive("--epochs"), metavar="N", help="instead: times through the data (default 32)")
    add("--batch", type=read.whole("--batch", 2), metavar="N", help="pairs a step (default 256)")
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


def run(given: argparse.Namespace) -> int:
    if given.system not in systems("pretrain"):
        raise DiptychError(f'no system "{given.system}"{nearest(given.system, systems("pretrain"))}')
    read.model(given.model)
    for key, _ in given.settings:
        if key.partition(".")[0] not in (given.system, "recipe"):
            raise DiptychError(f"--set {key} has no effect: this run has {given.system}.FIELD and recipe.FIELD")
    if given.strategy and given.devices * given.nodes == 1 and "WORLD_SIZE" not in os.environ:
        raise DiptychError("--strategy is for several processes: give --devices or --nodes too")
    if given.devices * given.nodes > 1 and "WORLD_SIZE" not in os.environ:
        return launch(given.devices, given.nodes)
    from rich.console import Console

    from diptych.training.run import train

    console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    with Progress(console) as progress:
        made = train(
            given.system,
            given.data,
            model=given.model,
            out=given.out or f"{given.system}-run",
            settings=dict(given.settings),
            steps=given.steps,
            epochs=given.epochs,
            batch=given.batch,
            rate=given.rate,
            workers=given.workers,
            device=given.device,
            strategy=given.strategy or "ddp",
            seed=given.seed,
            save_every=given.save_every,
            evaluate=given.eval,
            eval_every=given.eval_every,
            check=given.check,
            image_column=given.image,
            text_columns=given.text.split(",") if given.text else None,
            progress=progress,
            say=console.print,
        )
    show(made, console)
    return 0


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
    model = made.folder / "model"
    console.print(f"{made.folder / 'report.html'}  {model}", markup=False, soft_wrap=True)
    if made.forms:
        console.print(f"This model {said(made.forms)}", markup=False, soft_wrap=True)
    console.print(f"\nNext: diptych compare ./photos --model {model}", markup=False, soft_wrap=True)
