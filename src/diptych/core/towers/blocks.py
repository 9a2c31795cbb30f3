"""What all transformer towers share: one attention, one way to put prompts in, one loop over blocks with taps."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.recompute import recomputed
from diptych.core.tower import Prompts, Tap, Tokens, Tower, put_words
from diptych.core.towers.packing import pack, parts, shared_start
from diptych.errors import DiptychError, Unsupported


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, W] -> [B, heads, N, W / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    probabilities: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention on [B, heads, N, d]; mask (True: may be seen) broadcasts to [B, heads, N, N].

    The probabilities [B, heads, N, N], where asked for, are the very tensor that the result is made of.
    """
    if not probabilities:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal), None
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    probs = scores.softmax(-1)
    return probs @ v, probs


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, N, d] -> [B, N, W]."""
    return x.transpose(1, 2).flatten(-2)


class TransformerTower(Tower):
    """A tower whose blocks pass tokens. Subclasses give `block`, and what comes before and after the blocks.

    Prompts are tokens like others: a pooling over all tokens sees them too.
    """

    patches: Callable[[int], Tensor] | None = None  # which of so many run; set by `only_patches`
    gate: Tensor | None = None  # a factor for each hidden channel [W]; set by `core.gates.gated`
    prefix: int = 1  # tokens before the patches of a picture

    def block(
        self, index: int, hidden: Tensor, mask: Tensor | None, probabilities: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Block `index` on [B, N, W]: its result, and its attention probabilities where asked for."""
        raise NotImplementedError

    def finish(self, hidden: Tensor) -> Tensor:
        """What the last block gives [B, N, W] -> embeddings [B, D]. Pictures only."""
        raise NotImplementedError

    def dense(self, pixels: Tensor) -> Tensor:
        """Each patch, the last block not mixing tokens: each takes its own value (MaskCLIP, Zhou et al., ECCV 2022,
        arXiv 2112.01071, section 3.2); then the norm and projection of the class token.

        A token alone attends to itself alone, and stands wherever the tower pools from.
        """
        if self.modality != "image" or self.depth < 2:
            return super().dense(pixels)
        tap = Tap(self.depth - 2)
        patches = self(pixels, taps=[tap]).taps[tap][:, self.prefix :]  # [B, P, W]
        side = math.isqrt(patches.shape[1])
        alone, _ = self.block(self.depth - 1, patches.flatten(0, 1)[:, None], None, False)  # [B P, 1, W]
        return self.finish(alone.expand(-1, self.prefix + 1, -1)).view(len(pixels), side, side, -1)

    def set_checkpoint(self, on: bool = True) -> None:
        self.checkpoint = on

    def entering(self, hidden: Tensor) -> Tensor:
        """Embeddings with their position codes [B, N, W], behind the gate where there is one."""
        return hidden if self.gate is None else hidden * self.gate.to(hidden.dtype)

    def check(self, prompts: Prompts, taps: Sequence[Tap]) -> None:
        """Raise for prompts and taps that name a block or a place which is not there."""
        for prompt in prompts:
            if not 0 <= prompt.block < self.depth:
                raise DiptychError(f"a prompt before block {prompt.block}: {self.kind} has blocks 0..{self.depth - 1}")
            if prompt.tokens.shape[-1] != self.width:
                raise DiptychError(f"prompts of width {prompt.tokens.shape[-1]}: {self.kind} has width {self.width}")
            if prompt.at == ("end" if self.modality == "text" else "name"):
                raise Unsupported(f'the {self.modality} tower takes no prompts at "{prompt.at}"')
            if prompt.replace and not prompt.block:
                raise DiptychError("a prompt can replace tokens before blocks 1 and later, not before block 0")
        for tap in taps:
            if not 0 <= tap.block < self.depth:
                raise DiptychError(f"a tap after block {tap.block}: {self.kind} has blocks 0..{self.depth - 1}")

    def run_images(
        self, hidden: Tensor, prompts: Prompts, taps: Sequence[Tap], first: int
    ) -> tuple[Tensor, dict[Tap, Tensor]]:
        """All blocks on pictures [B, N, W] whose first `first` tokens are no patches."""
        if self.patches is not None:
            kept = self.patches(hidden.shape[1] - first).to(hidden.device)  # [B, K]
            patches = hidden[:, first:].gather(1, kept[..., None].expand(-1, -1, hidden.shape[2]))
            hidden = torch.cat([hidden[:, :first], patches], dim=1)
        taken: dict[Tap, Tensor] = {}
        for i in range(self.depth):
            if i:
                hidden = put_patches(hidden, [p for p in prompts if p.block == i], first)
            hidden = self._step(i, hidden, None, taps, taken)
        return hidden, taken

    def run_texts(
        self, hidden: Tensor, tokens: Tokens, prompts: Prompts, taps: Sequence[Tap]
    ) -> tuple[Tensor, Tokens, dict[Tap, Tensor]]:
        """All blocks on texts [B, L, W]; the mask of each block is that of `seen`."""
        taken: dict[Tap, Tensor] = {}
        mask = self.seen(tokens)
        if self.causal and mask is None and not taps and (shared := shared_start(tokens, prompts)):
            return self.run_packed(hidden, tokens, shared), tokens, taken
        for i in range(self.depth):
            here = [p for p in prompts if p.block == i]
            if i and here:
                hidden, tokens = put_later(hidden, tokens, here)
                mask = self.seen(tokens)
            hidden = self._step(i, hidden, mask, taps, taken)
        return hidden, tokens, taken

    def run_packed(self, hidden: Tensor, tokens: Tokens, shared: int) -> Tensor:
        """All blocks on texts [B, L, W] of a causal tower whose first `shared` tokens are the same: those run once."""
        done = []
        for part in parts(tokens, shared):
            texts = pack(hidden[part], tokens.take(part, trim=False), shared)
            packed = texts.hidden
            for i in range(self.depth):
                packed = self._step(i, packed, texts.mask, (), {})
            done.append(texts.unpack(packed))
        return torch.cat(done)

    def seen(self, tokens: Tokens) -> Tensor | None:
        """Which tokens may be seen, broadcast to [B, heads, L, L]; None: all, or all earlier ones of a causal tower."""
        return None

    def _step(
        self, i: int, hidden: Tensor, mask: Tensor | None, taps: Sequence[Tap], taken: dict[Tap, Tensor]
    ) -> Tensor:
        attention = Tap(i, "attention")
        if self.checkpoint and torch.is_grad_enabled() and attention not in taps:
            trains = any(p.requires_grad for p in self.parameters())
            hidden, probs = recomputed(lambda x: (self.block(i, x, mask, False)[0],), hidden, trains=trains)[0], None
        else:
            hidden, probs = self.block(i, hidden, mask, attention in taps)
        if probs is not None:
            taken[attention] = probs
        if Tap(i) in taps:
            taken[Tap(i)] = hidden
        return hidden


