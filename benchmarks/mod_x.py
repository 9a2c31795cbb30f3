"""What each continual method keeps of a stream of four sessions, and what it learns of each: mean and spread.

    python benchmarks/mod_x.py                         all arms, 3 seeds; a table
    python benchmarks/mod_x.py --write                 and docs/results/mod_x.json
    python benchmarks/mod_x.py --seeds 1 --arms "mod_x;fine_tune" --out FOLDER       kept, and taken up again

The stream starts from `micro`, which knows filled drawings well and the other three styles in part. Its sessions are
filled, sketch, dark and noisy drawings with short captions, 50 pairs to train on and 80 held out of each. All arms of
a seed have the same pairs in the same order, and as many steps a session (joint: as many for each session that it is
trained on again). Settings were chosen on seed 9, whose scenes are in no figure. R@1 is the mean of both directions, in
percent; drift is of the pairs held out of the first session, a session on average.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pretrain_worlds.parts import Held, drawn

from diptych.core.device import keep_freed_memory
from diptych.core.load import load
from diptych.data.scenes import SceneSpec
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.training import pages, stream_pages
from diptych.training.stream import teach

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "mod_x.json"
SPECS = {
    "filled": SceneSpec(),
    "sketch": SceneSpec(styles=("sketch",)),
    "dark": SceneSpec(styles=("dark",), strength=0.4),
    "noisy": SceneSpec(styles=("noisy",), strength=2.0),
}
PAIRS, HELD = 130, 80
STEPS, BATCH, RATE = 24, 24, 5e-4
RECIPE = {"recipe.crop": 1.0}


@dataclass(frozen=True)
class Arm:
    system: str
    settings: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "fine_tune": Arm("fine_tune"),
    "ewc": Arm("ewc"),
    "lwf": Arm("lwf"),
    "replay": Arm("replay", {"replay.memory": 15}),
    "joint": Arm("joint"),
    "mod_x": Arm("mod_x", {"mod_x.alpha": 2.0}),
    "mod_x, all rows": Arm("mod_x", {"mod_x.alpha": 2.0, "mod_x.selection": False}),
    "mod_x, alpha 20": Arm("mod_x"),
}
Values = dict[str, dict[str, list[float]]]  # arm -> what -> a value for each seed


@cache
def stream(seed: int) -> dict[str, Held]:
    """The sessions' pairs, with their pictures at hand."""
    return {name: drawn(spec, PAIRS, 100 * seed + i) for i, (name, spec) in enumerate(SPECS.items())}


