"""fc_clip: frozen to the bit, its two classifiers against loops, and what the second is there for: unseen classes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_world import HUES, SIDE, Boxes, miou, stages_clip
from tiny import snapshot, tiny_clip, unchanged
from torch.nn import functional as F

from diptych.errors import DiptychError, Unsupported
from diptych.methods.dense.fc_clip import Config, FCClip, FCClipModule, ensemble
from diptych.methods.dense.parts.backbone import Pyramid
from diptych.methods.dense.parts.examples import Examples, Views, connected
from diptych.methods.dense.parts.mask_decoder import Queried
from diptych.methods.dense.parts.matcher import UNNAMED
from diptych.methods.dense.parts.vocabulary import SCENE, Vocabulary

UNSEEN = ("yellow", "azure", "rose")
SEEN = tuple(name for name in HUES if name not in UNSEEN)
NAMES = HUES
SMALL = Config(
    size=SIDE, longest=SIDE, crop=0, queries=8, width=32, heads=4, layers=2, inner=64, encoder_layers=1,
    encoder_inner=64, samples=64, batch=4, rate=3e-3, clip=1.0, steps=250,
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    """-> (segmenter, its CLIP, the CLIP's tensors before)."""
    clip = stages_clip()
    before = snapshot(clip)
    clip.train()  # as a careless caller would
    segmenter = FCClip(SMALL).fit(clip, Boxes(NAMES, SEEN, 48))
    return segmenter, clip, before


def test_unseen_classes_are_named_by_the_frozen_clip_and_seen_ones_lose_nothing(fitted):
    """Three hues are in no training mask. By in-vocabulary names alone they are their neighbours."""
    segmenter, test = fitted[0], Boxes(NAMES, NAMES, 40, seed=1)

    def judged(alpha: float, beta: float, names: tuple[str, ...]) -> float:
        other = FCClip(replace(SMALL, alpha=alpha, beta=beta))
        other.clip, other.names, other.module = segmenter.clip, segmenter.names, segmenter.module
        other.pyramid = segmenter.pyramid
        return miou(other, test, names, NAMES)

    mixed, inside = judged(0.4, 0.8, UNSEEN), judged(0.0, 0.0, UNSEEN)
    print(f"unseen: mixed {mixed:.3f}, in-vocabulary alone {inside:.3f}")
    assert mixed > 0.5 and mixed > inside + 0.2
    mixed, outside = judged(0.4, 0.8, SEEN), judged(1.0, 1.0, SEEN)
    print(f"seen: mixed {mixed:.3f}, out-of-vocabulary alone {outside:.3f}")
    assert mixed > 0.6 and mixed >= outside


def test_the_clip_is_bit_identical_and_keeps_no_graph(fitted):
    _, clip, before = fitted
    assert unchanged(clip, before), "parameters and batch norms' statistics"
    maps, last = Pyramid.of(clip)(torch.randn(1, 3, SIDE, SIDE))
    assert not any(m.requires_grad for m in [*maps, last])
    frozen, trained = held_by_a_step(False), held_by_a_step(True)
    print(f"one step keeps {frozen} bytes of the backbone for its backward pass, {trained} where that is trained")
    assert frozen < 0.6 * trained


def held_by_a_step(trained: bool) -> int:
    """Bytes that the graph keeps of the backbone: its activations, or no more than the maps that it gives."""
    clip = stages_clip()
    pyramid, kept = Pyramid.of(clip), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    module = FCClip(SMALL).restore(clip, SEEN)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        maps = clip.requires_grad_(True).image.maps(pixels, pyramid.stages)[0] if trained else pyramid(pixels)[0]
        for layer, x in zip(module.masks.pixels.inputs, maps[:0:-1], strict=True):
            layer(x)
    return sum(kept.values())


def test_step_nine_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(5, 4, generator=generator) * 3, torch.randn(5, 3, generator=generator) * 3
    share = torch.tensor([0.4, 0.8, 0.8]).expand(5, -1)
    found = ensemble(inside, outside, share)
    for q in range(5):
        exp_in = [math.exp(v) for v in inside[q].tolist()]
        exp_out = [math.exp(v) for v in outside[q].tolist()]
        mixed = [
            (exp_in[k] / sum(exp_in[:3])) ** (1 - float(share[q, k]))
            * (exp_out[k] / sum(exp_out)) ** float(share[q, k])
            for k in range(3)
        ]
        for k in range(3):
            expected = mixed[k] / sum(mixed) * (1 - exp_in[3] / sum(exp_in))
            assert abs(float(found[q, k]) - expected) < 1e-5


def test_in_vocabulary_names_are_those_of_a_loop_and_reach_no_mask():
    """Pooling inside hard masks, best synonym of each class, "nothing" last."""
    clip = stages_clip()
    names = ("red|blue", "green")
    vocabulary = Vocabulary.of(clip, names, ("{}",))
    torch.manual_seed(0)
    module = FCClipModule(SMALL, (8, 12, 16), 12)
    features = torch.randn(1, 32, 4, 4, requires_grad=True)
    queried = Queried(torch.randn(1, 8, 32), torch.randn(1, 8, 4, 4, requires_grad=True))
    logits = module.classes(features, queried, vocabulary)
    assert logits.shape == (1, 8, 3)
    words = F.normalize(clip.encode_text(["red", "blue", "green"]), dim=-1)
    for q in range(8):
        inside = [features[0, :, y, x] for y in range(4) for x in range(4) if queried.masks[0, q, y, x] > 0]
        pooled = module.pooled(sum(inside) / len(inside))
        e = F.normalize(module.embed(queried.queries[0, q] + pooled), dim=-1)
        scores = [float(e @ row) for row in [*words, F.normalize(module.void.weight[0], dim=-1)]]
        expected = torch.tensor([max(scores[:2]), scores[2], scores[3]]) / 0.07
        torch.testing.assert_close(logits[0, q], expected, rtol=1e-4, atol=1e-4)
    logits.sum().backward()
    assert queried.masks.grad is None and features.grad is not None


def test_a_synonym_makes_a_class_seen_and_its_best_one_counts():
    clip = stages_clip()
    vocabulary = Vocabulary.of(clip, ("cat|red", "yellow", "green|lime"), SCENE)
    assert len(SCENE) == 14 and vocabulary.rows.shape == (5, 12)
    assert vocabulary.seen(("red|crimson", "lime tree")).tolist() == [True, False, False]
    values = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.0]])
    assert vocabulary.best(values).tolist() == [[3.0, 2.0, 0.0]]


