"""What every system of the `dense` family must keep, whatever it does: the CLIP, the shapes, its file."""

from dataclasses import replace

import pytest
import torch
from dense_world import HUES, SIDE, Boxes, stages_clip
from tiny import snapshot, unchanged

from diptych.errors import DiptychError, Unsupported
from diptych.methods.dense.parts.segmenter import Segmenter, load_segmenter
from diptych.methods.discover import describe_one, find, systems

SYSTEMS = systems("dense")
FAST = {"size": SIDE, "longest": SIDE, "crop": 0, "queries": 6, "width": 16, "layers": 2, "inner": 16, "samples": 32,
        "encoder_layers": 1, "encoder_inner": 16, "steps": 3, "batch": 2}  # fmt: skip
NAMES = ("red|crimson", "green", "blue", "azure sky")
RECORDS = Boxes(HUES, HUES, 6)


def made(name: str) -> Segmenter:
    declared = find("dense", name)
    config = declared.Config()
    return declared(replace(config, **{k: v for k, v in FAST.items() if hasattr(config, k)}))


@pytest.fixture(scope="module", params=SYSTEMS)
def fitted(request):
    clip = stages_clip()
    before = snapshot(clip)
    segmenter = made(request.param)
    assert segmenter.fit(clip, RECORDS if segmenter.trains else None) is segmenter
    return segmenter, clip, before


def test_a_fit_leaves_the_clip_as_it_was(fitted):
    segmenter, clip, before = fitted
    segmenter.segment(RECORDS[0].picture(), NAMES)
    assert unchanged(clip, before)
    assert (segmenter.module is not None) == bool(segmenter.trains)


def test_a_segmentation_has_the_size_of_its_picture(fitted):
    segmenter = fitted[0]
    for size in ((SIDE, SIDE), (45, 31), (7, 60)):
        found = segmenter.segment(RECORDS[0].picture().resize(size), NAMES, things=["green"])
        assert found.masks.shape[1:] == size[::-1] and found.scores.shape == (len(found.masks), len(NAMES))
        assert found.names == ("red", "green", "blue", "azure sky") and found.things == (False, True, False, False)
        assert not found.masks.requires_grad and not found.scores.requires_grad
        assert float(found.masks.min()) >= 0 and float(found.masks.max()) <= 1
        assert float(found.scores.min()) >= 0 and float(found.scores.sum(1).max()) <= 1 + 1e-4
        assert found.semantic().shape == size[::-1] and found.panoptic()[0].shape == size[::-1]
        assert set(found.instances(5)[1].tolist()) <= {1}


def test_the_order_of_names_does_not_matter(fitted):
    segmenter, image = fitted[0], RECORDS[1].picture()
    one = segmenter.segment(image, NAMES).evidence()
    other = segmenter.segment(image, NAMES[::-1]).evidence()
    torch.testing.assert_close(one, other.flip(0), rtol=1e-3, atol=1e-4)


def test_a_single_name_is_enough_and_an_empty_one_is_refused(fitted):
    assert fitted[0].segment(RECORDS[0].picture(), ["red"]).semantic().unique().tolist() == [0]
    with pytest.raises(DiptychError, match="has a name"):
        fitted[0].segment(RECORDS[0].picture(), ["red", " "])


def test_what_was_trained_is_one_file(fitted, tmp_path):
    segmenter, clip, _ = fitted
    path = tmp_path / "made.safetensors"
    if not segmenter.trains:
        with pytest.raises(Unsupported, match="nothing to save"):
            segmenter.save(path)
        return
    again = load_segmenter(segmenter.save(path), clip)
    image = RECORDS[2].picture()
    one, other = segmenter.segment(image, NAMES), again.segment(image, NAMES)
    assert torch.equal(one.masks, other.masks) and torch.equal(one.scores, other.scores)
    assert again.names == RECORDS.names and again.config == segmenter.config


def test_another_model_and_another_file_are_refused(fitted, tmp_path):
    segmenter = fitted[0]
    if not segmenter.trains:
        pytest.skip("it has no file")
    path = segmenter.save(tmp_path / "made.safetensors")
    other = stages_clip("others")
    with torch.no_grad():
        other.image.gain.mul_(2)
    with pytest.raises(DiptychError, match='was fitted on the model "stages"'):
        load_segmenter(path, other)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DiptychError, match="damaged"):
        load_segmenter(path, fitted[1])
    with pytest.raises(DiptychError, match="--fit DATA"):
        load_segmenter(tmp_path / "none.safetensors", fitted[1])


@pytest.mark.parametrize("name", SYSTEMS)
def test_tables_can_show_it(name: str):
    described = describe_one("dense", name)
    assert described.names_new_classes and described.needs and described.cost
