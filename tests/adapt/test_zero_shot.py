"""zero_shot: the ensemble against a plain loop, and its effect on pictures whose names are known."""

import pytest
import torch
from fakes import COLOURS, colour_clip, colour_folder
from torch.nn import functional as F

import diptych
from diptych.comparison.cell import draw
from diptych.core.text import ENSEMBLE
from diptych.engine.store import FeatureStore
from diptych.methods.adapt.zero_shot import ZeroShot


@pytest.fixture
def support(tmp_path):
    task = diptych.task(colour_folder(tmp_path / "colours", each=12))
    return draw(task, 4, 0, FeatureStore(task.digests))


def test_rows_are_the_normalised_mean_of_normalised_templates(support):
    clip = colour_clip()
    head = ZeroShot().fit(clip, support).head
    for name, row in zip(support.names, head.rows.double(), strict=True):
        texts = [clip.encode_text([t.format(name)])[0].double() for t in ENSEMBLE]
        mean = sum(t / t.norm() for t in texts) / len(texts)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-6, rtol=0)


def test_it_needs_no_labels_and_knows_what_the_names_say(support):
    clip = colour_clip()
    classifier = ZeroShot().fit(clip, support)
    guess = classifier.logits(support.features(clip)).argmax(1)
    assert (guess == support.labels).double().mean() > 0.7  # chance is 0.25
    shuffled = ZeroShot().fit(clip, support.of_classes(range(len(COLOURS))))
    assert torch.equal(shuffled.head.rows, classifier.head.rows)


def test_new_names_are_as_good_as_old_ones(support):
    clip = colour_clip()
    two = ZeroShot().fit(clip, support.of_classes([0, 1])).with_names(clip, support.names)
    x = F.normalize(support.features(clip), dim=-1)
    torch.testing.assert_close(two.logits(x), ZeroShot().fit(clip, support).logits(x))
