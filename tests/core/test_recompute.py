"""Gradient checkpointing: equal gradients, the same random numbers, batch norms that count once, less memory."""

import multiprocessing
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import IMAGES, STAGED, TEXTS, image_kind, other_text, some_pixels, text_kind, tokens_for, vit
from torch import Tensor, nn

from diptych.core.recompute import recomputed
from diptych.core.tower import Tokens, Tower
from diptych.engine.chunks import embed_in_chunks
from diptych.errors import Unsupported

ALL = [("image", name) for name in [*IMAGES, *STAGED]] + [("text", name) for name in TEXTS]


def case(modality: str, name: str) -> tuple[Tower, Any]:
    if modality == "image":
        return image_kind(name).tower, some_pixels()
    tower = text_kind(name).tower
    return tower, tokens_for(tower)


def gradients(tower: Tower, inputs: Tensor | Tokens) -> tuple[dict[str, Tensor], int]:
    """(of every parameter, bytes that the graph kept), in training mode."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tower.train().requires_grad_(True)
    tower.zero_grad()
    torch.manual_seed(4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = tower(inputs).embedding.square().sum()
    loss.backward()
    weights = {p.untyped_storage().data_ptr() for p in tower.parameters()}
    found = {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}
    return found, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_every_tower_has_equal_gradients_and_keeps_less(modality: str, name: str) -> None:
    tower, inputs = case(modality, name)
    tower = deepcopy(tower)
    other = deepcopy(tower)
    for part in (*tower.modules(), *other.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.3  # so that other random numbers would show
    expected, before = gradients(tower, inputs)
    other.set_checkpoint()
    found, after = gradients(other, inputs)
    assert set(found) == set(expected) and len(found) > 4
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-5 * float(expected[key].abs().max()))
    assert after < 0.75 * before
    if not other.kind.startswith("timm."):  # those checkpoint by themselves
        for key, buffer in tower.named_buffers():
            torch.testing.assert_close(other.get_buffer(key), buffer, msg=lambda text, key=key: f"{key} {text}")


def test_what_is_run_as_a_whole_refuses() -> None:
    with pytest.raises(Unsupported, match="cannot take gradient checkpointing"):
        other_text().tower.set_checkpoint()


def test_inside_chunks() -> None:
    tower, pixels = deepcopy(image_kind("open_clip vit").tower).train().requires_grad_(True), some_pixels()
    found = []
    for on in (False, True):
        tower.set_checkpoint(on)
        tower.zero_grad()
        rows = embed_in_chunks(lambda part: {"image": tower(part).embedding}, pixels.split(2))
        rows["image"].square().sum().backward()
        found.append([p.grad.clone() for p in tower.parameters() if p.grad is not None])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max()))


def test_nothing_is_run_again_for_what_stays_as_it_is() -> None:
    tower = deepcopy(image_kind("open_clip vit").tower).requires_grad_(False)
    tower.set_checkpoint()
    assert not tower(some_pixels()).embedding.requires_grad


def test_the_gradient_of_an_input() -> None:
    x, unused = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.ones(2)
    again = 0

    def run(x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal again
        again += 1
        return x.sin(), unused * 2

    one, two = recomputed(run, x, unused, trains=False)
    assert again == 1 and torch.equal(two, 2 * unused)
    one.square().sum().backward()
    assert again == 2
    torch.testing.assert_close(x.grad, 2 * x.detach().sin() * x.detach().cos())


def peak(on: bool, out: Any) -> None:
    torch.set_num_threads(1)
    tower = vit(layers=12, width=64, head_width=32, image_size=96, patch_size=8).tower.train().requires_grad_(True)
    tower.set_checkpoint(on)
    pixels = torch.randn(32, 3, 96, 96)
    before = highest()
    tower(pixels).embedding.sum().backward()
    out.put(highest() - before)


def highest() -> float:
    """MB that this process has held at most. Not getrusage's figure: a new process starts with its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
def test_the_peak_of_memory_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 blocks of 145 tokens for 32 pictures, each way in a fresh process that gives back at once what it frees."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    context = multiprocessing.get_context("spawn")
    grown = []
    for on in (False, True):
        out = context.Queue()
        child = context.Process(target=peak, args=(on, out))
        child.start()
        grown.append(out.get(timeout=60))
        child.join()
    assert grown[1] < 0.5 * grown[0], f"{grown[0]:.0f} MB, then {grown[1]:.0f} MB"