@contextmanager
def only_patches(tower: Tower, choose: Callable[[int], Tensor]) -> Iterator[None]:
    """While it lasts, a picture tower's blocks see some patches alone: choose(N) -> their numbers [B, K], in 0..N-1.

    The others are dropped after the position codes, which saves their whole cost. Raises Unsupported for a ConvNet,
    DiptychError where patches are dropped already.
    """
    if not isinstance(tower, TransformerTower):
        raise tower.refuse("some patches alone")
    if tower.patches is not None:
        raise DiptychError("patches are dropped twice: by the system itself and by recipe.patch_dropout; leave one")
    tower.patches = choose
    try:
        yield
    finally:
        tower.patches = None


class StagedTower(Tower):
    """A picture tower of stages that pass maps [B, C, H, W]: taps after stages, no prompts, no attention."""

    modality = "image"
    transformer = False

    def set_checkpoint(self, on: bool = True) -> None:
        self.checkpoint = on

    def check(self, prompts: Prompts, taps: Sequence[Tap]) -> None:
        """Raise for what only a transformer can have, and for stages that are not there."""
        if prompts:
            raise self.refuse("prompts")
        for tap in taps:
            if tap.what == "attention":
                raise self.refuse("attention taps")
            if not 0 <= tap.block < self.depth:
                raise DiptychError(f"a tap after stage {tap.block}: {self.kind} has stages 0..{self.depth - 1}")

    def maps(self, pixels: Tensor, stages: Sequence[int] = ()) -> tuple[list[Tensor], Tensor]:
        """pixels [B, 3, H, W] of any size -> the maps after these stages, and the last map [B, C, h, w] before pooling.

        Raises Unsupported for a tower whose last map is none.
        """
        raise NotImplementedError

    def regions(self, last: Tensor, masks: Tensor) -> Tensor:
        """The last map [B, C, h, w] and masks [B, Q, h, w] -> embeddings of the parts [B, Q, D], not normalised.

        The head pools what is in the mask alone; a mask of everything gives the picture's own embedding.
        """
        raise NotImplementedError

    def dense(self, pixels: Tensor) -> Tensor:
        """Each place of the last map, pooled alone. pixels may be of any size."""
        _, last = self.maps(pixels)
        cells = last.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]  # [B h w, C, 1, 1]
        rows = self.regions(cells, cells.new_ones(len(cells), 1, 1, 1))
        return rows.view(len(last), *last.shape[2:], -1)


