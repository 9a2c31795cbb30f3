"""Queries that become masks: the masked transformer decoder of Mask2Former (arXiv 2112.01527, sections 3.1 and 3.2).

It says where something is, not what: a system reads classes off its queries.
Shapes: B pictures, Q queries, W hidden width, h x w cells of the finest map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.methods.dense.parts.pixel_decoder import positions


@dataclass(frozen=True)
class Queried:
    """What the decoder says after a layer: queries [B, Q, W], normed; masks [B, Q, h, w], logits."""

    queries: Tensor
    masks: Tensor


class DecoderLayer(nn.Module):
    """Masked cross-attention to one map, self-attention, MLP; norms after the sums; no dropout."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, codes: Tensor, keys: Tensor, values: Tensor, blocked: Tensor) -> Tensor:
        """x, codes [B, Q, W]; keys, values [B, N, W]; blocked [B * heads, Q, N] bool."""
        mixed, _ = self.cross(x + codes, keys, values, attn_mask=blocked, need_weights=False)
        x = self.norms[0](x + mixed)
        mixed, _ = self.own(x + codes, x + codes, x, need_weights=False)
        x = self.norms[1](x + mixed)
        return self.norms[2](x + self.mlp(x))


class MaskDecoder(nn.Module):
    """Learned queries look at the encoded maps in turn, coarse to fine, each inside its own mask of the layer before.

    forward -> one `Queried` before the first layer and one after each; the last is the result, all are trained.
    """

    def __init__(
        self, queries: int = 250, width: int = 256, layers: int = 9, heads: int = 8, inner: int = 2048, levels: int = 3
    ) -> None:
        super().__init__()
        self.heads = heads
        self.start, self.codes = nn.Embedding(queries, width), nn.Embedding(queries, width)
        self.level = nn.Embedding(levels, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.mask = mlp(width, width, width)

    def forward(self, features: Tensor, maps: Sequence[Tensor]) -> list[Queried]:
        """features [B, W, h, w] of pixels; maps [B, W, h', w'], coarse to fine."""
        batch = len(features)
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        values = [m.flatten(2).transpose(1, 2) + own for m, own in zip(maps, self.level.weight, strict=True)]
        keys = [v + positions(size, v.shape[-1], v.device).to(v.dtype) for v, size in zip(values, sizes, strict=True)]
        x = self.start.weight.expand(batch, -1, -1)
        codes = self.codes.weight.expand(batch, -1, -1)
        found = [self.read(x, features)]
        for i, layer in enumerate(self.layers):
            level = i % len(maps)
            x = layer(x, codes, keys[level], values[level], self.blocked(found[-1].masks, sizes[level]))
            found.append(self.read(x, features))
        return found

    def read(self, x: Tensor, features: Tensor) -> Queried:
        queries = self.norm(x)
        return Queried(queries, torch.einsum("bqc,bchw->bqhw", self.mask(queries), features))

    def blocked(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask logits -> [B * heads, Q, h' * w'], True where a query may not look; an empty mask looks everywhere."""
        masks = F.interpolate(masks.detach().float(), size, mode="bilinear", align_corners=False)
        outside = masks.flatten(2) < 0  # sigmoid below 0.5
        outside = outside & ~outside.all(-1, keepdim=True)
        return outside.repeat_interleave(self.heads, dim=0)


class MaskGenerator(nn.Module):
    """Maps of a ConvNet, fine to coarse -> features of pixels [B, W, h, w], and what the queries say layer by layer."""

    def __init__(self, pixels: nn.Module, queries: MaskDecoder) -> None:
        super().__init__()
        self.pixels, self.queries = pixels, queries

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Queried]]:
        features, encoded = self.pixels(maps)
        return features, self.queries(features, encoded)


def mlp(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """Three layers."""
    return nn.Sequential(
        nn.Linear(inputs, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, outputs)
    )
