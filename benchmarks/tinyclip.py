"""What tinyclip keeps of micro at half and a quarter of its blocks' parameters, against as small a CLIP from scratch.

    OMP_NUM_THREADS=1 python benchmarks/tinyclip.py --out RUNS [--seed N] [--arms "A;B"]     15 minutes a seed, one core
    OMP_NUM_THREADS=1 python benchmarks/tinyclip.py --out RUNS --seed N --speed MODEL        20 s
    python benchmarks/tinyclip.py --out RUNS --write                                         docs/results/tinyclip.json

Teacher: micro. Data: scenes of one large thing, alone or beside small ones; half of the texts are the scenes' short
captions, half name the large thing. Every arm of a seed sees the same batches for as many steps, those in which gates
are learned among them. Zero-shot: which of the 140 colour-shape combinations is the large thing of a held-out scene.

- inherited, affinity: tinyclip as it is. inherited, CLIP's loss: the same gates and cuts, learned and trained with the
  contrastive loss alone (alpha = 0). manual, affinity: the first of everything, no gates.
- from scratch: fresh weights in exactly the shape that "inherited, affinity" of the same seed came to, or the quarter
  in one stage, trained with affinity mimicking, or with plain CLIP.
- a quarter, one stage or two: 100 -> 25, or 100 -> 50 -> 25 in as many steps. One stage ends at 28 or 29% here, also
  where less is asked for, so two stages are tried at that size as well.

Gates are learned for 40 steps here (300 at a quarter), published are thousands: with less momentum (beta1 0.5 for
all arms), or they would run past the size that was asked for. The teacher's rows are computed once (pictures are not
cropped). `--speed` embeds the same pictures and texts with both, taking turns, in processor time; an architecture has
random weights and is cut to the same shares.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pretrain_worlds.parts import Held
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.core.clip import CLIP
from diptych.core.micro import fresh_micro
from diptych.core.surgery import TOWERS, Shape, cut, leading, record, shape_of
from diptych.data.pairs import Pair
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.distill.parts.compared import turns
from diptych.methods.distill.tinyclip import TinyClip
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairsLike
from diptych.training.plan import make_plan
from diptych.training.run import Run

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "tinyclip.json"
SPEC = replace(SceneSpec(), counts=(1, 2, 3), sizes=("large", "small", "small"), held_out=0.0)
CLASSES = SPEC.pairs
PAIRS, TESTS, BATCH = 1536, 400, 32
STEPS, QUARTER = 96, 1200  # at half and at a quarter
RECIPE = {
    "recipe.crop": "1",
    "recipe.rate": "1e-3",
    "recipe.warmup": "20",
    "recipe.beta1": "0.5",
    "recipe.repeats": "true",
}
GATES = {"prune_step": 40, "sparsity_warmup": 27}
LONGER = {"prune_step": 300, "sparsity_warmup": 200}  # a quarter of one stage, half of each of two
BASE, ONE, SCRATCH = "inherited, affinity", "a quarter, one stage", "from scratch"
Figures = dict[str, Any]


def large(scene: SceneRecord) -> tuple[str, str] | None:
    """Colour and shape of a scene's one large thing."""
    found = [thing for thing in scene.scene.things if thing.size == "large"]
    return (found[0].colour, found[0].shape) if len(found) == 1 else None


def scenes(count: int, seed: int) -> list[SceneRecord]:
    return list(islice((scene for scene in Scenes(SPEC, 1 << 30, seed) if large(scene)), count))


def said(classes: tuple[str, str]) -> str:
    return f"a large {classes[0]} {classes[1]}"


def pairs_of(seed: int) -> Held:
    items = []
    for i, scene in enumerate(scenes(PAIRS, seed)):
        shown = large(scene)
        assert shown is not None
        text = said(shown) if random.Random(f"{seed} {i}").random() < 0.5 else scene.text("short")
        image = scene.image()
        items.append(Pair(scene.id, lambda image=image: image, (text,), {}))
    return Held(f"one large thing {seed}", items)


