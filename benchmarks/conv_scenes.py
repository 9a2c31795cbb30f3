"""A small ConvNet-CLIP that knows drawn things and grounds, for the benchmarks of dense prediction.

    python benchmarks/conv_scenes.py FOLDER        # some 5 minutes of one core; a stopped run continues
    diptych.load("FOLDER/scenes/model")            # strides 4, 8, 16, 32

A small ConvNeXt of timm, of kernels 7, 5, 5 and 3, learns to meet the texts of micro's text tower, which stays as it
is. First windows of 64 pixels around one thing of a larger scene, of 1.1 to 2.2 times the thing, and windows of ground;
then whole scenes of 128 pixels, for what its last map has at the border in small pictures is not what it has there in
large ones. The colour-shape combinations that `SPEC` holds out are in none. The same weights every time on one machine.
"""

import argparse
import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

import diptych
from diptych.core.build import build_open_clip, image_tower
from diptych.core.clip import CLIP
from diptych.core.micro import CONFIG, MEAN, STD, micro
from diptych.core.preprocess import Preprocess
from diptych.data.pairs import Pair, Pairs
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.scenes.spec import stream

SPEC = SceneSpec(
    side=192,
    shapes=("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond"),
    colours=("red", "orange", "yellow", "green", "blue", "purple", "pink", "black"),
    backgrounds=("snow", "sand", "grass", "water"),
    counts=(2, 3),
    held_out=0.2,
    combinations="seen",
)
WHOLE = replace(SPEC, side=128, sizes=("medium", "large"), counts=(0, 1, 1, 2, 2))
SIDE, SCENES, BATCH = 64, 4000, 128
STEPS = {"windows": 600, "scenes": 300}
WIDER = (1.1, 2.2)  # a window's side, in diameters of its thing
TOWER = "test_convnext3"
RATES = {"windows": 2e-3, "scenes": 1e-3}
SETTINGS = {
    "recipe.weight_decay": "0.05", "recipe.warmup": "50", "recipe.crop": "0.8", "recipe.clip": "1.0",
    "recipe.freeze": "towers.text.*",
}  # fmt: skip


