"""What every system of videos keeps: the contract of adapters, on clips. A system added to the folder is tried too."""

import inspect
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from adapt.test_contract import QUICK, asked, fitted
from adapt.test_contract import test_base_weights_stay as test_base_weights_stay
from adapt.test_contract import test_choices_are_single_values_of_the_grid as test_choices_are_single_values_of_the_grid
from adapt.test_contract import test_class_order_does_not_matter as test_class_order_does_not_matter
from adapt.test_contract import test_gradient_reaches_what_it_declares as test_gradient_reaches_what_it_declares
from adapt.test_contract import test_one_picture_and_many_agree as test_one_picture_and_many_agree
from adapt.test_contract import test_one_shot_takes_the_fallback as test_one_shot_takes_the_fallback
from adapt.test_contract import test_probabilities_are_calibrated_numbers as test_probabilities_are_calibrated_numbers
from adapt.test_contract import test_same_seed_same_result as test_same_seed_same_result
from adapt.test_contract import test_save_load_predict as test_save_load_predict
from adapt.test_contract import test_unseen_names as test_unseen_names

from diptych.core.clip import CLIP
from diptych.data.records import Records
from diptych.data.support import Support
from diptych.errors import DiptychError
from diptych.methods.adapt.parts.adapter import Adapter, Work, configure, fit_path, judge, last, values
from diptych.methods.discover import describe_one, find, systems

__all__ = ["fitted"]
SYSTEMS = systems("video")


@pytest.fixture(params=SYSTEMS)
def adapter(request: pytest.FixtureRequest, clip: CLIP, support: Support) -> Adapter:
    system = find("video", request.param)
    known = {f.name for f in fields(system.Config)}
    found = configure(system, {k: v for k, v in QUICK.items() if k in known})
    if reason := found.refusal(clip, support):
        pytest.skip(f"{request.param} {reason}")
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_pictures_are_refused(name: str, clip: CLIP, support: Support) -> None:
    reason = find("video", name)().refusal(clip, replace(support, frames=0))
    assert reason is not None and "videos" in reason


@pytest.mark.parametrize("name", SYSTEMS)
def test_declarations(name: str) -> None:
    system = find("video", name)
    about = inspect.getdoc(inspect.getmodule(system)) or ""
    assert describe_one("video", name).summary.endswith(".")
    assert "Use it" in about and "Not " in about, "says when to use it and when not"
    small, large = system().work(5, 1), system().work(50, 16)
    for one in fields(Work):
        assert 0 <= getattr(small, one.name) <= getattr(large, one.name)


@pytest.mark.parametrize("name", systems("adapt"))
def test_systems_of_pictures_work_on_videos(name: str, clip: CLIP, support: Support, queries: Records) -> None:
    system = find("adapt", name)
    known = {f.name for f in fields(system.Config)}
    found = configure(system, {k: v for k, v in QUICK.items() if k in known})
    if reason := found.refusal(clip, support):
        pytest.skip(f"{name} {reason}")
    (config, *_) = (single.config for single in found.singles())
    single = replace(config, **{f.name: values(config, f.name)[0] for f in fields(config)})
    fitted = last(fit_path(found, single, clip, support))
    assert fitted.frames == support.frames
    assert bool(judge(fitted, clip, asked(support, queries)).isfinite().all())


def settings() -> Iterator[tuple[str, str]]:
    for name in SYSTEMS:
        for field in fields(find("video", name).Config):
            yield name, field.name


@pytest.mark.parametrize(("name", "field"), list(settings()))
def test_every_setting_can_be_set(name: str, field: str) -> None:
    system = find("video", name)
    (given, *_) = values(system.Config(), field)
    if isinstance(given, str) and not given:
        return  # an empty word cannot be typed
    word = {True: "true", False: "false"}[given] if isinstance(given, bool) else str(given)
    assert getattr(configure(system, {field: word}).config, field) == given
    if not isinstance(given, str):
        with pytest.raises(DiptychError, match=f"{name}.{field} takes"):
            configure(system, {field: "seven"})


def test_clips_of_drawings_tell_classes_apart(clip: CLIP, support: Support, queries: Records) -> None:
    """The world these tests are made of has something to learn."""
    rest = asked(support, queries)
    near = support.labels[(rest.features(clip) @ support.features(clip).T).argmax(1)]
    assert (near == rest.labels).float().mean() > 0.4
    assert support.pixels(clip, [0, 1]).shape[:2] == (2, support.frames)
    assert torch.equal(
        clip.encode_image(support.pixels(clip, [0])), clip.encode_frames(support.pixels(clip, [0])).mean(1)
    )
