"""A CLIP in other forms: embeddings and tokens as the other library has them, both ways, and reasons for the rest."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import ColourTower, colour_clip
from models import bare_text, bert, resnet, shaken, text, timm_model, vit
from PIL import Image
from test_load import MODEL_CFG, TEXTS, VISION, huggingface_folder, no_hub, open_clip_folder  # noqa: F401
from test_tokenizer import small_backend
from torch import Tensor
from torch.nn import functional as F

import diptych
from diptych.core import convert as module
from diptych.core.build import build_open_clip, clip_of_open_clip
from diptych.core.clip import CLIP
from diptych.core.convert import convert
from diptych.core.edits import Edits, LowRank, TowerEdits
from diptych.core.forms import forms, refusal, said
from diptych.core.load import load
from diptych.core.preprocess import Preprocess
from diptych.core.save import save
from diptych.core.tokenizer import FastTokenizer
from diptych.core.tower import Prompt, Tower
from diptych.errors import DiptychError, Unsupported

LOOK = Preprocess(32, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
WITHIN = 1e-5
ODD_TEXTS = ["a photo of a cat.", "Two DOGS,  three birds!", "ça coûte 12,50 €", "emoji 🦊 猫", "word " * 100, "cat"]
SMALL = {"context_length": 16, "vocab_size": 14, "width": 32, "heads": 4, "layers": 2}  # as `small_backend` has words


def of_open_clip(folder: Path, **changed: Any) -> CLIP:
    open_clip_folder(folder, MODEL_CFG | changed)
    return load(str(folder), "cpu")


def with_own_tokenizer(clean: str = "", **text: Any) -> CLIP:
    """Towers of open_clip with a word-piece tokenizer, whose end token (3) is not the highest id."""
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": SMALL | {"pool_type": "eos", "eos_id": 3} | text}
    tokenizer = FastTokenizer(small_backend(), context_length=16, end_id=3, clean=clean)
    model = shaken(build_open_clip(config, "here"))
    return clip_of_open_clip(model, config, tokenizer, LOOK, name="own", source="own")


def embeddings(clip: CLIP, texts: list[str] = TEXTS) -> tuple[Tensor, Tensor]:
    return clip.encode_image(PIXELS), clip.encode_text(texts)


def transformers_says(folder: Path, texts: list[str] = TEXTS) -> tuple[Tensor, Tensor, Any]:
    """CLIPModel and AutoTokenizer on the folder, as their documentation calls them; nothing of ours."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(PIXELS).pooler_output
        words = model.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    return image, words, model


def near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert (expected[1][0] - expected[1][1]).abs().max() > 0.01  # or being equal proves nothing
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=WITHIN)


EPS = {"norm_kwargs": {"eps": 1e-6}}
ASSORTED: dict[str, dict[str, Any]] = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "custom text": {"custom_text": True},
    "eps and widths": {
        "vision_cfg": VISION | EPS | {"mlp_ratio": 2.0},
        "text_cfg": MODEL_CFG["text_cfg"] | EPS | {"heads": 8, "context_length": 20},
    },
    "tanh": {"vision_cfg": VISION | {"act_kwargs": {"approximate": "tanh"}}},
    "patch dropout": {"vision_cfg": VISION | {"patch_dropout": 0.5}},
}


