"""Calibration against closed forms; a classifier's file."""

import math
from pathlib import Path

import pytest
import torch
from fakes import colour_clip
from torch.nn import functional as F

from diptych.core.classifier import Base, Classifier, temperature_of, threshold_of
from diptych.core.heads import TextRows
from diptych.core.text import TextRecipe, class_rows
from diptych.errors import DiptychError


@pytest.mark.parametrize(("right", "gap"), [(0.9, 5.0), (0.6, 1.0), (0.75, 40.0), (0.55, 0.01)])
def test_temperature_of_two_classes_with_one_gap(right: float, gap: float) -> None:
    """Logits (gap, 0), right in a share p: the best temperature gives probability p, so T = gap / log(p / (1 - p))."""
    labels = torch.tensor([0] * round(200 * right) + [1] * round(200 * (1 - right)))
    logits = torch.tensor([[gap, 0.0]]).repeat(len(labels), 1)
    expected = gap / math.log(right / (1 - right))
    assert temperature_of(logits, labels) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_temperature_is_found_again(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert temperature_of(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_temperature_scales_and_does_not_depend_on_shifts() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(300, 4, generator=generator), torch.randint(4, (300,), generator=generator)
    logits[torch.arange(300), labels] += 1
    one = temperature_of(logits, labels)
    assert temperature_of(7 * logits, labels) == pytest.approx(7 * one, rel=1e-3)
    assert temperature_of(logits + 100 * torch.randn(300, 1, generator=generator), labels) == pytest.approx(
        one, rel=1e-3
    )


def test_temperature_is_the_best_of_a_fine_grid() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = 3 * torch.randn(200, 6, generator=generator), torch.randint(6, (200,), generator=generator)
    logits[torch.arange(200), labels] += 2
    found = float(F.cross_entropy(logits / temperature_of(logits, labels), labels))
    assert found <= min(float(F.cross_entropy(logits / t, labels)) for t in torch.logspace(-1, 2, 400).tolist()) + 1e-6


def test_temperature_stays_finite_where_everything_is_right() -> None:
    logits = torch.eye(4) * 3
    assert 0 < temperature_of(logits, torch.arange(4)) < math.inf
    assert 0 < temperature_of(torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 1])) < math.inf


@pytest.mark.parametrize("smoothing", [0.02, 0.2])
def test_smoothed_temperature_of_two_classes(smoothing: float) -> None:
    """All right by one gap: the best probability is that of the smoothed label."""
    logits = torch.tensor([[3.0, 0.0]]).repeat(40, 1)
    share = 1 - smoothing / 2
    found = temperature_of(logits, torch.zeros(40, dtype=torch.int64), smoothing)
    assert found == pytest.approx(3.0 / math.log(share / (1 - share)), rel=0.01)


def test_threshold_is_a_quantile_of_the_right_ones() -> None:
    top = torch.linspace(0.5, 0.98, 101)
    probabilities = torch.stack([top, 1 - top], dim=1)
    labels = torch.zeros(101, dtype=torch.int64)
    assert threshold_of(probabilities, labels) == pytest.approx(0.5 + 0.05 * 0.48, abs=1e-6)
    assert threshold_of(probabilities, labels, keep=0.5) == pytest.approx(0.74, abs=1e-6)
    labels[50:] = 1  # the upper half is wrong now, and no longer counts
    assert threshold_of(probabilities, labels, keep=0.0) == pytest.approx(0.5 + 0.48 * 0.49, abs=1e-6)
    assert threshold_of(probabilities, torch.ones(101, dtype=torch.int64)) is None


def made() -> Classifier:
    clip = colour_clip()
    recipe = TextRecipe()
    names = ("red", "green", "blue")
    return Classifier(
        system="zero_shot",
        config={},
        classes=("Rot", "Grün", "Blau 🔵"),
        names=names,
        head=TextRows(class_rows(clip, names, recipe), float(clip.logit_scale)),
        base=Base.of(clip),
        recipe=recipe,
        temperature=1.7,
        threshold=0.4,
        trainable=3,
    )


def test_a_file_holds_everything(tmp_path: Path) -> None:
    classifier = made()
    loaded = Classifier.load(classifier.save(tmp_path / "deep" / "winner.safetensors"))
    assert torch.equal(loaded.head.rows, classifier.head.rows)  # type: ignore[attr-defined]
    for name in ("system", "config", "classes", "names", "base", "recipe", "temperature", "threshold", "trainable"):
        assert getattr(loaded, name) == getattr(classifier, name)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["winner.safetensors"]


def test_another_base_model_is_refused_by_name() -> None:
    other = colour_clip("others")
    with torch.no_grad():
        other.image.scale += 1  # type: ignore[operator]
    with pytest.raises(DiptychError, match=r'"colours".*"others"'):
        made().clip(other)


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = made().save(tmp_path / "winner.safetensors")
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[:-7], "other": b"\x80\x04not weights"}[damage])
    with pytest.raises(DiptychError, match=r"winner\.safetensors"):
        Classifier.load(path)
    with pytest.raises(DiptychError, match="no classifier at"):
        Classifier.load(tmp_path / "nothing")


def test_new_names_take_the_recipe() -> None:
    clip = colour_clip()
    renamed = made().with_names(clip, ["yellow", "blue"], ["a", "b"])
    assert renamed.classes == ("a", "b") and renamed.names == ("yellow", "blue")
    assert renamed.threshold is None
    torch.testing.assert_close(renamed.head.rows, class_rows(clip, ["yellow", "blue"], TextRecipe()))  # type: ignore[attr-defined]
