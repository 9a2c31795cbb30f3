"""Does a model agree with the library it comes from?

Loads both side by side and compares embeddings, tokens and preprocessing, to 1e-4; exit code 1 where they differ.
Says how fast each is, too.
"""

import argparse
import json

from diptych.cli import options as read
from diptych.cli.options import Parser

PLACE = 12
EXAMPLES = """
diptych doctor mini
diptych doctor ViT-B-32:laion2b_s34b_b79k
diptych doctor ./my_clip
"""


def options(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="mini, micro, an open_clip NAME:TAG, or a file or folder")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(given: argparse.Namespace) -> int:
    read.model(given.model)
    from diptych.core.doctor import doctor

    report = doctor(given.model)
    if given.json:
        print(json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        from rich.console import Console

        Console(highlight=False).print(report.table())
    return 0 if report.ok else 1
