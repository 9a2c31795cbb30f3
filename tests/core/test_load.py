"""Names, files and folders that are right open; all others are refused in words, and no code in them runs."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TEXT, VISION, hf_clip, shaken
from test_tokenizer import small_backend

from diptych.core.load import load, reachable
from diptych.core.save import save
from diptych.errors import DiptychError, Unsupported

MODEL_CFG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | {"vocab_size": 49408, "context_length": 77}}
LOOK = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "interpolation": "bicubic", "resize_mode": "shortest"}
TAG = LOOK | {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}  # as open_clip's list of weights has it
TEXTS = ["a photo of a cat.", "two dogs, three BIRDS!", "cat"]
PIXELS = torch.randn(2, 3, 32, 32)
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.core.load.reachable", lambda endpoint: False)


def open_clip_folder(folder: Path, cfg: dict[str, Any] | None = None, look: Any = LOOK) -> Any:
    """A folder in open_clip's layout, written without our code; -> its model."""
    from safetensors.torch import save_file

    from diptych.core.build import build_open_clip

    folder.mkdir(exist_ok=True)
    cfg = cfg or MODEL_CFG
    model = shaken(build_open_clip(cfg, "here"))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": cfg} | ({"preprocess_cfg": look} if look else {})
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model


def huggingface_folder(folder: Path) -> Any:
    import transformers

    model = hf_clip()
    model.config.text_config.eos_token_id = model.text_model.eos_token_id = 3
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=small_backend(), pad_token="[PAD]", eos_token="[SEP]"
    ).save_pretrained(folder)
    look = {
        "do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "resample": 3,
        "crop_size": {"height": 32, "width": 32}, "do_normalize": True, "image_mean": LOOK["mean"],
        "image_std": LOOK["std"],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(look))
    return model


def refused(name: str | Path, *words: str) -> None:
    with pytest.raises(DiptychError) as caught:
        load(str(name), "cpu")
    for word in words:
        assert word in str(caught.value), caught.value


def test_open_clip_folder(tmp_path: Path) -> None:
    import open_clip

    folder = tmp_path / "tiny"
    model = open_clip_folder(folder)
    clip = load(str(folder), "cpu")
    assert (clip.name, clip.source) == ("tiny", str(folder))
    assert clip.preprocess.mean == (0.4, 0.5, 0.6)
    assert clip.preprocess.size == 32
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    torch.testing.assert_close(clip.encode_text(TEXTS), model.encode_text(ids), **CLOSE)
    torch.testing.assert_close(clip.encode_image(PIXELS), model.encode_image(PIXELS), **CLOSE)
    torch.testing.assert_close(clip.logit_scale, model.logit_scale.exp())
    assert load(str(folder), "cpu").fingerprint == clip.fingerprint


