"""Heads: those that LAION published against their check values, and that they refuse the embeddings of other models."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import colour_clip
from tiny import MadeUp, support_of
from torch import nn

from diptych.core.classifier import Base, Classifier
from diptych.core.edits import Edits, TowerEdits
from diptych.errors import DiptychError
from diptych.methods.adapt.gda import GDA
from diptych.methods.adapt.linear_probe import LinearProbe
from diptych.methods.curate.parts import heads
from diptych.methods.curate.parts.heads import AESTHETIC, TOXIC, UNSAFE, WATERMARK, open_head, scores_of

B32, B16, L14 = (Base(f"ViT-{name}:openai", f"ViT-{name}:openai", "") for name in ("B-32", "B-16", "L-14"))


@pytest.fixture(scope="module")
def published(data: Path) -> Path:
    return data / "clip-heads"


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def test_the_safety_head_of_b32_reproduces_its_checks(published: Path):
    with np.load(published / "nsfw_vit_b_32.npz", allow_pickle=False) as file:
        inputs, outputs = file["check_input"], file["check_output"].astype(np.float64)
    found = scores_of(open_head(str(published / "nsfw_vit_b_32.npz"), UNSAFE, B32), inputs)
    np.testing.assert_allclose(found, outputs, atol=1e-6)
    np.testing.assert_allclose(logit(found), logit(outputs), atol=2e-5)


def test_the_safety_head_of_l14_reproduces_its_checks(published: Path):
    """All but two: their coordinate 180 has a value that AutoKeras had seen, whose number was not published."""
    path = published / "nsfw_vit_l_14.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name].astype(np.float64) for name in file.files}
    inputs, outputs = arrays["check_input"], arrays["check_output"]
    found = scores_of(open_head(str(path), UNSAFE, L14), inputs.astype(np.float32))
    np.testing.assert_allclose(found, outputs, atol=2e-4)
    off = np.abs(logit(found) - logit(outputs))
    assert np.flatnonzero(off > 2e-5).tolist() == [10, 15] and off.max() < 0.3
    assert np.flatnonzero(arrays["norm.var"] > heads.ENCODED).tolist() == [180, 316, 413, 440, 644]
    for row, number in ((10, 4947), (15, 2933)):
        encoded = np.where(arrays["norm.var"] > heads.ENCODED, 0, inputs[row])
        encoded[180] = number
        hidden = (encoded - arrays["norm.mean"]) / np.sqrt(arrays["norm.var"])
        for i in range(4):
            hidden = hidden @ arrays[f"dense{i}.kernel"] + arrays[f"dense{i}.bias"]
            hidden = hidden if i == 3 else np.maximum(hidden, 0)
        assert hidden[0] == pytest.approx(logit(outputs[row]), abs=2e-5)


def test_the_aesthetic_heads_rate_as_published(published: Path):
    ratings = [np.load(published / f"aesthetic_vit_b_32_embeddings/rating{i}.npy").reshape(-1) for i in range(10)]
    found = scores_of(open_head(str(published / "sa_0_4_vit_b_32_linear.pth"), AESTHETIC, B32), np.stack(ratings))
    assert (np.diff(found) > 0.9).all() and abs(found[5] - 6.39) < 0.01
    for name, maker in (("b_16", B16), ("l_14", L14)):
        path = published / f"sa_0_4_vit_{name}_linear.pth"
        state = torch.load(path, weights_only=True)
        x = torch.nn.functional.normalize(torch.randn(5, state["weight"].shape[1]), dim=1)
        plain = [float((one.double() * state["weight"][0].double()).sum() + state["bias"][0]) for one in x]
        np.testing.assert_allclose(scores_of(open_head(str(path), AESTHETIC, maker), x.numpy()), plain, atol=1e-6)


def test_the_learned_prompts_say_inappropriate_where_the_second_is_nearer(published: Path):
    path = published / "violence_detection_vit_b_32.npy"
    prompts = np.load(path)
    x = torch.nn.functional.normalize(torch.randn(64, 512), dim=1).numpy()
    found = scores_of(open_head(str(path), TOXIC, B32), x)
    np.testing.assert_array_equal(found > 0.5, (x @ prompts.T).argmax(1) == 1)
    assert 5 < (found > 0.5).sum() < 59
    np.testing.assert_allclose(scores_of(open_head(str(path), TOXIC, B32), prompts) > 0.5, [False, True])


@pytest.mark.parametrize(
    ("name", "task", "own", "others"),
    [
        ("nsfw_vit_b_32.npz", UNSAFE, B32, [B16, L14]),
        ("nsfw_vit_l_14.npz", UNSAFE, L14, [B32, Base("ViT-L-14:laion2b_s32b_b82k", "x", "")]),
        ("sa_0_4_vit_b_16_linear.pth", AESTHETIC, B16, [B32, Base("ViT-B-32:laion2b_s34b_b79k", "x", "")]),
        ("violence_detection_vit_b_32.npy", TOXIC, B32, [B16, Base("micro", "micro", "01")]),
    ],
)  # fmt: skip
def test_published_heads_refuse_the_embeddings_of_other_models(published: Path, name, task, own, others):
    path = str(published / name)
    open_head(path, task, own)
    for other in others:
        with pytest.raises(DiptychError) as error:
            open_head(path, task, other)
        words = str(error.value)
        assert f'embeddings of "{own.name}"' in words and f'made by "{other.name}"' in words
        assert "diptych compare" in words


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-32:openai", "ViT-B/32:openai", "ViT-B-32-quickgelu:openai", "openai/clip-vit-base-patch32",
        "clip-vit-base-patch32", "timm/vit_base_patch32_clip_224.openai",
    ],
)  # fmt: skip
def test_openais_models_go_by_several_names(name: str):
    assert heads.is_model(Base(name, name, ""), "vit_b_32")
    assert not heads.is_model(Base(name, name, ""), "vit_l_14")
    assert not heads.is_model(Base(f"{name}-tuned", f"{name}-tuned", ""), "vit_b_32")


# -- files like those, made here ---------------------------------------------------------------------------------------


def made_up_safety(folder: Path, width: int = 6, name: str = "nsfw_vit_b_32.npz") -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    arrays = {"norm.mean": rng.normal(size=width), "norm.var": rng.uniform(0.1, 0.9, width)}
    for i, (a, b) in enumerate([(width, 4), (4, 3), (3, 1)]):
        arrays |= {f"dense{i}.kernel": rng.normal(size=(a, b)), f"dense{i}.bias": rng.normal(size=b)}
    np.savez(folder / name, **arrays)
    return folder / name, arrays


def test_the_perceptron_against_a_plain_loop(tmp_path: Path):
    path, arrays = made_up_safety(tmp_path)
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    found = scores_of(open_head(str(path), UNSAFE, B32), x)
    for row, value in zip(x, found, strict=True):
        hidden = [(row[j] - arrays["norm.mean"][j]) / arrays["norm.var"][j] ** 0.5 for j in range(6)]
        for i in range(3):
            kernel, bias = arrays[f"dense{i}.kernel"], arrays[f"dense{i}.bias"]
            sums = [sum(hidden[j] * kernel[j, k] for j in range(len(hidden))) + bias[k] for k in range(len(bias))]
            hidden = sums if i == 2 else [max(one, 0.0) for one in sums]
        assert value == pytest.approx(1 / (1 + np.exp(-hidden[0])), rel=1e-9)


def test_state_dicts_as_laion_wrote_them(tmp_path: Path):
    """The converted safety classifier, that for ViT-H/14, and the improved aesthetic predictor, which has no ReLU."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Module()
            self.norm.register_buffer("mean", torch.randn(6))
            self.norm.register_buffer("variance", torch.rand(6) / 2 + 0.1)
            self.linear_1, self.linear_2, self.linear_3 = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = (x - self.norm.mean) / self.norm.variance.sqrt()
            return self.linear_3(self.linear_2(self.linear_1(x).relu()).relu()).sigmoid()

    class Layers(nn.Module):
        def __init__(self, relu: bool) -> None:
            super().__init__()
            between = [nn.ReLU(), nn.Dropout(0.2)] if relu else [nn.Dropout(0.2)]
            first, last = [nn.Linear(6, 5), *between, nn.Linear(5, 4), *between], [nn.Linear(4, 3), nn.Linear(3, 1)]
            self.layers = nn.Sequential(*first, *last)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    h14 = Base("ViT-H-14:laion2b_s32b_b79k", "ViT-H-14:laion2b_s32b_b79k", "")
    x = torch.nn.functional.normalize(torch.randn(20, 6), dim=1)
    for model, name, maker in (
        (Normalised(), "clip_ViT-B-32_openai_binary_nsfw_head.pth", B32),
        (Layers(relu=True), "h14_nsfw.pth", h14),
        (Layers(relu=False), "sac+logos+ava1-l14-linearMSE.pth", L14),
    ):
        torch.save(model.state_dict(), tmp_path / name)
        with torch.no_grad():
            expected = model.eval().double()(x.double())[:, 0].numpy()
        found = scores_of(open_head(str(tmp_path / name), UNSAFE, maker), x.numpy())
        np.testing.assert_allclose(found, expected, atol=1e-9)
        with pytest.raises(DiptychError, match=f'embeddings of "{maker.name}"'):
            open_head(str(tmp_path / name), UNSAFE, B16)


