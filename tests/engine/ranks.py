"""Run by test_distributed.py: a tiny model in 1, 2 and 4 processes; prints losses and gradients of all as JSON.

A fresh interpreter forks its workers, so that torch is imported once.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F

from diptych.engine.distributed import (
    gather,
    gather_embeddings,
    local_loob,
    of_first,
    own_rows,
    rank,
    world,
)
from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive, softmax_rows
from diptych.losses.loob import retrieved_loob
from diptych.losses.multilinear import multilinear_contrastive, permutations_of
from diptych.losses.tiled import tiled_contrastive

B = 8
PERMUTATIONS = permutations_of(3, B, torch.Generator().manual_seed(3))


class Model(nn.Module):
    """Three towers, and the parameters that belong to the losses."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)) for _ in range(3))
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.log_beta = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        names = ("image", "text", "sound")
        return {n: F.normalize(t(inputs[:, i]), dim=1) for i, (n, t) in enumerate(zip(names, self.towers, strict=True))}


Loss = Callable[[Model, dict[str, Tensor]], Tensor]
WHOLE: dict[str, Loss] = {
    "softmax": lambda m, e: softmax_contrastive(e["image"], e["text"], m.log_scale.exp()),
    "tiled": lambda m, e: tiled_contrastive(e["image"], e["text"], m.log_scale.exp(), tile=3),
    "sigmoid": lambda m, e: sigmoid_contrastive(e["image"], e["text"], m.log_scale.exp(), m.bias),
    "loob": lambda m, e: retrieved_loob(e["image"], e["text"], m.log_beta.exp(), m.log_scale.exp()),
    "multilinear": lambda m, e: multilinear_contrastive([*e.values()], m.log_scale.exp(), PERMUTATIONS),
    "combinations": lambda m, e: multilinear_contrastive([*e.values()], m.log_scale.exp()),
}
LOCAL: dict[str, Loss] = {  # of gathered rows, the part of `own_rows`
    "softmax": lambda m, e: softmax_contrastive(e["image"], e["text"], m.log_scale.exp(), part=own()),
    "tiled": lambda m, e: tiled_contrastive(e["image"], e["text"], m.log_scale.exp(), part=own(), tile=3),
    "sigmoid": lambda m, e: sigmoid_contrastive(
        e["image"][own()], e["text"], m.log_scale.exp(), m.bias, first=own().start
    ),
    "loob": lambda m, e: local_loob(e["image"][own()], e["text"][own()], m.log_beta.exp(), m.log_scale.exp()),
    "multilinear": lambda m, e: multilinear_contrastive([*e.values()], m.log_scale.exp(), PERMUTATIONS, part=own()),
    "combinations": lambda m, e: multilinear_contrastive([*e.values()], m.log_scale.exp(), part=own()),
}


def own() -> slice:
    return own_rows(B // world())


def wrong(model: Model, own: dict[str, Tensor]) -> Tensor:
    """The classic mistake: a local loss whose other rows are constants."""
    everyone, first = gather_embeddings(own, with_gradient=False), rank() * len(own["image"])
    pairs = (("image", "text"), ("text", "image"))
    return torch.stack([softmax_rows(own[a], everyone[b], model.log_scale.exp(), first=first) for a, b in pairs]).mean()


def measure() -> dict[str, dict[str, list[float]]]:
    """ "system, way" -> the loss and every parameter's gradient, averaged over the processes."""
    torch.manual_seed(0)
    model = Model().double()
    inputs = torch.randn(B, 3, 6, dtype=torch.float64).chunk(world())[rank()]
    ways: dict[str, Loss] = {}
    for name, loss in LOCAL.items():
        ways[f"{name}, local"] = lambda m, e, loss=loss: loss(m, gather_embeddings(e))
    for name, loss in WHOLE.items():
        ways[f"{name}, gathered"] = lambda m, e, loss=loss: loss(m, gather_embeddings(e))
        ways[f"{name}, own gradient"] = lambda m, e, loss=loss: loss(m, gather_embeddings(e, with_gradient=False))
    ways["softmax, wrong"] = wrong
    found = {}
    for way, loss in ways.items():
        model.zero_grad()
        value = loss(model, model(inputs))
        value.backward()
        row = {"loss": value.detach().reshape(1)}
        row |= {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}
        for tensor in row.values():
            if world() > 1:
                distributed.all_reduce(tensor)
                tensor /= world()
        found[way] = {name: tensor.tolist() for name, tensor in row.items()}
    numbers = gather(torch.arange(4).reshape(2, 2) + 10 * rank())
    first = of_first(torch.arange(3) + 10 * rank())
    found["order"] = {"rows": numbers.flatten().tolist(), "first": first.tolist()}
    return found


def work(own: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    if size > 1:
        store = f"file://{folder}/store{size}"
        distributed.init_process_group("gloo", init_method=store, rank=own, world_size=size)
    found = measure()
    if own == size - 1:
        Path(folder, f"{size}.json").write_text(json.dumps(found))
    if size > 1:
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2, 4):
            multiprocessing.start_processes(work, (size, folder), size, start_method="fork")
        json.dump({size: json.loads(Path(folder, f"{size}.json").read_text()) for size in (1, 2, 4)}, sys.stdout)
