"""What `long_clip` does to `micro`: long captions, short captions, short prompts, each against the right baseline.

    OMP_NUM_THREADS=1 python benchmarks/long_clip.py --out runs/long_clip              3 seeds, the table
    OMP_NUM_THREADS=1 python benchmarks/long_clip.py --out runs/long_clip --write      and docs/results/long_clip.json
    OMP_NUM_THREADS=1 python benchmarks/long_clip.py --out runs/long_clip --arms "long_clip;cut at 77" --seeds 0
    OMP_NUM_THREADS=1 python benchmarks/long_clip.py --out runs/faster --set recipe.rate=1e-5      the other rate

micro was trained on captions of up to 30 tokens, so that of its 77 positions those from 30 on are as they started. All
arms are micro trained further, with the same pairs, steps and order:

- long_clip: stretched to 248 positions, the first 20 stay, long and short captions;
- cut at 77: the same training, of the model as it is: what a long caption says after token 77 is not read;
- no short captions: all positions interpolated (none kept), and long captions alone.

A long caption names the one large thing of a scene; then come sentences that say nothing of the picture until 77 tokens
are full; then the two medium things and the ground. Pictures of the test are of 8 large things, so that what tells them
apart stands after token 77. In the training half of the first sentences name all that is there, as short captions do.
All test scenes are held out. Short captions are of the kind that micro was trained on (4 sets of 256 scenes), short
prompts its 140 classes ("a large red circle", 700 scenes), as in its card.

Runs are kept in --out, and what is done is not done again. About a minute of one core an arm.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.core.clip import CLIP
from diptych.core.positions import lengthen
from diptych.core.tokenizer import FastTokenizer
from diptych.data.pairs import Pair
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.data.scenes.captions import phrase_of
from diptych.data.scenes.grammar import say_phrase
from diptych.data.scenes.spec import stream
from diptych.data.scenes.words import GROUNDS
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.metrics.retrieval import recall_at
from diptych.training.plan import make_plan
from diptych.training.run import Run

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "long_clip.json"
OLD = 77
STEPS, BATCH, PAIRS = 100, 32, 2400
SETTINGS = {"long_clip.scale": "0", "recipe.rate": "5e-6", "recipe.warmup": "10", "recipe.clip": "1"}
ARMS: dict[str, dict[str, str]] = {
    "long_clip": {},
    "cut at 77": {"long_clip.tokens": "77"},
    "no short captions": {"long_clip.first": "0", "long_clip.short": "0"},
}
SPEC = SceneSpec(counts=(3,), sizes=("large", "medium", "medium"), held_out=0.2, combinations="seen")
CARD = SceneSpec(counts=(2, 3), held_out=0.2)  # the tests of micro's card
SMALL = replace(CARD, sizes=("large", "small", "small"))
SUBJECTS = [(colour, shape) for colour, shape in SPEC.pairs if shape in ("circle", "star", "square")][:8]
SAID = (  # of every picture
    "this is a drawing of shapes",
    "there are some shapes on the ground",
    "each shape has one colour",
    "it is a picture with a background",
    "some of the things are large",
    "a shape is beside a shape",
    "here is a drawing of things in colours",
    "all of the shapes are in the picture",
)
TEST_SEED = 70_000


@dataclass(frozen=True)
class Held:
    """Pairs with their pictures at hand."""

    source: str
    items: list[Pair]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Pair:
        return self.items[index]


# -- scenes and what is said of them -----------------------------------------------------------------------------------


def one_large(spec: SceneSpec, seed: int) -> Iterator[tuple[SceneRecord, Any]]:
    """Scenes with exactly one large thing, and that thing."""
    for record in Scenes(spec, 1 << 30, seed):
        large = [thing for thing in record.scene.things if thing.size == "large"]
        if len(large) == 1:
            yield record, large[0]


@cache
def tokenizer() -> FastTokenizer:
    found = diptych.load("micro", "cpu").tokenizer
    assert isinstance(found, FastTokenizer)
    return found


def long_caption(record: SceneRecord, summaries: float = 0.0) -> str:
    """A first sentence, then nothing of the picture up to token 77, then the medium things and the ground.

    The first sentence names the large thing; or all that is there, in a share of `summaries`.
    """
    rng = stream(record.seed, record.index, "long caption")
    (large,) = (thing for thing in record.scene.things if thing.size == "large")
    subject = f"a picture of {say_phrase(phrase_of(record.scene, large, {'size', 'colour'}))}"
    sentences = [record.text("short") if rng.random() < summaries else subject]
    while tokenizer().length(" ".join(f"{s}." for s in sentences)) < OLD + 1:  # with the start, without the end
        sentences.append(rng.choice(SAID))
    sentences += details(record, rng)
    return " ".join(f"{sentence}." for sentence in sentences)


def details(record: SceneRecord, rng: Random) -> list[str]:
    others = [thing for thing in record.scene.things if thing.size != "large"]
    rng.shuffle(others)
    things = [say_phrase(phrase_of(record.scene, thing, {"colour"})) for thing in others]
    return [f"there is {things[0]}", f"there is {things[1]}", f"it is on {GROUNDS['en'][record.scene.background]}"]


@cache
def training_pairs(seed: int) -> Held:
    items = []
    for record, _ in islice(one_large(SPEC, 40_000 + seed), PAIRS):
        image = record.image()
        record.__dict__.pop("drawing", None)
        items.append(Pair(record.id, lambda image=image: image, (long_caption(record, 0.5),), {}))
    return Held(f"long captions {seed}", items)


# -- what is measured --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def images(clip: CLIP, pixels: Tensor) -> Tensor:
    """Unit embeddings [N, D] of pixels [N, 3, H, W]."""
    return F.normalize(torch.cat([clip.encode_image(part) for part in pixels.split(128)]), dim=1)


@torch.inference_mode()
def texts(clip: CLIP, said: Sequence[str]) -> Tensor:
    return F.normalize(clip.encode_text(said), dim=1)


def recalls(pictures: Tensor, captions: Tensor, name: str) -> dict[str, float]:
    """R@1 in percent, both ways."""
    scores = captions @ pictures.T
    return {f"{name}, text to picture": 100 * recall_at(scores)[1],
            f"{name}, picture to text": 100 * recall_at(scores.T)[1]}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """Pixels [N, 3, H, W], and what is said of each, or its class."""

    pixels: Tensor
    said: list[str]


@cache
def tests(seed: int) -> dict[str, list[Shown]]:
    """Scenes with long captions, four sets with short ones, scenes with their class among the 140."""
    look = diptych.load("micro", "cpu").preprocess  # all arms look at pictures as micro does

    def shown(records: Sequence[SceneRecord], said: Sequence[str]) -> Shown:
        return Shown(torch.stack([look(record.image()) for record in records]), list(said))

    chosen = (r for r, large in one_large(SPEC, seed) if (large.colour, large.shape) in SUBJECTS)
    long = list(islice(chosen, 300))
    short = [list(islice(Scenes(CARD, 1 << 30, seed + number), 256)) for number in range(1, 5)]
    classed = list(islice(one_large(SMALL, seed + 5), 700))
    return {
        "long": [shown(long, [long_caption(record) for record in long])],
        "short": [shown(some, [record.text("short") for record in some]) for some in short],
        "zero-shot": [shown([r for r, _ in classed], [f"a large {x.colour} {x.shape}" for _, x in classed])],
    }


def measure(clip: CLIP, seed: int = TEST_SEED) -> dict[str, float]:
    held = tests(seed)
    found: dict[str, float] = {}
    for name in ("long", "short"):
        sets = [recalls(images(clip, some.pixels), texts(clip, some.said), name) for some in held[name]]
        found |= {what: statistics.mean(one[what] for one in sets) for what in sets[0]}
    (some,) = held["zero-shot"]
    classes = [f"a large {colour} {shape}" for colour, shape in CARD.pairs]
    guesses = (images(clip, some.pixels) @ texts(clip, classes).T).argmax(1).tolist()
    right = [classes[guess] == said for guess, said in zip(guesses, some.said, strict=True)]
    return found | {"zero-shot": 100 * statistics.mean(right)}


def run(arm: str, seed: int, test: int, changes: dict[str, str]) -> dict[str, float]:
    """Train an arm and measure it, with how far its first 20 positions have moved."""
    settings = SETTINGS | ARMS[arm] | changes
    start, clip = time.process_time(), diptych.load("micro", "cpu")
    before = clip.text.get_parameter(clip.text.positions)[:20].clone()
    plan = make_plan(
        "long_clip", PAIRS, settings, steps=STEPS, epochs=None, batch=BATCH, rate=None, seed=seed, save_every=None,
        eval_every=None,
    )  # fmt: skip
    trained = Run(plan, clip, training_pairs(seed), None)
    for step in range(plan.steps):
        done = trained.step(step, *trained.batches[step])
        if (step + 1) % 40 == 0:
            print(f"{arm}, seed {seed}: step {step + 1}, loss {done.loss:.3f}", file=sys.stderr)
    clip.eval().requires_grad_(False)
    moved = (clip.text.get_parameter(clip.text.positions)[:20] - before).abs().max()
    return measure(clip, test) | {"first 20 moved by": float(moved), "cpu_seconds": time.process_time() - start}


def untrained(test: int) -> dict[str, dict[str, float]]:
    """micro as it is, and stretched with nothing trained."""
    clip = diptych.load("micro", "cpu")
    found = {"micro": measure(clip, test)}
    lengthen(clip, 248)
    return found | {"stretched, untrained": measure(clip, test)}


# -- the table ---------------------------------------------------------------------------------------------------------


def claims(found: dict[str, dict[str, list[float]]]) -> dict[str, bool]:
    def mean(arm: str, what: str) -> float:
        return statistics.mean(found[arm][what])

    made = {}
    for way in ("text to picture", "picture to text"):
        gain = mean("long_clip", f"long, {way}") - mean("cut at 77", f"long, {way}")
        made[f"long captions, {way}: at least 15 points above the model cut at 77 ({gain:+.1f})"] = gain >= 15
        change = mean("long_clip", f"short, {way}") - mean("micro", f"short, {way}")
        made[f"short captions, {way}: within 1 point of micro, or above ({change:+.1f})"] = change >= -1
    change = mean("long_clip", "zero-shot") - mean("micro", "zero-shot")
    made[f"short prompts: at most 3 points below micro ({change:+.1f})"] = change >= -3
    if (bare := "no short captions") in found:
        other = mean(bare, "zero-shot") - mean("micro", "zero-shot")
        made[f"short prompts: less below than without short captions ({change:+.1f} against {other:+.1f})"] = (
            change > other
        )
    made["the first 20 positions are bit-identical"] = set(found["long_clip"]["first 20 moved by"]) == {0.0}
    return made


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where figures are kept")
    parser.add_argument("--write", action="store_true", help="write this rate's part of docs/results/long_clip.json")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=";".join(ARMS), help="some of them, with ; between")
    parser.add_argument("--test", type=int, default=TEST_SEED, help="seed of the held-out scenes")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for all arms")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found: dict[str, dict[str, list[float]]] = {}
    start = given.out / "untrained.json"
    if not start.exists():
        write_atomically(start, json.dumps(untrained(given.test)).encode())
    for arm, figures in json.loads(start.read_text()).items():
        found[arm] = {what: [value] for what, value in figures.items()}
    for seed in seeds:
        for arm in given.arms.split(";"):
            kept = given.out / f"{arm.replace(' ', '_')}-{seed}.json"
            if not kept.exists():
                figures = run(arm, seed, given.test, dict(pair.split("=", 1) for pair in given.set))
                write_atomically(kept, json.dumps(figures).encode())
            for what, value in json.loads(kept.read_text()).items():
                found.setdefault(arm, {}).setdefault(what, []).append(value)
    for arm, by in found.items():
        print(f"{arm}: " + ", ".join(f"{what} {statistics.mean(v):.1f} ± {spread(v):.1f}" for what, v in by.items()))
    if not {"long_clip", "cut at 77"} <= set(found):
        return 0
    for claim, holds in claims(found).items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    if given.write:
        settings = SETTINGS | dict(pair.split("=", 1) for pair in given.set)
        made = {
            "seeds": seeds, "steps": STEPS, "batch": BATCH, "pairs": PAIRS, "settings": settings, "arms": ARMS,
            "measured": {
                arm: {w: {"mean": statistics.mean(v), "sd": spread(v), "values": v} for w, v in by.items()}
                for arm, by in found.items()
            },
            "claims": claims(found),
            "provenance": provenance() | {"threads": torch.get_num_threads()},
        }  # fmt: skip
        result = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"about": (__doc__ or "").partition("\n")[0]}
        result.setdefault("rates", {})[settings["recipe.rate"]] = made
        write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
