"""MaPLe: prompts against a loop that edits the tokens by hand, coupling of the gradients, parameters, effect."""

import pytest
import torch
from tiny import NAMES, hf_clip, picture_task, snapshot, support_of, tiny_clip, unchanged
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.text import class_tokens
from diptych.methods.adapt.maple import Config, MaPLe, prompts, remaining, start
from diptych.methods.adapt.parts.adapter import judge


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return hf_clip()


def picture_by_hand(model, pixels: Tensor, trainable: dict[str, Tensor], depth: int) -> tuple[Tensor, list[int]]:
    """Hugging Face's own blocks, the tokens edited between them; also the length of the sequence in each block."""
    vision = model.vision_model
    maps = [(trainable[f"coupling {j}"], trainable[f"coupling bias {j}"]) for j in range(depth)]
    made = [trainable[f"text {j}"] @ weight.T + bias for j, (weight, bias) in enumerate(maps)]
    hidden = vision.embeddings(pixels)
    hidden = torch.cat([hidden, made[0].expand(len(hidden), -1, -1)], 1)
    hidden = vision.pre_layrnorm(hidden)
    lengths = []
    for i, layer in enumerate(vision.encoder.layers):
        if 0 < i < depth:
            hidden = torch.cat([hidden[:, : -len(made[i])], made[i].expand(len(hidden), -1, -1)], 1)
        lengths.append(hidden.shape[1])
        hidden = layer(hidden, None)
    return model.visual_projection(vision.post_layernorm(hidden[:, 0])), lengths


def texts_by_hand(model, clip, trainable: dict[str, Tensor], depth: int) -> Tensor:
    """ "a photo of a {name}." in full, its second and third token replaced before each of the first blocks."""
    text, rows = model.text_model, []
    for name in NAMES:
        ids = clip.tokenize([f"a photo of a {name}."]).ids
        hidden = text.embeddings.token_embedding(ids)
        hidden = torch.cat([hidden[:, :1], trainable["text 0"][None], hidden[:, 3:]], 1)
        hidden = hidden + text.embeddings.position_embedding.weight[: hidden.shape[1]]
        length = hidden.shape[1]
        mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
        for i, layer in enumerate(text.encoder.layers):
            if 0 < i < depth:
                hidden = torch.cat([hidden[:, :1], trainable[f"text {i}"][None], hidden[:, 3:]], 1)
            hidden = layer(hidden, mask)
        rows.append(model.text_projection(text.final_layer_norm(hidden)[0, -1]))
    return torch.stack(rows)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_insertion_equals_a_loop_by_hand(source, depth):
    clip = tiny_clip(source)
    trainable = start(clip, Config(depth=depth), seed=0)
    for_text, for_image = prompts(trainable)
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, lengths = picture_by_hand(source, pixels, trainable, depth)
        assert torch.allclose(clip.encode_image(pixels, prompts=for_image), expected, atol=1e-5)
        assert lengths == [1 + 4 + 2] * 3
        tokens = class_tokens(clip, NAMES, remaining(clip, Config()))
        ours = clip.encode_tokens(tokens, prompts=for_text)
        assert torch.allclose(ours, texts_by_hand(source, clip, trainable, depth), atol=1e-5)


def test_it_starts_from_the_template(source):
    """At depth 1 the texts are those of "a photo of a {}."; deeper prompts are noise."""
    clip = tiny_clip(source)
    assert remaining(clip, Config()) == "of a {}."
    trainable = start(clip, Config(depth=1), seed=0)
    ours = clip.encode_tokens(class_tokens(clip, NAMES, "of a {}."), prompts=prompts(trainable)[0])
    assert torch.allclose(ours, clip.encode_text([f"a photo of a {n}." for n in NAMES]), atol=1e-5)


@pytest.mark.parametrize("cut", ["text branch", "coupling"])
def test_gradients_are_coupled(source, cut):
    """Text prompts learn through the pictures where the texts are cut off, and only through the texts otherwise."""
    clip = tiny_clip(source)
    trainable = start(clip, Config(), seed=0)
    for_text, for_image = prompts(trainable)
    if cut == "coupling":
        for_image = prompts({name: t.detach() for name, t in trainable.items()})[1]
    tokens = class_tokens(clip, NAMES, "of a {}.")
    texts = clip.encode_tokens(tokens, prompts=for_text)
    texts = texts.detach() if cut == "text branch" else texts
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(clip.score(clip.encode_image(pixels, prompts=for_image), texts), torch.arange(4)).backward()
    for name, tensor in trainable.items():
        reached = tensor.grad is not None and bool(tensor.grad.abs().max() > 0)
        assert reached == (name.startswith("text") or cut == "text branch"), name


@pytest.mark.parametrize("depth", [1, 3, 9])
def test_parameters(source, depth):
    clip = tiny_clip(source)
    j, p, text, image = min(depth, 3), 2, clip.text.width, clip.image.width
    trainable = start(clip, Config(depth=depth), seed=0)
    assert sum(t.numel() for t in trainable.values()) == j * p * text + j * (text * image + image)


def test_fit_leaves_the_base_and_gives_both_prompts(source, tmp_path):
    clip = tiny_clip(source)
    before = snapshot(clip)
    made, labels = picture_task(shots=4, test=0)
    classifier = MaPLe(Config(epochs=2)).fit(clip, support_of(made, labels))
    assert unchanged(clip, before)
    text, image = classifier.edits.of("text").prompts, classifier.edits.of("image").prompts
    assert [(p.at, p.block, p.replace) for p in text] == [("start", j, j > 0) for j in range(3)]
    assert [(p.at, p.block, p.replace) for p in image] == [("end", j, j > 0) for j in range(3)]
    assert not image[0].position
    assert image[0].before_norm
    same = classifier.with_names(clip, NAMES)
    assert torch.allclose(same.head.rows, classifier.head.rows, atol=1e-6)
    assert classifier.with_names(clip, ["fish", "house"]).head.rows.shape == (2, 12)


def test_it_learns(source):
    clip = tiny_clip(source)
    made, labels = picture_task(shots=16, test=12)
    few, test = support_of(made, labels[:64]), support_of(made, labels[64:], first=64)
    rows = clip.encode_text([f"a photo of a {n}." for n in NAMES])
    zero = clip.score(clip.encode_image(made.pixels(clip, test.records)), rows).argmax(1)
    ((_, classifier),) = MaPLe(Config(epochs=4, batch=8, rate=0.02)).path(clip, few)
    after = judge(classifier, clip, test).argmax(1)
    assert (after == test.labels).double().mean() > (zero == test.labels).double().mean() + 0.1


def test_a_convolution_is_refused():
    from tiny import bert_clip

    reason = MaPLe().refusal(bert_clip())
    assert reason is not None
    assert "transformer image tower" in reason
