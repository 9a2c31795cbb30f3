"""vifi_clip: what it trains, what it pools, how it mixes, and its effects against one frame and without a bridge."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import colour_clip
from tiny import bert_clip, tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.edits import Edits
from diptych.data.records import Record, Records
from diptych.data.support import CROP, Support
from diptych.errors import DiptychError
from diptych.losses.soft import smoothed, soft_cross_entropy
from diptych.methods.adapt.parts.adapter import configure, fit_path, judge, last
from diptych.methods.adapt.parts.prompts import words_of
from diptych.methods.video.parts.augment import box, mix, recolour
from diptych.methods.video.vifi_clip import Config, ViFiCLIP, edits_of, start, word_table

PLAIN = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "jitter": 0.0, "grey": 0.0, "warmup": 0}


class Clips:
    """Videos [N, T, 3, H, W] made up beforehand, as a `FeatureSource`; record i is video i. No augmentation."""

    def __init__(self, videos: Tensor) -> None:
        self.videos = videos

    def pixels(self, clip: CLIP, records: Records, *, rng: np.random.Generator | None = None, crop=CROP) -> Tensor:
        return self.videos[[int(r.id) for r in records]]

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop=CROP) -> Tensor:
        with torch.no_grad():
            return F.normalize(clip.encode_image(self.pixels(clip, records)), dim=-1)

    def texts(self, clip: CLIP, texts: Sequence[str]) -> Tensor:
        return clip.encode_text(texts)


def support_of(videos: Tensor, labels: Sequence[int], names: Sequence[str], index: Sequence[int] = ()) -> Support:
    index = list(index or range(len(labels)))
    items = tuple(Record(f"{i}", None, names[labels[i]]) for i in index)
    return Support(
        names=tuple(names),
        records=Records(items, "made up"),
        labels=torch.tensor([labels[i] for i in index]),
        source=Clips(videos),
        groups=tuple(range(len(items))),
        frames=videos.shape[1],
    )


def fit(clip: CLIP, support: Support, **settings) -> Classifier:
    return last(fit_path(ViFiCLIP(), Config(**settings), clip, support))


def accuracy(fitted: Classifier, clip: CLIP, support: Support) -> float:
    return float((judge(fitted, clip, support).argmax(1) == support.labels).float().mean())


# -- what is trained -------------------------------------------------------------------------------------------------


def test_only_the_prompts_have_gradients_and_are_as_many_as_the_paper_says() -> None:
    clip = tiny_clip()
    config = Config(tune="prompts", text_tokens=4, image_tokens=3, depth=2)
    learned = start(clip, Edits(), clip.log_scale.detach(), config, 0)
    tuned = clip.edited(edits_of(Edits(), learned))
    videos = torch.randn(2, 3, 3, 16, 16)
    tokens = clip.tokenize(["cat.", "dog."], ["cat", "dog"])
    F.cross_entropy(
        clip.score(tuned.encode_image(videos), tuned.encode_tokens(tokens)), torch.tensor([0, 1])
    ).backward()
    assert all(p.grad is None for p in clip.parameters())
    assert all(t.grad is not None and float(t.grad.abs().max()) > 0 for t in learned.values())
    assert sum(t.numel() for t in learned.values()) == 4 * clip.text.width * 2 + 3 * clip.image.width * 2


@pytest.mark.parametrize("clip", [tiny_clip(), bert_clip()], ids=["clip", "bert"])
def test_words_never_train(clip: CLIP) -> None:
    table = word_table(clip)
    assert table is not None and "position" not in table
    none = Edits()
    learned = start(clip, none, clip.log_scale.detach(), Config(), 0)
    every = {f"{tower} {name}" for tower in ("image", "text") for name, _ in getattr(clip, tower).named_parameters()}
    assert set(learned) == every - {f"text {table}"} | {"temperature"}
    assert not any(key.startswith("text") for key in start(clip, none, clip.log_scale, Config(tune="image"), 0))
    only_text = start(clip, none, clip.log_scale, Config(tune="text"), 0)
    assert set(only_text) == {key for key in learned if key.startswith("text")}


def test_what_a_tower_does_not_use_is_left_alone() -> None:
    """A BERT has a pooler, which the mean of its tokens never meets."""
    clip = bert_clip()
    fitted = fit(clip, support_of(torch.randn(4, 2, 3, 16, 16), [0, 1, 0, 1], ("cat", "dog")), epochs=1, **PLAIN)
    weights = fitted.edits.of("text").weights
    assert weights and not any("pooler" in name for name in weights)
    assert any("pooler" in name for name, _ in clip.text.named_parameters())


def test_prompts_stand_where_the_paper_puts_them() -> None:
    """Texts: after the start, replaced by block; pictures: at the end, without position, before the first norm."""
    clip = tiny_clip()
    config = Config(tune="prompts", text_tokens=3, image_tokens=2, depth=12, words="a photo of")
    learned = start(clip, Edits(), clip.log_scale, config, 0)
    edits = edits_of(Edits(), learned)
    text, image = edits.of("text").prompts, edits.of("image").prompts
    assert [p.block for p in text] == [p.block for p in image] == [0, 1, 2]
    assert [p.replace for p in text] == [p.replace for p in image] == [False, True, True]
    assert {p.at for p in text} == {"start"} and {p.at for p in image} == {"end"}
    assert not any(p.position for p in image) and image[0].before_norm
    torch.testing.assert_close(text[0].tokens.detach(), words_of(clip, "a photo of"))
    assert float(text[1].tokens.detach().std()) < 0.05
    many = start(clip, Edits(), clip.log_scale, replace(config, text_tokens=6), 0)
    assert float(many["text prompt 0"].detach().std()) < 0.05  # words begin only prompts of up to 4 tokens


def test_published_rates() -> None:
    default = Config()
    assert (default.epochs, default.batch, default.warmup, default.weight_decay) == (50, 64, 5, 0.001)
    assert (default.text_tokens, default.image_tokens, default.depth) == (10, 10, 12)
    assert (default.mixup, default.cutmix, default.switch, default.smoothing) == (0.8, 1.0, 0.5, 0.1)


def test_unknown_words_are_refused(tmp_path: Path) -> None:
    clip = tiny_clip()
    support = support_of(torch.randn(4, 2, 3, 16, 16), [0, 1, 0, 1], ("cat", "dog"))
    with pytest.raises(DiptychError, match='has no "prompt"; did you mean "prompts"'):
        fit(clip, support, tune="prompt")
    reason = configure(ViFiCLIP, {"tune": "prompts"}).refusal(colour_clip(), support)
    assert reason is not None and reason.startswith("learns prompts in transformer towers; the image tower is a fake")
    with pytest.raises(DiptychError, match="too long"):
        fit(clip, replace(support, names=("cat", "the " * 14)), tune="prompts", epochs=1)
    zero = Classifier.load(zero_shot_file(clip, support, tmp_path))
    with pytest.raises(DiptychError, match="which changed no tower's weights"):
        fit(clip, support, bridge=str(zero.save(tmp_path / "zero.safetensors")))


def zero_shot_file(clip: CLIP, support: Support, folder: Path) -> Path:
    from diptych.methods.adapt.zero_shot import ZeroShot

    return ZeroShot().fit(clip, support).save(folder / "zero_shot.safetensors")


# -- pooling ---------------------------------------------------------------------------------------------------------


def test_the_order_of_frames_changes_nothing() -> None:
    """And frames are pooled before they are normalised: one long embedding weighs more."""
    clip = tiny_clip()
    videos = torch.randn(8, 5, 3, 16, 16)
    support = support_of(videos, [0, 1] * 4, ("cat", "dog"))
    for tune in ("both", "prompts"):
        fitted = fit(clip, support, tune=tune, epochs=2, rate=1e-3, text_tokens=2, image_tokens=2, **PLAIN)
        edited = fitted.clip(clip)
        with torch.no_grad():
            straight = fitted.logits(edited.encode_image(videos))
            shuffled = fitted.logits(edited.encode_image(videos[:, torch.randperm(5)]))
            frames = edited.encode_frames(videos)
        assert float((straight - shuffled).abs().max()) < 1e-5
        by_hand = fitted.head.logits(F.normalize(frames.mean(1), dim=-1))
        torch.testing.assert_close(straight, by_hand)
        other = fitted.head.logits(F.normalize(F.normalize(frames, dim=-1).mean(1), dim=-1))
        assert float((straight - other).abs().max()) > 1e-3


# -- mixing ----------------------------------------------------------------------------------------------------------


def test_the_mixed_loss_is_that_of_two_labels() -> None:
    """lam * CE(y1) + (1 - lam) * CE(y2), each with smoothed labels, in float64 and by a plain loop."""
    rng, classes, smoothing = np.random.default_rng(0), 5, 0.1
    labels = torch.tensor([0, 3, 1, 4])
    logits = torch.randn(4, classes, dtype=torch.float64)
    videos = torch.arange(4.0)[:, None, None, None, None].expand(4, 2, 3, 8, 8)
    mixed, shares = mix(videos, smoothed(labels, classes, smoothing).double(), rng, 0.8, 0.0, 0.5)
    again = np.random.default_rng(0)
    lam, other = again.beta(0.8, 0.8), None
    other = again.permutation(4)
    total = 0.0
    for i in range(4):
        for y, weight in ((labels[i], lam), (labels[other[i]], 1 - lam)):
            target = [smoothing / classes + (1 - smoothing) * (c == int(y)) for c in range(classes)]
            z = logits[i].tolist()
            log_sum = float(np.log(np.exp(z).sum()))
            total += weight * sum(-t * (v - log_sum) for t, v in zip(target, z, strict=True)) / 4
    assert float(soft_cross_entropy(logits, shares)) == pytest.approx(total, abs=1e-6)
    expected = lam * np.arange(4) + (1 - lam) * np.arange(4)[other]
    torch.testing.assert_close(mixed[:, 0, 0, 0, 0], torch.tensor(expected, dtype=torch.float32))


def test_cutmix_pastes_one_box_of_the_videos_as_they_were() -> None:
    videos = torch.arange(6.0)[:, None, None, None, None].expand(6, 3, 3, 16, 16).clone()
    shares, kept = torch.eye(6), videos.clone()
    seen = 0
    for seed in range(20):
        mixed, labels = mix(videos, shares, np.random.default_rng(seed), 0.0, 1.0, 0.5)
        assert torch.equal(videos, kept)
        pasted = mixed != videos
        assert torch.equal(pasted[:, :1].expand_as(pasted), pasted)  # the same box in every frame
        for i in range(6):
            values = mixed[i].unique().tolist()
            assert len(values) <= 2 and (i in values or pasted[i].all())
            area = float(pasted[i].float().mean())
            if area:
                other = next(int(v) for v in values if v != i)
                assert labels[i, other] == pytest.approx(area, abs=1e-6)
                assert labels[i, i] == pytest.approx(1 - area, abs=1e-6)
                seen += 1
    assert seen > 30
    top, bottom, left, right = box(10, 20, 0.75, np.random.default_rng(0))
    assert 0 <= top <= bottom <= 10 and 0 <= left <= right <= 20 and (bottom - top) * (right - left) <= 50


def test_switches() -> None:
    videos, shares = torch.randn(4, 2, 3, 8, 8), torch.eye(4)
    assert mix(videos, shares, np.random.default_rng(0), 0.0, 0.0, 0.5)[0] is videos
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    assert recolour(videos, np.random.default_rng(0), 0.0, 0.0, mean, std) is videos
    grey = recolour(videos, np.random.default_rng(0), 0.0, 1.0, mean, std)
    torch.testing.assert_close(grey[:, :, 0], grey[:, :, 1])
    flat = torch.full((8, 3, 3, 4, 4), 0.4)
    jittered = recolour(flat, np.random.default_rng(0), 1.0, 0.0, mean, std)
    assert len(jittered[:, 0, 0, 0, 0].unique()) > 4  # drawn for each video
    torch.testing.assert_close(jittered[:, :1].expand_as(jittered), jittered)  # and the same in all its frames


# -- effects ---------------------------------------------------------------------------------------------------------

NAMES = ("cat", "dog", "fish")  # two of three patterns, one after the other: each frame belongs to two classes
PAIRS = ((0, 1), (1, 2), (0, 2))


def taking_turns(each: int, seed: int, patterns: Tensor | None = None) -> tuple[Tensor, list[int]]:
    """Videos of 4 frames, in a chance order, two of each of the class's patterns, under noise."""
    generator = torch.Generator().manual_seed(seed)
    if patterns is None:
        patterns = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(99))
    labels = [c for _ in range(each) for c in range(3)]
    videos = []
    for label in labels:
        a, b = PAIRS[label]
        order = torch.randperm(4, generator=generator)
        videos.append(patterns[[a, a, b, b]][order])
    noise = 0.5 * torch.randn(len(labels), 4, 3, 16, 16, generator=generator)
    return torch.stack(videos) + noise, labels


