"""What every adapter keeps, whatever it does. A system added to the folder is tried here without an edit."""

import importlib
import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_world import NEW_NAMES, shots_of
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.records import Records
from diptych.data.support import Support
from diptych.errors import DiptychError, Unsupported
from diptych.methods.adapt.parts.adapter import Adapter, Work, configure, fit_path, judge, last, select, values
from diptych.methods.discover import describe_one, find, systems

SYSTEMS = systems("adapt")
# Settings that cost time are cut, wherever a system has them; what they do is tried in its own test.
QUICK = {"epochs": "2", "steps_per_shot": "3", "views": "3", "batch": "8", "depth": "2"}


def quick(name: str) -> Adapter:
    system = find("adapt", name)
    known = {f.name for f in fields(system.Config)}
    return configure(system, {k: v for k, v in QUICK.items() if k in known})


@pytest.fixture(params=SYSTEMS)
def adapter(request: pytest.FixtureRequest, clip: CLIP, support: Support) -> Adapter:
    found = quick(request.param)
    if reason := found.refusal(clip, support):
        pytest.skip(f"{request.param} {reason}")
    return found


FITS: dict[str, Classifier] = {}


@pytest.fixture
def fitted(adapter: Adapter, clip: CLIP, support: Support) -> Classifier:
    """Fitted once a system, hyper-parameters chosen."""
    if adapter.system() not in FITS:
        FITS[adapter.system()] = adapter.fit(clip, support)
    return FITS[adapter.system()]


def asked(support: Support, queries: Records) -> Support:
    """The queries in the place of shots, to be judged."""
    labels = torch.tensor([support.names.index(r.label) for r in queries if r.label])
    return replace(support, records=queries, labels=labels, groups=tuple(range(len(queries))))


def answers(classifier: Classifier, clip: CLIP, support: Support, queries: Records) -> Tensor:
    """Logits [N, C] as `compare` gets them."""
    return judge(classifier, clip, asked(support, queries))


def test_same_seed_same_result(
    adapter: Adapter, fitted: Classifier, clip: CLIP, support: Support, queries: Records
) -> None:
    again = adapter.fit(clip, support)
    assert again.config == fitted.config
    assert again.temperature == fitted.temperature
    assert again.threshold == fitted.threshold
    assert torch.equal(answers(again, clip, support, queries), answers(fitted, clip, support, queries))


def test_base_weights_stay(adapter: Adapter, clip: CLIP, support: Support) -> None:
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    fingerprint, training = clip.fingerprint, clip.training
    config = replace(adapter.config, **{f.name: values(adapter.config, f.name)[0] for f in fields(adapter.config)})
    fitted = last(fit_path(adapter, config, clip, support))
    for name, tensor in clip.state_dict().items():
        assert torch.equal(before[name], tensor), name
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())
    assert clip.training == training and fitted.base.fingerprint == fingerprint
    tensors = [*fitted.head.pack()[1].values(), *(t for e in fitted.edits.towers.values() for t in e.tensors())]
    assert not any(t.requires_grad for t in tensors)


