"""Every tower against its source library, and every promise of the seam, on random weights."""

from typing import Any

import pytest
import torch
from models import IMAGES, STAGED, TEXTS, image_kind, other_text, some_pixels, some_texts, text_kind, tokens_for, vit
from torch import Tensor

from diptych.core.edits import EditedTower, LowRank, TowerEdits
from diptych.core.tower import Prompt, Tap, Tokens, Tower
from diptych.errors import DiptychError, Unsupported

CLOSE = {"rtol": 0, "atol": 1e-5}
ALL = [("image", name) for name in [*IMAGES, *STAGED]] + [("text", name) for name in TEXTS]
TRANSFORMERS = [("image", name) for name in IMAGES] + [("text", name) for name in TEXTS]


def case(modality: str, name: str) -> tuple[Tower, Any, Any]:
    kind = image_kind(name) if modality == "image" else text_kind(name)
    return kind.tower, kind.source, some_pixels() if modality == "image" else tokens_for(kind.tower)


def tokens(count: int, width: int, seed: int = 3) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_embedding_is_the_source_librarys(modality: str, name: str) -> None:
    tower, source, inputs = case(modality, name)
    embedding = tower(inputs).embedding
    assert embedding.shape[1] == tower.embed_dim
    torch.testing.assert_close(embedding, source(inputs), **CLOSE)


@pytest.mark.parametrize(("modality", "name"), TRANSFORMERS)
def test_empty_prompt_is_no_prompt(modality: str, name: str) -> None:
    tower, _, inputs = case(modality, name)
    places = ("start", "end") if modality == "image" else ("start", "name")
    prompts = [Prompt(torch.empty(0, tower.width), block, at) for block in (0, 1) for at in places]  # type: ignore
    torch.testing.assert_close(tower(inputs, prompts=prompts).embedding, tower(inputs).embedding, rtol=0, atol=0)


@pytest.mark.parametrize(("modality", "name"), TRANSFORMERS)
def test_prompts_change_the_embedding_and_get_gradients(modality: str, name: str) -> None:
    tower, _, inputs = case(modality, name)
    at = "end" if modality == "image" else "start"
    first = tokens(2, tower.width).requires_grad_()
    deep = tokens(2, tower.width, 4).requires_grad_()
    given = [Prompt(first, 0, at), Prompt(deep, 2, at, replace=True)]  # type: ignore[arg-type]
    out = tower(inputs, prompts=given)
    assert (out.embedding - tower(inputs).embedding).abs().max() > 1e-3
    out.embedding.square().sum().backward()
    assert first.grad is not None and first.grad.abs().max() > 0  # through blocks 0 and 1
    assert deep.grad is not None and deep.grad.abs().max() > 0
    assert all(p.grad is None for p in tower.parameters())


@pytest.mark.parametrize(("modality", "name"), TRANSFORMERS)
def test_prompts_of_each_input_equal_one_call_an_input(modality: str, name: str) -> None:
    tower, _, inputs = case(modality, name)
    count = len(inputs)
    each = torch.stack([tokens(2, tower.width, i) for i in range(count)])
    together = tower(inputs, prompts=[Prompt(each), Prompt(each, 1, replace=True)]).embedding
    for i in range(count):
        one = inputs[i : i + 1] if isinstance(inputs, Tensor) else inputs.take(slice(i, i + 1), trim=not tower.pads_to)
        alone = tower(one, prompts=[Prompt(each[i]), Prompt(each[i], 1, replace=True)]).embedding
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


@pytest.mark.parametrize(("modality", "name"), TRANSFORMERS)
def test_taps_are_the_tensors_that_the_embedding_is_made_of(modality: str, name: str) -> None:
    tower, _, inputs = case(modality, name)
    taps = [Tap(0), Tap(1, "attention"), Tap(tower.depth - 1)]
    given = tokens(1, tower.width).requires_grad_()  # something to have a graph for
    prompts = [Prompt(given)]
    out = tower(inputs, prompts=prompts, taps=taps, tokens=True)
    torch.testing.assert_close(out.embedding, tower(inputs, prompts=prompts).embedding, **CLOSE)
    hidden, attention = out.taps[Tap(0)], out.taps[Tap(1, "attention")]
    batch, length = hidden.shape[:2]
    assert out.tokens is not None and out.tokens.shape == hidden.shape == (batch, length, tower.width)
    assert attention.shape == (batch, 4, length, length)
    torch.testing.assert_close(attention.sum(-1), torch.ones(batch, 4, length), **CLOSE)
    for tapped in (hidden, attention):
        (gradient,) = torch.autograd.grad(out.embedding.square().sum(), tapped, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("modality", "name"), TRANSFORMERS)
