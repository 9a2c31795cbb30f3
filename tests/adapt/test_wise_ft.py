"""WiSE-FT: both ends of the line, the base untouched, the choice of the share, effect."""

import pytest
import torch
from tiny import NAMES, bert_clip, picture_task, snapshot, support_of, tiny_clip, unchanged
from torch.nn import functional as F

from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.methods.adapt.parts.adapter import judge, select
from diptych.methods.adapt.wise_ft import Config, WiSEFT, fine_tune

CLIPS = {"transformer": tiny_clip, "convolution": bert_clip}


@pytest.fixture(params=CLIPS)
def clip(request):
    return CLIPS[request.param]()


def test_both_ends_of_the_line(clip):
    before = snapshot(clip)
    made, labels = picture_task(shots=4, test=2)
    few, test = support_of(made, labels[:16]), support_of(made, labels[16:], first=16)
    config = Config(alpha=(0.0, 0.5, 1.0), rate=1e-3)
    path = {chosen.alpha: classifier for chosen, classifier in WiSEFT(config).path(clip, few)}
    assert unchanged(clip, before)
    rows = class_rows(clip, NAMES, TextRecipe(ENSEMBLE))
    tuned, tuned_rows = fine_tune(clip, few, rows, config)

    assert path[0.0].on_base_features
    assert torch.equal(path[0.0].head.rows, rows)
    for name, weight in path[1.0].edits.of("image").weights.items():
        assert torch.allclose(weight, tuned[name], atol=1e-7)
    assert torch.allclose(path[1.0].head.rows, tuned_rows, atol=1e-7)

    pixels = made.pixels(clip, test.records)
    base = dict(clip.image.named_parameters())
    half = {name: (base[name] + tuned[name]) / 2 for name in tuned}
    out = torch.func.functional_call(clip.image, half, (pixels,)).embedding
    expected = clip.logit_scale * F.normalize(out, dim=-1) @ ((rows + tuned_rows) / 2).T
    assert torch.allclose(judge(path[0.5], clip, test), expected, atol=1e-4)
    assert not torch.allclose(path[1.0].head.rows, rows, atol=1e-4)


def test_only_what_changed_is_saved(clip, tmp_path):
    made, labels = picture_task(shots=2, test=0)
    ((_, classifier),) = WiSEFT(Config(alpha=0.5, epochs=1)).path(clip, support_of(made, labels))
    assert set(classifier.edits.of("image").weights) <= {name for name, _ in clip.image.named_parameters()}
    assert not classifier.edits.of("text")
    assert classifier.trainable == sum(p.numel() for p in clip.image.parameters()) + 4 * clip.embed_dim
    loaded = type(classifier).load(classifier.save(tmp_path / "w.safetensors"))
    pixels = made.pixels(clip, support_of(made, labels).records)
    one, two = (c.logits(c.clip(clip).encode_image(pixels)) for c in (classifier, loaded))
    assert torch.equal(one, two)
    new = classifier.with_names(clip, ["fish", "house"])
    assert torch.equal(new.head.rows, class_rows(clip, ["fish", "house"], TextRecipe(ENSEMBLE)))


def test_one_shot_falls_back_to_half(clip):
    made, labels = picture_task(shots=1, test=0)
    selection = select(WiSEFT(Config(epochs=1)), clip, support_of(made, labels))
    assert selection.config.alpha == 0.5
    assert selection.validation is None


def test_it_learns(clip):
    made, labels = picture_task(shots=16, test=12)
    few, test = support_of(made, labels[:64]), support_of(made, labels[64:], first=64)
    made.features = F.normalize(clip.encode_image(made.made), dim=-1)
    path = {c.alpha: x for c, x in WiSEFT(Config(alpha=(0.0, 1.0), epochs=12, rate=3e-3)).path(clip, few)}
    zero, tuned = (float((judge(path[a], clip, test).argmax(1) == test.labels).double().mean()) for a in (0.0, 1.0))
    assert tuned > zero + 0.1
