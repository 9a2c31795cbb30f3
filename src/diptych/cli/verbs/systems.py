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
from diptych.methods.discover import describe, describe_one, find, systems

if TYPE_CHECKING:
    from diptych.methods.discover import System

PLACE = 11
EXAMPLES = """
diptych systems
diptych systems gda
diptych systems --markdown
"""
VERBS = {
    "adapt": "diptych compare: for your pictures",
    "video": "diptych compare: for your videos",
    "pretrain": "diptych train: from pictures with texts",
    "distill": "diptych make: another CLIP out of one",
    "continual": "diptych teach: a CLIP on a stream of data",
    "dense": "diptych segment: which pixel is what",
    "explain": "diptych explain: which words fit a picture",
    "probe": "diptych probe: how far a CLIP can be trusted",
    "curate": "diptych curate: a better set of pictures with texts",
}
HEADER = ("method", "what it does", "needs", "trains", "works on", "new classes")


def options(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one method, with its settings")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table, for documents")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(given: argparse.Namespace) -> int:
    names = {name: family for family in reversed(VERBS) for name in systems(family)}
    if given.name is not None and given.name not in names:
        raise DiptychError(f'no method "{given.name}"{nearest(given.name, names)}')
    found = [describe_one(names[given.name], given.name)] if given.name else []
    if given.json:
        every = found or [system for family in VERBS for system in describe(family)]
        print(json.dumps([asdict(system) for system in every], indent=1, ensure_ascii=False))
    elif given.markdown:
        print(markdown(found or describe()))
    elif given.name:
        show_one(found[0])
    else:
        for family, verb in VERBS.items():
            if found := describe(family):
                show(verb, found)
        print("\n`diptych systems NAME` shows a method's settings; `--set NAME.FIELD=VALUE` changes one.")
    return 0


def words(system: "System") -> tuple[str, ...]:
    new = "yes" if system.names_new_classes else "no"
    return system.name, system.summary, system.needs, system.trains, system.cost, new


def markdown(found: "list[System]") -> str:
    """The table of the README."""
    lines = [HEADER, ("---",) * len(HEADER), *(("`%s`" % name, *rest) for name, *rest in map(words, found))]  # noqa: UP031
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def show(verb: str, found: "list[System]") -> None:
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(f"\n{verb}", style="bold underline")
    each = {system.name: system.per_process for system in found}
    for name, summary, needs, trains, cost, new in map(words, found):
        console.print(name, style="bold")
        console.print(Padding(summary, (0, 0, 0, 2)))
        facts = f"needs {needs} · trains {trains} · works on {cost} · new classes: {new}"
        facts += f" · several processes: {each[name]}" if each[name] else ""
        console.print(Padding(facts, (0, 0, 0, 2)), style="dim")


def show_one(system: "System") -> None:
    module = importlib.import_module(f"diptych.methods.{system.family}.{system.name}")
    print((module.__doc__ or "").strip())
    print(f"\nneeds: {system.needs}\ntrains: {system.trains}\nworks on: {system.cost}")
    print(f"names new classes: {'yes' if system.names_new_classes else 'no'}")
    if system.family in ("pretrain", "distill"):
        print(f"several processes: {system.per_process or 'as one, on the batch of all'}")
    recipe = getattr(find(system.family, system.name), "recipe", None)
    if recipe is not None:
        print("\nrecipe:")
        for name, value in asdict(recipe).items():
            print(f"  --set recipe.{name}={value}")
    if system.settings:
        grid = "" if recipe else " (several values are a grid, chosen on validation)"
        print(f"\nsettings{grid}:")
    for name, value in system.settings.items():
        shown = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value
        print(f"  --set {system.name}.{name}={shown}")
    sys.stdout.flush()
