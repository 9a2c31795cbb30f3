"""micro as it is shipped: it opens without a hub or open_clip, and open_clip computes the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from micro_scores import classification, retrieval
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.doctor import doctor
from diptych.core.edits import Edits, TowerEdits
from diptych.core.load import load
from diptych.core.micro import FOLDER
from diptych.core.save import save
from diptych.core.tower import Prompt, Tap
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.scenes.words import DESCRIPTIONS

TEXTS = [
    "a photo of a red circle.",
    "two small STRIPED stars  on grass",
    "Zzyzx, which has five round petals",
    "",
    "é 猫",
]


def test_it_is_small_and_loads_without_the_heavy_libraries() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8_000_000
    program = (
        "import sys, time, torch, diptych\nstart = time.process_time()\nclip = diptych.load('micro', 'cpu')\n"
        "assert time.process_time() - start < 2\n"
        "heavy = {'open_clip', 'transformers', 'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert clip.name == clip.source == 'micro' and clip.text.context_length == 77"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_it_knows_new_scenes_beside_distractors(clip: CLIP) -> None:
    """Floors some points below the card's figures, on fewer scenes than there."""
    found = classification(clip, scenes=400, seed=31)
    assert found["all"] > 0.85 and found["never"] > 0.80
    assert retrieval(clip, pool=256, seed=32) > 0.5


def test_scores_are_those_of_the_model_and_not_of_the_test(clip: CLIP) -> None:
    """With the texts of other classes, or pictures of other scenes, the same code gives chance."""
    assert classification(clip, scenes=140, seed=31, shift=1)["all"] < 0.1
    assert retrieval(clip, pool=64, seed=32, shift=1) < 0.15


def test_open_clip_reads_it_and_computes_the_same(clip: CLIP, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    folder = save(clip, tmp_path / "micro")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    records = list(Scenes(SceneSpec(), 6, seed=3))
    theirs = torch.stack([transform(record.image()) for record in records])
    ours = torch.stack([clip.preprocess(record.image()) for record in records])
    assert (ours - theirs).abs().max() < 1e-5
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(ours), model.encode_image(ours), atol=2e-5, rtol=0)
        torch.testing.assert_close(clip.encode_text(TEXTS), model.encode_text(tokenizer(TEXTS)), atol=2e-5, rtol=0)
        again = load(str(folder), "cpu")
        torch.testing.assert_close(again.encode_text(TEXTS), clip.encode_text(TEXTS), atol=2e-5, rtol=0)
        torch.testing.assert_close(again.encode_image(ours), clip.encode_image(ours), atol=2e-5, rtol=0)


def test_our_own_layout_gives_it_back(clip: CLIP, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    again = load(str(save(clip, tmp_path / "micro", layout="diptych")), "cpu")
    assert again.fingerprint == clip.fingerprint


def test_the_doctor_finds_it_well() -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    report = doctor("micro")
    assert report.ok, str(report)


def test_no_text_breaks_the_tokenizer(clip: CLIP) -> None:
    tokens = clip.tokenize([*TEXTS, "a very long text " * 60])
    assert tokens.ids.shape[1] == 77 and int(tokens.ids.max()) == clip.tokenizer.end_id  # type: ignore[attr-defined]
    assert bool((tokens.ids.gather(1, tokens.end[:, None]) == tokens.ids.max()).all())
    decode = clip.tokenizer.tokenizer.decode  # type: ignore[attr-defined]
    for text, ids, mask in zip(TEXTS, tokens.ids, tokens.mask, strict=False):
        assert decode(ids[mask].tolist()).strip() == " ".join(text.lower().split())
    assert torch.equal(clip.tokenize(["A Red  Circle"]).ids, clip.tokenize(["a red circle"]).ids)


def test_words_of_scenes_are_one_token_each(clip: CLIP) -> None:
    words = {word for listed in DESCRIPTIONS.values() for text in listed for word in text.replace("-", " ").split()}
    words |= {*SceneSpec().shapes, *SceneSpec().colours, *SceneSpec().sizes, *SceneSpec().backgrounds}
    split = [word for word in words if clip.tokenizer.length(word) != 3]
    assert len(split) < len(words) // 20, split


def test_a_name_is_marked_at_its_end(clip: CLIP) -> None:
    tokens = clip.tokenize(["a photo of a red circle.", "zorblax."], ["red circle", "zorblax"])
    assert tokens.name_end is not None
    assert tokens.name_end.tolist() == [7, int(tokens.end[1]) - 1]


def test_both_towers_take_prompts_taps_and_edits(clip: CLIP) -> None:
    pixels, tokens = torch.rand(2, 3, 64, 64), clip.tokenize(TEXTS[:2])
    for tower, inputs in ((clip.image, pixels), (clip.text, tokens)):
        prompts = [Prompt(torch.randn(2, tower.width)), Prompt(torch.randn(2, tower.width), block=1, replace=True)]
        taps = [Tap(1), Tap(tower.depth - 1, "attention")]
        plain = tower(inputs).embedding
        found = tower(inputs, prompts=prompts, taps=taps, tokens=True)
        assert not torch.allclose(found.embedding, plain)
        assert torch.allclose(found.taps[taps[1]].sum(-1), torch.ones(()))
        assert len(tower.projections()) == 4 * tower.depth
    edited = clip.edited(Edits({"text": TowerEdits(prompts=(Prompt(torch.randn(2, clip.text.width)),))}))
    assert not torch.allclose(edited.encode_text(TEXTS), clip.encode_text(TEXTS))
    unit = F.normalize(clip.encode_text(TEXTS), dim=1)
    assert clip.fingerprint == load("micro", "cpu").fingerprint and bool(unit.isfinite().all())
