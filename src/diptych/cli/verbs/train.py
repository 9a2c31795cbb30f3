"""Train a CLIP on pairs of pictures and texts.

SYSTEM is a way of pretraining (clip, siglip, ...). Pairs come from webdataset shards ("shards/{00000..00099}.tar"), a
folder of pictures with texts beside them (x.jpg and x.txt), a table with a column of captions, or a Hugging Face
dataset folder; none of it is unpacked or copied. You get metrics.csv, report.html and model/, which compare, predict
and open_clip read. A run that was stopped continues where it was, with the same result.
"""

import argparse

from diptych.cli import options as read
from diptych.cli import training
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import systems

PLACE = 5
CONTINUES = True
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
    training.data_options(parser)
    add("--model", default="ViT-B-16", metavar="M",
        help="an open_clip architecture, with fresh weights (default ViT-B-16), or a model to go on from: NAME:TAG, "
        "NAME:FILE or a folder")  # fmt: skip
    training.training_options(parser)


def run(given: argparse.Namespace) -> int:
    if given.system not in systems("pretrain"):
        raise DiptychError(f'no system "{given.system}"{nearest(given.system, systems("pretrain"))}')
    read.model(given.model)
    settings = training.settings_of(given)
    if (code := training.in_processes(given)) is not None:
        return code
    from diptych.training.run import train

    with training.progress() as (console, progress):
        made = train(
            given.system,
            given.data,
            model=given.model,
            out=given.out or f"{given.system}-run",
            settings=settings,
            **training.arguments(given),
            progress=progress,
            say=console.print,
        )
    training.show(made, console)
    return 0
