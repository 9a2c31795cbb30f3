"""List the methods: what each needs, trains and costs.

With NAME: its settings and its paper. Everything shown comes from the methods' own files.
"""

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import describe, describe_one, systems

if TYPE_CHECKING:
    from diptych.methods.discover import System

PLACE = 4
EXAMPLES = """
diptych systems
diptych systems gda
diptych systems --markdown
"""
HEADER = ("method", "what it does", "needs", "trains", "works on", "new classes")


def options(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one method, with its settings")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table, for documents")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(given: argparse.Namespace) -> int:
    if given.name is not None and given.name not in systems("adapt"):
        raise DiptychError(f'no method "{given.name}"{nearest(given.name, systems("adapt"))}')
    found = [describe_one("adapt", given.name)] if given.name else describe()
    if given.json:
        print(json.dumps([asdict(system) for system in found], indent=1, ensure_ascii=False))
    elif given.markdown:
        print(markdown(found))
    elif given.name:
        show_one(found[0])
    else:
        show(found)
    return 0


def words(system: "System") -> tuple[str, ...]:
    new = "yes" if system.names_new_classes else "no"
    return system.name, system.summary, system.needs, system.trains, system.cost, new


def markdown(found: "list[System]") -> str:
    """The table of the README."""
    lines = [HEADER, ("---",) * len(HEADER), *(("`%s`" % name, *rest) for name, *rest in map(words, found))]  # noqa: UP031
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def show(found: "list[System]") -> None:
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    for name, summary, needs, trains, cost, new in map(words, found):
        console.print(name, style="bold")
        console.print(Padding(summary, (0, 0, 0, 2)))
        facts = f"needs {needs} · trains {trains} · works on {cost} · new classes: {new}"
        console.print(Padding(facts, (0, 0, 0, 2)), style="dim")
    console.print(
        "\n`diptych systems NAME` shows a method's settings; `--set NAME.FIELD=VALUE` changes one.", style="dim"
    )


def show_one(system: "System") -> None:
    module = importlib.import_module(f"diptych.methods.{system.family}.{system.name}")
    print((module.__doc__ or "").strip())
    print(f"\nneeds: {system.needs}\ntrains: {system.trains}\nworks on: {system.cost}")
    print(f"names new classes: {'yes' if system.names_new_classes else 'no'}")
    if system.settings:
        print("\nsettings (several values are a grid, chosen on validation):")
    for name, value in system.settings.items():
        shown = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value
        print(f"  --set {system.name}.{name}={shown}")
    sys.stdout.flush()
