"""TinyCLIP: a smaller CLIP, made of the best parts of a large one, which keeps what that thinks of pictures and texts.

Use it where a CLIP is good but too large or too slow: which channels, heads and units it can do without is learned,
they are cut away in the middle of the run, and what is left is trained to give the large one's affinities of all
pictures and texts in a batch. Not for ConvNets and towers of other libraries, not below a quarter at once (go there in
stages), and not without pairs like those that the small CLIP is for.

Wu et al., TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight Inheritance, ICCV 2023, arXiv 2309.12314:
affinity mimicking (section 3.1), manual and automatic inheritance (3.2), stages (3.3). Published: ImageNet zero-shot
63.5 of ViT-39M/16 with a text tower of 19M (YFCC-15M), 61.4 of ViT-45M/32 with 18M (LAION-400M). As everywhere here,
the gradient is clipped as a whole and one optimiser moves both towers; the joint projection's rows are not multiplied
by the channels' gates, so that the cut model is the gated one; and expected sizes count biases.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.core.gates import cut_closed, gated
from diptych.core.surgery import TOWERS, Shape, cut, leading, record, shape_of
from diptych.errors import DiptychError, nearest
from diptych.losses.contrastive import softmax_contrastive
from diptych.losses.matrix import matrix_distillation
from diptych.methods.distill.parts.compared import Facts, losses, sizes, speeds
from diptych.methods.distill.parts.concrete import Sized
from diptych.methods.distill.parts.inherit import smaller, spread
from diptych.methods.pretrain.parts.contrast import unit
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairsLike, Phase, Recipe

MODES, DEPTHS = ("auto", "manual"), ("step", "uniform")
ENOUGH = 600  # steps of gates at their own rate


@dataclass(frozen=True)
class Config:
    """keep: the share of the blocks' parameters that stays. mode: "auto" learns what to cut, "manual" takes the first
    of everything. stages: shares kept on the way, such as 0.75,0.5 before a `keep` of 0.25; all get as many steps.

    Auto: prune_step, the step of a stage at which it is cut (published: 3000, 5000 and 8000 of three stages; at most
    half of the stage); sparsity_warmup, the steps until the target is reached (at most two thirds of those); gate_rate,
    multiplier_rate: constant learning rates of the gates and, uphill, of the multipliers. A gate has some 6 to go until
    it is closed, so in fewer than 600 steps of gates both rates are as many times larger as there are fewer.
    Manual: image_layers, text_layers, how many blocks stay (0: all; the rest is cut from the width); depth, which:
    "step" is the published rule, every second, third, ... and else the first ones; "uniform" spreads them.
    alpha: the share of affinity mimicking in the loss, the rest is CLIP's own; scale: 1 / temperature, of both models.
    """

    keep: float = 0.5
    mode: str = "auto"
    stages: str = ""
    prune_step: int = 3000
    sparsity_warmup: int = 1000
    gate_rate: float = 0.02
    multiplier_rate: float = -0.02
    image_layers: int = 0
    text_layers: int = 0
    depth: str = "step"
    alpha: float = 1.0
    scale: float = 50.0


class TinyClip(Objective):
    Config = Config
    recipe = Recipe(rate=1e-4, warmup=3000, clip=5.0, freeze="log_scale")
    trains = ("both towers", "gates, in the first part of a stage")
    needs = "pairs like those that the small model is for"
    untrained = "a manual cut is saved as it is, and nothing is trained: it has lost most of what the model knew"
    reshapes = True
    epochs = 6
    held_out = 256

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c = self.config
        for name, valid in (("mode", MODES), ("depth", DEPTHS)):
            if (given := getattr(c, name)) not in valid:
                raise DiptychError(f'tinyclip.{name} cannot be "{given}"{nearest(given, valid)}')
        try:
            self.keeps = (*(float(word) for word in c.stages.split(",") if word.strip()), c.keep)
        except ValueError as error:
            raise DiptychError(
                f'tinyclip.stages cannot be "{c.stages}": shares are needed, such as 0.75,0.5'
            ) from error
        if not all(1 >= more > less > 0 for more, less in zip((1.0, *self.keeps), self.keeps, strict=False)):
            raise DiptychError(f"tinyclip keeps {self.keeps} of the model: shares must fall, from below 1 to above 0")
        self.stage, self.steps, self.seed = 0, 1, 0
        self.heads: Sized | None = None

    # -- what the run begins with, and the cuts ------------------------------------------------------------------------

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        self.seed = seed
        self.shapes = shapes_of(clip)
        self.whole = sum(shape.parameters for shape in self.shapes.values())
        self.teacher = copy.deepcopy(clip).eval().requires_grad_(False)
        if len(pairs):
            clip.log_scale.data.fill_(math.log(self.config.scale))
        elif self.config.mode == "auto":
            raise DiptychError(
                "what to cut is learned from data: give --data, or tinyclip.mode=manual to take the first of everything"
            )
        self.begin(clip, 0 if len(pairs) else len(self.keeps) - 1)

    def begin(self, clip: CLIP, stage: int) -> None:
        """Gates for all that there is; a manual cut is done at once."""
        self.stage = stage
        if self.config.mode == "auto":
            self.heads = Sized(self.shapes, self.whole)
            return
        layers = {"image": self.config.image_layers, "text": self.config.text_layers}
        for name in TOWERS:
            target = smaller(shape_of(self.teacher.towers[name]), self.keeps[stage], layers[name])  # type: ignore[arg-type]
            blocks = spread(len(self.shapes[name].heads), len(target.heads), self.config.depth)
            cut(clip.towers[name], leading(target, blocks))  # type: ignore[arg-type]
        self.changed(clip)

    def changed(self, clip: CLIP) -> None:
        self.shapes = shapes_of(clip)
        record(clip)

    def reshape(self, clip: CLIP, step: int, steps: int) -> bool:
        start, prune, _ = self.span(step, steps)
        if step == start and (stage := self.stage_at(step, steps)) > self.stage:
            self.begin(clip, stage)
            return True
        if step != prune or self.heads is None:
            return False
        for name, gates in self.heads.each():
            cut_closed(clip.towers[name], gates.settled())  # type: ignore[arg-type]
        self.changed(clip)
        self.heads = None
        return True

    def stage_at(self, step: int, steps: int) -> int:
        return min(step * len(self.keeps) // steps, len(self.keeps) - 1)

    def span(self, step: int, steps: int) -> tuple[int, int, int]:
        """Of the stage that a step belongs to: its first step, the one before which it is cut, that of the target."""
        count = len(self.keeps)
        start, end = (math.ceil((self.stage_at(step, steps) + i) * steps / count) for i in (0, 1))
        gates = min(self.config.prune_step, (end - start) // 2)
        return start, start + gates, start + max(1, min(self.config.sparsity_warmup, 2 * gates // 3))

    # -- a step --------------------------------------------------------------------------------------------------------

    def phase(self, step: int, steps: int) -> Phase:
        self.steps = steps
        return Phase()

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        with self.behind_gates(clip, batch.step):
            student = super().embed(clip, batch)
        return student | {f"teacher_{name}": rows for name, rows in self.taught(batch).items()}

    @torch.no_grad()
    def taught(self, batch: Batch) -> Embeddings:
        """What the teacher makes of a batch."""
        return super().embed(self.teacher, batch)

    @contextmanager
    def behind_gates(self, clip: CLIP, step: int) -> Iterator[None]:
        """While gates are learned: one draw a step, a function of (seed, step)."""
        with ExitStack() as stack:
            if self.heads is not None:
                generator = torch.Generator().manual_seed(hash((self.seed, step, 1)) & 0x7FFFFFFF)
                for name, gates in self.heads.each():
                    stack.enter_context(gated(clip.towers[name], gates.sample(generator)))  # type: ignore[arg-type]
            yield

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        """The affinities of all pictures and texts, rows and columns, at one fixed temperature (equations 1 to 3)."""
        c = self.config
        image, text, *teacher = unit(embeddings, "image", "text", "teacher_image", "teacher_text")
        mimicked = matrix_distillation(c.scale * image @ text.T, [c.scale * teacher[0] @ teacher[1].T])
        terms = {"affinity": c.alpha * mimicked}
        if c.alpha < 1:
            scale = torch.tensor(c.scale, device=image.device)
            own = softmax_contrastive(image, text, scale, ids=batch.same, part=batch.own)
            terms["contrastive"] = (1 - c.alpha) * own
        if self.heads is not None:
            terms["size"] = self.heads.penalty(self.target(batch.step))
        return terms

    def target(self, step: int) -> float:
        """The share that may be left at a step of learning gates: from the last stage's to this one's, in a line."""
        start, _, reached = self.span(step, self.steps)
        before, after = (1.0, *self.keeps)[self.stage : self.stage + 2]
        return before + (after - before) * min(1.0, (step - start) / (reached - start))

    def after_step(self, clip: CLIP) -> None:
        if self.heads is not None:
            for _, gates in self.heads.each():
                gates.bound()

    def rates(self, steps: int) -> dict[str, float]:
        start, prune, _ = self.span(math.ceil(self.stage * steps / len(self.keeps)), steps)
        faster = max(1.0, ENOUGH / max(1, prune - start))
        own = {"heads.towers.*": self.config.gate_rate, "heads.multipliers": self.config.multiplier_rate}
        return {name: rate * faster for name, rate in own.items()}

    # -- the checkpoint ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The stage, and the shapes, by which a resumed run finds the structure that the weights belong to."""
        found = {"stage": torch.tensor(self.stage), "gated": torch.tensor(self.heads is not None)}
        for name, shape in self.shapes.items():
            found[f"{name}.width"] = torch.tensor(shape.width)
            found |= {f"{name}.heads": torch.tensor(shape.heads), f"{name}.units": torch.tensor(shape.units)}
        return found

    def rebuild(self, clip: CLIP, state: dict[str, Tensor]) -> bool:
        for name, now in self.shapes.items():
            width, heads, units = (state[f"{name}.{what}"].tolist() for what in ("width", "heads", "units"))
            cut(clip.towers[name], leading(Shape(width, tuple(heads), tuple(units), now.head)))  # type: ignore[arg-type]
        self.stage = int(state["stage"])
        self.changed(clip)
        self.heads = Sized(self.shapes, self.whole) if bool(state["gated"]) else None  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    def facts(self, clip: CLIP) -> Facts:
        """Size, speed, and what was lost on pairs that were held out."""
        left = sum(shape.parameters for shape in shapes_of(clip).values()) / self.whole
        found = [
            *sizes(self.teacher, clip),
            ("of the blocks' parameters", f"{left:.1%}", f"{self.config.keep:.0%} asked"),
        ]
        found += speeds(self.teacher, clip)
        return found + (losses(self.teacher, clip, self.held, self.config.scale) if self.held else [])


def shapes_of(clip: CLIP) -> dict[str, Shape]:
    """Raises Unsupported where a tower cannot be cut."""
    return {name: shape_of(clip.towers[name]) for name in TOWERS}  # type: ignore[arg-type]
