"""Cutting transformer towers of open_clip's kind: channels, heads, units and whole blocks go, the rest is as it was.

Shapes: W hidden channels of a tower, L blocks, H heads of a block, U units of its feed-forward part. Everything is done
in place. Wu et al., TinyCLIP, ICCV 2023, arXiv 2309.12314, section 3.2.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.clip import CLIP
from diptych.core.tower import Tower
from diptych.core.towers.open_clip import TransformerText, ViTImage
from diptych.errors import DiptychError, Unsupported

TOWERS = ("image", "text")


@dataclass(frozen=True)
class Shape:
    """width: hidden channels; heads, units: of each block, 0 where its attention or feed-forward part is gone;
    head: the width of a head, which no cut changes."""

    width: int
    heads: tuple[int, ...]
    units: tuple[int, ...]
    head: int

    @property
    def parameters(self) -> int:
        """Weights and biases of the blocks' linear maps: what can be cut. Norms and embeddings do not count."""
        total = 0
        for heads, units in zip(self.heads, self.units, strict=True):
            inner = heads * self.head
            total += (4 * inner * self.width + 3 * inner + self.width) if heads else 0
            total += (2 * units * self.width + units + self.width) if units else 0
        return total

    @property
    def even(self) -> bool:
        """Whether open_clip has such blocks: all alike, and their heads as wide as the tower."""
        alike = len(set(self.heads)) == 1 and len(set(self.units)) == 1
        return alike and self.heads[0] * self.head == self.width and self.units[0] > 0


@dataclass(frozen=True)
class Kept:
    """What stays of a tower, by number: blocks, in their order; channels [W']; of each kept block its heads and units
    (each int64, possibly empty)."""

    blocks: tuple[int, ...]
    hidden: Tensor
    heads: tuple[Tensor, ...]
    units: tuple[Tensor, ...]


