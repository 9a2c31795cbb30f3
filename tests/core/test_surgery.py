"""Cutting towers: a gated tower and the cut one agree, what stays keeps its values, and cut models save and open."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import image_kind, some_pixels, text_kind, tokens_for
from torch import Tensor

import diptych
from diptych.core.clip import CLIP
from diptych.core.edits import LowRank, TowerEdits
from diptych.core.forms import YES, forms
from diptych.core.gates import Gates, cut_closed, gated
from diptych.core.load import OURS
from diptych.core.surgery import Attention, Shape, cut, leading, record, shape_of
from diptych.core.tower import Tap, Tower
from diptych.errors import DiptychError, Unsupported

IMAGES = ("open_clip vit", "open_clip vit, average, norm after", "open_clip vit, patch dropout, layer scale")
TEXTS = ("open_clip built-in", "open_clip custom", "open_clip custom, end id", "siglip", "two-sided, padding masked")
OTHERS = (
    "open_clip resnet",
    "timm vit, class token",
    "hf clip",
    "open_clip vit, coca pool",
    "open_clip vit, custom blocks",
)


def tower_and_input(name: str) -> tuple[Tower, Any]:
    if name in IMAGES:
        return deepcopy(image_kind(name).tower), some_pixels()
    tower = deepcopy(text_kind(name).tower)
    return tower, tokens_for(tower)


def some_gates(shape: Shape, seed: int = 0) -> Gates:
    """About half are closed, all heads of block 1 and all units of block 2 among them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int, closed: bool = False) -> Tensor:
        values = 0.6 + 0.4 * torch.rand(count, generator=generator)
        values[torch.rand(count, generator=generator) < 0.4] = 0
        values[0] = 0.9
        return torch.zeros(count) if closed else values

    heads = tuple(draw(count, i == 1) for i, count in enumerate(shape.heads))
    return Gates(draw(shape.width), heads, tuple(draw(count, i == 2) for i, count in enumerate(shape.units)))


@torch.no_grad()
def run(tower: Tower, inputs: Any) -> Tensor:
    return tower(inputs).embedding


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_a_cut_tower_is_the_gated_one(name: str):
    tower, inputs = tower_and_input(name)
    whole, shape = run(tower, inputs), shape_of(tower)
    gates = some_gates(shape)
    with gated(tower, gates):
        expected = run(tower, inputs)
    torch.testing.assert_close(run(tower, inputs), whole, rtol=0, atol=0)  # the gates are gone
    cut_closed(tower, gates)
    torch.testing.assert_close(run(tower, inputs), expected, rtol=1e-5, atol=1e-5)
    assert float((expected - whole).abs().max()) > 0.1
    now = shape_of(tower)
    assert now.width == int((gates.hidden > 0).sum()) == tower.width < shape.width
    assert now.heads[1] == now.units[2] == 0
    if name not in TEXTS[3:]:  # of which one reads texts to their end, and one masks them
        assert not tower.causal or tower.depth == 3


@pytest.mark.parametrize("name", [IMAGES[0], TEXTS[0]])
def test_open_gates_change_nothing_and_gradients_reach_all_of_them(name: str):
    tower, inputs = tower_and_input(name)
    shape, whole = shape_of(tower), run(tower, inputs)
    leaves = [torch.ones(n, requires_grad=True) for n in (shape.width, *shape.heads, *shape.units)]
    with torch.no_grad():
        leaves[0][3] = 0  # closed ones too: they can open again
    gates = Gates(leaves[0], tuple(leaves[1 : 1 + len(shape.heads)]), tuple(leaves[1 + len(shape.heads) :]))
    with gated(tower, gates):
        tower(inputs).embedding.square().sum().backward()
    assert all(leaf.grad is not None and bool(leaf.grad[leaf != 0].all()) for leaf in leaves)
    with gated(tower, Gates(*(torch.ones_like(gates.hidden), gates.heads, gates.units))):
        torch.testing.assert_close(run(tower, inputs), whole)


@pytest.mark.parametrize("name", [IMAGES[0], TEXTS[0]])
def test_a_shape_counts_the_parameters_of_the_blocks_maps(name: str):
    tower, _ = tower_and_input(name)
    cut_closed(tower, some_gates(shape_of(tower)))
    maps = (".attn.", ".mlp.")
    assert shape_of(tower).parameters == sum(
        p.numel() for n, p in tower.named_parameters() if any(m in n for m in maps)
    )


