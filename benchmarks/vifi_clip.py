"""Videos by the mean of their frames: what ViFi-CLIP learns on moving scenes, and what a mean cannot learn.

    OMP_NUM_THREADS=1 python benchmarks/vifi_clip.py --arm "turns both" --seed 0 --keep parts     # one fit
    python benchmarks/vifi_clip.py --keep parts --long --real FOLDER --write    # all of them together, and real clips

Clips of four frames of 64 pixels, drawn as sketches (glimpse: with noise), which the model, `micro`, never saw. Worlds:

- glimpse (appearance): 20 classes, five shapes in four colours; the thing is in the first or the last two of the four
  frames, and the others are empty.
- turns (the set of frames): 15 classes, the pairs of six things; one is in the first half, the other in the second, in
  either order. A single frame fits five of the classes.
- jumps: a thing jumps sideways, up and down, or from corner to corner; each frame alone says nothing.
- ways (a control): a thing moves left or right. The frames of one class, in another order, are those of the other.

Base-to-novel: fitted on 16 clips of each of half of the classes, judged on these and, by name, on the others, each
among themselves; HM is their harmonic mean. Few-shot: 4 clips of each class. `one frame` is the same training, the same
number of steps, on one frame a clip: at random in training, the middle one in the test. Bridge: `many both`, run first
and once, on 4 clips of each of the 91 pairs of 14 other things; prompts are then learned on 4 clips of each class of
turns, with and without it.

Everything is 40 steps of 16 clips (the bridge 120), colours as drawn and nothing flipped. Rates and
worlds were settled on seed 100. Mean and standard deviation over seeds: other scenes, other shots.
"""

import argparse
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.records import Record, Records
from diptych.data.scenes import MotionSpec, MovingScenes, SceneSpec
from diptych.data.scenes.motion import JUMPS, MovingRecord
from diptych.data.support import CROP, Support
from diptych.data.video import read_frames
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.adapt.parts.adapter import fit_path, judge, last
from diptych.methods.adapt.zero_shot import ZeroShot
from diptych.methods.video.vifi_clip import Config, ViFiCLIP

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "vifi_clip.json"
SHAPES, COLOURS = ("circle", "triangle", "star", "ring", "arrow"), ("red", "yellow", "blue", "black")
SKETCH = SceneSpec(shapes=SHAPES, colours=COLOURS, counts=(1,), sizes=("large",), styles=("sketch",))
THINGS = ("red circle", "blue circle", "yellow star", "black star", "red ring", "blue triangle")
FRAMES = 4
SHOTS = {  # base clips a class, clips a class of few shots, test clips a class
    "glimpse": (16, 4, 16),
    "turns": (16, 4, 20),
    "jumps": (64, 64, 100),
    "ways": (64, 64, 200),
    "many": (4, 4, 1),
}
ARMS = [
    *(f"glimpse {arm}" for arm in ("zero-shot", "both", "both one frame", "few", "few one frame")),
    *(f"turns {arm}" for arm in ("zero-shot", "both", "image", "text", "both one frame", "few", "few one frame")),
    "turns prompts", "turns bridge and prompts", "jumps both", "ways both",
]  # fmt: skip
TEMPLATE = "a photo of a {}."
BASE = {"epochs": 0, "batch": 16, "jitter": 0.0, "grey": 0.0, "template": TEMPLATE, "warmup": 0}
STEPS, BRIDGE_STEPS = 40, 120
RATES = {"both": 2e-4, "image": 2e-4, "text": 2e-4, "prompts": 8e-3}


