"""The two networks of `mini` in plain torch, for importing timm and transformers takes longer than running them.

Tests hold both to their sources: EfficientNet-Lite0 to timm's `tf_efficientnet_lite0`, BERT to transformers' BertModel.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.recompute import run_stage
from diptych.core.regions import mask_pool
from diptych.core.tower import Prompts, Tap, Tokens, TowerOutput
from diptych.core.towers.blocks import StagedTower

# Stages of EfficientNet-Lite0: blocks, expansion, kernel, stride of the first block, channels.
STAGES = (
    (1, 1, 3, 1, 16),
    (2, 6, 3, 2, 24),
    (2, 6, 5, 2, 40),
    (3, 6, 3, 2, 80),
    (3, 6, 5, 1, 112),
    (4, 6, 5, 2, 192),
    (1, 6, 3, 1, 320),
)
STEM, FEATURES = 32, 1280
NORM_EPS = 1e-3


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's padding: what is odd goes to the right and to the bottom."""

    def forward(self, input: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:  # no copy of the map
            return F.conv2d(input, self.weight, self.bias, self.stride, (pads[2], pads[0]), 1, self.groups)
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project; batch norms are folded into the convolutions."""

    def __init__(self, inputs: int, expansion: int, kernel: int, stride: int, outputs: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        hidden = self.project(F.relu6(self.depthwise(hidden), inplace=True))
        return x + hidden if self.skip else hidden


class EfficientNetLite0(StagedTower):
    """EfficientNet-Lite0 (arXiv 1905.11946 without squeeze-and-excitation and swish), batch norms folded.

    pixels [B, 3, H, W] -> features [B, 1280] -> head. Taps: maps [B, C, H', W'] after each of the 7 stages.
    """

    kind = "mini.image"
    width, depth = FEATURES, len(STAGES)

    def __init__(self, head: nn.Module, embed_dim: int) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM, 3, 2)
        stages, channels = [], STEM
        for count, expansion, kernel, stride, outputs in STAGES:
            blocks = [Block(channels, expansion, kernel, stride, outputs)]
            blocks += [Block(outputs, expansion, kernel, 1, outputs) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = outputs
        self.stages = nn.Sequential(*stages)
        self.last = SameConv(channels, FEATURES, 1)
        self.head = head
        self.embed_dim = embed_dim

    def parts(self) -> list[nn.Module]:
        return list(self.stages)

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        self.check(prompts, taps)
        maps, hidden = self.maps(inputs, [tap.block for tap in taps])
        last = hidden.flatten(2).transpose(1, 2) if tokens else None  # [B, H' W', 1280]
        return TowerOutput(self.head(hidden.mean((2, 3))), last, dict(zip(taps, maps, strict=True)))

    def maps(self, pixels: Tensor, stages: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        taken: dict[int, Tensor] = {}
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # type: ignore[attr-defined]
        hidden = F.relu6(self.stem(pixels), inplace=True)
        for i, stage in enumerate(self.stages):
            hidden = run_stage(stage, hidden, self.checkpoint)
            if i in stages:
                taken[i] = hidden
        return [taken[i] for i in stages], F.relu6(self.last(hidden), inplace=True)

    def regions(self, last: Tensor, masks: Tensor) -> Tensor:
        return self.head(mask_pool(last, masks))


def read_efficientnet(published: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights as efficientnet_pytorch names them -> (weights of EfficientNetLite0 without head, classifier W, b).

    Raises KeyError where the published file lacks a weight, ValueError where it holds one that has no place.
    """
    left = dict(published)
    ours: dict[str, Tensor] = {}

    def fold(name: str, conv: str, norm: str) -> None:
        """Convolution and frozen batch norm as one; in float64, so that every machine gets the same bits."""
        weight = left.pop(f"{conv}.weight").double()
        gain, shift, mean, var = (
            left.pop(f"{norm}.{part}").double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        left.pop(f"{norm}.num_batches_tracked")
        gain = gain / (var + NORM_EPS).sqrt()
        ours[f"{name}.weight"] = (weight * gain[:, None, None, None]).float()
        ours[f"{name}.bias"] = (shift - mean * gain).float()

    fold("stem", "_conv_stem", "_bn0")
    index = 0
    for stage, (count, expansion, *_) in enumerate(STAGES):
        for block in range(count):
            name, source = f"stages.{stage}.{block}", f"_blocks.{index}"
            if expansion > 1:
                fold(f"{name}.expand", f"{source}._expand_conv", f"{source}._bn0")
            fold(f"{name}.depthwise", f"{source}._depthwise_conv", f"{source}._bn1")
            fold(f"{name}.project", f"{source}._project_conv", f"{source}._bn2")
            index += 1
    fold("last", "_conv_head", "_bn1")
    weight, bias = left.pop("_fc.weight"), left.pop("_fc.bias")
    if left:
        raise ValueError(f"weights without a place: {', '.join(sorted(left)[:5])}")
    return ours, weight, bias


@dataclass(frozen=True)
class BertConfig:
    """The entries of a BERT's config.json that its shape depends on."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


class Part(nn.Module):
    """Modules and numbers under given names."""

    def __init__(self, /, **parts: nn.Module | int) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class AddNorm(Part):
    """Dense layer, sum with what came before, norm."""

    dense: nn.Module
    LayerNorm: nn.Module

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Expand(Part):
    """The first half of the MLP."""

    dense: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class BertModel(nn.Module):
    """The weights of a BERT under Hugging Face's names, without dropout: what the text tower `BertText` runs."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Part(
            word_embeddings=nn.Embedding(config.vocab_size, config.hidden_size),
            position_embeddings=nn.Embedding(config.max_position_embeddings, config.hidden_size),
            token_type_embeddings=nn.Embedding(config.type_vocab_size, config.hidden_size),
            LayerNorm=nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
            dropout=nn.Identity(),
        )
        self.encoder = Part(layer=nn.ModuleList(bert_layer(config) for _ in range(config.num_hidden_layers)))


def bert_layer(config: BertConfig) -> Part:
    width, inner = config.hidden_size, config.intermediate_size

    def add_norm(inputs: int) -> AddNorm:
        return AddNorm(dense=nn.Linear(inputs, width), LayerNorm=nn.LayerNorm(width, config.layer_norm_eps))

    maps = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
    inside = Part(**maps, num_attention_heads=config.num_attention_heads)
    return Part(
        attention=Part(self=inside, output=add_norm(width)),
        intermediate=Expand(dense=nn.Linear(width, inner)),
        output=add_norm(inner),
    )


def read_bert(folder: Path) -> BertModel:
    """A BERT with GELU from a Hugging Face folder (config.json, model.safetensors); its pooler is left out."""
    written = json.loads((folder / "config.json").read_text())
    model = BertModel(BertConfig(**{f.name: written[f.name] for f in fields(BertConfig)}))
    weights = load_file(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(unused)})
    return model.eval()
