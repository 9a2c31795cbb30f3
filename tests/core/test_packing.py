"""A start that all texts share, computed once: equal to every text on its own, gradients included."""

import pytest
import torch
from tiny import NAMES, bert_clip, tiny_clip

from diptych.core.text import class_tokens
from diptych.core.tower import Prompt
from diptych.core.towers import blocks, packing

WIDTH = 16


def embeddings(clip, context, template="{}.", names=NAMES):
    """With the context split as in the middle of a prompt, where the name stands between its halves."""
    prompts = [Prompt(context[:3], at="start"), Prompt(context[3:], at="name")]
    return clip.encode_tokens(class_tokens(clip, names, template), prompts=prompts)


def with_gradient(clip, monkeypatch, packed: bool):
    context = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with monkeypatch.context() as patch:
        if not packed:
            patch.setattr(blocks, "shared_start", lambda *_: 0)
        found = embeddings(clip, context)
        found.square().sum().backward()
    return found.detach(), context.grad


@pytest.mark.parametrize("longest", [10_000, 16])
def test_packed_equals_one_by_one(monkeypatch, longest):
    """In one sequence, and in several where they are many."""
    clip = tiny_clip()
    monkeypatch.setattr(packing, "LONGEST", longest)
    expected, expected_gradient = with_gradient(clip, monkeypatch, packed=False)
    got, gradient = with_gradient(clip, monkeypatch, packed=True)
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


def test_it_is_used_only_where_it_is_exact(monkeypatch):
    used = []
    monkeypatch.setattr(blocks, "pack", lambda *given: used.append(1) or packing.pack(*given))
    clip = tiny_clip()
    context = torch.randn(5, WIDTH)
    tokens = class_tokens(clip, NAMES, "{}.")
    clip.encode_tokens(tokens)  # no prompt
    clip.encode_tokens(tokens, prompts=[Prompt(context.expand(len(NAMES), -1, -1))])  # one context a text
    clip.encode_tokens(tokens, prompts=[Prompt(context), Prompt(context, block=1, replace=True)])  # deeper ones
    embeddings(bert_clip(), context)  # a tower that sees both ways
    assert not used
    embeddings(clip, context)
    assert used


def test_the_packed_sequence_holds_no_padding_and_one_start():
    clip = tiny_clip()
    tokens = class_tokens(clip, NAMES, "{}.")
    hidden = torch.randn(*tokens.ids.shape, WIDTH)
    packed = packing.pack(hidden, tokens, 1)
    assert packed.hidden.shape[1] == 1 + int(tokens.mask[:, 1:].sum())
    assert torch.equal(packed.unpack(packed.hidden)[:, 1:][tokens.mask[:, 1:]], hidden[:, 1:][tokens.mask[:, 1:]])
