"""Texts with the same start, in a causal tower: the start is computed once for all, exactly, and padding never.

A token of a causal tower depends on earlier ones alone, so a context that all texts share (a learned one of 16 tokens
before names of 2) is the same in each. All texts become one sequence: the start, then what is each text's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.tower import Prompts, Tokens

LONGEST = 512  # tokens of a packed sequence: beyond it, attention across texts that is masked away costs too much


@dataclass(frozen=True)
class Packed:
    """hidden [1, T, W]; mask [1, 1, T, T], True where a token may be seen; index [B, L] of each text's tokens in T."""

    hidden: Tensor
    mask: Tensor
    index: Tensor

    def unpack(self, hidden: Tensor) -> Tensor:
        """[1, T, W] -> [B, L, W]; what stands in padding has no meaning."""
        return hidden[0][self.index]


def shared_start(tokens: Tokens, prompts: Prompts) -> int:
    """Leading tokens that are the same in all texts: the start token and the prompts after it; 0: not worth packing."""
    first = [p for p in prompts if p.at == "start"]
    if not first:
        return 0
    same = all(p.tokens.dim() == 2 for p in first) and bool((tokens.ids[:, 0] == tokens.ids[0, 0]).all())
    deep = any(p.block for p in prompts)
    return 1 + sum(p.tokens.shape[-2] for p in first) if same and not deep and len(tokens) > 1 else 0


def pack(hidden: Tensor, tokens: Tokens, shared: int) -> Packed:
    """Texts [B, L, W] of which the first `shared` tokens are the same -> one sequence."""
    device = hidden.device
    text, place = tokens.mask[:, shared:].nonzero(as_tuple=True)
    place = place + shared
    index = torch.zeros(tokens.mask.shape, dtype=torch.long, device=device)
    index[:, :shared] = torch.arange(shared, device=device)
    index[text, place] = torch.arange(shared, shared + len(text), device=device)
    packed = torch.cat([hidden[0, :shared], hidden[text, place]])[None]
    text = torch.cat([text.new_full((shared,), -1), text])  # -1: the shared start
    place = torch.cat([torch.arange(shared, device=device), place])
    mine = (text[None] < 0) | (text[None] == text[:, None])
    return Packed(packed, (mine & (place[None] <= place[:, None]))[None, None], index)


def parts(tokens: Tokens, shared: int) -> Sequence[slice]:
    """Texts in groups whose packed sequence is about LONGEST tokens."""
    own = max(1, tokens.mask.shape[1] - shared)
    size = max(2, (LONGEST - shared) // own)
    return [slice(i, i + size) for i in range(0, len(tokens), size)]
