"""What a CLIP as it is knows of places: the untrained segmenter, and true masks named in one pass or one by one.

    python benchmarks/conv_scenes.py CONV                        # first: the ConvNet-CLIP that knows scenes
    python benchmarks/dense_clip.py DATA CONV --out OUT --write  # some two CPU minutes; parts that are in OUT are kept

DATA holds camvid/ and coco-mini/. "dense": the untrained segmenter, `dense_clip`, on CamVid's test frames and COCO's
photos with `mini`, on scenes with the ConvNet and with `micro`, three seeds of scenes. Sizes are chosen on CamVid's
training frames and on other scenes. "masks": true masks are named by pooling what one pass over the picture gives, or
by cutting each out on a grey ground and encoding it; times are of 50 masks a picture, of processor time on one thread,
taken in turns. "twice the size": the same at the size of pretraining and at twice that, by the ConvNet and by micro.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conv_scenes import SPEC
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.core.clip import CLIP
from diptych.core.preprocess import RESAMPLING
from diptych.core.regions import cover
from diptych.core.towers.blocks import StagedTower
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.segments import SegmentRecords, coco_instances, index_folder, scene_segments
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.dense.dense_clip import Config, DenseCLIP
from diptych.methods.dense.parts.evaluate import evaluate
from diptych.metrics.segmentation import SemanticScores

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "dense_clip.json"
SEEDS = (0, 1, 2)
CHOICE = 900  # the seed of the scenes that sizes are chosen on
UNSEEN = replace(SPEC, combinations="unseen", counts=(1, 2))
ONE = replace(SPEC, side=64, counts=(1,), sizes=("large",))  # what micro knows
SIZES = {"camvid": (224, 320, 448, 640), "scenes": (128, 192, 256), "micro": (64, 96, 128)}
DRAWN = "a {}"  # the template of drawn scenes; photos have the default
COUNT, PHOTOS = 20, 16  # scenes a set; photos of COCO
PIECES = 50
TURNS = 5
ASKED = 5.0
GREY = (127, 127, 127)
Masks = NDArray[np.bool_]


# -- the untrained segmenter -------------------------------------------------------------------------------------------


def segmenter_of(clip: CLIP, size: int) -> DenseCLIP:
    return DenseCLIP(Config(size=size, templates="" if clip.name == "mini" else DRAWN)).fit(clip)


def miou(clip: CLIP, records: SegmentRecords, size: int) -> float:
    scores, segmenter = SemanticScores(len(records.names)), segmenter_of(clip, size)
    for record in records:
        truth = torch.from_numpy(record.segments().semantic())
        scores.add(segmenter.segment(record.picture(), records.names).semantic(), truth)
    return round(100 * scores.miou, 2)


def know_nothing(records: SegmentRecords, common: int) -> dict[str, float]:
    """mIoU in percent of one class everywhere, and of classes by lot."""
    count, rng = len(records.names), np.random.default_rng(0)
    scores = {"one class": SemanticScores(count), "by lot": SemanticScores(count)}
    for record in records:
        truth = torch.from_numpy(record.segments().semantic())
        scores["one class"].add(torch.full_like(truth, common), truth)
        scores["by lot"].add(torch.from_numpy(rng.integers(0, count, truth.shape)), truth)
    return {name: round(100 * score.miou, 2) for name, score in scores.items()}


def most_common(records: SegmentRecords) -> int:
    """The class of the most pixels."""
    pixels = np.zeros(len(records.names), np.int64)
    for record in records:
        labels = record.segments().semantic()
        pixels += np.bincount(labels[labels >= 0], minlength=len(pixels))
    return int(pixels.argmax())


def judged(clip: CLIP, records: SegmentRecords, size: int, common: int) -> dict[str, Any]:
    figures = evaluate(segmenter_of(clip, size), records, shown=0).figures()
    return {name: round(100 * v, 2) for name, v in figures.items() if v == v} | know_nothing(records, common)


def dense_on(clip: CLIP, sizes: Sequence[int], chosen_on: SegmentRecords, tests: Sequence[SegmentRecords]) -> dict:
    tried = {size: miou(clip, chosen_on, size) for size in sizes}
    size = max(tried, key=lambda s: tried[s])
    common = most_common(chosen_on)
    runs = [judged(clip, records, size, common) for records in tests]
    found = {k: summary([run[k] for run in runs]) for k in runs[0]}
    return {"model": clip.name, "sizes tried": tried, "size": size, "pictures": len(tests[0]), "figures": found}


def summary(values: Sequence[float]) -> dict[str, Any]:
    spread = {"sd": round(statistics.stdev(values), 2), "values": list(values)} if len(values) > 1 else {}
    return {"mean": round(statistics.mean(values), 2)} | spread


# -- true masks, named -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def pooled(clip: CLIP, image: Image.Image, masks: Masks, size: int) -> Tensor:
    """One pass over the picture, of the short side `size`; what lies in each mask [N, H, W] is pooled: [N, D]."""
    tower, look = clip.image, clip.preprocess
    assert isinstance(tower, StagedTower)
    scale = size / min(image.size)
    width, height = (max(32, round(side * scale / 32) * 32) for side in image.size)
    _, last = tower.maps(look.tensor(image.resize((width, height), RESAMPLING[look.interpolation]))[None])
    shares = cover(torch.from_numpy(masks), (last.shape[2], last.shape[3]))
    return tower.regions(last, shares[None])[0]


@torch.inference_mode()
def cut_out(clip: CLIP, image: Image.Image, masks: Masks) -> Tensor:
    """Each mask's box alone, grey around the mask, at the tower's own size: [N, D]."""
    look, pixels, shown = clip.preprocess, np.asarray(image), []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        crop = Image.fromarray(np.where(mask[box][..., None], pixels[box], np.uint8(GREY)))
        shown.append(look.tensor(crop.resize((look.size, look.size), RESAMPLING[look.interpolation])))
    return clip.encode_image(torch.stack(shown))


Namer = Callable[[Image.Image, Masks], Tensor]


def naming(clip: CLIP, records: SegmentRecords, namer: Namer) -> dict[str, float]:
    """Percent of true masks that get their name, and mIoU of what they paint."""
    texts, right, things = segmenter_of(clip, 0).vocabulary(records.names), [], []
    scores = SemanticScores(len(records.names))
    for record in records:
        truth = record.segments()
        if not truth.labels:
            continue
        with torch.inference_mode():
            guess = clip.score(namer(record.picture(), truth.masks), texts.rows).argmax(1)
        hits = (guess == torch.tensor(truth.labels)).tolist()
        right += hits
        things += [hit for hit, label in zip(hits, truth.labels, strict=True) if records.things[label]]
        painted = np.array([*guess.tolist(), -1])[truth.owners()]
        scores.add(torch.from_numpy(painted), torch.from_numpy(truth.semantic()))
    found = {"accuracy": statistics.mean(right), "mIoU": scores.miou}
    found |= {"things": statistics.mean(things)} if things else {}
    return {name: round(100 * value, 2) for name, value in found.items()}


def pieces(masks: Masks) -> Masks:
    """The PIECES largest parts into which a grid of 8 x 8 cells cuts the masks."""
    height, width = masks.shape[1:]
    cell = np.arange(height)[:, None] * 8 // height * 8 + np.arange(width) * 8 // width
    every = [mask & (cell == number) for mask in masks for number in np.unique(cell[mask])]
    return np.stack(sorted(every, key=lambda part: -int(part.sum()))[:PIECES])


def times(clip: CLIP, records: SegmentRecords, namers: dict[str, Namer]) -> dict[str, Any]:
    """Medians over pictures; each way's time of a picture is the median of TURNS, taken in turns."""
    spent: dict[str, list[float]] = {name: [] for name in namers}
    for record in records:
        image, parts = record.picture(), pieces(record.segments().masks)
        assert len(parts) == PIECES
        took: dict[str, list[float]] = {name: [] for name in namers}
        for turn in range(TURNS + 1):
            for name in [*namers][:: 1 if turn % 2 else -1]:
                start = time.process_time()
                namers[name](image, parts)
                took[name].append(time.process_time() - start)
        for name, values in took.items():
            spent[name].append(statistics.median(values[1:]))  # the first is for warming up
    ratios = [slow / fast for fast, slow in zip(spent["one pass"], spent["cut out"], strict=True)]
    return {
        "cpu_seconds": {name: round(statistics.median(values), 4) for name, values in spent.items()},
        "times_faster": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def masks_on(clip: CLIP, sizes: Sequence[int], chosen_on: SegmentRecords, tests: Sequence[SegmentRecords]) -> dict:
    def one_pass(size: int) -> Namer:
        return lambda image, masks: pooled(clip, image, masks, size)

    tried = {size: naming(clip, chosen_on, one_pass(size))["accuracy"] for size in sizes}
    size = max(tried, key=lambda s: tried[s])
    namers: dict[str, Namer] = {"one pass": one_pass(size), "cut out": lambda image, masks: cut_out(clip, image, masks)}
    result: dict[str, Any] = {"model": clip.name, "sizes tried": tried, "size": size}
    for name, namer in namers.items():
        runs = [naming(clip, records, namer) for records in tests]
        result[name] = {k: summary([run[k] for run in runs]) for k in runs[0]}
    return result | times(clip, tests[0][:8], namers)


# -- larger pictures than in pretraining ------------------------------------------------------------------------------


@torch.inference_mode()
def patch_means(clip: CLIP, image: Image.Image, masks: Masks, size: int) -> Tensor:
    """A ViT shown a square of `size`, its codes of places resized; the mean of each mask's patches: [N, D]."""
    tower, look = deepcopy(clip.image), clip.preprocess
    codes = tower.visual.positional_embedding
    side = round((len(codes) - 1) ** 0.5)
    grid = codes[1:].T.reshape(1, -1, side, side)
    grown = F.interpolate(grid, scale_factor=size / look.size, mode="bicubic", antialias=True).flatten(2)[0].T
    tower.visual.positional_embedding = torch.nn.Parameter(torch.cat([codes[:1], grown]))
    dense = tower.dense(look.tensor(image.resize((size, size), RESAMPLING[look.interpolation]))[None])
    shares = cover(torch.from_numpy(masks), (dense.shape[1], dense.shape[2]))
    return torch.einsum("hwd,nhw->nd", F.normalize(dense[0], dim=-1), shares)


def twice_the_size(conv: CLIP) -> dict:
    """Percent of true things named right, at the size of pretraining and at twice that: scenes of one large thing."""
    micro, result = diptych.load("micro"), {}
    for clip, namer in ((conv, pooled), (micro, patch_means)):
        for times_ in (1, 2):
            size = times_ * clip.preprocess.size
            runs = [
                naming(clip, records, lambda image, masks, c=clip, n=namer, s=size: n(c, image, masks, s))["things"]
                for records in drawn(ONE, 2 * COUNT)[1]
            ]
            result[f"{clip.name} at {size}"] = summary(runs)
    return result


# -- parts -------------------------------------------------------------------------------------------------------------


def camvid(data: Path, split: str) -> SegmentRecords:
    root = data / "camvid"
    return index_folder(root / split, root / f"{split}annot", root / "classes.txt")


def drawn(spec: SceneSpec, count: int) -> tuple[SegmentRecords, list[SegmentRecords]]:
    """Scenes to choose on and to test on."""
    choice, *tests = (scene_segments(Scenes(spec, count, seed)) for seed in (CHOICE, *SEEDS))
    return choice, tests


def parts(data: Path, conv: Path) -> dict[str, Callable[[], dict]]:
    def mini() -> CLIP:
        return diptych.load("mini")

    def scenes() -> CLIP:
        clip = diptych.load(str(conv / "scenes" / "model"))
        clip.name = "conv_scenes"
        return clip

    def coco() -> dict:
        root = data / "coco-mini"
        records = coco_instances(root / "annotations" / "instances_train2017.json", root / "train2017")[:PHOTOS]
        clip = mini()
        size = 2 * clip.preprocess.size  # the default: there are no other photos to choose on
        figures = judged(clip, records, size, records.names.index("person"))
        return {
            "model": "mini",
            "size": size,
            "pictures": len(records),
            "figures": {k: {"mean": v} for k, v in figures.items()},
        }

    return {
        "dense camvid": lambda: dense_on(mini(), SIZES["camvid"], camvid(data, "train")[::8], [camvid(data, "test")]),
        "dense coco": coco,
        "dense scenes": lambda: dense_on(scenes(), SIZES["scenes"], *drawn(SPEC, COUNT)),
        "dense unseen": lambda: dense_on(scenes(), SIZES["scenes"], *drawn(UNSEEN, COUNT)),
        "dense micro": lambda: dense_on(diptych.load("micro"), SIZES["micro"], *drawn(ONE, COUNT)),
        "masks camvid": lambda: masks_on(mini(), SIZES["camvid"], camvid(data, "train")[::4], [camvid(data, "test")]),
        "masks scenes": lambda: masks_on(scenes(), SIZES["scenes"], *drawn(SPEC, COUNT)),
        "twice the size": lambda: twice_the_size(scenes()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("conv", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where each part is kept")
    parser.add_argument("--parts", help="some of them, with ; between")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = parts(given.data, given.conv)
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if given.write and RESULTS.is_file() else {}
    for name in given.parts.split(";") if given.parts else known:
        kept = given.out / f"{name.replace(' ', '_')}.json"
        if not kept.is_file():
            start = time.process_time()
            found = known[name]()
            found |= {"cpu_minutes": round((time.process_time() - start) / 60, 1), "provenance": provenance()}
            write_atomically(kept, json.dumps(found, indent=1).encode())
        result[name] = json.loads(kept.read_text())
        print(name, json.dumps(result[name]), flush=True)
    for name, found in result.items():
        if name.startswith("masks"):
            found["asked"] = f"{ASKED} times faster at no lower accuracy"
            equal = found["one pass"]["accuracy"]["mean"] >= found["cut out"]["accuracy"]["mean"]
            found["reached"] = found["times_faster"] >= ASKED and equal
    if given.write:
        write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