def test_projections_name_square_maps_that_change_the_embedding(modality: str, name: str) -> None:
    tower, _, inputs = case(modality, name)
    found = tower.projections()
    assert [(p.block, p.role) for p in found] == [
        (i, role) for i in range(tower.depth) for role in ("query", "key", "value", "out")
    ]
    named, plain = dict(tower.named_parameters()), tower(inputs).embedding
    before = {name: weight.clone() for name, weight in named.items()}
    for projection in found[:4]:
        rows, columns = projection.stop - projection.start, named[projection.parameter].shape[1]
        delta = LowRank(projection, torch.randn(2, columns), torch.randn(rows, 2).requires_grad_(), 0.5)
        edited = EditedTower(tower, TowerEdits(low_rank=(delta,)))
        embedding = edited(inputs).embedding
        assert (embedding - plain).abs().max() > 1e-4, projection
        embedding.square().sum().backward()
        assert delta.up.grad is not None and delta.up.grad.abs().max() > 0
    assert all(torch.equal(before[name], weight) for name, weight in tower.named_parameters())


@pytest.mark.parametrize("name", ["open_clip vit", "timm vit, class token", "hf clip"])
def test_low_rank_change_is_the_change_of_the_weight(name: str) -> None:
    tower, source, pixels = case("image", name)
    projection = next(p for p in tower.projections() if p.role == "value" and p.block == 1)
    delta = LowRank(projection, torch.randn(2, tower.width), torch.randn(tower.width, 2), 0.5)
    edited = EditedTower(tower, TowerEdits(low_rank=(delta,)))(pixels).embedding
    weight = dict(tower.named_parameters())[projection.parameter]
    before = weight.clone()
    with torch.no_grad():
        weight[projection.start : projection.stop] += 0.5 * delta.up @ delta.down
        expected = source(pixels)
        weight.copy_(before)
    torch.testing.assert_close(edited, expected, **CLOSE)


@pytest.mark.parametrize(
    "name", [n for n in TEXTS if n not in ("siglip", "causal, last", "coca", "coca, mask corrected")]
)
def test_texts_at_their_own_length_are_exact(name: str) -> None:
    tower, source, _ = case("text", name)
    assert not tower.pads_to
    inputs = some_texts(14)
    for i in range(len(inputs)):
        one = tower(inputs.take(slice(i, i + 1))).embedding
        torch.testing.assert_close(one, source(inputs.take(slice(i, i + 1), trim=False)), **CLOSE)


@pytest.mark.parametrize("name", ["siglip", "causal, last", "coca"])
def test_a_tower_that_reads_padding_asks_for_it(name: str) -> None:
    tower, _, _ = case("text", name)
    assert tower.pads_to == 16
    assert not tower.causal
    with pytest.raises(Unsupported, match="padded to 16"):
        tower(some_texts())


@pytest.mark.parametrize("name", list(STAGED))
def test_stages_give_maps_and_refuse_prompts(name: str) -> None:
    tower, _, pixels = case("image", name)
    out = tower(pixels, taps=[Tap(0), Tap(3)], tokens=True)
    torch.testing.assert_close(out.embedding, tower(pixels).embedding, **CLOSE)
    assert out.taps[Tap(0)].shape[-1] == 8
    assert out.taps[Tap(3)].shape == (3, tower.width, 1, 1)
    assert out.tokens is not None and out.tokens.shape == (3, 1, tower.width)
    assert tower.projections() == []
    assert not tower.transformer
    with pytest.raises(Unsupported, match="ViT-B-16"):
        tower(pixels, prompts=[Prompt(torch.zeros(1, tower.width))])
    with pytest.raises(Unsupported, match="attention"):
        tower(pixels, taps=[Tap(0, "attention")])


def test_an_unknown_text_encoder_runs_as_a_whole() -> None:
    kind = other_text()
    inputs = some_texts()
    torch.testing.assert_close(kind.tower(inputs, tokens=True).embedding, kind.source(inputs), **CLOSE)
    with pytest.raises(Unsupported, match="MPNet"):
        kind.tower(inputs, prompts=[Prompt(torch.zeros(1, 32))])


