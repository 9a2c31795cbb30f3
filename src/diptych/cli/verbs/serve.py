"""Explore an index in a browser: search, filter, select, export.

Search by words, by a picture dropped on the page, by "more like this". It listens on this machine alone unless --host
says otherwise, and fetches nothing from anywhere. /docs on the same address describes its JSON API.
"""

import argparse
import sys

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError

PLACE = 7.5
EXAMPLES = """
diptych serve my.lance
diptych serve my.lance --safe --port 9000 --no-open
diptych serve my.lance --host 0.0.0.0
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("db", metavar="DB", help="what `diptych index` wrote")
    add("--host", default="127.0.0.1", metavar="H", help="where to listen (default 127.0.0.1: this machine alone)")
    add("--port", type=read.whole("--port", 0), default=8642, metavar="N", help="default 8642; 0: any that is free")
    add("--open", action=argparse.BooleanOptionalAction, default=None,
        help="open a browser (default: where there is a screen)")  # fmt: skip
    add("--safe", action="store_true", help="show and export nothing that is not known to be safe (punsafe)")
    add("--model", metavar="M", help="where the index's model is, if not where it was")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")


def run(given: argparse.Namespace) -> int:
    if given.port > 65535:
        raise DiptychError(f"--port takes a number up to 65535; not {given.port}")
    if given.model:
        read.model(given.model)
    from diptych.search.web.guard import is_loopback
    from diptych.search.web.server import serve

    opening = is_loopback(given.host) and sys.stdout.isatty() if given.open is None else given.open
    serve(
        given.db,
        given.host,
        given.port,
        safe=given.safe,
        open_browser=opening,
        model=given.model,
        device=given.device,
        say=lambda line: print(line, flush=True),
        warn=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return 0