def test_gradient_reaches_what_it_declares(
    adapter: Adapter, clip: CLIP, support: Support, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tensors handed to the loop are reached and moved, and they are what the classifier counts."""
    module = importlib.import_module(type(adapter).__module__)
    handed: list[dict[str, tuple[Tensor, Tensor]]] = []

    def watched(trainable: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        before = {name: (tensor, tensor.detach().clone()) for name, tensor in trainable.items()}
        handed.append(before)
        return train(trainable, *args, **kwargs)

    train = getattr(module, "train", None)
    if train is not None:
        monkeypatch.setattr(module, "train", watched)
    config = replace(adapter.config, **{f.name: values(adapter.config, f.name)[0] for f in fields(adapter.config)})
    fitted = last(fit_path(adapter, config, clip, support))
    assert bool(adapter.trains) == (fitted.trainable > 0)
    if not adapter.trains:
        assert not handed
    if handed:
        (watched_tensors,) = handed
        for name, (after, before) in watched_tensors.items():
            assert not torch.equal(after.detach(), before), f"{name} did not move"
        assert sum(before.numel() for _, before in watched_tensors.values()) == fitted.trainable


def test_save_load_predict(fitted: Classifier, clip: CLIP, support: Support, queries: Records, tmp_path: Path) -> None:
    loaded = Classifier.load(fitted.save(tmp_path / "winner.safetensors"))
    assert torch.equal(answers(loaded, clip, support, queries), answers(fitted, clip, support, queries))
    for name in ("system", "classes", "names", "base", "recipe", "temperature", "threshold", "trainable"):
        assert getattr(loaded, name) == getattr(fitted, name), name
    assert json.loads(json.dumps(loaded.config)) == json.loads(json.dumps(fitted.config))


def test_class_order_does_not_matter(
    adapter: Adapter, fitted: Classifier, clip: CLIP, support: Support, queries: Records
) -> None:
    order = [2, 0, 3, 1]
    mixed = support.of_classes(order)
    again = adapter.fit(clip, mixed)
    assert again.names == tuple(support.names[c] for c in order)
    expected = answers(fitted, clip, support, queries)[:, order].softmax(1)
    torch.testing.assert_close(answers(again, clip, mixed, queries).softmax(1), expected, atol=2e-3, rtol=0)


def test_one_picture_and_many_agree(fitted: Classifier, clip: CLIP, support: Support, queries: Records) -> None:
    together = answers(fitted, clip, support, queries).softmax(1)
    alone = torch.cat([answers(fitted, clip, support, queries[[i]]) for i in (0, 5, len(queries) - 1)]).softmax(1)
    torch.testing.assert_close(together[[0, 5, len(queries) - 1]], alone, atol=1e-4, rtol=0)


def test_unseen_names(adapter: Adapter, fitted: Classifier, clip: CLIP, support: Support, queries: Records) -> None:
    if not adapter.names_new_classes:
        with pytest.raises(Unsupported):
            fitted.with_names(clip, NEW_NAMES)
        return
    renamed = fitted.with_names(clip, NEW_NAMES)
    assert renamed.classes == NEW_NAMES and renamed.threshold is None
    found = answers(renamed, clip, support, queries)
    assert found.shape == (len(queries), len(NEW_NAMES)) and bool(found.isfinite().all())
    swapped = answers(fitted.with_names(clip, NEW_NAMES[::-1]), clip, support, queries)
    torch.testing.assert_close(swapped.flip(1).softmax(1), found.softmax(1), atol=1e-4, rtol=0)


def test_probabilities_are_calibrated_numbers(
    fitted: Classifier, clip: CLIP, support: Support, queries: Records
) -> None:
    logits = answers(fitted, clip, support, queries)
    assert logits.shape == (len(queries), len(support.names))
    assert logits.dtype == torch.float32 and bool(logits.isfinite().all())
    assert fitted.temperature > 0 and math.isfinite(fitted.temperature)
    assert fitted.threshold is None or 0 < fitted.threshold <= 1


def test_one_shot_takes_the_fallback(adapter: Adapter, clip: CLIP, support: Support) -> None:
    chosen = select(adapter, clip, support.only(range(len(support.names))))
    if adapter.needs.labels:
        assert chosen.validation is None and chosen.classifier.threshold is None
        for name, value in adapter.fallback.items():
            assert getattr(chosen.config, name) == value


def test_choices_are_single_values_of_the_grid(adapter: Adapter, fitted: Classifier) -> None:
    for name, value in fitted.config.items():
        assert value in values(adapter.config, name), name


@pytest.mark.parametrize("name", SYSTEMS)
def test_refusal_is_a_sentence(name: str, clip: CLIP, support: Support) -> None:
    """A convolutional picture tower, no pool, class names that nothing is known of: each may be refused in words."""
    system = find("adapt", name)()
    strange = replace(support, names=("q1", "q2", "q3", "q4"), unlabelled=Records((), "nothing"))
    towers = {"image": plain(clip.image), "text": plain(clip.text)}
    other = CLIP("plain", towers["image"], towers["text"], clip.tokenizer, clip.preprocess)
    for reason in (system.refusal(clip, strange), system.refusal(other, support), system.refusal(other)):
        if reason is not None:
            assert reason[0].islower() and len(reason.split()) >= 3 and "\n" not in reason, reason
            assert "None" not in reason and "Traceback" not in reason
    if reason := system.refusal(clip, strange):
        with pytest.raises(Unsupported) as caught:
            select(system, clip, strange)
        assert str(caught.value) == reason


def plain(tower: torch.nn.Module) -> Any:
    import copy

    other = copy.copy(tower)
    other.transformer, other.kind = False, "plain.convolution"
    return other


@pytest.mark.parametrize("name", SYSTEMS)
def test_declarations(name: str) -> None:
    system = find("adapt", name)
    about = inspect.getdoc(importlib.import_module(system.__module__)) or ""
    assert describe_one("adapt", name).summary.endswith(".")
    assert "Use it" in about and "Not " in about, "says when to use it and when not"
    known = {f.name for f in fields(system.Config)}
    assert set(system.swept) <= known and set(system.fallback) <= known
    assert system.cost in ("features", "text tower", "both towers")
    adapter = system()
    for field, value in system.fallback.items():
        assert value in values(adapter.config, field)
    views, (low, high) = adapter.views()
    assert views >= 0 and 0 < low <= high <= 1
    small, large = adapter.work(5, 1), adapter.work(50, 16)
    for one in fields(Work):
        assert 0 <= getattr(small, one.name) <= getattr(large, one.name)
    json.dumps(asdict(adapter.config))


def settings() -> Iterator[tuple[str, str]]:
    for name in SYSTEMS:
        for field in fields(find("adapt", name).Config):
            yield name, field.name


@pytest.mark.parametrize(("name", "field"), list(settings()))
def test_every_setting_can_be_set(name: str, field: str) -> None:
    system = find("adapt", name)
    given = values(system.Config(), field)
    word = {True: "true", False: "false"}[given[0]] if isinstance(given[0], bool) else str(given[0])
    assert getattr(configure(system, {field: word}).config, field) == given[0]
    several = configure(system, {field: [word, word]})
    assert getattr(several.config, field) == (given[0], given[0])
    for single in several.singles():  # the forecast and the encoding know what a grid will read
        assert single.views()[0] >= 0 and single.work(3, 2)
    if not isinstance(given[0], str):
        with pytest.raises(DiptychError, match=f"{name}.{field} takes"):
            configure(system, {field: "seven"})


def test_a_wrong_setting_names_the_right_one() -> None:
    with pytest.raises(DiptychError, match='did you mean "alpha"'):
        configure(find("adapt", "gda"), {"alhpa": "1"})


def test_features_of_drawings_tell_classes_apart(clip: CLIP, support: Support, queries: Records) -> None:
    """The world these tests are made of has something to learn."""
    features = support.features(clip)
    keys = F.normalize(features, dim=-1)
    near = support.labels[(asked(support, queries).features(clip) @ keys.T).argmax(1)]
    truth = asked(support, queries).labels
    assert (near == truth).float().mean() > 0.4
    assert shots_of(support.source, 1).labels.tolist() == [0, 1, 2, 3]  # type: ignore[arg-type]