@pytest.mark.parametrize("kind", ASSORTED)
def test_transformers_has_the_same_embeddings(tmp_path: Path, kind: str):
    clip = of_open_clip(tmp_path / "source", **ASSORTED[kind])
    assert save(clip, tmp_path / "hf", layout="huggingface") == tmp_path / "hf"
    image, words, model = transformers_says(tmp_path / "hf", ODD_TEXTS)
    near((image, words), embeddings(clip, ODD_TEXTS))
    assert model.logit_scale.item() == pytest.approx(clip.log_scale.item(), abs=1e-6)
    again = load(str(tmp_path / "hf"), "cpu")
    near(embeddings(again, ODD_TEXTS), embeddings(clip, ODD_TEXTS))
    assert (again.preprocess.size, again.preprocess.mean) == (clip.preprocess.size, clip.preprocess.mean)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_transformers_prepares_pictures_alike(tmp_path: Path, resize: Any):
    """Where an even number of pixels is cut off; else the two libraries cut a pixel apart."""
    import transformers

    clip = of_open_clip(tmp_path / "source")
    clip.preprocess = Preprocess(32, LOOK.mean, LOOK.std, "bilinear", resize)
    save(clip, tmp_path / "hf", layout="huggingface")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", local_files_only=True, backend="pil")
    for size in ((64, 48), (32, 32), (50, 100)):
        image = Image.effect_noise(size, 90).convert("RGB")
        found = processor(images=image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, clip.preprocess(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("clean", "options"),
    [("", {}), ("lower", {}), ("whitespace", {"pool_type": "argmax", "eos_id": 2}), ("", {"pool_type": "argmax"})],
)
def test_a_tokenizer_of_its_own_goes_along(tmp_path: Path, clean: str, options: dict[str, Any]):
    """Into Hugging Face's form and into open_clip's, whose end may be an id or the highest one."""
    clip = with_own_tokenizer(clean, **options)
    texts = ["a photo of a cat.", "  red   seahorse", "a  cat " * 20, "cat"]
    expected = embeddings(clip, texts)
    made = convert(clip, tmp_path / "hf", "huggingface")
    assert max(made.pictures, made.texts, made.read_back or 0) < WITHIN and "transformers" in made.library
    near(transformers_says(tmp_path / "hf", texts)[:2], expected)
    assert "tokenizer.json" in made.files
    convert(clip, tmp_path / "open_clip", "open_clip")
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'open_clip'}")
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'open_clip'}")(texts)
    with torch.no_grad():
        near((model.eval().encode_image(PIXELS), model.encode_text(ids)), expected)


def test_there_and_back_is_the_same(tmp_path: Path):
    """open_clip -> Hugging Face -> open_clip: every number, and what open_clip computes from it."""
    from safetensors.torch import load_file

    first = of_open_clip(tmp_path / "first", quick_gelu=True)
    save(first, tmp_path / "hf", layout="huggingface")
    second = load(str(tmp_path / "hf"), "cpu")
    save(second, tmp_path / "second")
    name = "open_clip_model.safetensors"
    before, after = load_file(tmp_path / "first" / name), load_file(tmp_path / "second" / name)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    near(embeddings(load(str(tmp_path / "second"), "cpu")), embeddings(first))


