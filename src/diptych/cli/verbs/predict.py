"""Say what pictures or videos show: the class, or "none of these".

PICTURE is a file or a folder, which is read with all folders below it. Probabilities are calibrated. The threshold
below which nothing is named was chosen on validation, so that 95% of the rightly recognised pictures lie above it;
--threshold 0 switches it off.
"""

import argparse
import sys

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError

PLACE = 2
EXAMPLES = """
diptych predict winner.safetensors photo.jpg
diptych predict winner.safetensors photo.jpg more/ --top 3
diptych predict winner.safetensors clip.mp4 --views 4x3
diptych predict winner.safetensors more/ --csv > guesses.csv
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("classifier", metavar="CLASSIFIER", help="what compare saved as winner.safetensors")
    add("pictures", nargs="+", metavar="PICTURE", help="files and folders")
    add("--json", action="store_true", help="as JSON")
    add("--csv", action="store_true", help="as CSV")
    add(
        "--top",
        type=read.whole("--top"),
        metavar="N",
        help="give the N most likely classes (default 5; 2 in the table)",
    )
    add("--threshold", type=read.share("--threshold"), metavar="P", help="below this probability: none of these")
    add("--views", type=read.views, metavar="4x3", help="of a video: draws of frames x crops (default 1x1)")
    add("--model", metavar="M", help="where the base model is, if not where it was")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")


def run(given: argparse.Namespace) -> int:
    if given.json and given.csv:
        raise DiptychError("predict: --json or --csv, not both")
    read.classifier(given.classifier)
    from diptych.comparison.predict import find_pictures, predict, table, to_csv, to_json

    find_pictures(given.pictures)  # what is not there is said before a model is opened
    from rich.console import Console
    from rich.progress import Progress

    from diptych.core.classifier import Classifier
    from diptych.core.device import choose_device, keep_freed_memory

    keep_freed_memory()
    device = choose_device(given.device)
    classifier = Classifier.load(given.classifier)
    clip = classifier.base_clip(model=given.model).to(device)
    plain = given.json or given.csv
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("predict", total=None)

        def progress(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        top, threshold = given.top or (5 if plain else 2), given.threshold
        options = {"top": top, "threshold": threshold, "views": given.views or (1, 1), "progress": progress}
        found = predict(classifier, given.pictures, clip=clip, **options)
    if plain:
        sys.stdout.write(to_json(found) if given.json else to_csv(found))
    else:
        Console(highlight=False).print(table(found))
    unread = sum(1 for one in found if one.error)
    if unread:
        print(f"{unread} of {len(found)} pictures could not be read", file=sys.stderr)
    return 0
