"""Runs a recipe: a Python file that opens with its commands, each with its time and score on the line below it."""

import os
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.data.pairs import Pairs
from diptych.data.records import Records
from diptych.data.scenes import Scenes, SceneSpec
from diptych.training.plan import Plan
from diptych.training.run import Row, Trained, train

TINY = str(Path(__file__).with_name("tiny.json"))  # the architecture of tiny variants: pictures of 32 pixels
SHAPES, GROUNDS = ("circle", "square", "triangle", "star", "cross", "ring"), ("paper", "sand", "grass")
SCENE = SceneSpec(32, SHAPES, sizes=("large",), backgrounds=GROUNDS, counts=(1,), say=("colour", "background"))


def scenes(*roles: str, **changes: Any) -> Pairs:
    """What tiny variants learn from, one thing a picture, with texts of these roles; changes: of the SceneSpec."""
    return Scenes(replace(SCENE, **changes), 8192).pairs(*roles)


def held_out() -> Records:
    """Other scenes, in 60 classes such as "red circle"."""
    return Scenes(SCENE, 600, seed=1).records("class")


def promised(doc: str, tiny: bool) -> str:
    """The line below the command that is being run."""
    lines = [line.strip() for line in doc.splitlines()]
    commands = (i for i, line in enumerate(lines) if line.startswith("python "))
    return lines[next(i for i in commands if ("--tiny" in lines[i]) == tiny) + 1]


def run(doc: str, arguments: Callable[[bool], dict[str, Any]], score: Callable[[Trained], float] | None = None) -> None:
    """Train as the command line says, then print what the recipe promises beside what came out.

    arguments: tiny or not -> those of `train`. score: where it is not the zero-shot accuracy of the last step.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="minutes on a core, with built-in scenes")
    for name in ("data", "text", "model", "eval", "out", "device", "steps", "seed", "devices"):
        kind = int if name in ("steps", "seed", "devices") else str
        parser.add_argument(f"--{name}", type=kind, metavar="X", help=f"as of `diptych train --{name}`")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    tiny, devices = given.pop("tiny"), given.pop("devices", 1)
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        words = ["-m", "torch.distributed.run", f"--nproc-per-node={devices}", "--standalone", *sys.argv]
        sys.exit(subprocess.run([sys.executable, *words]).returncode)
    given |= {new: given.pop(old) for old, new in (("text", "text_columns"), ("eval", "evaluate")) if old in given}
    if "text_columns" in given:
        given["text_columns"] = given["text_columns"].split(",")
    made = train(**arguments(tiny) | given, progress=say)
    if made.rows:
        found = score(made) if score else made.rows[-1].get("accuracy")
        print(f"promised: {promised(doc, tiny)}")
        print(f"here: {made.rows[-1]['seconds']:.0f} s" + ("" if found is None else f"; {found:.1%}"))


def say(row: Row, plan: Plan) -> None:
    """Some twenty lines a run."""
    if int(row["step"]) % max(1, plan.steps // 20) == 0:
        print(
            f"{row['step']}/{plan.steps}  loss {row['loss']:.3f}  {row['samples_per_second']:.0f} pairs/s", flush=True
        )