class Taught(TinyClip):
    """tinyclip with its teacher's rows computed once for every pair. whole: no gates and no cuts, just the loss."""

    def __init__(self, config: Any, teacher: CLIP, rows: Embeddings, whole: bool) -> None:
        super().__init__(config)
        self.from_, self.rows, self.scratch = teacher, rows, whole

    @classmethod
    def system(cls) -> str:
        return "tinyclip"

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        super().prepare(clip, pairs, seed)
        if self.scratch:
            self.heads, self.teacher = None, self.from_

    def reshape(self, clip: CLIP, step: int, steps: int) -> bool:
        return not self.scratch and super().reshape(clip, step, steps)

    def taught(self, batch: Batch) -> Embeddings:
        return {name: rows[batch.index] for name, rows in self.rows.items()}


@torch.no_grad()
def embedded(clip: CLIP, pairs: PairsLike) -> Embeddings:
    parts = [range(i, min(i + 64, len(pairs))) for i in range(0, len(pairs), 64)]
    pictures = [clip.encode_image(torch.stack([clip.preprocess(pairs[i].picture()) for i in part])) for part in parts]
    return {"image": torch.cat(pictures), "text": clip.encode_text([pairs[i].texts[0] for i in range(len(pairs))])}


@torch.no_grad()
def measured(clip: CLIP, seed: int) -> Figures:
    """Zero-shot accuracy over 140 classes, in percent, and the size."""
    clip.eval()
    test = scenes(TESTS, 30_000 + seed)
    rows = F.normalize(clip.encode_text([said(one) for one in CLASSES]), dim=1)
    right = 0
    for i in range(0, TESTS, 100):
        images = clip.encode_image(torch.stack([clip.preprocess(s.image()) for s in test[i : i + 100]]))
        guess = (F.normalize(images, dim=1) @ rows.T).argmax(1).tolist()
        right += sum(CLASSES[g] == large(s) for g, s in zip(guess, test[i : i + 100], strict=True))
    shapes = {name: shape_of(clip.towers[name]) for name in TOWERS}  # type: ignore[arg-type]
    return {
        "zero-shot": 100 * right / TESTS,
        "parameters": sum(p.numel() for p in clip.parameters()),
        "blocks": sum(shape.parameters for shape in shapes.values()),
        "shapes": {name: [s.width, list(s.heads), list(s.units)] for name, s in shapes.items()},
    }


def shaped(clip: CLIP, shapes: dict[str, Any]) -> CLIP:
    """The leading slices of a CLIP in the shapes that `measured` gave."""
    for name, (width, heads, units) in shapes.items():
        head = shape_of(clip.towers[name]).head  # type: ignore[arg-type]
        cut(clip.towers[name], leading(Shape(width, tuple(heads), tuple(units), head)))  # type: ignore[arg-type]
    record(clip)
    return clip


ARMS: dict[str, dict[str, Any]] = {
    "teacher": {},
    BASE: {"keep": 0.5, **GATES},
    "inherited, CLIP's loss": {"keep": 0.5, "alpha": 0.0, **GATES},
    "manual, affinity": {"keep": 0.5, "mode": "manual"},
    f"{SCRATCH}, affinity": {},
    f"{SCRATCH}, CLIP": {},
    ONE: {"keep": 0.25, **LONGER},
    "a quarter, two stages": {"keep": 0.25, "stages": "0.5", **LONGER},
    "two stages, as large as one": {"keep": 0.28, "stages": "0.53", **LONGER},
    f"a quarter, {SCRATCH}, affinity": {},
    f"a quarter, {SCRATCH}, CLIP": {},
}