def fresh() -> CLIP:
    """The tower with chance weights beside micro's texts; saved in open_clip's layout."""
    known = micro()
    vision = {"image_size": SIDE, "timm_model_name": TOWER, "timm_pool": "", "timm_proj": "linear"}
    config: dict[str, Any] = {"embed_dim": CONFIG["embed_dim"], "vision_cfg": vision, "text_cfg": CONFIG["text_cfg"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        visual = build_open_clip(config, TOWER).visual
    for name, parameter in visual.named_parameters():
        if name.endswith(".gamma"):  # layer scales start at 1e-6, for runs of many epochs
            torch.nn.init.ones_(parameter)
    look = Preprocess(SIDE, MEAN, STD)
    image = image_tower(visual, config["embed_dim"])
    clip = CLIP("conv_scenes", image, known.text, known.tokenizer, look, logit_scale=1 / 0.07)
    clip.origin = {"library": "open_clip", "model_cfg": config}
    return clip


def windows(spec: SceneSpec, count: int, seed: int) -> list[tuple[Image.Image, str, str]]:
    """(window, the thing in its middle or "", the ground): one for each thing, and one of ground a scene."""
    found = []
    for record in Scenes(spec, count, seed):
        rng, picture, side = stream(seed, record.index, "windows"), record.image(), spec.side
        empty = ~np.logical_or.reduce(record.masks, axis=0)
        record.__dict__.pop("drawing", None)
        for thing in record.scene.things:
            reach = thing.radius * rng.uniform(*WIDER)
            x, y = (at + rng.uniform(-0.2, 0.2) * thing.radius for at in (thing.x, thing.y))
            found.append((window(picture, x, y, reach), f"{thing.colour} {thing.shape}", record.scene.background))
        for _ in range(20):
            x, y, reach = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.1, 0.2)
            rows, columns = (slice(max(0, int((at - reach) * side)), int((at + reach) * side)) for at in (y, x))
            if empty[rows, columns].mean() > 0.95:
                found.append((window(picture, x, y, reach), "", record.scene.background))
                break
    return found


def window(picture: Image.Image, x: float, y: float, reach: float) -> Image.Image:
    """The square around a place, moved into the picture; all are shares of its side."""
    side = 2 * reach * picture.width
    left, top = (min(max(0.0, at * picture.width - side / 2), picture.width - side) for at in (x, y))
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def wholes(spec: SceneSpec, count: int, seed: int) -> list[tuple[Image.Image, str, str]]:
    """(scene, its things, its ground)."""
    found = []
    for record in Scenes(spec, count, seed):
        things = " and a ".join(f"{thing.colour} {thing.shape}" for thing in record.scene.things)
        found.append((record.image(), things, record.scene.background))
        record.__dict__.pop("drawing", None)
    return found


@cache
def drawn(stage: str) -> list[tuple[Image.Image, str, str]]:
    """What a stage is trained on."""
    return windows(SPEC, SCENES, 0) if stage == "windows" else wholes(WHOLE, 2 * SCENES, 1)


def pair(stage: str, index: int) -> Pair:
    image, things, ground = drawn(stage)[index]
    rng = stream(0, index, "text")
    said = rng.choice((f"a {things}", things, f"a {things} on {ground}") if things else (ground, f"a {ground}"))
    return Pair(str(index), lambda: image, (said,), {})


def train(stage: str, start: CLIP, out: Path) -> CLIP:
    def show(row: dict[str, float], _: object) -> None:
        if row["step"] % 100 == 0:
            print(stage, row, flush=True)

    pairs = Pairs(stage, len(drawn(stage)), partial(pair, stage), digest=f"{stage} {SPEC} {WHOLE} {SCENES}")
    diptych.train(
        "clip", pairs, model=start, out=out / stage, settings=SETTINGS, steps=STEPS[stage], batch=BATCH, workers=0,
        rate=RATES[stage], save_every=100, progress=show,
    )  # fmt: skip
    return diptych.load(str(out / stage / "model"))


@torch.inference_mode()
def accuracy(clip: CLIP, shown: list[tuple[Image.Image, str, str]]) -> dict[str, float]:
    """Zero-shot, in percent: pictures of one thing or of ground, each among all things of the spec and all grounds."""
    things = [f"{colour} {shape}" for shape in SPEC.shapes for colour in SPEC.colours]
    names = [*things, *SPEC.backgrounds]
    rows = F.normalize(clip.encode_text([f"a {name}" for name in things] + list(SPEC.backgrounds)), dim=1)
    pixels = torch.stack([clip.preprocess(image) for image, _, _ in shown])
    images = torch.cat([clip.encode_image(part) for part in pixels.split(256)])
    guess = [names[i] for i in (F.normalize(images, dim=1) @ rows.T).argmax(1).tolist()]
    right = {"things": [g == t for g, (_, t, _) in zip(guess, shown, strict=True) if t]}
    right["grounds"] = [g == b for g, (_, t, b) in zip(guess, shown, strict=True) if not t]
    return {name: round(100 * sum(values) / len(values), 1) for name, values in right.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    clip = train("windows", fresh(), given.out)
    print(json.dumps(accuracy(clip, windows(SPEC, 200, 1000))))
    clip.preprocess = replace(clip.preprocess, size=WHOLE.side)
    clip = train("scenes", clip, given.out)
    unseen = replace(WHOLE, combinations="unseen", counts=(1,))
    reached = {
        "seen": accuracy(clip, wholes(replace(WHOLE, counts=(0, 1, 1, 1)), 600, 1000)),
        "held out": accuracy(clip, wholes(unseen, 400, 1000)),
        "chance": round(100 / (len(SPEC.shapes) * len(SPEC.colours) + len(SPEC.backgrounds)), 1),
    }
    print(json.dumps(reached))


if __name__ == "__main__":
    main()