def test_a_folder_of_hugging_face_becomes_all_forms(tmp_path: Path):
    (tmp_path / "hf").mkdir()
    model = huggingface_folder(tmp_path / "hf")
    clip = load(str(tmp_path / "hf"), "cpu")
    assert set(forms(clip).values()) == {"yes"}
    texts = ["a photo of a cat.", "red seahorse"]
    for form in ("open_clip", "diptych", "huggingface"):
        convert(clip, tmp_path / form, form)
        again = load(str(tmp_path / form), "cpu")
        near(embeddings(again, texts), embeddings(clip, texts))
    near(transformers_says(tmp_path / "huggingface", texts)[:2], embeddings(clip, texts))
    config = json.loads((tmp_path / "open_clip" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["text_cfg"]["eos_id"] == model.config.text_config.eos_token_id == 3 and config["quick_gelu"]


def test_a_bias_that_training_added_goes_along(tmp_path: Path):
    (tmp_path / "hf").mkdir()
    huggingface_folder(tmp_path / "hf")
    clip = load(str(tmp_path / "hf"), "cpu")
    clip.logit_bias = torch.nn.Parameter(torch.tensor(-7.5), requires_grad=False)
    assert "logits have a bias" in forms(clip)["huggingface"]
    for form in ("open_clip", "diptych"):
        convert(clip, tmp_path / form, form)
        assert load(str(tmp_path / form), "cpu").logit_bias == -7.5


def test_edits_are_merged(tmp_path: Path):
    clip = of_open_clip(tmp_path / "source")
    low = LowRank(clip.image.projections()[0], torch.randn(2, 32), torch.randn(32, 2), 0.5)
    weight = {"ln_final.weight": torch.rand(32)}
    edited = clip.edited(Edits({"image": TowerEdits(low_rank=(low,)), "text": TowerEdits(weights=weight)}))
    expected = embeddings(edited)
    assert (expected[0] - clip.encode_image(PIXELS)).abs().max() > 1e-3
    convert(edited, tmp_path / "hf", "huggingface")
    near(transformers_says(tmp_path / "hf")[:2], expected)


# -- what cannot be ----------------------------------------------------------------------------------------------------


def odd(image: Tower | None = None, words: Tower | None = None, **options: Any) -> CLIP:
    clip = with_own_tokenizer()
    made = CLIP("odd", image or clip.image, words or clip.text, clip.tokenizer, LOOK, **options)
    made.origin = clip.origin
    return made


SHALLOW = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
REFUSED: dict[str, tuple[Any, str]] = {
    "resnet": (lambda: odd(resnet().tower), "picture tower is open_clip.ModifiedResNet"),
    "timm": (lambda: odd(timm_model("convnext_atto", SHALLOW, "avg", "linear").tower), "picture tower is timm"),
    "bias": (lambda: odd(logit_bias=-10.0), "logits have a bias"),
    "average": (lambda: odd(vit(pool_type="avg").tower), "class token"),
    "no norm": (lambda: odd(vit(no_ln_pre=True).tower), "no norm before the first block"),
    "layer scale": (lambda: odd(vit(ls_init_value=0.1).tower), "blocks are not CLIP's plain ones"),
    "custom blocks": (lambda: odd(vit(qk_norm=True).tower), "blocks are not CLIP's plain ones"),
    "siglip": (lambda: odd(words=text(custom=True, no_causal_mask=True, pool_type="last").tower), "end token"),
    "two-sided": (lambda: odd(words=bare_text(no_causal_mask=True, use_pad_mask=True).tower), "not plainly causal"),
    "projection": (lambda: odd(words=text(custom=True, proj_bias=True).tower), "without bias"),
    "old end": (lambda: with_own_tokenizer(eos_id=2), "end with id 2"),
    "cleaning": (lambda: with_own_tokenizer("canonicalize"), "takes marks out of texts"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_transformers_cannot_hold_is_refused_with_the_reason(tmp_path: Path, kind: str):
    make, reason = REFUSED[kind]
    clip = make()
    assert reason in forms(clip)["huggingface"]
    with pytest.raises(Unsupported, match=r"cannot become Hugging Face: .*it can become.*diptych") as caught:
        save(clip, tmp_path / "out", layout="huggingface")
    assert reason in str(caught.value) and list(tmp_path.iterdir()) == []


def test_padding_before_a_crop_and_three_towers():
    clip = with_own_tokenizer()
    clip.preprocess = Preprocess(32, LOOK.mean, LOOK.std, resize="longest")
    assert "pads pictures" in refusal(clip, "huggingface") and forms(clip)["open_clip"] == "yes"
    clip.towers["sound"] = ColourTower()
    assert {form: "tower for sound" in why for form, why in forms(clip).items()} == dict.fromkeys(forms(clip), True)
    assert said(forms(clip)).startswith("can become nothing else\nnot open_clip: it has a tower for sound")


def test_what_nothing_is_known_of():
    clip = colour_clip()
    assert all("not made by `load`" in forms(clip)[form] for form in ("open_clip", "huggingface", "diptych"))
    assert "WordTokenizer" in forms(clip)["onnx"]
    clip.origin = {"library": "mini"}
    assert "closed form" in forms(clip)["open_clip"] and forms(clip)["diptych"] == "yes"
    with pytest.raises(DiptychError, match='no form is called "onxx"; did you mean "onnx"'):
        refusal(clip, "onxx")
    prompted = with_own_tokenizer()
    prompted = prompted.edited(Edits({"text": TowerEdits(prompts=(Prompt(torch.zeros(1, 32)),))}))
    assert all("prompts" in why for why in forms(prompted).values())


def test_open_clip_has_not_every_clip_of_transformers(tmp_path: Path):
    huggingface_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = load(str(tmp_path), "cpu")
    assert "quick_gelu and relu" in forms(clip)["open_clip"] and forms(clip)["huggingface"] == "yes"


@pytest.mark.parametrize("form", ["huggingface", "open_clip"])
def test_a_difference_fails_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str):
    """Whatever goes wrong on the way, the comparison finds it: here, query and key change places, or one number."""
    import diptych.core.save as saving

    clip = with_own_tokenizer()
    real = saving.write_tensors

    def wrong(tensors: dict[str, Tensor], path: Path) -> None:
        changed = {k: t.clone() for k, t in tensors.items()}
        name = "visual_projection.weight" if form == "huggingface" else "visual.proj"
        changed[name][0, 0] += 0.01
        real(changed, path)

    monkeypatch.setattr(saving, "write_tensors", wrong)
    with pytest.raises(DiptychError, match=r"differs by .* in pictures, more than 1e-05"):
        convert(clip, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


# -- ONNX --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIP, Path]:
    """open_clip's transformer with its own tokenizer, written once."""
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    root = tmp_path_factory.mktemp("onnx")
    clip = of_open_clip(root / "source")
    made = diptych.export(clip, root / "out")
    assert made.form == "onnx" and "onnxruntime" in str(made)  # type: ignore[union-attr]
    return clip, root / "out"


def test_graphs_give_unit_embeddings_for_any_number(graphs: tuple[CLIP, Path]):
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    clip, folder = graphs
    texts = [*TEXTS, "it has exclamation marks !!! and !", "word " * 100]
    tokens = np.array([e.ids for e in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)])
    for name, kind, rows, expected in (
        ("image.onnx", "pixels", PIXELS.numpy(), clip.encode_image(PIXELS)),
        ("text.onnx", "tokens", tokens, clip.encode_text(texts)),
    ):
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for some in (slice(0, 1), slice(0, 3), slice(None)):
            (found,) = session.run(["embedding"], {kind: rows[some]})
            torch.testing.assert_close(
                torch.from_numpy(np.asarray(found)), F.normalize(expected[some], dim=-1), rtol=0, atol=WITHIN
            )
    assert str(Path(module.__file__).parents[3]) not in (folder / "text.onnx").read_text("latin-1")


def test_the_script_alone_says_what_the_clip_says(graphs: tuple[CLIP, Path], tmp_path: Path):
    clip, folder = graphs
    picture = tmp_path / "a.png"
    Image.effect_noise((61, 47), 90).convert("RGB").save(picture)
    code = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'diptych', 'transformers'])); "
        f"sys.path.insert(0, {str(folder)!r}); sys.argv = ['embed.py', {str(picture)!r}, '--texts', *{TEXTS!r}]; "
        f"runpy.run_path({str(folder / 'embed.py')!r}, None, '__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    image = clip.encode_image(clip.preprocess(Image.open(picture).convert("RGB"))[None])
    expected = clip.score(image, clip.encode_text(TEXTS)).softmax(1)[0]
    found = [float(word) for word in done.stdout.split("\t")[1:]]
    assert found == pytest.approx(expected.tolist(), abs=2e-4)


def test_a_folder_of_graphs_is_replaced_and_no_other(graphs: tuple[CLIP, Path], tmp_path: Path):
    _, folder = graphs
    module.check_place(folder)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DiptychError, match=r"holds thesis\.tex"):
        module.check_place(tmp_path)
    about = (folder / "README.md").read_text()
    assert "{" not in about and "[N, 3, 32, 32]" in about and "tokens` [N, 77]" in about
    assert runpy.run_path(str(folder / "pictures.py"))["preprocess"]


def test_other_towers_become_graphs_too(tmp_path: Path):
    """A ConvNet, and a text encoder that takes the mean over real tokens."""
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    made = convert(odd(resnet().tower, bert("Bert").tower), tmp_path / "out", "onnx")
    assert made.pictures < 1e-5 and made.texts < 1e-5
