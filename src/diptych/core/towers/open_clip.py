"""Towers of open_clip's own classes: its vision transformer, its text transformer, its ResNets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.recompute import run_stage
from diptych.core.tower import Projection, Prompts, Tap, Tokens, TowerOutput
from diptych.core.towers.blocks import (
    StagedTower,
    TransformerTower,
    attend,
    embed_words,
    merge_heads,
    put_patches,
    rows_at,
    split_heads,
)
from diptych.errors import Unsupported


class _ResBlocks(TransformerTower):
    """open_clip's residual attention blocks, plain and custom, in pictures and texts alike."""

    path: str  # of the list of blocks inside this tower
    looks_back = False  # attention sees earlier tokens only

    def blocks(self) -> nn.ModuleList:
        return self.get_submodule(self.path)  # type: ignore[return-value]

    def parts(self) -> list[nn.Module]:
        return list(self.blocks())

    def take_shape(self, transformer: Any) -> None:
        self.width, self.depth = transformer.width, len(transformer.resblocks)
        if any(getattr(block.attn, "logit_scale", None) is not None for block in transformer.resblocks):
            raise Unsupported("scaled cosine attention of open_clip is not known here")

    def block(
        self, index: int, hidden: Tensor, mask: Tensor | None, probabilities: bool
    ) -> tuple[Tensor, Tensor | None]:
        block: Any = self.blocks()[index]
        probs = None
        if block.attn is not None:  # either part of a block may have been cut away
            mixed, probs = self_attention(
                block.attn, block.ln_1(hidden), mask, self.looks_back and mask is None, probabilities
            )
            if hasattr(block, "ln_attn"):
                mixed = block.ln_attn(mixed)
            hidden = hidden + block.ls_1(mixed)
        if block.mlp is not None:
            hidden = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        return hidden, probs

    def check(self, prompts: Prompts, taps: Sequence[Tap]) -> None:
        super().check(prompts, taps)
        for tap in taps:
            if tap.what == "attention" and self.blocks()[tap.block].attn is None:
                raise Unsupported(f"a tap on the attention of block {tap.block}, which was cut away")

    def projections(self) -> list[Projection]:
        found = []
        blocks: Any = self.blocks()
        for i, block in enumerate(blocks):
            if block.attn is None:
                continue
            weight, inner = f"{self.path}.{i}.attn.in_proj_weight", len(block.attn.in_proj_weight) // 3
            for part, role in enumerate(("query", "key", "value")):
                found.append(Projection(i, role, weight, part * inner, (part + 1) * inner))
            found.append(Projection(i, "out", f"{self.path}.{i}.attn.out_proj.weight", 0, self.width))
        return found


def self_attention(
    attention: Any, x: Tensor, mask: Tensor | None, causal: bool, probabilities: bool
) -> tuple[Tensor, Tensor | None]:
    """nn.MultiheadAttention or open_clip's Attention on [B, N, W], which name their weights alike."""
    fused = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (split_heads(part, attention.num_heads) for part in fused.chunk(3, dim=-1))
    custom = hasattr(attention, "ln_q")
    if custom:
        q, k = attention.ln_q(q), attention.ln_k(k)
    mixed, probs = attend(q, k, v, mask=mask, causal=causal, probabilities=probabilities)
    if custom:
        if attention.head_scale is not None:
            mixed = mixed * attention.head_scale
        return attention.out_proj(attention.ln_inner(merge_heads(mixed))), probs
    return attention.out_proj(merge_heads(mixed)), probs


