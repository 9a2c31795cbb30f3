"""The seam that all methods share: `stem -> blocks -> head`, with prompts put in and taps taken out.

Shapes: B inputs, N tokens (or L for texts), W the tower's width, D the joint embedding size, M prompt tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from diptych.errors import Unsupported


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, padded to the longest of the batch (or to what the tower asks for).

    ids [B, L] int64; mask [B, L] bool, True on real tokens; end [B], the index of the end token;
    name_end [B], the index after the last token of the class name, where one was marked.
    """

    ids: Tensor
    mask: Tensor
    end: Tensor
    name_end: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Tokens":
        name_end = None if self.name_end is None else self.name_end.to(device)
        return Tokens(self.ids.to(device), self.mask.to(device), self.end.to(device), name_end)

    def take(self, rows: slice | Tensor, *, trim: bool = True) -> "Tokens":
        """Some of the texts, cut to the longest of them unless the padding belongs to the input."""
        mask = self.mask[rows]
        length = int(mask.any(0).nonzero().max()) + 1 if trim else mask.shape[1]
        name_end = None if self.name_end is None else self.name_end[rows]
        return Tokens(self.ids[rows, :length], mask[:, :length], self.end[rows], name_end)


@dataclass(frozen=True)
class Prompt:
    """Tokens put before a block, as an argument of the call; the tower itself is never changed.

    tokens [M, W], the same for all inputs, or [B, M, W].
    block: before which block (0: with the input).
    at: "start" (after the start or class token), "name" (after the class name; texts only), "end" (after the
    last token; pictures only).
    replace: overwrite the M tokens that stand there instead of putting them in (block > 0).
    position: take the position code of the place (texts, block 0).
    before_norm: put in before the norm that precedes block 0, where a picture tower has one.
    """

    tokens: Tensor
    block: int = 0
    at: Literal["start", "name", "end"] = "start"
    replace: bool = False
    position: bool = True
    before_norm: bool = True

    def rows(self, rows: slice) -> "Prompt":
        """The prompt for some inputs of the batch."""
        return self if self.tokens.dim() == 2 else replace(self, tokens=self.tokens[rows])


Prompts = Sequence[Prompt]


@dataclass(frozen=True)
class Tap:
    """What to take out after a block: its hidden states, its attention probabilities, or a ConvNet's map.

    "hidden": [B, N, W] (a ConvNet's stage: [B, C, H, W]); "attention": [B, heads, N, N], in the graph.
    """

    block: int
    what: Literal["hidden", "attention"] = "hidden"


@dataclass(frozen=True)
class TowerOutput:
    """embedding [B, D], not normalised; tokens [B, N, W] after the last norm and before pooling; the taps."""

    embedding: Tensor
    tokens: Tensor | None = None
    taps: dict[Tap, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Projection:
    """One linear map of an attention block: rows `start:stop` of the weight called `parameter`."""

    block: int
    role: Literal["query", "key", "value", "out"]
    parameter: str
    start: int
    stop: int


class Tower(nn.Module):
    """One half of a CLIP. Subclasses wrap one kind of backbone each.

    transformer: whether blocks pass tokens (prompts, attention taps and LoRA need it).
    causal: a text tower in which a token never sees later ones, so texts run at their own length.
    context_length: the longest text in tokens; pads_to: texts must be padded to this length (0: no need).
    positions: the parameter that holds the learned position codes of texts [context_length, W]; empty: none is known.
    checkpoint: activations inside a block or stage are not kept, the backward pass computes them again.
    """

    modality: str
    kind: str
    transformer: bool = True
    causal: bool = False
    context_length: int = 0
    pads_to: int = 0
    positions: str = ""
    checkpoint: bool = False
    embed_dim: int
    width: int
    depth: int

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        """pixels [B, 3, H, W] or Tokens [B, L] -> TowerOutput. Raises Unsupported for what it cannot do."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings [..., W] of token ids, without position codes. Texts only."""
        raise Unsupported(f"{self.kind} has no word embeddings")

    def projections(self) -> list[Projection]:
        """The query, key, value and out maps of every attention block, in order; empty for a ConvNet."""
        return []

    def parts(self) -> list[nn.Module]:
        """The modules of the blocks or stages, in order; empty for a tower that runs as a whole."""
        return []

    def dense(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> [B, h, w, D], not normalised: each place embedded as if it were the whole picture.

        Pictures only. Raises Unsupported where places are not told apart.
        """
        raise Unsupported(f"the {self.modality} tower ({self.kind}) gives no embedding of each place of a picture")

    def set_checkpoint(self, on: bool = True) -> None:
        """Gradient checkpointing: equal gradients from fewer kept activations. Raises Unsupported without blocks."""
        raise self.refuse("gradient checkpointing")

    def refuse(self, what: str) -> Unsupported:
        """The error for a request that this kind of backbone cannot have."""
        return Unsupported(
            f"the {self.modality} tower ({self.kind}) cannot take {what}; a transformer tower can, "
            "such as ViT-B-16 of open_clip"
        )


def put(hidden: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
    """Put prompts into sequences: hidden [B, N, W], tokens [M, W] or [B, M, W], at [B] -> [B, N+M, W]."""
    batch, length, width = hidden.shape
    tokens = tokens.to(hidden.dtype).expand(batch, -1, -1)  # [B, M, W]
    if bool((at == at[0]).all()):
        place = int(at[0])
        return torch.cat([hidden[:, :place], tokens, hidden[:, place:]], dim=1)
    count = tokens.shape[1]
    order = torch.arange(length + count, device=hidden.device).expand(batch, -1)
    place = at[:, None]
    inside = (order >= place) & (order < place + count)
    source = torch.where(order < place, order, order - count)
    source = torch.where(inside, length + order - place, source)  # [B, N+M] into [hidden | tokens]
    return torch.cat([hidden, tokens], dim=1).gather(1, source[..., None].expand(-1, -1, width))


def overwrite(hidden: Tensor, tokens: Tensor, start: int) -> Tensor:
    """Replace hidden[:, start:start+M] by the prompts: -> [B, N, W]."""
    tokens = tokens.to(hidden.dtype).expand(len(hidden), -1, -1)
    return torch.cat([hidden[:, :start], tokens, hidden[:, start + tokens.shape[1] :]], dim=1)


def put_words(hidden: Tensor, tokens: Tokens, prompts: Prompts) -> tuple[Tensor, Tokens]:
    """Put the block-0 prompts into embedded texts [B, L, W] and move mask, end and name_end along.

    Used by every text tower, before position codes. Later prompts at one place stand behind earlier ones.
    """
    mask, end, name_end, ids = tokens.mask, tokens.end, tokens.name_end, tokens.ids
    behind = 1
    for prompt in prompts:
        if prompt.block or prompt.replace or prompt.at == "end":
            continue
        count = prompt.tokens.shape[-2]
        if prompt.at == "start":
            at = torch.full_like(end, behind)
            behind += count
        elif name_end is None:
            raise Unsupported("a prompt after the class name needs texts whose class name is marked")
        else:
            at = name_end
        hidden = put(hidden, prompt.tokens, at)
        blank = torch.zeros(count, 1, dtype=ids.dtype, device=ids.device)
        ids = put(ids[..., None], blank, at)[..., 0]
        mask = put(mask[..., None].to(ids.dtype), blank + 1, at)[..., 0].bool()
        end = end + count
        if name_end is not None:
            name_end = name_end + count
    return hidden, Tokens(ids, mask, end, name_end)
