"""DCLIP: clauses, ragged means, meaning against controls, explanations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import colour_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.heads import TextRows
from diptych.data.descriptions import Bank
from diptych.data.records import Record, Records
from diptych.data.support import Support
from diptych.errors import DiptychError, Unsupported
from diptych.methods.adapt.dclip import DCLIP, Config, clause, explain, recipe_of, sentence
from diptych.methods.adapt.parts.adapter import fit_path, judge, last, select

BANK: Bank = {"blicket": ("red", "deep red"), "dax": ("green",), "wug": ("blue", "a blue look", "used blue"), "zup": ()}
COLOURS = ("red", "green", "blue", "yellow")


@pytest.mark.parametrize(
    ("descriptor", "word", "letter"),
    [
        ("a tail", "which is a tail", "which is a tail"),
        ("an orange beak", "which is an orange beak", "which is an orange beak"),
        ("antlers", "which has antlers", "which is antlers"),
        ("has fur", "which has fur", "which has fur"),
        ("hashed lines", "which has hashed lines", "which hashed lines"),
        ("often sits", "which often sits", "which often sits"),
        ("typically green", "which typically green", "which typically green"),
        ("may be wet", "which may be wet", "which may be wet"),
        ("mayonnaise", "which has mayonnaise", "which mayonnaise"),
        ("can fly", "which can fly", "which can fly"),
        ("canvas", "which has canvas", "which canvas"),
        ("used in games", "which is used in games", "which is used in games"),
        ("four legs", "which has four legs", "which has four legs"),
    ],
)
def test_clauses(descriptor: str, word: str, letter: str) -> None:
    assert clause(descriptor) == word
    assert clause(descriptor, by="letter") == letter


def test_sentences() -> None:
    assert sentence("hen_house", "four legs", Config()) == "hen house, which has four legs"
    assert sentence("hen", "four legs", Config(name="after")) == "which has four legs, hen"
    assert sentence("hen", "four legs", Config(name="none")) == "which has four legs"


class Source:
    """Colours as features, in the joint space of the fake model."""

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop: object = None) -> Tensor:
        rows = clip.encode_text([r.id.split("/")[0] for r in records])
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
        return F.normalize(F.normalize(rows, dim=-1) + 0.3 * F.normalize(noise, dim=-1), dim=-1)

    def texts(self, clip: CLIP, texts: list[str]) -> Tensor:
        return clip.encode_text(texts)


def world(names: tuple[str, ...], colours: tuple[str, ...] = COLOURS, each: int = 8) -> Support:
    """Pictures of colours, under class names that are invented words."""
    items = tuple(Record(f"{colours[c]}/{i}", None, names[c]) for c in range(len(names)) for i in range(each))
    labels = torch.tensor([c for c in range(len(names)) for _ in range(each)])
    return Support(names, Records(items, "colours"), labels, Source(), tuple(range(len(items))))  # type: ignore[arg-type]


def saved(bank: Bank, folder: Path) -> str:
    path = folder / "bank.json"
    path.write_text(json.dumps(bank))
    return str(path)


def test_the_score_is_the_mean_over_descriptors(tmp_path: Path) -> None:
    """One matrix, not normalised again, gives each class the mean of its descriptors' cosines, however many it has."""
    clip, support = colour_clip(), world(("blicket", "dax", "wug", "zup"))
    fitted = last(fit_path(DCLIP(), Config(bank=saved(BANK, tmp_path)), clip, support))
    x = F.normalize(support.features(clip), dim=-1)
    for c, name in enumerate(support.names):
        sentences = [f"{name}, {clause(d)}" for d in BANK[name]] or [name]
        each = torch.stack([x @ F.normalize(clip.encode_text([s])[0], dim=-1) for s in sentences])
        expected = float(clip.logit_scale) * each.mean(0)
        torch.testing.assert_close(fitted.logits(x)[:, c], expected, atol=1e-5, rtol=1e-5)
    assert isinstance(fitted.head, TextRows)
    assert float(fitted.head.rows[0].norm()) < 1, "not normalised again"


def accuracy(config: Config, clip: CLIP, support: Support) -> float:
    return (
        (judge(last(fit_path(DCLIP(), config, clip, support)), clip, support).argmax(1) == support.labels)
        .float()
        .mean()
        .item()
    )


