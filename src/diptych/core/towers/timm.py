"""Picture towers of timm, as open_clip wraps them (`TimmModel`: a trunk and a head) or bare."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from diptych.core.regions import mask_pool
from diptych.core.tower import Projection, Prompts, Tap, Tokens, TowerOutput
from diptych.core.towers.blocks import (
    StagedTower,
    TransformerTower,
    attend,
    merge_heads,
    put_patches,
)
from diptych.errors import Unsupported


class ViTImage(TransformerTower):
    """timm's VisionTransformer (class, register or no prefix tokens, any of its poolings); patch dropout is off.

    trunk: the timm model; head: what comes after its own head (open_clip's projection).
    """

    modality = "image"
    kind = "timm.VisionTransformer"

    def __init__(self, trunk: nn.Module, head: nn.Module, embed_dim: int) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.head = head
        self.embed_dim = embed_dim
        self.width, self.depth = self.trunk.embed_dim, len(self.trunk.blocks)
        self.prefix = self.trunk.num_prefix_tokens

    def parts(self) -> list[nn.Module]:
        return list(self.trunk.blocks)

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        self.check(prompts, taps)
        trunk, prefix = self.trunk, self.trunk.num_prefix_tokens
        first = [p for p in prompts if not p.block]
        hidden = trunk._pos_embed(trunk.patch_embed(inputs))
        hidden = trunk.norm_pre(put_patches(hidden, [p for p in first if p.before_norm], prefix))
        hidden = put_patches(hidden, [p for p in first if not p.before_norm], prefix)
        hidden, taken = self.run_images(hidden, prompts, taps, prefix)
        last = trunk.norm(hidden)
        return TowerOutput(self.head(trunk.forward_head(last)), last if tokens else None, taken)

    def finish(self, hidden: Tensor) -> Tensor:
        return self.head(self.trunk.forward_head(self.trunk.norm(hidden)))

    def block(
        self, index: int, hidden: Tensor, mask: Tensor | None, probabilities: bool
    ) -> tuple[Tensor, Tensor | None]:
        block = self.trunk.blocks[index]
        if not probabilities:
            return block(hidden), None
        if not plain(block):
            raise self.refuse(f"attention taps in a {type(block).__name__}")
        mixed, probs = attention_of(block.attn, block.norm1(hidden))
        hidden = hidden + block.drop_path1(block.ls1(mixed))
        return hidden + block.drop_path2(block.ls2(block.mlp(block.norm2(hidden)))), probs

    def projections(self) -> list[Projection]:
        found = []
        for i, block in enumerate(self.trunk.blocks):
            if not plain(block):
                raise self.refuse(f"low-rank changes in a {type(block).__name__}")
            prefix, width = f"trunk.blocks.{i}.attn", block.attn.attn_dim
            for part, role in enumerate(("query", "key", "value")):
                found.append(Projection(i, role, f"{prefix}.qkv.weight", part * width, (part + 1) * width))
            found.append(Projection(i, "out", f"{prefix}.proj.weight", 0, block.attn.proj.out_features))
        return found


def plain(block: Any) -> bool:
    """Whether this is timm's usual block with its usual attention."""
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

    return type(block) is Block and type(block.attn) is Attention


def attention_of(attention: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """timm's Attention on [B, N, W] with its probabilities."""
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed, probs = attend(attention.q_norm(q), attention.k_norm(k), v, probabilities=True)
    mixed = attention.norm(merge_heads(mixed))
    if getattr(attention, "gate", None) is not None:
        mixed = mixed * attention.gate(x).sigmoid()
    return attention.proj_drop(attention.proj(mixed)), probs


class StagesImage(StagedTower):
    """Any other timm model, run as a whole: ConvNeXt, ResNets, EfficientNets, and transformers with other blocks.

    Taps are the maps [B, C, H, W] of `forward_intermediates`; its stages are the blocks. Checkpointing is timm's own:
    batch norms move their running statistics in both passes.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, embed_dim: int) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.head = head
        self.embed_dim = embed_dim
        self.kind = f"timm.{type(trunk).__name__}"
        self.width = self.trunk.num_features
        self.depth = len(self.trunk.feature_info)

    def set_checkpoint(self, on: bool = True) -> None:
        self.trunk.set_grad_checkpointing(on)

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        self.check(prompts, taps)
        taken: dict[Tap, Tensor] = {}
        if taps:
            stages = sorted({tap.block for tap in taps})
            hidden, maps = self.trunk.forward_intermediates(inputs, indices=stages)
            taken = {Tap(i): found for i, found in zip(stages, maps, strict=True)}
        else:
            hidden = self.trunk.forward_features(inputs)
        last = None
        if tokens:
            last = hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden
        return TowerOutput(self.head(self.trunk.forward_head(hidden)), last, taken)

    def maps(self, pixels: Tensor, stages: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        if not stages:
            last, maps = self.trunk.forward_features(pixels), []
        else:
            wanted = sorted(set(stages))
            last, found = self.trunk.forward_intermediates(pixels, indices=wanted)
            maps = [found[wanted.index(i)] for i in stages]
        if last.dim() != 4 or last.shape[1] != self.width:
            raise Unsupported(f"{self.kind} has no last map of {self.width} channels; a ConvNeXt or ResNet has")
        return maps, last

    def regions(self, last: Tensor, masks: Tensor) -> Tensor:
        pooled = mask_pool(last, masks).flatten(0, 1)[..., None, None]  # [B * Q, C, 1, 1]: the pooling changes nothing
        return self.head(self.trunk.forward_head(pooled)).unflatten(0, masks.shape[:2])


def image_tower(trunk: nn.Module, head: nn.Module, embed_dim: int) -> ViTImage | StagesImage:
    """The tower for a timm model: token by token for its VisionTransformer, by stages otherwise."""
    from timm.models.vision_transformer import VisionTransformer

    kind = ViTImage if type(trunk) is VisionTransformer else StagesImage
    return kind(trunk, head, embed_dim)
