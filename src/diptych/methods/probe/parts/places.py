"""What a model knows beyond whole pictures: which patch is which from another view, and which text is whose."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.data.pairs import BadPair, Pairs
from diptych.data.pictures import BadPicture
from diptych.data.scenes import SceneRecord
from diptych.data.scenes.draw import draw
from diptych.errors import DiptychError, Unsupported
from diptych.methods.probe.parts.data import Data
from diptych.methods.probe.parts.probe import Model
from diptych.metrics.correspondence import errors, matches, recall_within

BATCH = 32
PATCHES = (1.0, 2.0)  # thresholds, in patches


def correspondence(model: Model, data: Data, shifts: Sequence[float], most: int) -> dict[str, Any]:
    """Recall of matched patches between two views of drawn scenes, by how far the camera moved.

    Patches of the last block, after the last norm. Only those on a thing are asked for, and of the second view those
    that still show it.
    """
    if not data.scenes:
        return {"skipped": "needs two views of a scene with known places; only drawn scenes have them"}
    some = data.at_most(most)
    chosen = [some.scenes[record.id] for record in some.records]
    try:
        first = patches(model.clip, [record.scene for record in chosen], chosen[0].spec.side)
    except Unsupported as error:
        return {"skipped": str(error)}
    grid = int(first.shape[1] ** 0.5)
    found: dict[str, Any] = {"pictures": len(some), "grid": grid, "shifts": {}}
    for shift in shifts:
        moved = [record.scene.seen_from(shift, 0.0) for record in chosen]
        second = patches(model.clip, moved, chosen[0].spec.side)
        error = torch.cat([
            of_pair(record, scene, one, two, shift, grid)
            for record, scene, one, two in zip(chosen, moved, first, second, strict=True)
        ])  # fmt: skip
        recall = recall_within(error, PATCHES)
        found["shifts"][f"{shift:g}"] = {"patches": len(error), **{f"{t:g}": v for t, v in recall.items()}}
    return found


def of_pair(record: SceneRecord, moved: Any, one: Tensor, two: Tensor, shift: float, grid: int) -> Tensor:
    """Errors in patches [K] of one pair of views; one, two [grid * grid, W]."""
    side = record.spec.side
    owner, depth = replace(record).drawing.owner, replace(record).drawing.depth
    after = draw(moved, side).owner
    at = ((np.arange(grid) + 0.5) * side / grid).astype(int)
    y, x = (a.ravel() for a in np.meshgrid(at, at, indexing="ij"))  # centres, row by row as the tower's patches
    goal = x - shift * side / depth[y, x]
    seen = (owner[y, x] >= 0) & (goal >= 0) & (goal < side)
    seen[seen] = after[y[seen], goal[seen].astype(int)] == owner[y[seen], x[seen]]
    if not seen.any():
        return torch.empty(0, dtype=torch.float64)
    index, _ = matches(one[torch.from_numpy(seen)], two)
    centres = torch.from_numpy(np.stack([x, y], 1))[index].double()
    truth = torch.from_numpy(np.stack([goal, y], 1)[seen])
    return errors(centres, truth) * grid / side


def patches(clip: CLIP, scenes: Sequence[Any], side: int) -> Tensor:
    """[N, grid * grid, W]. Raises Unsupported for a tower that gives no square of patches."""
    from PIL import Image

    parts = []
    for start in range(0, len(scenes), BATCH):
        pictures = [Image.fromarray(draw(scene, side).picture) for scene in scenes[start : start + BATCH]]
        pixels = torch.stack([clip.preprocess(picture) for picture in pictures]).to(clip.device)
        with torch.no_grad():
            tokens = clip.image(pixels, tokens=True).tokens
        if tokens is None or tokens.dim() != 3:
            raise Unsupported(f"the picture tower of {clip.name} gives no patches")
        grid = int(tokens.shape[1] ** 0.5)
        if tokens.shape[1] - grid * grid > 1:
            raise Unsupported(f"the {tokens.shape[1]} tokens of {clip.name} are no square of patches")
        parts.append(tokens[:, tokens.shape[1] - grid * grid :].cpu())
    return torch.cat(parts)


def embed_pairs(clip: CLIP, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [N, D], all their texts [T, D], and whose each text is [T]; pairs that cannot be used are left out."""
    rows, texts, owner = [], [], []
    pixels: list[Tensor] = []

    def flush() -> None:
        if pixels:
            with torch.inference_mode():
                rows.append(clip.encode_image(torch.stack(pixels)).float().cpu())
            pixels.clear()

    count = 0
    for number in range(len(pairs)):
        try:
            pair = pairs[number]
            pixels.append(clip.preprocess(pair.picture()))
        except (BadPair, BadPicture):
            continue
        texts += pair.texts
        owner += [count] * len(pair.texts)
        count += 1
        if len(pixels) == BATCH:
            flush()
    flush()
    if not rows:
        raise DiptychError(f"{pairs.source}: no pair of a picture and a text can be read")
    return torch.cat(rows).clone(), clip.encode_text(texts).float().cpu(), torch.tensor(owner)