def test_rows_without_an_embedding_have_no_score_and_another_width_is_refused(tmp_path: Path):
    path, _ = made_up_safety(tmp_path)
    head = open_head(str(path), UNSAFE, B32)
    x = np.full((3, 6), np.nan, np.float32)
    x[1] = 1
    assert np.isnan(scores_of(head, x)).tolist() == [True, False, True]
    with pytest.raises(DiptychError, match=r"reads embeddings of 6 numbers .*these have 5"):
        scores_of(head, np.ones((2, 5), np.float32))


class Trap:
    """What a pickle can do: run a command."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_nothing_that_is_handed_in_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad_vit_b_32.pth").write_bytes(pickle.dumps(Trap(), 2))
    torch.save({"weight": Trap(), "bias": torch.zeros(1)}, tmp_path / "worse_vit_b_32.pth")
    np.save(tmp_path / "bad_vit_b_32.npy", np.array([Trap(), Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "bad_vit_b_32.npz", **{"norm.mean": np.array([Trap()], dtype=object)})
    for name in ("bad_vit_b_32.pth", "worse_vit_b_32.pth", "bad_vit_b_32.npy", "bad_vit_b_32.npz"):
        with pytest.raises(DiptychError, match=f"{name} is no "):
            open_head(str(tmp_path / name), UNSAFE, B32)
    assert not (tmp_path / "trapped").exists()


def test_what_is_no_head_is_said_to_be_none(tmp_path: Path):
    path, arrays = made_up_safety(tmp_path)
    (tmp_path / "nsfw.npz").write_bytes(path.read_bytes())
    with pytest.raises(DiptychError, match="does not say which model it belongs to: vit_b_32, vit_b_16"):
        open_head(str(tmp_path / "nsfw.npz"), UNSAFE, B32)
    np.savez(tmp_path / "half_vit_b_32.npz", **{k: v for k, v in arrays.items() if k != "norm.var"})
    with pytest.raises(DiptychError, match=r"lacks 'norm.var'"):
        open_head(str(tmp_path / "half_vit_b_32.npz"), UNSAFE, B32)
    (tmp_path / "cut_vit_b_32.npz").write_bytes(path.read_bytes()[:300])
    with pytest.raises(DiptychError, match="is no archive of arrays"):
        open_head(str(tmp_path / "cut_vit_b_32.npz"), UNSAFE, B32)
    torch.save({"weight": torch.zeros(2, 4), "bias": torch.zeros(1)}, tmp_path / "two_vit_b_32.pth")
    with pytest.raises(DiptychError, match=r"no head from an embedding to one number: its layers are \[\(4, 2, 1\)\]"):
        open_head(str(tmp_path / "two_vit_b_32.pth"), AESTHETIC, B32)
    torch.save({"norm.mean": torch.zeros(4), "norm.variance": torch.ones(4), "linear_1.weight": torch.zeros(1, 4)},
        tmp_path / "half_vit_b_32.pth")  # fmt: skip
    with pytest.raises(DiptychError, match=r"is no head that is known: it lacks 'linear_1.bias'"):
        open_head(str(tmp_path / "half_vit_b_32.pth"), UNSAFE, B32)
    torch.save({"other": torch.zeros(4)}, tmp_path / "other_vit_b_32.pth")
    with pytest.raises(DiptychError, match=r"its layers are \[\]"):
        open_head(str(tmp_path / "other_vit_b_32.pth"), UNSAFE, B32)
    np.save(tmp_path / "three_vit_b_32.npy", np.zeros((3, 4)))
    with pytest.raises(DiptychError, match=r"two prompts are expected, \[2, D\] numbers, not float64 \(3, 4\)"):
        open_head(str(tmp_path / "three_vit_b_32.npy"), TOXIC, B32)
    with pytest.raises(DiptychError, match=r"no head at nowhere.npz"):
        open_head("nowhere.npz", UNSAFE, B32)
    (tmp_path / "head.pkl").write_bytes(b"")
    with pytest.raises(DiptychError, match=r"head.pkl is no head"):
        open_head(str(tmp_path / "head.pkl"), UNSAFE, B32)


# -- yours -------------------------------------------------------------------------------------------------------------

CLASSES = ("fine", "unsafe")


def two_kinds(clip, seed: int = 0, count: int = 60) -> tuple[MadeUp, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    centres, labels = torch.randn(2, clip.embed_dim, generator=generator), [i % 2 for i in range(count)]
    return MadeUp(centres[labels] + 0.6 * torch.randn(count, clip.embed_dim, generator=generator)), labels


@pytest.mark.parametrize("adapter", [LinearProbe, GDA])
def test_a_classifier_of_compare_is_a_head(tmp_path: Path, adapter):
    clip = colour_clip()
    source, labels = two_kinds(clip)
    classifier = adapter().fit(clip, support_of(source, labels[:30], CLASSES))
    path = classifier.save(tmp_path / "winner.safetensors")
    maker, rest = Base.of(clip), source.features[30:]
    found = scores_of(open_head(str(path), UNSAFE, maker), rest.numpy())
    np.testing.assert_allclose(found, classifier.probabilities(rest)[:, 1].numpy(), atol=1e-6)
    assert ((found > 0.5) == (np.array(labels[30:]) == 1)).mean() > 0.9
    other = scores_of(open_head(f"{path}:fine", UNSAFE, maker), rest.numpy())
    np.testing.assert_allclose(found + other, 1, atol=1e-6)
    with pytest.raises(DiptychError, match=r"no class called watermark or watermarked; name one of its own: .*:fine"):
        open_head(str(path), WATERMARK, maker)
    with pytest.raises(DiptychError, match='no class "unsaef"'):
        open_head(f"{path}:unsaef", UNSAFE, maker)
    with pytest.raises(DiptychError, match=r'embeddings of "colours" \(.*made by "colours" \(000000000000\)'):
        open_head(str(path), UNSAFE, Base("colours", "colours", "0" * 32))


def test_a_classifier_that_changes_the_picture_tower_is_no_head(tmp_path: Path):
    clip = colour_clip()
    source, labels = two_kinds(clip)
    classifier = LinearProbe().fit(clip, support_of(source, labels[:30], CLASSES))
    weights = dict(list(clip.image.state_dict().items())[:1])
    path = replace(classifier, edits=Edits({"image": TowerEdits(weights=weights)})).save(tmp_path / "tuned.safetensors")
    with pytest.raises(DiptychError, match="changes the picture tower"):
        open_head(str(path), UNSAFE, Base.of(clip))
    assert Classifier.load(path).system == classifier.system
