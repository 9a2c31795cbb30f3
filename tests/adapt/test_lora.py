"""LoRA: its start, its size, equality with PEFT on the same model, effect."""

import pytest
import torch
from tiny import NAMES, hf_clip, picture_task, snapshot, support_of, tiny_clip, unchanged

from diptych.core.text import class_tokens
from diptych.methods.adapt.lora import Config, LoRA, dropped, start
from diptych.methods.adapt.parts.adapter import judge

PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def randomised(edits, seed: int = 0):
    """The changes with `up` away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tower in edits.towers.values():
            for delta in tower.low_rank:
                delta.up.copy_(torch.randn(delta.up.shape, generator=generator) * 0.3)
    return edits


def test_it_starts_as_the_base():
    clip = tiny_clip()
    edits = start(clip, Config(), seed=0)
    tokens = class_tokens(clip, NAMES, "a photo of a {}.")
    edited = clip.edited(dropped(edits, 0.25, torch.Generator()))
    assert torch.equal(edited.encode_image(PIXELS), clip.encode_image(PIXELS))
    assert torch.equal(edited.encode_tokens(tokens), clip.encode_tokens(tokens))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_parameters(rank):
    """Two matrices of rank x width a projection, three projections a block, both towers."""
    clip = tiny_clip()
    edits = start(clip, Config(rank=rank), seed=0)
    total = sum(t.numel() for tower in edits.towers.values() for t in tower.tensors())
    assert total == sum(tower.depth * 3 * 2 * rank * tower.width for tower in (clip.image, clip.text))
    assert {d.projection.role for tower in edits.towers.values() for d in tower.low_rank} == {"query", "key", "value"}


def test_equals_peft_on_the_same_model():
    peft = pytest.importorskip("peft")
    model = hf_clip()
    clip = tiny_clip(model)
    config = Config(rank=2, alpha=3.0)
    edits = randomised(start(clip, config, seed=0))
    tokens = class_tokens(clip, NAMES, "a photo of a {}.")
    with torch.no_grad():
        ours = clip.edited(edits).encode_image(PIXELS), clip.edited(edits).encode_tokens(tokens)

    peft_config = peft.LoraConfig(r=2, lora_alpha=3.0, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj"])
    theirs = peft.get_peft_model(model, peft_config)
    layers = {name.removeprefix("base_model.model."): m for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == 18
    with torch.no_grad():
        for tower, half in (("image", "vision_model"), ("text", "text_model")):
            for delta in edits.of(tower).low_rank:
                place = delta.projection.parameter.removeprefix("model.").removesuffix(".weight")
                layer = layers[f"{half}.{place}"]
                layer.lora_A["default"].weight.copy_(delta.down)
                layer.lora_B["default"].weight.copy_(delta.up)
        theirs.eval()
        pictures = theirs.get_image_features(pixel_values=PIXELS)
        texts = theirs.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask.long())
    pictures, texts = (getattr(x, "pooler_output", x) for x in (pictures, texts))
    assert not torch.allclose(ours[0], clip_without(model, theirs), atol=1e-3)
    assert torch.allclose(ours[0], pictures, atol=1e-5)
    assert torch.allclose(ours[1], texts, atol=1e-5)


def clip_without(model, peft_model):
    with torch.no_grad(), peft_model.disable_adapter():
        out = peft_model.get_image_features(pixel_values=PIXELS)
    return getattr(out, "pooler_output", out)


def test_merged_equals_unmerged():
    """The changed weights written into a copy of the model give what the edited tower gives."""
    clip = tiny_clip()
    edits = randomised(start(clip, Config(), seed=0))
    expected = clip.edited(edits).encode_image(PIXELS)
    with torch.no_grad():
        for name, weight in edits.of("image").parameters(clip.image).items():
            dict(clip.image.named_parameters())[name].copy_(weight)
    assert torch.allclose(clip.encode_image(PIXELS), expected, atol=1e-6)


def test_dropout_keeps_the_mean():
    clip = tiny_clip()
    edits = start(clip, Config(), seed=0)
    delta = edits.of("text").low_rank[0]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([dropped(edits, 0.25, generator).of("text").low_rank[0].down for _ in range(3000)])
    assert float((drawn == 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.allclose(drawn.mean(0), delta.down, atol=0.02)


def test_it_learns_and_leaves_the_base():
    clip = tiny_clip()
    before = snapshot(clip)
    made, labels = picture_task(shots=16, test=12)
    test, few = support_of(made, labels[64:], first=64), support_of(made, labels[:64])
    rows = clip.encode_text([f"a photo of a {n}." for n in NAMES])
    zero = clip.score(clip.encode_image(made.pixels(clip, test.records)), rows).argmax(1)
    adapter = LoRA(Config(steps_per_shot=2, rate=0.03))
    ((_, classifier),) = adapter.path(clip, few)
    assert unchanged(clip, before)
    assert classifier.trainable == 3 * 3 * 2 * 2 * (16 + 24)
    after = judge(classifier, clip, test).argmax(1)
    assert (after == test.labels).double().mean() > (zero == test.labels).double().mean() + 0.1
    same = classifier.with_names(clip, NAMES)
    assert torch.allclose(same.head.rows, classifier.head.rows, atol=1e-6)