def test_published_settings_are_the_defaults():
    c = Config()
    assert (c.alpha, c.beta, c.queries, c.layers, c.samples, c.rate, c.clip) == (0.4, 0.8, 250, 9, 12544, 1e-4, 0.01)
    assert FCClip().suited(40).config.queries == 30
    assert FCClip(replace(c, queries=99)).suited(40).config.queries == 99
    assert FCClip().suited(100_000).config == c


def test_a_stopped_fit_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.methods.dense.parts.fitting.EVERY", 0.0)
    config, records, keep = replace(SMALL, steps=6), Boxes(NAMES, SEEN, 6), tmp_path / "state"
    whole = FCClip(config).fit(stages_clip(), records)

    def stop(done: int, steps: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FCClip(config).fit(stages_clip(), records, keep=keep, progress=stop)
    seen: list[int] = []
    again = FCClip(config).fit(stages_clip(), records, keep=keep, progress=lambda done, _: seen.append(done))
    assert seen == [5, 6]
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    with pytest.raises(DiptychError, match="other data, settings or model"):
        FCClip(config).fit(stages_clip(), records, seed=1, keep=keep)
    keep.write_bytes(b"no")
    with pytest.raises(DiptychError, match="damaged"):
        FCClip(config).fit(stages_clip(), records, keep=keep)


class Some:
    """Records of which the first cannot be read."""

    names, things = SEEN, (True,) * len(SEEN)

    def __init__(self, count: int) -> None:
        self.boxes = Boxes(NAMES, SEEN, count)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int):
        record = self.boxes[index]
        if index:
            return record

        class Broken:
            id = record.id
            segments = record.segments

            def picture(self):
                raise DiptychError("the file is empty")

        return Broken()


