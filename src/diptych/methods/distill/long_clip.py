"""Long-CLIP: a CLIP that reads 248 tokens instead of 77, and reads short texts as it did before.

Use it for search by described photos and for prompts of several sentences: the table of positions is drawn out (which
alone changes no text that ends within 20 tokens, and needs no data), then a short training on long captions teaches
the new positions. Not for text towers without learned positions and causal attention, and not with captions that are
short: nothing of theirs lies where there is something to learn.

Zhang et al., Long-CLIP: Unlocking the Long-Text Capability of CLIP, arXiv 2403.15378 (ECCV 2024): knowledge-preserved
stretching (section 3.1) and primary component matching (3.2), with weight 1 for both losses and gradients through the
gathering, as the authors' corrected code has it. Published, COCO text to picture R@1, ViT-B/16: 40.4 against 32.5 of
CLIP. Two things are as everywhere here: weight decay spares biases, norms and the temperature; and the components are
those of `group` pairs, the published batch of one process, however many processes there are.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.positions import KEPT, lengthen
from diptych.engine.sharding import local, part_of
from diptych.errors import DiptychError, TextCut
from diptych.losses.contrastive import softmax_contrastive
from diptych.losses.low_rank import principal
from diptych.losses.precision import in_float32
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, Objective, PairLike, PairsLike, Recipe


@dataclass(frozen=True)
class Config:
    """tokens: the new length; first: positions that stay as they are, never trained; components: of the pictures of a
    group, what a short caption is matched with; group: pairs that the components are taken from; smoothing: of the
    labels; scale: the multiplier of the cosine that training starts from (0: the model's own); short: weight of the
    loss of short captions; detach_directions: the components' directions get no gradient."""

    tokens: int = 248
    first: int = KEPT
    components: int = 32
    group: int = 256
    smoothing: float = 0.1
    scale: float = 100.0
    short: float = 1.0
    detach_directions: bool = False


class LongClip(Objective):
    Config = Config
    recipe = Recipe(batch=2048, rate=1e-6, weight_decay=1e-2, beta2=0.999, eps=1e-8, warmup=200, crop=1.0)
    texts = ("long", "short")
    needs = "pairs with long captions, whose first sentence says the most important"
    untrained = "the table of positions is stretched, and nothing is trained"
    epochs = 6
    held_out = 256

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.group < 2 or self.config.components < 1:
            raise DiptychError("long_clip.group must be at least 2 and long_clip.components at least 1")
        self.start = self.moves = torch.empty(0)
        self.before = 0
        self.found: dict[str, float] = {}

    @torch.no_grad()
    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        self.before, self.found = clip.text.context_length, self.recalls(clip)
        lengthen(clip, self.config.tokens, self.config.first)
        self.start = clip.text.get_parameter(clip.text.positions).detach().clone()
        self.moves = (torch.arange(len(self.start), device=self.start.device) >= self.config.first)[:, None]
        if len(pairs) and self.config.scale:
            clip.log_scale.fill_(math.log(self.config.scale))

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        text = pair.texts[0].replace("\n", " ")
        return {"long": text, "short": first_sentence(text)}

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        texts = {role: clip.text(tokens).embedding for role, tokens in batch.texts.items()}
        return {"image": clip.image(batch.pixels).embedding, "text": texts["long"], "short": texts["short"]}

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        config, scale = self.config, clip.logit_scale
        image, long, short = (F.normalize(embeddings[name], dim=-1) for name in ("image", "text", "short"))
        groups = image.tensor_split(math.ceil(len(image) / config.group))
        coarse = torch.cat(
            [principal(g, config.components, detach_directions=config.detach_directions) for g in groups]
        )
        terms = {"long": smoothed_contrastive(image, long, scale, config.smoothing, batch.own)}
        if config.short:
            terms["short"] = config.short * smoothed_contrastive(coarse, short, scale, config.smoothing, batch.own)
        return terms

    def state(self) -> dict[str, Tensor]:
        return {"start": self.start}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.start = state["start"].to(self.start.device)

    @torch.no_grad()
    def after_step(self, clip: CLIP) -> None:
        """The first positions are put back, bit by bit: neither a gradient nor weight decay has moved them."""
        table = clip.text.get_parameter(clip.text.positions)
        start, moves = (local(part_of(whole, table)) for whole in (self.start, self.moves))
        own = local(table)
        own.copy_(torch.where(moves, own, start))

    def facts(self, clip: CLIP) -> list[tuple[str, str, str]]:
        return [
            ("tokens a text", f"{clip.text.context_length}", f"{self.before} before"),
            ("positions that stay", f"{self.config.first}", "the first, bit by bit"),
            *((what, f"{now:.1%}", f"{self.found[what]:.1%} before") for what, now in self.recalls(clip).items()),
        ]

    def recalls(self, clip: CLIP) -> dict[str, float]:
        """R@1 among the pairs that were held out, of whole texts and of first sentences."""
        found: dict[str, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextCut)  # before: that is what is mended
            for texts, said in (("whole texts", str), ("first sentences", first_sentence)):
                rows = self.held.embed(clip, said=said).recalls() if self.held else {}
                found |= {f"{way}, {texts}, R@1": rows[way][1] for way in rows if way != "mean"}
        return found


def first_sentence(text: str) -> str:
    """What stands before the first full stop and blank."""
    return text.partition(". ")[0]


@in_float32
def smoothed_contrastive(a: Tensor, b: Tensor, scale: Tensor, smoothing: float, part: slice | None = None) -> Tensor:
    """Cross-entropy of both directions, of rows [B, D], against targets of 1 - smoothing for the own row and
    smoothing / B for every row: that of hard targets, and what the own logits are above the mean of all."""
    some = slice(None) if part is None else part
    own, mean = (a[some] * b[some]).sum(1).mean(), a.mean(0) @ b.mean(0)
    return softmax_contrastive(a, b, scale, part=part) + smoothing * scale * (own - mean)