def put_patches(hidden: Tensor, prompts: Prompts, first: int) -> Tensor:
    """Prompts of one block into pictures [B, N, W]: after the first `first` tokens, or at the end."""
    behind = first
    left = sum(p.tokens.shape[-2] for p in prompts if p.replace and p.at == "end")
    for prompt in prompts:
        count = prompt.tokens.shape[-2]
        new = prompt.tokens.to(hidden.dtype).expand(len(hidden), -1, -1)
        if prompt.at == "start":
            start = behind
            behind += count
        else:
            start = hidden.shape[1] - left
            left -= count if prompt.replace else 0
        if prompt.replace and not first <= start <= hidden.shape[1] - count:
            raise DiptychError(f"a prompt of {count} tokens replaces more than stands before block {prompt.block}")
        rest = start + count if prompt.replace else start
        hidden = torch.cat([hidden[:, :start], new, hidden[:, rest:]], dim=1)
    return hidden


def put_later(hidden: Tensor, tokens: Tokens, prompts: Prompts) -> tuple[Tensor, Tokens]:
    """Prompts of one block > 0 into texts [B, L, W]: put in, or replacing what an earlier prompt left there."""
    behind = 1
    at_name = sum(p.tokens.shape[-2] for p in prompts if p.replace and p.at == "name")
    for prompt in prompts:
        count = prompt.tokens.shape[-2]
        if not prompt.replace:
            hidden, tokens = put_words(hidden, tokens, [replace(prompt, block=0)])
            continue
        if prompt.at == "start":
            start = torch.full_like(tokens.end, behind)
            behind += count
        elif tokens.name_end is None:
            raise Unsupported("a prompt after the class name needs texts whose class name is marked")
        else:
            start = tokens.name_end - at_name
            at_name -= count
        index = start[:, None] + torch.arange(count, device=start.device)  # [B, M]
        if bool((index >= tokens.end[:, None]).any()):
            raise DiptychError(f"a prompt of {count} tokens replaces more than stands before block {prompt.block}")
        new = prompt.tokens.to(hidden.dtype).expand(len(hidden), -1, -1)
        hidden = hidden.scatter(1, index[..., None].expand_as(new), new)
    return hidden, tokens


def embed_words(words: Tensor, tokens: Tokens, prompts: Prompts, codes: Tensor) -> tuple[Tensor, Tokens]:
    """Words [B, L, W] with the block-0 prompts in their places, plus position codes [context_length, W].

    Padding that the prompts push beyond the last position is cut off; a text that long is refused.
    """
    first = [p for p in prompts if not p.block]
    coded = None
    if not all(p.position for p in first):
        flags = [replace(p, tokens=p.tokens.new_full((p.tokens.shape[-2], 1), float(p.position))) for p in first]
        coded, _ = put_words(words.new_ones(*words.shape[:2], 1), tokens, flags)
    words, tokens = put_words(words, tokens, first)
    limit = len(codes)
    if words.shape[1] > limit:
        if bool(tokens.mask[:, limit:].any()):
            longest = int(tokens.mask.any(0).nonzero().max()) + 1
            raise Unsupported(f"a text of {longest} tokens, its prompts included: this text tower reads {limit}")
        words = words[:, :limit]
        tokens = Tokens(tokens.ids[:, :limit], tokens.mask[:, :limit], tokens.end, tokens.name_end)
    codes = codes[: words.shape[1]].to(words.dtype)
    return words + (codes if coded is None else codes * coded[:, :limit]), tokens


def rows_at(hidden: Tensor, index: Tensor) -> Tensor:
    """hidden [B, N, W], index [B] -> [B, W]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), index.to(hidden.device)]
