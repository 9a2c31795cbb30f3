"""What every system of the family keeps: scores word by word, one CLIP untouched, errors that say why."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import bert_clip, tiny_clip

from diptych.errors import DiptychError, Unsupported
from diptych.methods.discover import describe_one, find, systems
from diptych.methods.explain.parts.explainer import Explainer, WordScores

SYSTEMS = systems("explain")
IMAGE = Image.effect_noise((40, 30), 80).convert("RGB")
TEXT = "a photo of cat , cat and polar bear ."


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("make", [tiny_clip, bert_clip])
def test_scores_are_of_the_texts_words_and_repeat(name: str, make):
    system, clip = find("explain", name), make()
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    explainer = system(clip)
    found = explainer.explain(IMAGE, TEXT)
    assert isinstance(explainer, Explainer) and isinstance(found, WordScores)
    assert [word.word for word in found.words] == TEXT.split()
    assert [found.text[word.start : word.end] for word in found.words] == TEXT.split()
    assert all(word.score is None or math.isfinite(word.score) for word in found.words)
    assert math.isfinite(found.score) and -1 <= found.cosine <= 1
    assert found.clip_score == 2.5 * max(found.cosine, 0)
    assert explainer.explain(IMAGE, TEXT) == found == system(make()).explain(IMAGE, TEXT)
    assert all(torch.equal(before[key], value) for key, value in clip.state_dict().items())
    other = explainer.explain(IMAGE.rotate(90), TEXT)
    assert other.cosine != found.cosine, "the next picture is another one"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_map_is_of_the_picture_or_refused(name: str):
    system = find("explain", name)
    explainer = system(tiny_clip())
    if system.heat is Explainer.heat:
        with pytest.raises(Unsupported, match="no map"):
            explainer.heat(IMAGE, TEXT)
        return
    heat = explainer.heat(IMAGE, TEXT)
    assert heat.dim() == 2 and heat.isfinite().all() and heat.dtype == torch.float32


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_says_what_it_is(name: str):
    system = find("explain", name)
    about = describe_one("explain", name)
    assert about.trains == "nothing" and about.needs and about.cost and system.measure
    assert replace(system.config_for(tiny_clip())) == system.Config(), "an unknown model has the published settings"
    with pytest.raises(DiptychError, match="without a word"):
        system(tiny_clip()).explain(IMAGE, " \n ")
