"""A model as named tensors that a line can be drawn through: its picture tower and one head over the classes.

The head is the texts' rows times the temperature, so that it moves with the tower; features have length one inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.edits import EditedTower
from diptych.core.heads import Linear, TextRows
from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.core.tower import Tower
from diptych.core.weights import Weights, check_alike
from diptych.errors import DiptychError, Unsupported
from diptych.methods.probe.parts.data import Data
from diptych.methods.probe.parts.probe import Model

HEAD, BIAS, TOWER = "head.weight", "head.bias", "image."
BATCH = 64


def tower_of(clip: CLIP) -> Tower:
    tower = clip.image
    return tower.base if isinstance(tower, EditedTower) else tower


def tensors_of(model: Model, data: Data) -> dict[str, Tensor]:
    """All that decides its logits: "image.<parameter or buffer>", "head.weight" [C, D], "head.bias" [C]; copies.

    Raises Unsupported for a classifier that is more than weights and a matrix, and for classes that it does not know.
    """
    clip, tower = model.clip, tower_of(model.clip)
    named = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    if isinstance(clip.image, EditedTower):
        if clip.image.edits.prompts:
            raise Unsupported(f"{model.name} has prompts in its tower, and no line leads to those")
        named |= clip.image.edits.parameters(tower)
    if model.classifier is None:
        rows = class_rows(clip, data.names, TextRecipe(data.templates or ENSEMBLE))
        weight = clip.logit_scale * rows
        bias = torch.zeros(len(rows)) if clip.logit_bias is None else clip.logit_bias.expand(len(rows))
    else:
        head = model.classifier.head
        if missing := [name for name in data.classes if name not in model.classifier.classes]:
            raise DiptychError(f'{model.name} does not know the class "{missing[0]}" of {data.records.source}')
        order = [model.classifier.classes.index(name) for name in data.classes]
        if isinstance(head, TextRows):
            weight, bias = head.scale * head.rows[order], torch.zeros(len(order))
        elif isinstance(head, Linear):
            weight, bias = head.weight[order], head.bias[order]
        else:
            raise Unsupported(f"the head of {model.name} ({type(head).__name__}) is no matrix")
    found = {TOWER + name: tensor for name, tensor in named.items()} | {HEAD: weight, BIAS: bias}
    return {name: tensor.detach().to(clip.device, copy=True) for name, tensor in found.items()}


def ends(first: Model, second: Model, data: Data) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both as tensors of one shape. Raises DiptychError where they are not alike."""
    one, two = tensors_of(first, data), tensors_of(second, data)
    try:
        check_alike(one, two)
    except DiptychError as error:
        raise DiptychError(f"no line leads from {first.name} to {second.name}: {error}") from error
    looks = (first.clip.preprocess, second.clip.preprocess)
    if looks[0] != looks[1]:
        raise DiptychError(f"{first.name} and {second.name} look at pictures in different ways: {looks[0]}, {looks[1]}")
    return one, two


def logits(tower: Tower, weights: Weights, pixels: Tensor) -> Tensor:
    """pixels [B, 3, H, W] -> logits [B, C] of the tower with these weights; its own stay as they are."""
    own = {name.removeprefix(TOWER): t for name, t in weights.items() if name.startswith(TOWER)}
    x = functional_call(tower, own, (pixels,)).embedding
    return F.normalize(x, dim=-1) @ weights[HEAD].T + weights[BIAS]


@dataclass(frozen=True)
class Judged:
    """Labelled pixels [N, 3, H, W] and labels [N], and what weights make of them. logit_norm: logits are divided by
    their length and multiplied by `logit_norm` before the loss, since a loss grows with them; 0 leaves them."""

    tower: Tower
    pixels: Tensor
    labels: Tensor
    logit_norm: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, rows: slice) -> "Judged":
        return Judged(self.tower, self.pixels[rows], self.labels[rows], self.logit_norm)

    def loss(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Mean cross entropy, in one batch and in the graph."""
        z = logits(self.tower, weights, self.pixels)
        if self.logit_norm:
            z = self.logit_norm * F.normalize(z, dim=-1)
        return F.cross_entropy(z, self.labels)

    def answers(self, weights: Weights) -> Tensor:
        """Logits [N, C], in batches and without a graph."""
        with torch.no_grad():
            return torch.cat([logits(self.tower, weights, part) for part in self.pixels.split(BATCH)])

    def score(self, weights: Weights) -> dict[str, float]:
        """accuracy and loss."""
        z = self.answers(weights)
        right = (z.argmax(1) == self.labels).double().mean()
        return {"accuracy": float(right), "loss": float(F.cross_entropy(z, self.labels))}