def run(arm: str, seed: int, pairs: Held, rows: Callable[[], Embeddings], shape: Callable[[str], Figures]) -> Figures:
    """shape: the figures of another arm, whose shapes an arm from scratch has."""
    teacher = diptych.load("micro", "cpu")
    if arm == "teacher":
        return measured(teacher, seed)
    clip, scratch, quarter = teacher, SCRATCH in arm, "quarter" in arm or "stages" in arm
    if scratch:
        shapes = shape(ONE if quarter else BASE)["shapes"]
        clip = shaped(fresh_micro(teacher.tokenizer, seed=seed), shapes)  # type: ignore[arg-type]
    system = "clip" if arm.endswith(f"{SCRATCH}, CLIP") else "tinyclip"
    settings = RECIPE | {f"tinyclip.{name}": value for name, value in ARMS[arm].items()}
    options: dict[str, Any] = {"epochs": None, "rate": None, "save_every": None, "eval_every": None}
    steps = QUARTER if quarter else STEPS
    plan = make_plan(system, len(pairs), settings, steps=steps, batch=BATCH, seed=seed, **options)
    if system == "tinyclip":
        plan = replace(plan, objective=Taught(plan.objective.config, deepcopy(teacher), rows(), scratch))
    torch.manual_seed(seed)
    working = Run(plan, clip, pairs, None)
    clip.train()
    start = time.process_time()
    for step, (batch, ids) in enumerate(working.batches.run(0, steps)):
        done = working.step(step, batch, ids)
        if step % 40 == 39:
            print(f"{arm}, seed {seed}: step {step + 1}, {done.terms}", file=sys.stderr)
    seconds = time.process_time() - start
    return {**measured(clip, seed), "cpu_seconds": seconds}


# -- speed -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def speed(teacher: CLIP, small: CLIP, batch: int) -> Figures:
    """Times faster, pictures and texts together and each, both taking turns in processor time."""
    size = teacher.preprocess.size
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = teacher.tokenize([said(one) for one in CLASSES[::7]][:batch])
    works: dict[str, Callable[[CLIP], Tensor]] = {
        "both": lambda clip: clip.encode_image(pixels) + clip.encode_tokens(tokens),
        "pictures": lambda clip: clip.encode_image(pixels),
        "texts": lambda clip: clip.encode_tokens(tokens),
    }
    found = {}
    for what, work in works.items():
        long, short = turns(lambda work=work: work(teacher), lambda work=work: work(small), teacher.device)
        found[what] = long / short
    return found


def scaled(shapes: dict[str, Any], small: CLIP, big: CLIP) -> dict[str, Any]:
    """Shapes cut from one CLIP as shares of another's."""
    found = {}
    for name, (width, heads, units) in shapes.items():
        old, new = shape_of(small.towers[name]), shape_of(big.towers[name])  # type: ignore[arg-type]
        blocks = [i * len(old.heads) // len(new.heads) for i in range(len(new.heads))]
        found[name] = [
            round(width * new.width / old.width),
            [round(heads[i] * new.heads[0] / old.heads[0]) for i in blocks],
            [round(units[i] * new.units[0] / old.units[0]) for i in blocks],
        ]
    return found


def speed_of(model: str, shapes: dict[str, Any]) -> Figures:
    """How much faster micro, or an architecture with random weights, is in these shapes of micro's."""
    from diptych.core.fresh import fresh

    micro = diptych.load("micro", "cpu")
    big = micro if model == "micro" else fresh(model)
    small = shaped(deepcopy(big), scaled(shapes, micro, big))
    left = [sum(shape_of(c.towers[name]).parameters for name in TOWERS) for c in (small, big)]  # type: ignore[arg-type]
    return {**speed(big, small, 16 if model == "micro" else 2), "blocks": left[0] / left[1]}


# -- the table ---------------------------------------------------------------------------------------------------------


def spread_of(values: list[float]) -> Figures:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.mean(values), 2),
        "sd": round(deviation, 2),
        "values": [round(v, 2) for v in values],
    }