class Clips:
    """Labelled clips as a `FeatureSource`. frames: 4, or 1: at random with a generator, else the middle one."""

    def __init__(self, videos: Sequence[np.ndarray], labels: Sequence[str], frames: int = FRAMES) -> None:
        clip = diptych.load("micro")
        self.drawn = stacked = np.stack(videos)  # [N, T, H, W, 3] uint8
        pixels = torch.from_numpy(stacked).permute(0, 1, 4, 2, 3).contiguous()
        self.videos = torch.stack([clip.preprocess.normalise(video) for video in pixels])
        self.labels, self.frames = list(labels), frames

    def only(self, frames: int) -> "Clips":
        other = object.__new__(Clips)
        other.videos, other.labels, other.frames = self.videos, self.labels, frames
        return other

    def pixels(self, clip: CLIP, records: Records, *, rng: np.random.Generator | None = None, crop=CROP) -> Tensor:
        rows = [int(r.id) for r in records]
        videos = self.videos[rows]
        if self.frames == videos.shape[1]:
            return videos
        count = videos.shape[1]
        at = rng.integers(count, size=len(rows)) if rng else np.full(len(rows), count // 2)
        return videos[torch.arange(len(rows)), torch.from_numpy(at)][:, None]

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop=CROP) -> Tensor:
        with torch.inference_mode():
            parts = [clip.encode_image(self.pixels(clip, records[i : i + 64])) for i in range(0, len(records), 64)]
        return F.normalize(torch.cat(parts), dim=-1).clone()

    def texts(self, clip: CLIP, texts: Sequence[str]) -> Tensor:
        return clip.encode_text(texts)

    def support(self, names: Sequence[str], each: int, seed: int) -> Support:
        """The first `each` clips of each of these classes."""
        seen, rows = Counter[str](), []
        for i, label in enumerate(self.labels):
            if label in names and seen[label] < each:
                seen[label] += 1
                rows.append(i)
        records = Records(tuple(Record(f"{i}", None, self.labels[i]) for i in rows), "moving scenes")
        labels = torch.tensor([names.index(self.labels[i]) for i in rows])
        return Support(tuple(names), records, labels, self, tuple(range(len(rows))), seed, frames=self.frames)


# -- the worlds ------------------------------------------------------------------------------------------------------


def clips(motions: tuple[str, ...], seed: int, frames: int = FRAMES, style: str = "sketch") -> MovingScenes:
    return MovingScenes(MotionSpec(replace(SKETCH, styles=(style,)), motions, frames=frames), 1 << 30, seed)


def named(record: MovingRecord) -> str:
    thing = record.scenes[0].things[0]
    return f"{thing.colour} {thing.shape}"


def drawn(make: Callable[[int, int], Clips], seed: int, each: int, keep: Path) -> Clips:
    """The clips of a world, drawn once for all its arms."""
    file = keep / f"{make.__name__}-{seed}-{each}.npz"
    if not file.exists():
        clips = make(seed, each)
        np.savez_compressed(file, videos=clips.drawn, labels=np.array(clips.labels))
    with np.load(file) as found:
        return Clips(found["videos"], found["labels"].tolist())


def collect(scenes: MovingScenes, label: Callable[[MovingRecord], str], each: int, classes: int) -> Clips:
    counts, videos, labels = Counter[str](), [], []
    for record in scenes:
        name = label(record)
        if counts[name] < each:
            counts[name] += 1
            videos.append(record.frames)
            labels.append(name)
        if len(videos) == each * classes:
            break
    return Clips(videos, labels)


def glimpse(seed: int, each: int) -> Clips:
    return collect(clips(("appear", "vanish"), seed, style="noisy"), named, each, 20)