def run(name: str, seed: int, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Teach one arm. -> its measures in percent, the matrix of scores, and drift."""
    kept = folder / "figures.json"
    if kept.exists():
        return json.loads(kept.read_text())
    arm = ARMS[name]
    taught = teach(
        arm.system, stream(seed), model=load("micro", device="cpu"), out=folder, held=HELD, steps=given.steps,
        batch=given.batch, rate=given.rate, settings={**RECIPE, **arm.settings, **dict(given.set)}, workers=0,
        device="cpu", seed=seed, save_every=10_000,
    )  # fmt: skip
    course = taught.courses[arm.system]
    found = {what: 100 * value for what, value in stream_pages.measured(course).items()}
    for kind in course.after[-1]["drift from the start"]:
        values = [step["drift"][kind] for step in course.after[1:]]  # of sessions after the one it is measured on
        found[f"{kind}, a session"] = statistics.mean(values) * (100 if "flip" in kind else 1)
    found["learned"] = 100 * course.scores.diagonal().mean().item()
    found |= {"scores": (100 * course.scores).tolist(), "start": (100 * course.start).tolist()}
    write_atomically(kept, json.dumps(found).encode())
    return found


def claims(found: Values) -> dict[str, bool]:
    """What is said of the figures, and whether it holds; of arms that were measured."""
    if not {"fine_tune", "mod_x"} <= set(found):
        return {}

    def of(arm: str, what: str) -> float:
        return statistics.mean(found[arm][what])

    lost = of("fine_tune", "forgetting")
    kept = of("mod_x", "old sessions") - of("fine_tune", "old sessions")
    last = of("mod_x", "last session") - of("fine_tune", "last session")
    apart = "deviation, a session"
    says = {
        f"fine_tune forgets at least 10 points ({lost:.1f})": lost >= 10,
        f"mod_x keeps at least half of them: {kept:.1f} points more on old sessions": kept >= lost / 2,
        f"... and forgets at most half as much ({of('mod_x', 'forgetting'):.1f})": of("mod_x", "forgetting")
        <= lost / 2,
        f"mod_x learns the last session within 2 points of fine_tune ({last:+.1f})": last >= -2,
        f"deviation a session is smaller ({of('mod_x', apart):.1f} against {of('fine_tune', apart):.1f} degrees)": of(
            "mod_x", apart
        )
        < of("fine_tune", apart),
    }
    if "mod_x, all rows" in found:

        def change(what: str) -> float:  # on the seeds that both have
            pairs = zip(found["mod_x, all rows"][what], found["mod_x"][what], strict=False)
            return statistics.mean(every - some for every, some in pairs)

        worse, old = change("last session"), change("old sessions")
        says[f"without selection the last session is lower ({worse:+.1f}), or old ones no better ({old:+.1f})"] = (
            worse < 0 or old <= 0
        )
    return says


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(found: Values) -> str:
    lines = [["", *(what for what in next(iter(found.values())))]]
    lines += [
        [name, *(f"{statistics.mean(v):.1f} ± {spread(v):.1f}" for v in by.values())] for name, by in found.items()
    ]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths(lines), strict=True)) for line in lines)


def widths(lines: list[list[str]]) -> list[int]:
    return [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]


def summary(found: Values, runs: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> dict[str, Any]:
    return {
        "about": (__doc__ or "").strip().split("\n\n")[-1].replace("\n", " "),
        "settings": {"steps": given.steps, "batch": given.batch, "rate": given.rate, **RECIPE, **dict(given.set)},
        "start": next(iter(runs.values()))[0]["start"],
        "arms": {
            name: {
                "system": ARMS[name].system,
                "seeds": len(runs[name]),
                "settings": ARMS[name].settings,
                "measured": {
                    what: {"mean": round(statistics.mean(v), 3), "sd": round(spread(v), 3), "values": v}
                    for what, v in by.items()
                },
                "scores": [one["scores"] for one in runs[name]],
            }
            for name, by in found.items()
        },
        "claims": claims(found),
        "provenance": provenance() | {"threads": torch.get_num_threads()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/results/mod_x.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--arms", default=";".join(ARMS), help="some of them, with ; between")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--set", action="append", default=[], type=lambda w: tuple(w.split("=", 1)))
    parser.add_argument("--kept", action="store_true", help="only what is in --out already; runs nothing")
    parser.add_argument("--out", type=Path, help="where the runs are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    pages.write_report = stream_pages.write_results = lambda *_: None  # drawing would take longer than the training
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.arms.split(";")}
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        for seed in range(given.first, given.first + given.seeds):
            for name, done in runs.items():
                place = out / name.replace(", ", "-").replace(" ", "_") / str(seed)
                if given.kept and not (place / "figures.json").exists():
                    continue
                done.append(run(name, seed, place, given))
                shown = ", ".join(f"{k} {v:.1f}" for k, v in done[-1].items() if isinstance(v, float))
                print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
    found = {
        name: {what: [one[what] for one in done] for what, value in done[0].items() if isinstance(value, float)}
        for name, done in runs.items()
        if done
    }
    print(table(found) + "\n")
    print("\n".join(f"{'yes' if holds else 'NO '}  {claim}" for claim, holds in claims(found).items()))
    if given.write:
        write_atomically(RESULTS, (json.dumps(summary(found, runs, given), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