def test_the_set_of_frames_tells_what_no_single_frame_does() -> None:
    clip = tiny_clip()
    (videos, labels), (rest, truth) = taking_turns(6, 0), taking_turns(40, 1)
    settings = {"tune": "both", "epochs": 30, "rate": 1e-3, "batch": 18, **PLAIN}
    found = {}
    for frames in (4, 1):
        shots, test = (support_of(v[:, :frames], y, NAMES) for v, y in ((videos, labels), (rest, truth)))
        found[frames] = accuracy(fit(clip, shots, **settings), clip, test)
    assert found[4] > 0.9 and found[1] < 0.6, found  # one frame leaves two classes: at best a half


def test_a_bridge_helps_prompts(tmp_path: Path) -> None:
    """Two shots a class of shifted videos: prompts on towers tuned on many unshifted ones, and on the model itself."""
    clip = tiny_clip()
    patterns = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(99))
    many, labels = taking_turns(16, 0, patterns)
    shots, few = taking_turns(2, 2, patterns + 0.3)
    rest, truth = taking_turns(40, 3, patterns + 0.3)
    stage = fit(clip, support_of(many, labels, NAMES), epochs=15, rate=1e-3, batch=24, **PLAIN)
    bridge = str(stage.save(tmp_path / "bridge.safetensors"))
    settings = {"tune": "prompts", "epochs": 15, "rate": 8e-3, "text_tokens": 2, "image_tokens": 2, "batch": 6, **PLAIN}
    with_it, without = (fit(clip, support_of(shots, few, NAMES), bridge=b, **settings) for b in (bridge, ""))
    test = support_of(rest, truth, NAMES)
    better, worse = (accuracy(f, clip, test) for f in (with_it, without))
    assert better > worse + 0.05, (better, worse)
    base = {name: p.clone() for name, p in stage.edits.of("image").weights.items()}
    kept = with_it.edits.of("image").weights
    assert all(torch.equal(kept[name], weight) for name, weight in base.items())  # frozen, and in the one file
    assert with_it.trainable == 2 * clip.text.width * 3 + 2 * clip.image.width * 3
    loaded = Classifier.load(with_it.save(tmp_path / "winner.safetensors"))
    assert torch.equal(judge(loaded, clip, test), judge(with_it, clip, test))