@pytest.mark.parametrize("pool", ["parallel", "cascade"])
def test_pools_that_open_clip_does_not_finish_are_refused(pool: str) -> None:
    with pytest.raises(Unsupported, match=pool):
        vit(attentional_pool=pool, attn_pooler_queries=5, attn_pooler_heads=4)


def test_wrong_prompts_are_refused() -> None:
    image, _, pixels = case("image", "open_clip vit")
    text, _, texts = case("text", "open_clip built-in")
    wrong = [
        (image, pixels, Prompt(torch.zeros(1, 7)), "width 32"),
        (image, pixels, Prompt(torch.zeros(1, 32), 3), "0..2"),
        (image, pixels, Prompt(torch.zeros(1, 32), replace=True), "block 0"),
        (image, pixels, Prompt(torch.zeros(1, 32), at="name"), "name"),
        (image, pixels, Prompt(torch.zeros(30, 32), 1, at="end", replace=True), "more than stands"),
        (text, texts, Prompt(torch.zeros(1, 32), at="end"), "end"),
        (text, texts, Prompt(torch.zeros(5, 32), 1, replace=True), "more than stands"),
        (text, texts, Prompt(torch.zeros(9, 32)), "reads 16"),
        (text, Tokens(texts.ids, texts.mask, texts.end), Prompt(torch.zeros(1, 32), at="name"), "marked"),
    ]
    for tower, inputs, prompt, words in wrong:
        with pytest.raises(DiptychError, match=words):
            tower(inputs, prompts=[prompt])


# The same calls by hand, with the source library's own layers and the token list edited by slicing.


def test_prompts_of_pictures_by_hand() -> None:
    kind = image_kind("open_clip vit")
    visual: Any = kind.model
    pixels, first, deep = some_pixels(), tokens(2, 32), tokens(2, 32, 4)
    x = visual.conv1(pixels).flatten(2).permute(0, 2, 1)
    x = torch.cat([visual.class_embedding.expand(3, 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, first.expand(3, -1, -1)], 1))  # MaPLe: at the end, no position, before the norm
    x = visual.transformer.resblocks[0](x)
    x = torch.cat([x[:, :-2], deep.expand(3, -1, -1)], 1)
    x = visual.transformer.resblocks[2](visual.transformer.resblocks[1](x))
    expected = visual.ln_post(x)[:, 0] @ visual.proj
    prompts = [Prompt(first, at="end"), Prompt(deep, 1, "end", replace=True)]
    out = kind.tower(pixels, prompts=prompts, tokens=True)
    torch.testing.assert_close(out.embedding, expected, **CLOSE)
    assert out.tokens is not None and out.tokens.shape[1] == 17 + 2  # block 2 keeps what stands there
    after = kind.tower(pixels, prompts=[Prompt(first, at="end", before_norm=False)]).embedding
    assert (after - kind.tower(pixels, prompts=prompts[:1]).embedding).abs().max() > 1e-3

    x = visual.ln_pre(
        torch.cat([visual.class_embedding.expand(3, 1, -1), visual.conv1(pixels).flatten(2).permute(0, 2, 1)], 1)
        + visual.positional_embedding
    )
    x = torch.cat([x[:, :1], first.expand(3, -1, -1), x[:, 1:]], 1)  # VPT: behind the class token, after the norm
    x = visual.transformer.resblocks[0](x)
    x = torch.cat([x[:, :1], deep.expand(3, -1, -1), x[:, 1:]], 1)  # put in, not replaced
    x = visual.transformer.resblocks[2](visual.transformer.resblocks[1](x))
    prompts = [Prompt(first, before_norm=False), Prompt(deep, 1)]
    torch.testing.assert_close(
        kind.tower(pixels, prompts=prompts).embedding, visual.ln_post(x)[:, 0] @ visual.proj, **CLOSE
    )


def by_hand(model: Any, rows: list[Tensor], ends: list[int], deep: Tensor | None) -> Tensor:
    """Embedded texts [L, W], one by one, through open_clip's layers at their own length."""
    out = []
    for row, end in zip(rows, ends, strict=True):
        x = row[None]
        for i, block in enumerate(model.transformer.resblocks):
            if deep is not None and i == 1:
                x = torch.cat([x[:, :1], deep[None], x[:, 1 + len(deep) :]], 1)
            x = block(x, attn_mask=model.attn_mask[: x.shape[1], : x.shape[1]])
        out.append(model.ln_final(x)[0, end] @ model.text_projection)
    return torch.stack(out)