def test_broken_pictures_are_set_aside():
    fitted = FCClip(replace(SMALL, steps=2)).fit(stages_clip(), Some(4))
    assert fitted.set_aside == {"0-0": "the file is empty"}
    with pytest.raises(DiptychError, match="none of the 1 pictures"):
        FCClip(replace(SMALL, steps=2)).fit(stages_clip(), Some(1))


def test_connected_parts_of_what_is_ignored_are_segments_without_a_name():
    records = Boxes(NAMES, (), 4)
    examples = Examples(Pyramid.of(stages_clip()), records, Views(SIDE, SIDE, 0, flip=False), 1, 0, unnamed=True)
    for index in range(4):
        example = examples.example(index, np.random.default_rng(0))
        boxes = {mask.tobytes() for _, mask in records[index].drawn()[1]}
        assert example.labels.tolist() == [UNNAMED] * len(boxes) and not example.ignored.any()
        assert {mask.numpy().tobytes() for mask in example.masks} == boxes
    area = torch.zeros(40, 50, dtype=torch.bool)
    area[:10, :10], area[20:30, 20:30], area[35, 45] = True, True, True
    assert [int(part.sum()) for part in connected(area)] == [100, 100], "a single pixel is a border"


def test_jitter_shows_pictures_and_masks_alike():
    """A mask that is told by its colour stays on its colour, at any scale and crop, mirrored or not."""
    examples = Examples(Pyramid.of(stages_clip()), Boxes(NAMES, SEEN, 5), Views(crop=40, least=0.5, most=2.0), 5, 0)
    sizes = set()
    for index in range(5):
        record = examples.records[index]
        planes = torch.as_tensor(record.segments().masks)
        image, masks = examples.show(record.picture(), planes, np.random.default_rng(index))
        pixels = torch.from_numpy(np.array(image)).float()
        sizes.add(image.size)
        assert max(image.size) <= 40
        for mask in masks:
            if mask.sum() > 60:
                assert pixels[mask].std(0).max() < 45, "a box is of one colour"
    assert len(sizes) > 1
    assert not examples.kept


def test_a_vit_and_bad_settings_are_refused():
    with pytest.raises(Unsupported, match="no ConvNet"):
        FCClip(SMALL).fit(tiny_clip(), Boxes(NAMES, SEEN, 2))
    with pytest.raises(DiptychError, match='did you mean "pyramid"'):
        FCClip(replace(SMALL, decoder="pyramids")).fit(stages_clip(), Boxes(NAMES, SEEN, 2))
    with pytest.raises(DiptychError, match="multiple of 4"):
        FCClip(replace(SMALL, width=30)).fit(stages_clip(), Boxes(NAMES, SEEN, 2))
    with pytest.raises(DiptychError, match="none were given"):
        FCClip(SMALL).fit(stages_clip())
    with pytest.raises(DiptychError, match="to be fitted"):
        FCClip(SMALL).segment(Boxes(NAMES, SEEN, 1)[0].picture(), NAMES)


def test_the_plain_pyramid_trains_too():
    fitted = FCClip(replace(SMALL, steps=2, decoder="pyramid")).fit(stages_clip(), Boxes(NAMES, SEEN, 4))
    assert fitted.segment(Boxes(NAMES, SEEN, 1)[0].picture(), NAMES).semantic().shape == (SIDE, SIDE)
