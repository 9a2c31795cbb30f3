"""What training with each system does, against plain CLIP at equal steps on drawn scenes: mean and spread over seeds.

    python benchmarks/pretrain.py cloob alip             the worlds of both, 3 seeds; tables
    python benchmarks/pretrain.py cloob --write          and docs/results/pretrain_cloob.json
    python benchmarks/pretrain.py cloob --arms "clip;cloob" --seeds 1 --steps 100 --set recipe.rate=1e-3

A system's world is one file, `pretrain_worlds/<system>.py`, that holds a `World` named WORLD: its arms (ways of
training, with their data), what is measured of each, and what is claimed. Nothing is registered. All arms of a seed
have the same first weights, the same order of pairs, and as many steps unless their name says so; they train by the
project's own loop. With `--out FOLDER` runs and figures are kept, and the same command goes on where it was stopped.

The models are tiny (32 pixels, two blocks a tower: `pretrain_worlds/parts.py`), so that a run takes a minute or two of
one core: the figures tell whether a system does what its paper says, not how good a model it makes.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pretrain_worlds.parts import Values, World

from diptych.core.device import keep_freed_memory
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.training.folder import TrainingFolder
from diptych.training.plan import Plan, make_plan
from diptych.training.run import Row, Run, digest

RESULTS = Path(__file__).parent.parent / "docs" / "results"
WORLDS = Path(__file__).parent / "pretrain_worlds"


def worlds() -> list[str]:
    return sorted(path.stem for path in WORLDS.glob("*.py") if path.stem not in ("parts", "__init__"))


def run(world: World, name: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one arm and measure it. -> the figures, with the loss at the end and the processor time."""
    arm, figures = world.arms[name](seed), folder / "figures.json"
    start = time.process_time()

    def progress(row: Row, plan: Plan) -> None:
        if row["step"] % max(1, plan.steps // 10) == 0:
            spent = time.process_time() - start
            print(f"{name}, seed {seed}: step {row['step']:.0f} of {plan.steps}, loss {row['loss']:.3f}, "
                  f"{spent:.0f} s", file=sys.stderr)  # fmt: skip

    clip, settings = (arm.model or world.model)(seed), {**world.settings, **arm.settings}
    plan = make_plan(
        arm.system, len(arm.pairs), settings, steps=arm.steps or world.steps, epochs=None, batch=world.batch, rate=None,
        seed=seed, save_every=75, eval_every=None,
    )  # fmt: skip
    if arm.changed:
        plan = replace(plan, objective=arm.changed(plan.objective.config))
    kept = TrainingFolder(folder, plan.identity() | {"model": clip.fingerprint, "data": digest(arm.pairs)})
    kept.open()
    if figures.exists():
        return json.loads(figures.read_text())
    trained = Run(plan, clip, arm.pairs, kept).go(progress)
    seconds = time.process_time() - start
    last = statistics.mean(row["loss"] for row in trained.rows[-20:])
    found = {**world.measure(name, trained, seed), "loss": last, "cpu_seconds": seconds}
    write_atomically(figures, json.dumps(found).encode())
    return found


def table(found: Values) -> str:
    """Arms by what was measured: mean and standard deviation over seeds."""
    columns = list(dict.fromkeys(column for by in found.values() for column in by))
    lines = [["", *columns]]
    for name, by in found.items():
        cells = [f"{statistics.mean(by[c]):.4g} ± {spread(by[c]):.2g}" if c in by else "" for c in columns]
        lines.append([name, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def summary(world: World, found: Values, seeds: int) -> dict[str, Any]:
    arms = {}
    for name, by in found.items():
        arm = world.arms[name](0)
        arms[name] = {
            "system": arm.system,
            "settings": dict(arm.settings),
            **({"steps": arm.steps} if arm.steps else {}),
            **({"changed": (arm.changed.__doc__ or "").strip()} if arm.changed else {}),
            "pairs": len(arm.pairs),
            "measured": {
                what: {"mean": round(statistics.mean(v), 4), "sd": round(spread(v), 4), "values": v}
                for what, v in by.items()
            },
        }
    return {
        "about": world.about,
        "seeds": seeds,
        "steps": world.steps,
        "batch": world.batch,
        "settings": dict(world.settings),
        "arms": arms,
        "claims": dict(world.claims(found)),
        "provenance": provenance() | {"threads": torch.get_num_threads()},
    }


@contextlib.contextmanager
def place(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def chosen(world: World, given: argparse.Namespace) -> World:
    """The world with what the command line changes."""
    settings: Mapping[str, Any] = dict(pair.split("=", 1) for pair in given.set)
    names = [name for name in world.arms if not given.arms or name in given.arms.split(";")]
    return replace(
        world,
        arms={name: world.arms[name] for name in names},
        steps=given.steps or world.steps,
        settings={**world.settings, **settings},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", choices=worlds(), metavar="SYSTEM", help=", ".join(worlds()))
    parser.add_argument("--write", action="store_true", help="write docs/results/pretrain_<system>.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help="some of them, with ; between")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for all arms")
    parser.add_argument("--out", type=Path, help="where the runs are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    known = {name: chosen(importlib.import_module(f"pretrain_worlds.{name}").WORLD, given) for name in given.systems}
    found: dict[str, Values] = {system: {name: {} for name in world.arms} for system, world in known.items()}
    with place(given.out) as out:
        for seed, (system, world) in itertools.product(range(given.seeds), known.items()):
            for name in world.arms:
                figures = run(world, name, seed, out / system / name.replace(" ", "_") / str(seed))
                for what, value in figures.items():
                    found[system][name].setdefault(what, []).append(value)
                shown = ", ".join(f"{what} {value:.4g}" for what, value in figures.items())
                print(f"{system}: {name}, seed {seed}: {shown}", file=sys.stderr)
            if given.write:
                result = json.dumps(summary(world, found[system], seed + 1), indent=1)
                write_atomically(RESULTS / f"pretrain_{system}.json", (result + "\n").encode())
    for system, world in known.items():
        print(f"\n{system}. {world.about}\n{world.steps} steps of {world.batch} pairs, {given.seeds} seeds\n")
        print(table(found[system]) + "\n")
        print(
            "\n".join(f"{'yes' if holds else 'NO '}  {claim}" for claim, holds in world.claims(found[system]).items())
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