def test_leading_slices_are_the_first_of_everything_and_blocks_by_number():
    tower, inputs = tower_and_input(IMAGES[0])
    source: Any = deepcopy(tower)
    cut(tower, leading(Shape(16, (2, 2), (64, 64), 8), (0, 2)))
    block: Any = tower.parts()[1]
    old = source.parts()[2]
    assert tower.depth == 2 and isinstance(block.attn, torch.nn.MultiheadAttention)  # even: open_clip's own class
    queries, keys, values = old.attn.in_proj_weight.chunk(3)
    expected = torch.cat([part[:16, :16] for part in (queries, keys, values)])
    assert torch.equal(block.attn.in_proj_weight, expected)
    assert torch.equal(block.mlp.c_fc.weight, old.mlp.c_fc.weight[:64, :16])
    assert run(tower, inputs).shape == run(source, inputs).shape
    cut(tower, leading(Shape(16, (1, 2), (64, 9), 8)))
    assert isinstance(tower.parts()[0].attn, Attention)
    run(tower, inputs)


@pytest.mark.parametrize("name", OTHERS)
def test_other_towers_are_refused_with_a_reason(name: str):
    with pytest.raises(Unsupported, match=r"cannot be cut: .{10}"):
        shape_of(image_kind(name).tower)


def test_what_was_cut_away_cannot_be_tapped_and_the_rest_takes_edits():
    tower, inputs = tower_and_input(IMAGES[0])
    cut_closed(tower, some_gates(shape_of(tower)))
    assert set(tower(inputs, taps=[Tap(0, "attention")]).taps) == {Tap(0, "attention")}
    with pytest.raises(Unsupported, match="block 1, which was cut away"):
        tower(inputs, taps=[Tap(1, "attention")])
    assert {p.block for p in tower.projections()} == {0, 2}
    query = tower.projections()[0]
    delta = LowRank(query, torch.randn(1, tower.width), torch.randn(query.stop - query.start, 1), 1.0)
    changed = TowerEdits(low_rank=(delta,)).parameters(tower)
    weight = dict(tower.named_parameters())[query.parameter]
    assert changed[query.parameter].shape == weight.shape


def cut_micro(even: bool) -> CLIP:
    clip = diptych.load("micro", "cpu")
    for name, seed in (("image", 1), ("text", 2)):
        tower: Any = clip.towers[name]
        shape = shape_of(tower)
        if even:
            cut(tower, leading(Shape(64, (2, 2), (256, 256), 32)))
        else:
            cut_closed(tower, some_gates(shape, seed))
    record(clip)
    return clip


@pytest.mark.parametrize("even", [True, False])
def test_a_cut_model_saves_and_opens(even: bool, tmp_path: Path):
    clip = cut_micro(even)
    can = forms(clip)
    assert can["onnx"] == can["diptych"] == YES
    if even:
        assert can["open_clip"] == can["huggingface"] == YES
        diptych.export(clip, tmp_path / "other", to="open_clip")  # which checks it against open_clip
    else:
        assert "cut unevenly" in can["open_clip"] and "cut unevenly" in can["huggingface"]
        with pytest.raises(Unsupported, match="cut unevenly"):
            diptych.save(clip, tmp_path / "other", layout="open_clip")
    diptych.save(clip, tmp_path / "model", layout="diptych")
    again = diptych.load(str(tmp_path / "model"), "cpu")
    assert again.fingerprint == clip.fingerprint and forms(again) == can
    pixels, texts = torch.randn(2, 3, 64, 64), ["a red circle", "two blue stars on a dark ground"]
    assert torch.equal(again.encode_image(pixels), clip.encode_image(pixels))
    assert torch.equal(again.encode_text(texts), clip.encode_text(texts))
    diptych.save(again, tmp_path / "twice", layout="diptych")
    assert diptych.load(str(tmp_path / "twice"), "cpu").fingerprint == clip.fingerprint


def test_an_uneven_model_becomes_onnx(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    assert diptych.export(cut_micro(even=False), tmp_path / "onnx", to="onnx").pictures < 1e-5  # type: ignore[union-attr]


def test_damaged_shapes_are_found_out(tmp_path: Path):
    diptych.save(cut_micro(even=False), tmp_path / "model", layout="diptych")
    where = tmp_path / "model" / OURS
    about = json.loads(where.read_text())
    about["origin"]["shapes"]["image"]["width"] = 500
    where.write_text(json.dumps(about))
    with pytest.raises(DiptychError, match="shapes of the image tower do not fit"):
        diptych.load(str(tmp_path / "model"), "cpu")
    del about["origin"]["shapes"]["image"]["heads"]
    where.write_text(json.dumps(about))
    with pytest.raises(DiptychError, match="lack 'heads'"):
        diptych.load(str(tmp_path / "model"), "cpu")