def test_descriptors_mean_something_and_the_controls_do_not(tmp_path: Path) -> None:
    clip, names = colour_clip(), ("blicket", "dax", "wug", "tove")
    support = world(names)
    truth: Bank = {name: (f"{colour} skin", f"{colour} tail") for name, colour in zip(names, COLOURS, strict=True)}
    bank = saved(truth, tmp_path)
    own = accuracy(Config(bank=bank), clip, support)
    plain = (F.normalize(support.features(clip), dim=-1) @ F.normalize(clip.encode_text(names), dim=-1).T).argmax(1)
    chance = 0.25
    assert own > 0.9
    assert own > (plain == support.labels).float().mean().item() + 0.3
    assert accuracy(Config(bank=bank, descriptors="shuffled"), clip, support) < chance
    seeds = [replace(support, seed=seed) for seed in range(10)]
    random = [accuracy(Config(bank=bank, descriptors="random"), clip, one) for one in seeds]
    assert sum(random) / len(random) < own - 0.3


def test_the_reason_given_is_the_true_one(tmp_path: Path) -> None:
    clip, support = colour_clip(), world(("blicket", "dax"), ("red", "blue"))
    bank: Bank = {"blicket": ("green", "red", "yellow"), "dax": ("yellow", "green", "blue")}
    fitted = last(fit_path(DCLIP(), Config(bank=saved(bank, tmp_path)), clip, support))
    for picture, name, true in ((0, "blicket", "red"), (8, "dax", "blue")):
        reasons = explain(clip, fitted, support.features(clip)[picture], name)
        assert [cosine for _, cosine in reasons] == sorted((cosine for _, cosine in reasons), reverse=True)
        assert reasons[0][0] == f"{name}, which has {true}"
        score = sum(cosine for _, cosine in reasons) / 3
        found = fitted.logits(support.features(clip)[[picture]])[0, support.names.index(name)]
        assert float(found) == pytest.approx(float(clip.logit_scale) * score, abs=1e-4)


def test_editing_a_class_leaves_the_others_alone(tmp_path: Path) -> None:
    clip, support = colour_clip(), world(("blicket", "dax", "wug"), ("red", "green", "blue"))
    bank: Bank = {"blicket": ("yellow",), "dax": ("green",), "wug": ("blue",)}
    before = last(fit_path(DCLIP(), Config(bank=saved(bank, tmp_path)), clip, support)).logits(support.features(clip))
    bank["blicket"] = ("red",)
    after = last(fit_path(DCLIP(), Config(bank=saved(bank, tmp_path)), clip, support)).logits(support.features(clip))
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert after[:8, 0].mean() > before[:8, 0].mean() + 1


def test_classes_without_descriptors_keep_their_name() -> None:
    recipe = recipe_of(BANK, Config())
    assert recipe.texts("zup") == ("zup",)
    assert recipe.texts("never heard of") == ("never heard of",)
    assert recipe.texts("dax") == ("dax, which has green",)


def test_no_descriptors_at_all_is_refused_with_the_way_out() -> None:
    clip, support = colour_clip(), world(("blicket", "dax"), ("red", "blue"))
    with pytest.raises(Unsupported, match=r"no descriptors .*blicket.*--set dclip\.bank=file\.json"):
        select(DCLIP(), clip, support)


def test_the_built_in_bank_matches_however_a_name_is_written() -> None:
    clip, support = colour_clip(), world(("Sea_Lake", "AnnualCrop"), ("blue", "green"))
    fitted = last(fit_path(DCLIP(), Config(), clip, support))
    assert fitted.recipe is not None
    assert all(len(fitted.recipe.texts(name)) > 2 for name in support.names)
    assert fitted.recipe.texts("Sea_Lake")[0].startswith("Sea Lake, which ")
    assert len(fitted.with_names(clip, ["Horse", "cow"]).recipe.texts("Horse")) > 2  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", [{"clause": "words"}, {"name": "in front"}, {"descriptors": "mine"}])
def test_wrong_words_are_refused(wrong: dict[str, str]) -> None:
    clip, support = colour_clip(), world(("cat", "dog"), ("red", "blue"))
    with pytest.raises(DiptychError, match=f"dclip.{next(iter(wrong))} cannot be"):
        last(fit_path(DCLIP(), Config(**wrong), clip, support))
