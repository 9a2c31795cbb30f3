"""Make another CLIP out of one: with longer texts, or smaller.

SYSTEM is what is done to it (long_clip, ...). Its surgery comes first; with --data, training on pairs of pictures and
texts follows, which a stopped run continues. You get model/, which compare, predict and open_clip read, and what was
gained and lost. Without --data nothing is trained, where a system has something to give then.
"""

import argparse

from diptych.cli import options as read
from diptych.cli import training
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import systems

PLACE = 6
CONTINUES = True
EXAMPLES = """
diptych make long_clip --from ViT-B-16:openai --tokens 248
diptych make long_clip --from ViT-B-16:openai --data captions.csv --text long_caption --out longer
diptych make tinyclip --from micro --keep 0.5 --data scenes:4096
diptych make tinyclip --from ViT-B-16:openai --keep 0.25 --set tinyclip.stages=0.5 --data "shards/{000..099}.tar"
diptych make long_clip --from micro --data ./photos-with-texts --epochs 2 --batch 128 --rate 1e-5
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("system", metavar="SYSTEM", help=f"what: {', '.join(systems('distill'))}")
    add("--from", required=True, metavar="M", dest="model",
        help="the model that it is made of: NAME:TAG, NAME:FILE, a folder, micro; it stays as it is")  # fmt: skip
    add("--tokens", type=read.whole("--tokens"), metavar="N", help="of the longest text, where texts get longer")
    add("--keep", metavar="S", help="the share that stays, where the model gets smaller")
    training.data_options(parser, needed=False)
    training.training_options(parser)


def run(given: argparse.Namespace) -> int:
    if given.system not in systems("distill"):
        raise DiptychError(f'no system "{given.system}"{nearest(given.system, systems("distill"))}')
    read.model(given.model)
    settings = training.settings_of(given)
    if (code := training.in_processes(given)) is not None:
        return code
    from diptych.training.make import make

    with training.progress() as (console, progress):
        made = make(
            given.system,
            given.model,
            given.data,
            tokens=given.tokens,
            keep=given.keep,
            out=given.out or f"{given.system}-run",
            settings=settings,
            **training.arguments(given),
            progress=progress,
            say=console.print,
        )
    training.show(made, console)
    return 0