def test_checkpoints_of_a_named_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    model = open_clip_folder(tmp_path / "tiny")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-B-32", MODEL_CFG)
    path = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    refused(f"tiny-B-32:{path}", "preprocessing", "open_clip_config.json")  # no published weights tell it
    refused(path, "name its architecture", f"ViT-B-32:{path}")
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", {"tiny-B-32": {"a": TAG, "b": TAG}})
    clip = load(f"tiny-B-32:{path}", "cpu")
    assert clip.source == f"tiny-B-32:{path}"
    torch.testing.assert_close(clip.encode_image(PIXELS), model.encode_image(PIXELS), **CLOSE)
    other = TAG | {"mean": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", {"tiny-B-32": {"a": TAG, "b": other}})
    refused(f"tiny-B-32:{path}", "preprocessing")


def test_openais_activation_comes_with_the_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip only warns when a tag was trained with QuickGELU and the architecture has GELU."""
    import open_clip

    open_clip_folder(tmp_path / "tiny")
    tags = {"openai": TAG | {"quick_gelu": True}, "laion": TAG}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-B-32", MODEL_CFG)
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", {"tiny-B-32": tags})
    weights = str(tmp_path / "tiny" / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", lambda cfg: weights)
    quick, plain = load("tiny-B-32:openai", "cpu"), load("tiny-B-32:laion", "cpu")
    assert {type(m).__name__ for m in quick.modules() if "GELU" in type(m).__name__} == {"QuickGELU"}
    assert {type(m).__name__ for m in plain.modules() if "GELU" in type(m).__name__} == {"GELU"}
    assert (quick.encode_image(PIXELS) - plain.encode_image(PIXELS)).abs().max() > 1e-4
    assert quick.origin is not None
    assert quick.origin["model_cfg"]["quick_gelu"] is True


def test_huggingface_folder(tmp_path: Path) -> None:
    import transformers

    model = huggingface_folder(tmp_path)
    clip = load(str(tmp_path), "cpu")
    source = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a photo of a cat.", "red seahorse"]
    batch = source(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    expected = model.get_text_features(**batch).pooler_output
    torch.testing.assert_close(clip.encode_text(texts), expected, **CLOSE)
    torch.testing.assert_close(clip.encode_image(PIXELS), model.get_image_features(PIXELS).pooler_output, **CLOSE)
    assert clip.preprocess.interpolation == "bicubic"
    assert model.config.text_config.hidden_act == "quick_gelu"  # OpenAI's, and kept


def test_wrong_names() -> None:
    refused("ViT-B32:openai", 'did you mean "ViT-B-32"')
    refused("minni", '"mini"')
    refused("ViT-B-32:laion2b_s34b_b79", "laion2b_s34b_b79k", "it has: openai")
    refused("ViT-B-32", "laion2b_s34b_b79k", "say which weights")
    refused("ViT-B-32:/nowhere/there.pt", "no such checkpoint")
    refused("./nowhere", "no such file or folder")
    refused("nowhere.safetensors", "no such file or folder")
    with pytest.raises(DiptychError, match="no device"):
        load("mini", "tpu")


def test_without_a_hub_the_local_forms_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refused("ViT-B-32:laion2b_s34b_b79k", "not on this machine", "hub cannot be reached", "local forms", "mini")
    refused("hf-hub:somebody/something", "not on this machine", "local forms")


def test_reachable_is_a_fast_no() -> None:
    assert not reachable("http://127.0.0.1:9")


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "executed"))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, form: str) -> None:
    open_clip_folder(tmp_path / "tiny")
    (tmp_path / "tiny" / "open_clip_model.safetensors").unlink()
    path, proof = tmp_path / "tiny" / "open_clip_pytorch_model.bin", tmp_path / "proof"
    if form == "torch":
        torch.save({"state_dict": Trap(proof)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(proof)))
    refused(tmp_path / "tiny", "more than tensors", "not run", "safetensors")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_truncated_checkpoints(tmp_path: Path, name: str, keep: float) -> None:
    folder = tmp_path / "tiny"
    model = open_clip_folder(folder)
    whole = folder / "open_clip_model.safetensors"
    path = folder / name
    if path != whole:
        whole.unlink()
        torch.save(model.state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(folder, str(path), "cut off")


def test_weights_of_something_else(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "tiny"
    model = open_clip_folder(folder)
    path = folder / "open_clip_model.safetensors"
    save_file({"encoder.weight": torch.zeros(3)}, path)
    refused(folder, "does not hold the weights of tiny")
    save_file({k: v.contiguous() for k, v in list(model.state_dict().items())[:-1]}, path)
    refused(folder, "does not hold the weights of tiny", "Missing")
    path.write_bytes(b"hello, I am a text file")
    refused(folder, "no safetensors file")
    path.unlink()
    refused(folder, "no weights", "open_clip_model.safetensors")
    torch.save([1, 2], folder / "open_clip_pytorch_model.bin")
    refused(folder, "does not hold the weights")


@pytest.mark.parametrize(
    ("look", "word"),
    [
        (None, "preprocess_cfg"),
        ({"mean": [0.5, 0.5, 0.5]}, "std"),
        (LOOK | {"mean": 0.5}, "mean"),
        (LOOK | {"interpolation": "hamming"}, "hamming"),
        (LOOK | {"resize_mode": "wide"}, "wide"),
    ],
)
def test_unknown_preprocessing_is_refused(tmp_path: Path, look: Any, word: str) -> None:
    open_clip_folder(tmp_path / "tiny", look=look)
    refused(tmp_path / "tiny", word, "open_clip_config.json")


def test_wrong_configs(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    refused(tmp_path, "no model folder", "open_clip_config.json", "config.json")
    open_clip_folder(folder)
    path = folder / "open_clip_config.json"

    def change(**config: Any) -> None:
        path.write_text(json.dumps({"model_cfg": MODEL_CFG | config, "preprocess_cfg": LOOK}))

    change(vision_cfg=VISION | {"wings": 2})
    refused(folder, "wings", "open_clip_config.json")
    change(vision_cfg=VISION | {"image_size": [32, 64]})
    refused(folder, "squares")
    change(text_cfg=MODEL_CFG["text_cfg"] | {"hf_model_name": "somebody/encoder"})
    refused(folder, "somebody/encoder", "not on this machine")
    change(text_cfg=MODEL_CFG["text_cfg"] | {"hf_tokenizer_name": "somebody/tokenizer"})
    refused(folder, "tokenizer")
    path.write_text(json.dumps({"vision_cfg": {}}))
    refused(folder, "lacks model_cfg")
    path.write_text("{")
    refused(folder, "cannot be read as JSON")


def test_wrong_huggingface_folders(tmp_path: Path) -> None:
    huggingface_folder(tmp_path)
    look, config = tmp_path / "preprocessor_config.json", tmp_path / "config.json"
    known = json.loads(look.read_text())
    for key, value in {"do_normalize": False, "resample": 17, "crop_size": 28, "size": {"longest_edge": 32}}.items():
        look.write_text(json.dumps(known | {key: value}))
        refused(tmp_path, "preprocessor_config.json", key)
    look.write_text(json.dumps(known | {"size": 64, "crop_size": 64}))
    refused(tmp_path, "64 pixels", "32")
    look.unlink()
    refused(tmp_path, "lacks preprocessor_config.json", "never guessed")
    look.write_text(json.dumps(known))
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refused(tmp_path, "cut off")
    from safetensors.torch import load, save_file

    tensors = load(data)
    save_file({k: v for k, v in tensors.items() if "visual_projection" not in k}, weights)
    refused(tmp_path, "visual_projection", "missing")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "siglip"}))
    refused(tmp_path, "siglip", '"clip"')


# Saving


def test_what_open_clip_reads_back(tmp_path: Path) -> None:
    import open_clip
    from PIL import Image

    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "custom": {"custom_text": True, "init_logit_bias": -10, "quick_gelu": True},
        "siglip": {
            "custom_text": True,
            "nonscalar_logit_scale": True,
            "text_cfg": MODEL_CFG["text_cfg"] | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        },
        "resnet": {"vision_cfg": VISION | {"layers": [1, 1, 1, 1], "width": 8}},
        "timm": {
            "vision_cfg": {
                "timm_model_name": "test_vit",
                "timm_pool": "token",
                "timm_proj": "linear",
                "image_size": 160,
            }
        },
    }
    for name, changed in variants.items():
        first, again = tmp_path / name, tmp_path / f"{name} again"
        open_clip_folder(first, MODEL_CFG | changed)
        clip = load(str(first), "cpu")
        assert save(clip, again) == again
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{again}")
        model.eval()
        size = clip.preprocess.size
        pixels = torch.randn(2, 3, size, size)
        ids = open_clip.get_tokenizer(f"local-dir:{again}")(TEXTS)
        with torch.no_grad():
            torch.testing.assert_close(clip.encode_image(pixels), model.encode_image(pixels), **CLOSE)
            torch.testing.assert_close(clip.encode_text(TEXTS), model.encode_text(ids), **CLOSE)
            torch.testing.assert_close(clip.log_scale, model.logit_scale.reshape(()), rtol=0, atol=0)
        if changed.get("init_logit_bias"):
            assert clip.logit_bias is not None
            torch.testing.assert_close(clip.logit_bias, model.logit_bias)
        image = Image.effect_noise((91, 47), 90).convert("RGB")
        torch.testing.assert_close(clip.preprocess(image), transform(image), rtol=0, atol=1e-6)
        assert load(str(again), "cpu").fingerprint == clip.fingerprint


@pytest.mark.parametrize("library", ["open_clip", "huggingface", "coca"])
def test_our_own_layout_gives_the_same_model(tmp_path: Path, library: str) -> None:
    source = tmp_path / "source"
    if library == "huggingface":
        huggingface_folder(source)
    elif library == "open_clip":
        open_clip_folder(source)
    else:
        text = MODEL_CFG["text_cfg"] | {"embed_cls": True, "context_length": 76, "output_tokens": True}
        decoder = {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1}
        vision = VISION | {
            "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4, "output_tokens": True
        }  # fmt: skip
        cfg = {"text_cfg": text, "vision_cfg": vision, "multimodal_cfg": decoder, "custom_text": True}
        model = open_clip_folder(source, MODEL_CFG | cfg)
    clip = load(str(source), "cpu")
    if library == "coca":
        import open_clip

        ids = open_clip.get_tokenizer(f"local-dir:{source}")(TEXTS)
        torch.testing.assert_close(clip.encode_text(TEXTS), model.encode_text(ids, normalize=False), **CLOSE)
        torch.testing.assert_close(clip.encode_image(PIXELS), model.encode_image(PIXELS, normalize=False), **CLOSE)
    if library == "coca":
        with pytest.raises(Unsupported, match=r"cannot become open_clip: it is a CoCa.*it can become onnx, diptych"):
            save(clip, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    save(clip, tmp_path / "again", layout="diptych")
    assert not any(p.name.startswith(".") for p in tmp_path.iterdir())
    again = load(str(tmp_path / "again"), "cpu")
    assert again.fingerprint == clip.fingerprint
    assert again.name == clip.name
    torch.testing.assert_close(again.encode_text(["a cat"]), clip.encode_text(["a cat"]), **CLOSE)
    torch.testing.assert_close(again.encode_image(PIXELS), clip.encode_image(PIXELS), **CLOSE)


def test_edits_are_merged_or_refused(tmp_path: Path) -> None:
    from diptych.core.edits import Edits, LowRank, TowerEdits
    from diptych.core.tower import Prompt

    open_clip_folder(tmp_path / "tiny")
    clip = load(str(tmp_path / "tiny"), "cpu")
    low = LowRank(clip.image.projections()[0], torch.randn(2, 32), torch.randn(32, 2), 0.5)
    weight = {"ln_final.weight": torch.rand(32)}
    edited = clip.edited(Edits({"image": TowerEdits(low_rank=(low,)), "text": TowerEdits(weights=weight)}))
    save(edited, tmp_path / "edited")
    again = load(str(tmp_path / "edited"), "cpu")
    torch.testing.assert_close(again.encode_image(PIXELS), edited.encode_image(PIXELS), **CLOSE)
    torch.testing.assert_close(again.encode_text(TEXTS), edited.encode_text(TEXTS), **CLOSE)
    assert (again.encode_image(PIXELS) - clip.encode_image(PIXELS)).abs().max() > 1e-3
    prompted = clip.edited(Edits({"text": TowerEdits(prompts=(Prompt(torch.zeros(1, 32)),))}))
    with pytest.raises(Unsupported, match="prompts"):
        save(prompted, tmp_path / "prompted")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "tiny")
    clip = load(str(tmp_path / "tiny"), "cpu")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("mine")
    for place in (tmp_path / "photos", tmp_path / "photos" / "1.jpg"):
        with pytest.raises(DiptychError, match="no model folder"):
            save(clip, place)
    with pytest.raises(DiptychError, match="cannot write"):
        save(clip, tmp_path / "photos" / "1.jpg" / "model")
    with pytest.raises(DiptychError, match="valid: diptych, huggingface, open_clip"):
        save(clip, tmp_path / "other", layout="onnx")  # type: ignore[arg-type]
    assert (tmp_path / "photos" / "1.jpg").read_text() == "mine"
    save(clip, tmp_path / "twice")
    save(clip, tmp_path / "twice")  # over a model of its own kind
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "tiny", "twice"]


def test_a_broken_write_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip_folder(tmp_path / "tiny")
    clip = load(str(tmp_path / "tiny"), "cpu")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diptych.core.save.write_tensors", full)
    with pytest.raises(DiptychError, match="No space left"):
        save(clip, tmp_path / "tiny")
    with pytest.raises(DiptychError, match="No space left"):
        save(clip, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
    assert load(str(tmp_path / "tiny"), "cpu").fingerprint == clip.fingerprint


def test_loading_our_code_needs_no_open_clip() -> None:
    import subprocess

    code = (
        "import sys, diptych.core.load, diptych.core.save; "
        "assert not {'open_clip', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_open_clip_with_a_huggingface_text_encoder(tmp_path: Path, pooler: str) -> None:
    import open_clip
    import transformers

    encoder, folder = tmp_path / "encoder", tmp_path / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    transformers.BertConfig(vocab_size=100, pad_token_id=0, **sizes).save_pretrained(encoder)
    text = {
        "hf_model_name": str(encoder), "hf_tokenizer_name": str(encoder), "hf_proj_type": "mlp",
        "hf_pooler_type": pooler, "context_length": 12,
    }  # fmt: skip
    model = open_clip_folder(folder, {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text})
    refused(folder, "tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=small_backend(), pad_token="[PAD]", sep_token="[SEP]"
    ).save_pretrained(folder)
    clip = load(str(folder), "cpu")
    assert clip.text.kind == "huggingface.BertModel"
    texts = ["a photo of a cat.", "RED seahorse", "a cat " * 20]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    torch.testing.assert_close(clip.encode_text(texts), model.encode_text(tokenizer(texts)), **CLOSE)
    save(clip, tmp_path / "again")
    read, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'again'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'again'}")
    expected = read.eval().encode_text(tokenizer(texts))
    torch.testing.assert_close(clip.encode_text(texts), expected.detach(), **CLOSE)
    assert load(str(tmp_path / "again"), "cpu").fingerprint == clip.fingerprint
