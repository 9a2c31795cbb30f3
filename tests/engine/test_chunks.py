import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.engine.chunks import embed_in_chunks
from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from diptych.losses.prototypes import prototype_cross_entropy
from diptych.losses.tiled import tiled_contrastive

B, D = 12, 5


class Model(nn.Module):
    """Two towers with dropout, and every kind of parameter that belongs to a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.4), nn.GELU(), nn.Linear(9, D))
        self.text = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.4), nn.Linear(9, D))
        self.log_scale = nn.Parameter(torch.tensor(1.2))
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.prototypes = nn.Parameter(torch.randn(7, D))
        self.log_prototype_scale = nn.Parameter(torch.tensor(0.8))

    def embed(self, chunk: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {
            "image": F.normalize(self.image(chunk[0]), dim=1),
            "text": F.normalize(self.text(chunk[1]), dim=1),
            "label": chunk[1][:, 0].abs().long() % 7,
        }

    def loss(self, rows: dict[str, Tensor]) -> Tensor:
        return (
            tiled_contrastive(rows["image"], rows["text"], self.log_scale.exp(), tile=5)
            + sigmoid_contrastive(rows["image"], rows["text"], self.log_scale.exp(), self.bias)
            + prototype_cross_entropy(rows["image"], self.prototypes, self.log_prototype_scale.exp(), rows["label"])
        )


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().double()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(B, n, generator=generator, dtype=torch.float64) for n in (6, 4))  # type: ignore


def pieces(size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.split(size) for part in inputs()), strict=True))


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 5, 12])
def test_every_gradient_is_the_big_batchs(model: Model, size: int):
    model.eval()
    whole = model.loss(model.embed(inputs()))
    expected = gradients(model, whole)
    chunked = model.loss(embed_in_chunks(model.embed, pieces(size)))
    found = gradients(model, chunked)
    assert chunked.item() == pytest.approx(whole.item(), abs=1e-12)
    assert set(found) == set(expected) == {name for name, _ in model.named_parameters()}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-12, rtol=0)


def test_dropout_is_the_same_both_times(model: Model):
    """Against one graph over chunks with the same random numbers; and the numbers after it go on as there."""
    parts = pieces(4)

    def by_hand() -> dict[str, Tensor]:
        rows = [model.embed(part) for part in parts]
        return {name: torch.cat([r[name] for r in rows]) for name in rows[0]}

    results = []
    for embed in (by_hand, lambda: embed_in_chunks(model.embed, parts)):
        torch.manual_seed(5)
        results.append((gradients(model, model.loss(embed())), torch.rand(3)))
    (expected, numbers), (found, later) = results
    assert torch.equal(numbers, later)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-12, rtol=0)
    torch.manual_seed(6)
    other = gradients(model, model.loss(by_hand()))
    assert (other["image.0.weight"] - found["image.0.weight"]).abs().max() > 1e-3, "the masks do matter"


def test_one_chunk_at_a_time_holds_activations(model: Model):
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal most
            kept = x.clone()
            alive.add(kept)
            most = max(most, len(alive))
            ctx.kept = kept
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            ctx.kept = None
            return gradient * 2

    def embed(chunk: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {n: Watched.apply(rows) for n, rows in model.embed(chunk).items() if n != "label"}  # type: ignore

    rows = embed_in_chunks(embed, pieces(2))
    assert not alive
    softmax_contrastive(rows["image"], rows["text"], model.log_scale.exp()).backward()
    assert most == 2  # an image and a text tower


def test_a_locked_tower_gets_no_gradient(model: Model):
    model.image.requires_grad_(False)
    rows = embed_in_chunks(model.embed, pieces(3))
    found = gradients(model, model.loss(rows))
    assert not any(name.startswith("image") for name in found) and found["text.0.weight"].abs().max() > 1e-3


def test_autocast_of_the_first_time_holds_the_second(model: Model):
    model.float().eval()
    seen = []

    def embed(chunk: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        seen.append(model.text[0](chunk[1].float()).dtype)
        return model.embed((chunk[0].float(), chunk[1].float()))

    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(embed_in_chunks(embed, pieces(6)))
    loss.backward()
    assert seen == [torch.bfloat16] * 4 and loss.dtype is torch.float32
