"""Show or clear what is kept so as not to be computed again.

Embeddings of your pictures lie in the folder that DIPTYCH_CACHE names, or in the user's cache folder. Nothing is lost
by clearing it but time.
"""

import argparse

from diptych.cli.options import Parser
from diptych.errors import DiptychError
from diptych.paths import cache_dir

PLACE = 13
EXAMPLES = """
diptych cache --size
diptych cache --clear
"""


def options(parser: Parser) -> None:
    parser.add_argument("--size", action="store_true", help="what is there, by model (default)")
    parser.add_argument("--clear", action="store_true", help="remove it")


def run(given: argparse.Namespace) -> int:
    if given.size and given.clear:
        raise DiptychError("cache: --size or --clear, not both")
    from diptych.engine.store import cache_clear, cache_info

    if given.clear:
        print(f"{amount(cache_clear())} freed in {cache_dir()}")
        return 0
    entries = cache_info()
    for model in sorted({entry.model for entry in entries}):
        own = [entry for entry in entries if entry.model == model]
        rows = sum(entry.rows for entry in own)
        print(f"{amount(sum(entry.bytes for entry in own)):>10}  {rows:>9,} embeddings of {model}")
    print(f"{amount(sum(entry.bytes for entry in entries)):>10}  in {cache_dir()}")
    return 0


def amount(size: float) -> str:
    """1.2 MB"""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1000
    return f"{size:.3g} GB"
