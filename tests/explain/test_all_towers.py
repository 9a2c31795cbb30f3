"""Attribution through every kind of tower that has attention: whose rows count, and that padding changes nothing."""

import pytest
import torch
from core.models import IMAGES, STAGED, TEXTS, image_kind, some_pixels, text_kind, tokens_for
from torch import Tensor

from diptych.core.tower import Tap
from diptych.methods.explain.clip4dm import attribute
from diptych.methods.explain.parts.activation import activation_map
from diptych.methods.explain.parts.explainer import unit


def aim(count: int, width: int) -> Tensor:
    return unit(torch.randn(count, width, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", TEXTS)
def test_texts_one_by_one_are_as_in_a_batch(name: str):
    tower = text_kind(name).tower
    tokens = tokens_for(tower)
    target = aim(len(tokens), tower.embed_dim)
    cosines, scores = attribute(tower, tokens, target, 2)
    torch.testing.assert_close(cosines, (unit(tower(tokens).embedding) * target).sum(-1))
    assert scores.isfinite().all() and (scores.abs().amax(1) > 0).all()
    for i in range(len(tokens)):
        one = tokens.take(torch.tensor([i]), trim=not tower.pads_to)
        alone = attribute(tower, one, target[i : i + 1], 2)[1][0]
        length = int(one.mask.sum())
        torch.testing.assert_close(scores[i, :length], alone[:length], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("open_clip built-in", "end"), ("hf clip", "end"), ("causal, last", "last"), ("coca", "last"),
        ("siglip", "last"), ("bert", "real"), ("bert, start token", "first"), ("two-sided, padding masked", "end"),
    ],
)  # fmt: skip
def test_the_rows_that_count_are_those_the_embedding_is_read_from(name: str, rows: str):
    """By hand: the mean over heads of gradient times attention of the last block, at the rows known to be pooled."""
    tower = text_kind(name).tower
    tokens = tokens_for(tower).take(slice(0, 1), trim=not tower.pads_to)
    target = aim(1, tower.embed_dim)
    found = attribute(tower, tokens, target, 1)[1][0]
    for parameter in tower.parameters():
        parameter.requires_grad_(True)
    tap = Tap(tower.depth - 1, "attention")
    out = tower(tokens, taps=[tap])
    [gradient] = torch.autograd.grad((unit(out.embedding) * target).sum(), [out.taps[tap]])
    tower.requires_grad_(False)
    relevance = (gradient * out.taps[tap].detach()).mean(1)[0]
    real = tokens.mask[0].nonzero()[:, 0]
    chosen = {"end": [int(tokens.end[0])], "last": [len(relevance) - 1], "first": [0], "real": real.tolist()}[rows]
    torch.testing.assert_close(found, relevance[chosen].mean(0), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(name: str):
    tower, pixels = image_kind(name).tower, some_pixels()
    target = aim(len(pixels), tower.embed_dim)
    cosines, scores = attribute(tower, pixels, target, 2)
    torch.testing.assert_close(cosines, (unit(tower(pixels).embedding) * target).sum(-1))
    assert scores.shape[0] == len(pixels) and 16 <= scores.shape[1] <= 19 and scores.isfinite().all()
    assert (scores[:, -16:].abs().amax(1) > 0).all()


@pytest.mark.parametrize("name", STAGED)
def test_pictures_of_convnets(name: str):
    tower, pixels = image_kind(name).tower, some_pixels()[:1]
    found = activation_map(tower, pixels, aim(1, tower.embed_dim))
    assert found.dim() == 2 and found.isfinite().all()