class Attention(nn.Module):
    """The weights of nn.MultiheadAttention for heads that are not as wide, together, as the tower; the tower runs it.

    in_proj_weight [3 H d, W], in_proj_bias [3 H d]; out_proj from H d to W.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, out_proj: nn.Module, heads: int) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias, self.out_proj, self.num_heads = weight, bias, out_proj, heads


def need_blocks(tower: Tower) -> ViTImage | TransformerText:
    """The tower, if it can be cut. Raises Unsupported with the reason for any other."""
    if reason := not_cuttable(tower):
        raise Unsupported(f"the {tower.modality} tower ({tower.kind}) cannot be cut: {reason}")
    assert isinstance(tower, (ViTImage, TransformerText))
    return tower


def not_cuttable(tower: Tower) -> str:
    if not tower.transformer:
        return "a ConvNet has no heads and units; a ViT of open_clip's has, such as ViT-B-16"
    if isinstance(tower, ViTImage):
        if tower.visual.attn_pool is not None or not isinstance(tower.visual.proj, nn.Parameter):
            return "it is not pooled and projected as CLIP's ViT is"
    elif isinstance(tower, TransformerText):
        if tower.cls_emb is not None or tower.text_projection is None:
            return "it is not pooled and projected as CLIP's text transformer is"
    else:
        return "only open_clip's transformers can be; `diptych export MODEL --to open_clip` makes one of Hugging Face's"
    for block in tower.blocks():
        attention, feed = block.attn, block.mlp
        plain = attention is None or isinstance(attention, (nn.MultiheadAttention, Attention))
        if not plain or hasattr(block, "ln_attn") or not (feed is None or hasattr(feed, "c_proj")):
            return "its blocks are not CLIP's plain ones"
    return ""


def shape_of(tower: Tower) -> Shape:
    """The shape as it is now. Raises Unsupported for a tower that cannot be cut."""
    blocks: Any = need_blocks(tower).blocks()
    heads = tuple(0 if block.attn is None else block.attn.num_heads for block in blocks)
    units = tuple(0 if block.mlp is None else block.mlp.c_fc.out_features for block in blocks)
    some = next((block.attn for block in blocks if block.attn is not None), None)
    return Shape(tower.width, heads, units, 1 if some is None else len(some.in_proj_weight) // (3 * some.num_heads))


def leading(shape: Shape, blocks: tuple[int, ...] | None = None) -> Kept:
    """The first of everything, as many as the shape has; blocks: which ones, by default the first of them too."""
    return Kept(
        tuple(range(len(shape.heads))) if blocks is None else blocks,
        torch.arange(shape.width),
        tuple(torch.arange(count) for count in shape.heads),
        tuple(torch.arange(count) for count in shape.units),
    )


@torch.no_grad()
def cut(tower: Tower, kept: Kept) -> None:
    """Leave nothing but `kept`; what remains keeps its values. Raises Unsupported for a tower that cannot be cut."""
    before = shape_of(tower)
    body: Any = need_blocks(tower)
    hidden = kept.hidden
    if isinstance(body, ViTImage):
        visual: Any = body.visual
        narrow(visual.conv1, "weight", 0, hidden)
        narrow(visual.conv1, "bias", 0, hidden)
        visual.conv1.out_channels = len(hidden)
        narrow(visual, "class_embedding", 0, hidden)
        narrow(visual, "positional_embedding", 1, hidden)
        narrow(visual, "proj", 0, hidden)
        blocks, norms = visual.transformer, [visual.ln_pre, visual.ln_post]
    else:
        narrow(body.token_embedding, "weight", 1, hidden)
        body.token_embedding.embedding_dim = len(hidden)
        narrow(body, "positional_embedding", 1, hidden)
        if isinstance(body.text_projection, nn.Linear):
            narrow_linear(body.text_projection, columns=hidden)
        else:
            narrow(body, "text_projection", 0, hidden)
        blocks, norms = body, [body.ln_final]
    stay: list[Any] = [body.blocks()[i] for i in kept.blocks]
    blocks.resblocks = nn.ModuleList(stay)
    for block, heads, units in zip(stay, kept.heads, kept.units, strict=True):
        block.attn = cut_attention(block.attn, hidden, heads, before.head) if len(heads) else None
        if len(units):
            narrow_linear(block.mlp.c_fc, rows=units, columns=hidden)
            narrow_linear(block.mlp.c_proj, rows=hidden, columns=units)
        else:
            block.mlp = None
        norms += [block.ln_1, block.ln_2]
        for scale in (block.ls_1, block.ls_2):
            narrow(scale, "gamma", 0, hidden)
    for norm in norms:
        if isinstance(norm, nn.LayerNorm):
            narrow(norm, "weight", 0, hidden)
            narrow(norm, "bias", 0, hidden)
            norm.normalized_shape = (len(hidden),)
    body.width, body.depth = len(hidden), len(stay)


def cut_attention(attention: Any, hidden: Tensor, heads: Tensor, head: int) -> nn.Module:
    inner = attention.num_heads * head
    of_heads = (heads[:, None] * head + torch.arange(head)).flatten()  # [H' d]
    rows = torch.cat([part * inner + of_heads for part in range(3)])  # of query, key and value
    narrow(attention, "in_proj_weight", 0, rows)
    narrow(attention, "in_proj_weight", 1, hidden)
    narrow(attention, "in_proj_bias", 0, rows)
    narrow_linear(attention.out_proj, rows=hidden, columns=of_heads)
    if len(of_heads) != len(hidden):
        return Attention(attention.in_proj_weight, attention.in_proj_bias, attention.out_proj, len(heads))
    whole = nn.MultiheadAttention(len(hidden), len(heads), batch_first=True, device="meta")
    whole.in_proj_weight, whole.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
    whole.out_proj = attention.out_proj
    return whole.train(attention.training)


def narrow(module: nn.Module, name: str, dim: int, index: Tensor) -> None:
    """Keep some rows or columns of a parameter, where the module has it."""
    parameter = getattr(module, name, None)
    if parameter is not None:
        part = parameter.detach().index_select(dim, index.to(parameter.device))
        setattr(module, name, nn.Parameter(part, requires_grad=parameter.requires_grad))


def narrow_linear(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    if rows is not None:
        narrow(linear, "weight", 0, rows)
        narrow(linear, "bias", 0, rows)
        linear.out_features = len(rows)
    if columns is not None:
        narrow(linear, "weight", 1, columns)
        linear.in_features = len(columns)


# -- what a cut model is built from ------------------------------------------------------------------------------------


def record(clip: CLIP) -> None:
    """Bring the CLIP's origin up to date with its towers' shapes: in open_clip's own words where it has them, and as
    "shapes", which only our own layout knows, where its blocks are uneven."""
    if clip.origin is None:
        return
    config = deepcopy(clip.origin["model_cfg"])
    shapes = {name: shape_of(clip.towers[name]) for name in TOWERS}  # type: ignore[arg-type]
    if all(shape.even for shape in shapes.values()):
        for name, shape in shapes.items():
            part = config[{"image": "vision_cfg", "text": "text_cfg"}[name]]
            part |= {"width": shape.width, "layers": len(shape.heads)}
            part |= {"head_width": shape.head} if name == "image" else {"heads": shape.heads[0]}
            if int(shape.width * part.get("mlp_ratio", 4.0)) != shape.units[0]:
                part["mlp_ratio"] = (shape.units[0] + 0.5) / shape.width  # open_clip rounds down
        clip.origin = {"library": "open_clip", "model_cfg": config}
    else:
        shaped = {name: asdict(shape) for name, shape in shapes.items()}
        clip.origin = {"library": "open_clip", "model_cfg": config, "shapes": shaped}


def take_shapes(clip: CLIP, shapes: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Cut a CLIP to shapes that `record` wrote, to be filled with the weights. Raises DiptychError for others."""
    for name in TOWERS:
        tower: Any = clip.towers[name]
        now = shape_of(tower)
        try:
            found = dict(shapes[name])
            wanted = Shape(found["width"], tuple(found["heads"]), tuple(found["units"]), found["head"])
            fits = wanted.width <= now.width and len(wanted.heads) == len(wanted.units) <= len(now.heads)
            pairs = zip((*wanted.heads, *wanted.units), (*now.heads[: len(wanted.heads)], *now.units), strict=False)
            fits = fits and wanted.head == now.head and all(0 <= less <= more for less, more in pairs)
        except (KeyError, TypeError) as error:
            raise DiptychError(f"{where}: the shapes of the {name} tower lack {error}") from error
        if not fits:
            raise DiptychError(f"{where}: the shapes of the {name} tower do not fit into its model_cfg")
        cut(tower, leading(wanted))
    assert clip.origin is not None
    clip.origin = clip.origin | {"shapes": {name: dict(shapes[name]) for name in TOWERS}}