def test_prompts_of_texts_by_hand() -> None:
    kind = text_kind("open_clip built-in")
    model: Any = kind.model
    texts, first, deep = some_texts(), tokens(2, 32), tokens(2, 32, 4)
    ends = [int(end) for end in texts.end]
    words = [model.token_embedding(texts.ids[i, : end + 1]) for i, end in enumerate(ends)]
    codes = model.positional_embedding

    rows = [torch.cat([x[:1], first, x[1:]]) for x in words]
    expected = by_hand(model, [x + codes[: len(x)] for x in rows], [end + 2 for end in ends], deep)
    prompts = [Prompt(first), Prompt(deep, 1, replace=True)]
    torch.testing.assert_close(kind.tower(texts, prompts=prompts).embedding, expected, **CLOSE)

    # after the class name, which ends before the end token
    rows = [torch.cat([x[:end], first, x[end:]]) for x, end in zip(words, ends, strict=True)]
    marked = Tokens(texts.ids, texts.mask, texts.end, texts.end)
    expected = by_hand(model, [x + codes[: len(x)] for x in rows], [end + 2 for end in ends], None)
    torch.testing.assert_close(kind.tower(marked, prompts=[Prompt(first, at="name")]).embedding, expected, **CLOSE)

    # without the position code of the place
    rows = [x + codes[: len(x)] for x in (torch.cat([x[:1], first, x[1:]]) for x in words)]
    rows = [torch.cat([x[:1], first, x[3:]]) for x in rows]
    expected = by_hand(model, rows, [end + 2 for end in ends], None)
    torch.testing.assert_close(kind.tower(texts, prompts=[Prompt(first, position=False)]).embedding, expected, **CLOSE)


def test_later_prompts_replace_the_earlier_ones_of_the_name() -> None:
    """A deep prompt at the name stands where the first one stood, so the first one is forgotten there."""
    kind = text_kind("open_clip built-in")
    texts = some_texts()
    first, deep = tokens(2, 32), tokens(2, 32, 4)
    prompts = [Prompt(first, at="name"), Prompt(deep, 1, "name", replace=True)]
    hidden = kind.tower(texts, prompts=prompts, taps=[Tap(0)]).taps[Tap(0)]
    assert texts.name_end is not None
    x = hidden.clone()
    for i, at in enumerate(texts.name_end.tolist()):
        x[i, at : at + 2] = deep
    model: Any = kind.model
    for block in list(model.transformer.resblocks)[1:]:
        x = block(x, attn_mask=model.attn_mask[: x.shape[1], : x.shape[1]])
    expected = model.ln_final(x)[torch.arange(4), texts.end + 2] @ model.text_projection
    torch.testing.assert_close(kind.tower(texts, prompts=prompts).embedding, expected, **CLOSE)


def test_context_positions_count_in_a_mean() -> None:
    kind = text_kind("bert")
    texts, first = some_texts(), tokens(2, 32)
    out = kind.tower(texts, prompts=[Prompt(first)], tokens=True)
    assert out.tokens is not None
    means = [row[: end + 3].mean(0) for row, end in zip(out.tokens, texts.end.tolist(), strict=True)]
    torch.testing.assert_close(out.embedding, torch.stack(means), **CLOSE)
    words = kind.tower.embed(texts.ids)
    model: Any = kind.model
    x = torch.cat([words[:, :1], first.expand(4, -1, -1), words[:, 1:]], 1)
    mask = torch.cat([texts.mask.new_ones(4, 2), texts.mask], 1)
    hidden = model(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
    expected = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(out.embedding, expected, **CLOSE)


def test_replaced_weights_leave_the_base_alone() -> None:
    tower, _, pixels = case("image", "open_clip vit")
    before = tower(pixels).embedding
    edited = EditedTower(tower, TowerEdits(weights={"visual.proj": torch.zeros(32, 16)}))
    assert edited(pixels).embedding.abs().max() == 0
    torch.testing.assert_close(tower(pixels).embedding, before, rtol=0, atol=0)
