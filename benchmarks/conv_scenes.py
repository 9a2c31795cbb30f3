"""A small ConvNet-CLIP that knows drawn things and grounds, for the benchmarks of dense prediction.

    python benchmarks/conv_scenes.py FOLDER        # some 20 minutes of one core; a stopped run continues
    diptych.load("FOLDER/scenes/model")            # strides 4, 8, 16, 32; 64 x 64 pixels
    diptych.load("FOLDER/regions/model")           # the same, after a second stage on whole scenes

A small ConvNeXt of timm learns to meet the texts of micro's text tower, which stays as it is. It is shown windows of 64
pixels around one thing of a larger scene, of 1.1 to 2.2 times the thing, with what else is in them, and windows of
ground alone. The colour-shape combinations that `SPEC` holds out are in no window. Of such windows it names 98 of 100
things among 68 names (99 of those held out). Its kernels of 7 places reach over all of a small picture, so that in a
larger one it sees what it was never shown.

So there is a second stage: whole scenes, of which the part of the last map below a window, the same windows as before,
is to meet the text of its thing, and the part below a place of ground that of the ground. No masks; and no window of a
thing of `apart`, so that these are in no window of it. The same weights every time on one machine.
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
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.core.build import build_open_clip, image_tower
from diptych.core.clip import CLIP
from diptych.core.micro import CONFIG, MEAN, STD, micro
from diptych.core.preprocess import Preprocess
from diptych.core.towers.blocks import StagedTower
from diptych.data.pairs import Pair, Pairs
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
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
CLOSER = (1.0, 1.3)  # likewise, in the second stage
REGION_STEPS, REGION_BATCH, REGION_RATE = 600, 16, 1e-3
# Of other benchmarks, which leave these out: no part of a scene that is trained on shows one.
SOME = replace(SPEC, shapes=("circle", "square", "star", "heart"), colours=("red", "yellow", "green", "blue"))
APART = replace(SOME, combinations="unseen")
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


Place = tuple[float, float, float, str, str]  # x, y, half a window's side; the thing in its middle or ""; the ground


def places(record: SceneRecord, spec: SceneSpec, seed: int, wider: tuple[float, float] = WIDER) -> list[Place]:
    """One around each thing, and one of ground; shares of the picture's side."""
    found = []
    rng, side = stream(seed, record.index, "windows"), spec.side
    empty = ~np.logical_or.reduce(record.masks, axis=0)
    for thing in record.scene.things:
        reach = thing.radius * rng.uniform(*wider)
        x, y = (at + rng.uniform(-0.2, 0.2) * thing.radius for at in (thing.x, thing.y))
        found.append((x, y, reach, f"{thing.colour} {thing.shape}", record.scene.background))
    for _ in range(20):
        x, y, reach = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.1, 0.2)
        rows, columns = (slice(max(0, int((at - reach) * side)), int((at + reach) * side)) for at in (y, x))
        if empty[rows, columns].mean() > 0.95:
            found.append((x, y, reach, "", record.scene.background))
            break
    return found


def windows(spec: SceneSpec, count: int, seed: int) -> list[tuple[Image.Image, str, str]]:
    """(window, the thing in its middle or "", the ground): one for each thing, and one of ground a scene."""
    found = []
    for record in Scenes(spec, count, seed):
        picture = record.image()
        found += [(window(picture, *place[:3]), *place[3:]) for place in places(record, spec, seed)]
        record.__dict__.pop("drawing", None)
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


# -- the second stage: parts of whole scenes -------------------------------------------------------------------------


def cells(place: Place, grid: int) -> Tensor:
    """The share of each cell of the last map, [grid, grid], that lies below a window."""
    x, y, reach, *_ = place
    edges = torch.arange(grid + 1) / grid

    def covered(at: float) -> Tensor:
        return grid * (edges[1:].clamp(max=at + reach) - edges[:-1].clamp(min=at - reach)).clamp(min=0)

    return torch.outer(covered(y), covered(x))


def on_regions(clip: CLIP, steps: int = REGION_STEPS, batch: int = REGION_BATCH) -> None:
    """Train the picture tower of a CLIP in place: parts of scenes against the texts of all that is shown."""
    torch.manual_seed(0)
    apart = {f"{colour} {shape}" for colour, shape in APART.pairs}
    names = [n for n in (f"{c} {s}" for c, s in SPEC.pairs) if n not in apart] + list(SPEC.backgrounds)
    with torch.no_grad():
        texts = [f"a {name}" if name not in SPEC.backgrounds else name for name in names]
        rows = F.normalize(clip.encode_text(texts), dim=1)
    tower = clip.image
    assert isinstance(tower, StagedTower)
    tower.train().requires_grad_()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=REGION_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, REGION_RATE, total_steps=steps, pct_start=0.1)
    scenes = Scenes(SPEC, steps * batch, 1)
    for step in range(steps):
        records = [scenes[i] for i in range(step * batch, (step + 1) * batch)]
        shown = [[p for p in places(r, SPEC, 1, CLOSER) if p[3] not in apart] for r in records]
        pixels = torch.stack([clip.preprocess.tensor(record.image()) for record in records])
        _, last = tower.maps(pixels)
        total, count = last.new_zeros(()), 0
        for one, found in zip(last, shown, strict=True):
            masks = torch.stack([cells(place, one.shape[-1]) for place in found])
            logits = clip.score(tower.regions(one[None], masks[None])[0], rows)
            target = torch.tensor([names.index(place[3] or place[4]) for place in found])
            total, count = total + F.cross_entropy(logits, target, reduction="sum"), count + len(found)
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print({"step": step + 1, "loss": round(float(total.detach()) / count, 3)}, flush=True)
    clip.eval()


@torch.inference_mode()
def region_accuracy(clip: CLIP, spec: SceneSpec, count: int = 200, seed: int = 2000) -> dict[str, float]:
    """The parts below windows of other scenes, each named among all things of the spec and all grounds, in percent."""
    names = [f"{colour} {shape}" for shape in spec.shapes for colour in spec.colours] + list(spec.backgrounds)
    rows = F.normalize(clip.encode_text([f"a {n}" for n in names[: -len(spec.backgrounds)]] + names[-4:]), dim=1)
    right: dict[str, list[bool]] = {"things": [], "grounds": []}
    assert isinstance(clip.image, StagedTower)
    for record in Scenes(spec, count, seed):
        _, last = clip.image.maps(clip.preprocess.tensor(record.image())[None])
        found = places(record, spec, seed, CLOSER)
        masks = torch.stack([cells(place, last.shape[-1]) for place in found])
        guess = (F.normalize(clip.image.regions(last, masks[None])[0], dim=1) @ rows.T).argmax(1).tolist()
        for place, k in zip(found, guess, strict=True):
            right["things" if place[3] else "grounds"].append(names[k] == (place[3] or place[4]))
    return {name: round(100 * sum(values) / len(values), 1) for name, values in right.items()}


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
    place = given.out / "regions" / "model"
    if not place.is_dir():
        on_regions(clip)
        diptych.save(clip, place)
    for name in ("scenes", "regions"):
        clip = diptych.load(str(given.out / name / "model"))
        unseen = replace(SPEC, combinations="unseen", counts=(1, 2))
        print(name, json.dumps({"seen": region_accuracy(clip, SPEC), "held out": region_accuracy(clip, unseen)}))


if __name__ == "__main__":
    main()