def summary(found: dict[str, list[Figures]], speed: dict[str, list[Figures]]) -> Figures:
    whole = found["teacher"][0]

    def share(what: str, runs: list[Figures]) -> Figures:
        return spread_of([100 * one[what] / whole[what] for one in runs])

    arms = {
        arm: {
            "zero-shot": spread_of([one["zero-shot"] for one in runs]),
            "of the parameters, %": share("parameters", runs),
            "of the blocks, %": share("blocks", runs),
            "shapes": [one["shapes"] for one in runs],
            "settings": ARMS[arm],
        }
        for arm, runs in found.items()
    }
    faster = {
        m: {what: spread_of([one[what] for one in runs]) for what in runs[0]} for m, runs in speed.items() if runs
    }
    about = {"steps": [STEPS, QUARTER], "batch": BATCH, "pairs": PAIRS, "tests": TESTS, "recipe": RECIPE}
    claims = {claim: holds() for claim, (needs, holds) in claimed(arms, faster).items() if set(needs) <= set(arms)}
    return {**about, "arms": arms, "speed": faster, "claims": claims, "provenance": provenance()}


def claimed(arms: Figures, faster: Figures) -> dict[str, tuple[tuple[str, ...], Callable[[], bool]]]:
    """What is asked of the figures, the arms that it needs, and whether it holds."""

    def score(arm: str) -> float:
        return arms[arm]["zero-shot"]["mean"]

    mimic, plain, other = f"{SCRATCH}, affinity", f"{SCRATCH}, CLIP", "inherited, CLIP's loss"
    one, two, late = ONE, "two stages, as large as one", f"a quarter, {SCRATCH}, CLIP"
    return {
        f"{BASE} at least 5 points above {plain}": ((BASE, plain), lambda: score(BASE) - score(plain) >= 5),
        f"{BASE} at least 10 points above {mimic}": ((BASE, mimic), lambda: score(BASE) - score(mimic) >= 10),
        f"{other} below {BASE}, above {mimic}": (
            (BASE, mimic, other),
            lambda: score(BASE) > score(other) > score(mimic),
        ),
        f"{one} at least 5 points above {late}": ((one, late), lambda: score(one) - score(late) >= 5),
        "two stages no worse than one of like size": ((one, two), lambda: score(two) >= score(one)),
        "within 3% of the size asked for": (
            (BASE,),
            lambda: abs(arms[BASE]["of the blocks, %"]["mean"] / 50 - 1) < 0.03,
        ),
        "micro, both towers at least 1.6 times faster": ((), lambda: faster["micro"]["both"]["mean"] >= 1.6),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="where figures are kept; what is there is not run again"
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--arms", help="some of them, with ; between")
    parser.add_argument("--speed", metavar="MODEL", help="measure this of the seed, instead: micro, ViT-B-32")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)

    def kept(name: str, make: Callable[[], Figures]) -> Figures:
        path = given.out / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(make()).encode())
        return json.loads(path.read_text())

    seed, made = given.seed, {}
    if seed is not None and not given.speed:

        def pairs() -> Held:
            return made.setdefault("pairs", pairs_of(seed))

        def rows() -> Embeddings:
            path = given.out / str(seed) / "rows.safetensors"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(embedded(diptych.load("micro", "cpu"), pairs()), path)
            return load_file(path)

        def of(arm: str) -> Figures:
            return kept(f"{seed}/{arm}", lambda: run(arm, seed, pairs(), rows, of))

        for arm in ARMS if given.arms is None else given.arms.split(";"):
            print(f"{arm}, seed {seed}: {of(arm)}", flush=True)
    if given.speed:
        shapes = json.loads((given.out / str(seed) / f"{BASE}.json").read_text())["shapes"]
        print(kept(f"{seed}/speed {given.speed}", lambda: speed_of(given.speed, shapes)))
    if given.write:

        def measured_as(name: str) -> list[Figures]:
            return [json.loads(path.read_text()) for path in sorted(given.out.glob(f"[0-9]*/{name}.json"))]

        speed = {model: measured_as(f"speed {model}") for model in ("micro", "ViT-B-32")}
        result = summary({arm: found for arm in ARMS if (found := measured_as(arm))}, speed)
        write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
        print(json.dumps(result["claims"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