class ViTImage(_ResBlocks):
    """open_clip.transformer.VisionTransformer, attentional pooling (CoCa) included; patch dropout is off.

    Raises Unsupported for a model without pooling, and for the "parallel" and "cascade" pools, which open_clip itself
    does not finish.
    """

    modality = "image"
    kind = "open_clip.VisionTransformer"
    path = "visual.transformer.resblocks"

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual
        if self.visual.pool_type == "none":
            raise Unsupported('a vision transformer of open_clip with pool "none", "parallel" or "cascade"')
        self.take_shape(self.visual.transformer)
        self.embed_dim = self.visual.output_dim

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        self.check(prompts, taps)
        visual = self.visual
        first = [p for p in prompts if not p.block]
        patches = visual.conv1(inputs).flatten(2).transpose(1, 2)  # [B, grid ** 2, W]
        start = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        hidden = torch.cat([start, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        hidden = self.entering(put_patches(hidden, [p for p in first if p.before_norm], 1))
        hidden = visual.ln_pre(hidden)
        hidden = put_patches(hidden, [p for p in first if not p.before_norm], 1)
        hidden, taken = self.run_images(hidden, prompts, taps, 1)
        last = None
        if tokens:
            last = visual.ln_post(hidden) if visual.attn_pool is None else hidden
        return TowerOutput(self.finish(hidden), last, taken)

    def finish(self, hidden: Tensor) -> Tensor:
        pooled, _ = self.visual._pool(hidden)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj


class TransformerText(_ResBlocks):
    """open_clip's text transformer, of a built-in `CLIP` or of a custom text class.

    source: open_clip.CLIP, or open_clip's TextTransformer. Causal models that read at the end token run texts at
    their own length; those that read padding (CoCa's class token, SigLIP) get it.
    """

    modality = "text"
    kind = "open_clip.TextTransformer"
    path = "resblocks"
    positions = "positional_embedding"

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        text: Any = source
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.resblocks = text.transformer.resblocks  # `transformer` is the seam's flag
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.cls_emb = getattr(text, "cls_emb", None)
        self.pool_type = getattr(text, "text_pool_type", None) or text.pool_type
        if self.pool_type not in ("argmax", "eos", "first", "last") and self.cls_emb is None:
            raise Unsupported(f"text pooling {self.pool_type!r} gives no embedding")
        self.eos_id = getattr(text, "text_eos_id", None) or text.eos_id
        self.masks_padding = getattr(text, "use_pad_mask", False)
        self.corrected = getattr(text, "correct_cls_mask", False)
        self.pad_id = getattr(text, "pad_id", 0)
        self.looks_back = text.attn_mask is not None
        reads_padding = self.cls_emb is not None or self.pool_type == "last"
        self.causal = self.looks_back and not reads_padding
        self.context_length = len(self.positional_embedding) - (self.cls_emb is not None)
        self.pads_to = self.context_length if reads_padding or not (self.causal or self.masks_padding) else 0
        self.take_shape(text.transformer)
        projection = self.text_projection
        if projection is None:
            self.embed_dim = self.width
        else:
            linear = isinstance(projection, nn.Linear)
            self.embed_dim = projection.out_features if linear else projection.shape[1]

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tokens)
        self.check(prompts, taps)
        if self.pads_to and inputs.ids.shape[1] != self.pads_to:
            raise Unsupported(
                f"{self.kind} reads padding: texts must be padded to {self.pads_to}, as CLIP.tokenize does"
            )
        if self.masks_padding or self.cls_emb is not None:  # the source masks by id
            inputs = Tokens(inputs.ids, inputs.ids != self.pad_id, inputs.end, inputs.name_end)
        codes = self.positional_embedding
        inputs = replace(inputs, end=self.find_end(inputs))
        hidden, texts = embed_words(self.embed(inputs.ids), inputs, prompts, codes[: self.context_length])
        hidden = self.entering(hidden)
        if self.cls_emb is not None:
            start = (self.cls_emb + codes[-1]).to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat([hidden, start], dim=1)
        hidden, texts, taken = self.run_texts(hidden, texts, prompts, taps)
        last = self.ln_final(hidden) if tokens or self.cls_emb is None else None
        pooled = self.ln_final(hidden[:, -1]) if last is None else self.pool(last, texts)
        if isinstance(self.text_projection, nn.Linear):
            pooled = self.text_projection(pooled)
        elif self.text_projection is not None:
            pooled = pooled @ self.text_projection
        return TowerOutput(pooled, last if tokens else None, taken)

    def find_end(self, tokens: Tokens) -> Tensor:
        """Where the source reads the text: [B]."""
        if self.pool_type == "argmax":
            return tokens.ids.argmax(-1)
        return (tokens.ids == self.eos_id).int().argmax(-1) if self.pool_type == "eos" else tokens.end

    def seen(self, tokens: Tokens) -> Tensor | None:
        if not (self.masks_padding or self.cls_emb is not None):
            return None
        keys = tokens.mask
        if self.cls_emb is not None:
            always = keys.new_ones(len(keys), 1)
            # the older CoCa models were trained with the mask one place off
            keys = torch.cat([keys, always] if self.corrected else [always, keys], dim=1)
        mask = keys[:, None, None, :]
        if not self.looks_back:
            return mask
        return mask & torch.ones(keys.shape[1], keys.shape[1], dtype=torch.bool, device=keys.device).tril()

    def pool(self, last: Tensor, texts: Tokens) -> Tensor:
        if self.cls_emb is not None or self.pool_type == "last":
            return last[:, -1]
        return last[:, 0] if self.pool_type == "first" else rows_at(last, texts.end)

    def embed(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids)


class ResNetImage(StagedTower):
    """open_clip.modified_resnet.ModifiedResNet: four stages, then attention pooling over the last map."""

    kind = "open_clip.ModifiedResNet"

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual
        self.depth = 4
        self.width = self.visual.attnpool.q_proj.in_features
        self.embed_dim = self.visual.output_dim

    def parts(self) -> list[nn.Module]:
        return [self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4]

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        self.check(prompts, taps)
        maps, hidden = self.maps(inputs, [tap.block for tap in taps])
        last = hidden.flatten(2).transpose(1, 2) if tokens else None
        return TowerOutput(self.visual.attnpool(hidden), last, dict(zip(taps, maps, strict=True)))

    def maps(self, pixels: Tensor, stages: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        hidden = self.visual.stem(pixels)
        taken: dict[int, Tensor] = {}
        for i, stage in enumerate(self.parts()):
            hidden = run_stage(stage, hidden, self.checkpoint)
            if i in stages:
                taken[i] = hidden
        return [taken[i] for i in stages], hidden

    def regions(self, last: Tensor, masks: Tensor) -> Tensor:
        """Attention pooling in which a mask's query sees the mean and what is in the mask (FC-CLIP's for ResNets).

        Position codes are resized to the map. FC-CLIP's release leaves the mean out of what is seen, so that there a
        mask of everything is not the picture's embedding, and an empty one nothing.
        """
        pool = self.visual.attnpool
        codes, (height, width) = pool.positional_embedding, last.shape[-2:]
        side = round((len(codes) - 1) ** 0.5)
        grid = codes[1:].T.reshape(1, -1, side, side)
        if (height, width) != (side, side):
            grid = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
        mean = last.mean((2, 3))[:, None] + codes[0]  # [B, 1, W]
        keys = torch.cat([mean, (last + grid).flatten(2).transpose(1, 2)], dim=1)  # [B, 1 + h w, W]
        seen = F.pad(masks.flatten(2).bool(), (1, 0), value=True)[:, None]  # [B, 1, Q, 1 + h w]
        q, k, v = (
            split_heads(layer(x), pool.num_heads)
            for layer, x in ((pool.q_proj, mean), (pool.k_proj, keys), (pool.v_proj, keys))
        )
        mixed, _ = attend(q.expand(-1, -1, masks.shape[1], -1), k, v, mask=seen)
        return pool.c_proj(merge_heads(mixed))