def turns(seed: int, each: int, things: Sequence[str] = THINGS) -> Clips:
    """Two still clips of half the frames, one after the other."""
    need = each * (len(things) - 1)
    halves: dict[str, list[np.ndarray]] = {thing: [] for thing in things}
    for record in clips(("still",), seed, FRAMES // 2):
        if (thing := named(record)) in halves and len(halves[thing]) < need:
            halves[thing].append(record.frames)
        if all(len(found) == need for found in halves.values()):
            break
    rng, videos, labels = np.random.default_rng(seed), [], []
    for i in range(each):
        for a, b in itertools.combinations(things, 2):
            parts = [halves[a].pop(), halves[b].pop()]
            videos.append(np.concatenate(parts if rng.random() < 0.5 else parts[::-1]))
            labels.append(f"{a} and a {b}")
        del i
    return Clips(videos, labels)


def many(seed: int, each: int) -> Clips:
    """The 91 pairs of all things that `turns` has not."""
    return turns(seed, each, [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in THINGS])


def jumps(seed: int, each: int) -> Clips:
    words = {"row": "thing that jumps sideways", "column": "thing that jumps up and down"}
    words["diagonal"] = "thing that jumps from corner to corner"
    return collect(clips(JUMPS, seed), lambda r: words[r.events[0].motion], each, 3)


def ways(seed: int, each: int) -> Clips:
    return collect(clips(("left", "right"), seed), lambda r: f"thing that moves {r.events[0].motion}", each, 2)


# -- measuring -------------------------------------------------------------------------------------------------------


def fit(clip: CLIP, support: Support, tune: str, **changes: Any) -> Classifier:
    settings = {**BASE, "tune": tune, "rate": RATES[tune], **changes}
    batches = max(1, len(support) // min(settings["batch"], len(support)))
    settings["epochs"] = max(1, round(settings.pop("steps", STEPS) / batches))
    return last(fit_path(ViFiCLIP(), Config(**settings), clip, support))


def right(fitted: Classifier, clip: CLIP, test: Support) -> float:
    return 100 * float((judge(fitted, clip, test).argmax(1) == test.labels).double().mean())


def zero_shot(clip: CLIP, support: Support) -> Classifier:
    return ZeroShot().fit(clip, replace(support, templates=(TEMPLATE,)))


def halves(world: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Base and novel: every other of the pairs, a chance half of the things; both have all that the other has."""
    if world == "turns":
        return list(names[::2]), list(names[1::2])
    order = np.random.default_rng(0).permutation(len(names))
    base = set(order[: (len(names) + 1) // 2].tolist())
    return [n for i, n in enumerate(names) if i in base], [n for i, n in enumerate(names) if i not in base]


def arm_of(world: str, arm: str, seed: int, keep: Path) -> dict[str, Any]:
    """One fit and what it reaches, in percent right. The base fit of a world is kept, for prompts to start from."""
    clip, start = diptych.load("micro"), time.process_time()
    shots, few, each = SHOTS[world]
    make = {"glimpse": glimpse, "turns": turns, "jumps": jumps, "ways": ways, "many": many}[world]
    train, test = (drawn(make, 2 * seed + i, count, keep) for i, count in enumerate((shots, each)))
    names = sorted(set(train.labels))
    base, novel = halves(world, names)
    frames = 1 if "one frame" in arm else FRAMES
    train, test = train.only(frames), test.only(frames)
    tune = next((t for t in ("image", "text", "prompts") if t in arm), "both")
    bridge = keep / "bridge.safetensors"

    def score(fitted: Classifier, part: Sequence[str]) -> float:
        return right(fitted, clip, test.support(part, each, seed))

    found: dict[str, float] = {}
    if "zero-shot" in arm:
        parts = {"base": base, "novel": novel, "all": names}
        found = {key: score(zero_shot(clip, test.support(part, each, seed)), part) for key, part in parts.items()}
    elif world == "many":
        fit(clip, train.support(names, shots, seed), tune, steps=BRIDGE_STEPS).save(bridge)
    elif tune == "prompts":
        first = str(bridge) if "bridge" in arm else ""
        if first:
            found["bridge alone"] = score(Classifier.load(first).with_names(clip, names), names)
        found["all"] = score(fit(clip, train.support(names, few, seed), tune, bridge=first), names)
    elif "few" in arm or world in ("jumps", "ways"):
        found["all"] = score(fit(clip, train.support(names, few, seed), tune), names)
    else:
        fitted = fit(clip, train.support(base, shots, seed), tune)
        found = {"base": score(fitted, base), "novel": score(fitted.with_names(clip, novel), novel)}
    if {"base", "novel"} <= set(found):
        found["HM"] = 2 * found["base"] * found["novel"] / max(found["base"] + found["novel"], 1e-9)
    return {**found, "seconds": time.process_time() - start}


def real(folder: Path) -> dict[str, Any]:
    """The clip with ten candidate texts, and three clips against their captions, with `mini` and as it is."""
    clip = diptych.load("mini")
    found: dict[str, Any] = {}
    for name, about in json.loads((folder / "candidates.json").read_text()).items():
        texts = about["candidates"]
        with torch.inference_mode():
            video = clip.encode_image(torch.stack(read_frames(folder / name, 8, clip.preprocess))[None])
            shares = clip.score(video, clip.encode_text(texts)).softmax(1)[0]
        order = shares.argsort(descending=True).tolist()
        published = max(about["viclip_L_top5_published"], key=about["viclip_L_top5_published"].get)
        found[name] = {
            "ranked": [(texts[i], round(float(shares[i]), 4)) for i in order],
            "place of the text a large video model puts first": 1 + order.index(texts.index(published)),
            "of": len(texts),
        }
    return found


def ten_hours() -> dict[str, float]:
    """Processor time and growth of memory for 8 frames of a file of ten hours, and for all of its frames."""
    import resource
    import tempfile
    from fractions import Fraction

    import av

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "day.mp4")
        with av.open(path, "w") as out:
            stream = out.add_stream("libx264", rate=Fraction(1))
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            stream.options = {"preset": "ultrafast"}
            for i in range(36_000):
                frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), i % 251, np.uint8), format="rgb24")
                frame.pts = i
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        found = read_frames(path, 8, lambda image: np.asarray(image).mean())
        few = time.process_time() - start
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        with av.open(path) as file:
            seen = [frame.to_ndarray(format="rgb24").mean() for frame in file.decode(video=0)]
        every = time.process_time() - start
    expected = [seen[2250 + 4500 * k] for k in range(8)]
    assert found == expected, (found, expected)
    ratio = round(every / few, 1)
    return {
        "seconds": round(few, 3),
        "seconds_all": round(every, 1),
        "times": ratio,
        "grown_mb": (after - before) / 1024,
    }


def together(parts: Sequence[dict[str, Any]]) -> Any:
    """Mean and spread of each figure over the seeds."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: together([part[key] for part in parts]) for key in first}
    values = [float(part) for part in parts]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 2), "sd": round(spread, 2), "each": [round(v, 2) for v in values]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=[*ARMS, "many both"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("vifi-parts"), help="a file for each arm and seed")
    parser.add_argument("--real", type=Path, help="a folder of clips with candidates.json")
    parser.add_argument("--long", action="store_true", help="a file of ten hours")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.keep.mkdir(parents=True, exist_ok=True)
    if given.arm:
        world, _, arm = given.arm.partition(" ")
        found = arm_of(world, arm, given.seed, given.keep)
        print(given.arm, given.seed, json.dumps(found), flush=True)
        write_atomically(given.keep / f"{given.arm}-{given.seed}.json", json.dumps(found).encode())
        return
    result: dict[str, Any] = {}
    for arm in ARMS:
        files = [given.keep / f"{arm}-{seed}.json" for seed in range(3)]
        if found := [json.loads(file.read_text()) for file in files if file.exists()]:
            result[arm] = together(found)
    for name, work in (
        ("ten hours", given.long and ten_hours),
        ("real clip", given.real and (lambda: real(given.real))),
    ):
        file = given.keep / f"{name}.json"
        if work:
            write_atomically(file, json.dumps(work()).encode())
        if file.exists():
            result[name] = json.loads(file.read_text())
    print(json.dumps(result, indent=1))
    if given.write:
        about = {"model": diptych.load("micro").fingerprint, "steps": STEPS, "rates": RATES, **BASE}
        data = json.dumps({"provenance": provenance(), "settings": about, **result}, indent=1) + "\n"
        write_atomically(RESULTS, data.encode())


if __name__ == "__main__":
    main()
