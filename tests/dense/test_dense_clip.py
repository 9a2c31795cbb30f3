"""The untrained segmenter: the value path is what makes it see, windows agree, and it beats what knows nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import diptych
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, LowRank, TowerEdits
from diptych.core.tower import Tap
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.segments import index_folder, scene_segments
from diptych.errors import Unsupported
from diptych.methods.dense.dense_clip import Config, DenseCLIP, resized, starts
from diptych.methods.dense.parts.vocabulary import Vocabulary
from diptych.metrics.segmentation import SemanticScores

ONE = SceneSpec(
    shapes=("circle", "square", "triangle", "star"),
    colours=("red", "yellow", "green", "blue"),
    backgrounds=("snow", "grass"),
    counts=(1,),
    sizes=("large",),
)


@pytest.fixture(scope="module")
def micro() -> CLIP:
    return diptych.load("micro")


class WholeBlock(DenseCLIP):
    """The last block as it is, tokens mixed."""

    def window(self, pixels: torch.Tensor, texts: Vocabulary) -> torch.Tensor:
        tower = self.clip.image
        tap = Tap(tower.depth - 1)
        hidden = tower(pixels, taps=[tap]).taps[tap][:, 1:].flatten(0, 1)  # [B * P, W]
        rows = tower.finish(hidden[:, None].expand(-1, 2, -1))
        logits = texts.best(self.clip.score(rows, texts.rows)).view(len(pixels), 8, 8, -1)
        return F.interpolate(logits.permute(0, 3, 1, 2), pixels.shape[2:], mode="bilinear")


def test_the_value_path_sees_things_where_they_are(micro: CLIP) -> None:
    records = scene_segments(Scenes(ONE, 32, seed=5))
    miou = {}
    for kind in (DenseCLIP, WholeBlock):
        segmenter, scores = kind(Config(size=64)).fit(micro), SemanticScores(len(records.names))
        constant = SemanticScores(len(records.names))
        for record in records:
            truth = torch.from_numpy(record.segments().semantic())
            scores.add(segmenter.segment(record.picture(), records.names).semantic(), truth)
            constant.add(torch.full_like(truth, records.names.index("grass")), truth)
        miou[kind] = scores.miou
    assert miou[DenseCLIP] > 0.15
    assert miou[DenseCLIP] > 3 * miou[WholeBlock], "the last attention must be left out"
    assert miou[DenseCLIP] > 3 * constant.miou


def test_street_scenes_with_mini(data: Path) -> None:
    pytest.importorskip("timm")
    root, names = data / "camvid", ("sky", "building", "road", "tree", "car")
    records = index_folder(root / "test", root / "testannot", root / "classes.txt")
    records = records.without([name for name in records.names if name not in names])[:4]
    segmenter = DenseCLIP(Config(size=256)).fit(diptych.load("mini"))
    scores, constant = SemanticScores(5), [SemanticScores(5) for _ in names]
    for record in records:
        truth = torch.from_numpy(record.segments().semantic())
        scores.add(segmenter.segment(record.picture(), records.names).semantic(), truth)
        for k, one in enumerate(constant):
            one.add(torch.full_like(truth, k), truth)
    assert scores.miou > 2 * max(one.miou for one in constant)


def test_each_class_has_the_pixels_that_it_wins(micro: CLIP) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    names = ["red circle|red disc", "grass", "blue star"]
    found = DenseCLIP().fit(micro).segment(image, names, things=names[:1])
    assert found.names == ("red circle", "grass", "blue star") and found.things == (True, False, False)
    assert found.masks.sum(0).eq(1).all(), "every pixel has one class"
    torch.testing.assert_close(found.scores.sum(1), torch.ones(len(found.masks)))
    labels = found.scores.argmax(1)
    assert labels.tolist() == found.semantic().unique().tolist()
    for mask, label in zip(found.masks, labels, strict=True):
        assert torch.equal(mask > 0, found.semantic() == label)
    ids, segments = found.panoptic()
    assert ids.min() > 0 and [segment.label for segment in segments] == labels.tolist(), "nothing is left out"


def test_the_best_synonym_counts(micro: CLIP) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    segmenter = DenseCLIP(Config(size=64)).fit(micro)
    one, other, both = (
        segmenter.logits(image, segmenter.vocabulary((word, "grass")))[0]
        for word in ("red circle", "blue star", "red circle|blue star")
    )
    assert (both >= torch.maximum(one, other) - 1e-4).all(), "at each place, before it is resized"
    assert float(both.max()) == pytest.approx(float(torch.maximum(one, other).max()), abs=1e-4)


def test_one_window_is_the_tower_itself(micro: CLIP) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    segmenter, names = DenseCLIP(Config(size=64, templates="a {}|the {}")).fit(micro), ["red star", "snow", "water"]
    texts = [[f"a {name}", f"the {name}"] for name in names]
    rows = torch.stack([F.normalize(F.normalize(micro.encode_text(two), dim=1).mean(0), dim=0) for two in texts])
    with torch.no_grad():
        dense = micro.image.dense(micro.preprocess(image)[None])[0]  # [8, 8, D]
    cosines = F.normalize(dense, dim=-1) @ rows.T
    logits = F.interpolate(micro.logit_scale * cosines.permute(2, 0, 1)[None], (64, 64), mode="bilinear")[0]
    found = segmenter.segment(image, names)
    assert torch.equal(found.semantic(), logits.argmax(0))
    for mask, scores in zip(found.masks, found.scores, strict=True):
        torch.testing.assert_close(scores, logits.softmax(0)[:, mask > 0].mean(1), rtol=0, atol=1e-5)


def test_where_windows_overlap_their_mean_counts(micro: CLIP) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 110, 3), dtype=np.uint8))
    segmenter = DenseCLIP(Config(size=64, templates="a {}")).fit(micro)
    texts = segmenter.vocabulary(("red star", "snow"))
    pixels = micro.preprocess.tensor(image)
    with torch.no_grad():
        found = segmenter.logits(image, texts)
        alone = [segmenter.window(pixels[None, :, :, x : x + 64], texts)[0] for x in (0, 32, 46)]
    for column in range(110):
        seen = [one[:, :, column - x] for one, x in zip(alone, (0, 32, 46), strict=True) if x <= column < x + 64]
        torch.testing.assert_close(found[:, :, column], torch.stack(seen).mean(0), rtol=0, atol=1e-4)


def test_sizes_and_windows() -> None:
    assert resized((480, 360), 128, 64, 1) == (171, 128)
    assert resized((480, 360), 256, 32, 32) == (352, 256)
    assert resized((1, 60_000), 128, 64, 1) == (128, 512), "a line is squeezed"
    assert resized((60_000, 1), 32, 64, 1) == (128, 64)
    assert starts(64, 64) == [0] and starts(171, 64) == [0, 32, 64, 96, 107]


def test_towers_without_places_are_refused(micro: CLIP) -> None:
    projection = micro.image.projections()[0]
    change = LowRank(projection, torch.zeros(1, micro.image.width), torch.zeros(micro.image.width, 1), 1.0)
    edited = micro.edited(Edits({"image": TowerEdits(low_rank=(change,))}))
    with pytest.raises(Unsupported, match="no embedding of each place"):
        DenseCLIP().fit(edited)
