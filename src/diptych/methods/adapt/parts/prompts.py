"""Learned context words: where they start from, whether they fit, and which real words they ended near."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.errors import DiptychError

SPREAD = 0.02  # standard deviation of a random start (CoOp, MaPLe)


def words_of(clip: CLIP, text: str) -> Tensor:
    """The frozen embeddings of a text's tokens, start and end left out: [M, W]."""
    tokens = clip.tokenize([text])
    with torch.no_grad():
        return clip.text.embed(tokens.ids[0, 1 : int(tokens.end[0])].to(clip.device)).float()


def random_words(clip: CLIP, count: int, seed: int, key: str = "", width: int = 0) -> Tensor:
    """[count, W] from a normal distribution; the same for the same (seed, key) on every device.

    width: 0 is the text tower's.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(key.encode()))
    return (torch.randn(count, width or clip.text.width, generator=generator) * SPREAD).to(clip.device)


def check_length(clip: CLIP, names: Sequence[str], template: str, context: int) -> None:
    """Raise DiptychError for a class name that leaves no room for `context` more tokens."""
    room = clip.text.context_length - context
    for name in names:
        needed = clip.tokenizer.length(template.replace("{}", name))
        if needed > room:
            raise DiptychError(
                f'the class name "{name}" is too long: its text takes {needed} tokens and the context {context} more, '
                f"the text tower of {clip.name} reads {clip.text.context_length}; give a shorter one with --names"
            )


def nearest_words(clip: CLIP, context: Tensor, top: int = 3) -> list[list[str]]:
    """For each context vector [M, W] the nearest words of the vocabulary by Euclidean distance (CoOp's reading)."""
    vocabulary = clip.tokenizer.words()
    with torch.no_grad():
        table = clip.text.embed(torch.arange(len(vocabulary), device=clip.device))
        near = torch.cdist(context.detach().to(table), table).topk(top, largest=False).indices
    return [[vocabulary[i] for i in row] for row in near.tolist()]
