"""A small ConvNet-CLIP that knows drawn things and grounds, for the benchmarks of dense prediction.

    python benchmarks/conv_scenes.py FOLDER        # some 9 minutes of one core; a stopped run continues
    diptych.load("FOLDER/scenes/model")            # strides 4, 8, 16, 32; 64 x 64 pixels

A small ConvNeXt of timm learns to meet the texts of micro's text tower, which stays as it is. It is shown windows of 64
pixels around one thing of a larger scene, of 1.1 to 2.2 times the thing, with what else is in them, and windows of
ground alone. The colour-shape combinations that `SPEC` holds out are in no window. Of such windows it names 98 of 100
things among 68 names (99 of those held out). Its kernels of 7 places reach over all of a small picture, so that in a
larger one it sees what it was never shown. The same weights every time on one machine.
"""

import argparse
import json
from dataclasses import replace
from functools import cache
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
SIDE, SCENES, STEPS, BATCH = 64, 4000, 1600, 128
WIDER = (1.1, 2.2)  # a window's side, in diameters of its thing
TOWER = "test_convnext2"
SETTINGS = {
    "recipe.rate": 2e-3, "recipe.weight_decay": 0.05, "recipe.warmup": 80, "recipe.crop": 0.8, "recipe.clip": 1.0,
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


@cache
def drawn() -> list[tuple[Image.Image, str, str]]:
    return windows(SPEC, SCENES, 0)


def pair(index: int) -> Pair:
    image, thing, ground = drawn()[index]
    rng = stream(0, index, "text")
    said = (
        rng.choice((f"a {thing}", thing, f"a {thing} on {ground}"))
        if thing
        else rng.choice((ground, f"a picture of {ground}"))
    )
    return Pair(str(index), lambda: image, (said,), {})


@torch.inference_mode()
def accuracy(clip: CLIP, spec: SceneSpec, count: int = 200, seed: int = 1000) -> dict[str, float]:
    """Zero-shot on windows of other scenes, in percent: each among all things of the spec and all grounds."""
    names = [f"{colour} {shape}" for shape in spec.shapes for colour in spec.colours] + list(spec.backgrounds)
    rows = F.normalize(clip.encode_text([f"a {n}" for n in names[: -len(spec.backgrounds)]] + names[-4:]), dim=1)
    shown = windows(spec, count, seed)
    pixels = torch.stack([clip.preprocess(image) for image, _, _ in shown])
    images = torch.cat([clip.encode_image(part) for part in pixels.split(256)])
    guess = [names[i] for i in (F.normalize(images, dim=1) @ rows.T).argmax(1).tolist()]
    right = {"things": [g == t for g, (_, t, _) in zip(guess, shown, strict=True) if t]}
    right["grounds"] = [g == b for g, (_, t, b) in zip(guess, shown, strict=True) if not t]
    return {name: round(100 * sum(values) / len(values), 1) for name, values in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pairs = Pairs("windows of scenes", len(drawn()), pair, digest=f"windows {SPEC} {SCENES}")
    settings = {name: str(value) for name, value in SETTINGS.items()}
    diptych.train(
        "clip", pairs, model=fresh(), out=given.out / "scenes", settings=settings, steps=given.steps, batch=BATCH,
        workers=0, save_every=200, progress=lambda row, _: print(row) if row["step"] % 100 == 0 else None,
    )  # fmt: skip
    clip = diptych.load(str(given.out / "scenes" / "model"))
    reached = {
        "seen": accuracy(clip, SPEC),
        "held out": accuracy(clip, replace(SPEC, combinations="unseen", counts=(1, 2))),
        "chance": round(100 / (len(SPEC.shapes) * len(SPEC.colours) + len(SPEC.backgrounds)), 1),
    }
    print(json.dumps(reached))


if __name__ == "__main__":
    main()
