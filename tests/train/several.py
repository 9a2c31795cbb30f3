"""Run by test_several.py: every system in 1, 2 and 4 processes, as DDP and sharded; what they got goes to files.

A fresh interpreter forks its workers, so that torch is imported once. All in float64: what differs, differs in earnest.
"""

import json
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, multiprocessing
from train_world import CONFIG, Scene, World

import diptych
from diptych.core.build import build_open_clip, clip_of_open_clip
from diptych.core.clip import CLIP
from diptych.core.preprocess import Preprocess
from diptych.core.tower import Tokens
from diptych.engine import loop
from diptych.engine.sharding import is_sharded, local, shard_tower, whole
from diptych.errors import DiptychError
from diptych.methods.discover import systems
from diptych.methods.pretrain.clip import Clip
from diptych.training.plan import find_objective, make_plan
from diptych.training.run import Run, Strategy

WORDS = 200
QUICK = {
    "clusters": 4,
    "restarts": 1,
    "episode": 24,
    "hidden": 16,
    "projection": 8,
    "shortest": 1,
    "tokens": 40,
    "first": 4,
}
VARIANTS: dict[str, dict[str, str]] = {
    "clip, all settings": {"recipe.chunk": "2", "recipe.checkpoint": "true", "recipe.patch_dropout": "0.5"},
    "siglip, checkpoint": {"recipe.checkpoint": "true"},
}
STEPS = (3, 4, 8)  # of ten: a system with stages has all its terms in the first two, and locks a tower in the last


class Words:
    """A number for each word; the end has the largest, as open_clip reads it."""

    context_length = 20

    def __call__(self, texts: Any, names: Any = None) -> Tokens:
        rows = [[1, *(2 + zlib.crc32(w.encode()) % (WORDS - 3) for w in text.split()), WORDS - 1] for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return Tokens(ids, ids > 0, torch.tensor([len(row) - 1 for row in rows]))

    def with_context(self, length: int) -> "Words":
        return self  # no text is longer than it was

    def spec(self) -> dict[str, Any]:
        return {"kind": "words"}


class Doubled(Preprocess):
    def normalise(self, pixels: Tensor) -> Tensor:
        return super().normalise(pixels).double()


def make_clip() -> CLIP:
    torch.manual_seed(0)
    vision, text = CONFIG["vision_cfg"] | {"patch_size": 4}, CONFIG["text_cfg"] | {"vocab_size": WORDS}
    config = CONFIG | {"vision_cfg": vision, "text_cfg": text}
    model = build_open_clip(config, "here")
    look = Doubled(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return clip_of_open_clip(model, config, Words(), look, name="tiny", source="tiny").double()


def say(scene: Scene) -> tuple[str, ...]:
    """Texts of which some repeat in a batch, since they leave out the ground and the place."""
    return f"a {scene.colour} patch", f"{scene.colour} on {scene.ground}, at the {scene.place}"


def world() -> World:
    return World(24, texts=say, extra=lambda s: {"vector": np.eye(4, dtype=np.float32)[len(s.colour) % 4]})


def run_of(system: str, clip: CLIP, strategy: Strategy, more: dict[str, str]) -> Run:
    known = {f.name for f in fields(find_objective(system).Config)}
    settings = {f"{system}.{k}": str(v) for k, v in QUICK.items() if k in known}
    settings |= {"recipe.crop": "1", "recipe.ema": "0.9", "recipe.clip": "0.5", **more}
    options = {"epochs": None, "batch": 8, "rate": 1e-3, "seed": 0, "save_every": None, "eval_every": None}
    plan = make_plan(system, 24, settings, steps=10, **options)  # type: ignore[arg-type]
    return Run(plan, deepcopy(clip), world(), None, strategy=strategy)


def measure(run: Run) -> dict[str, Any]:
    """Losses and norms of a few steps, the gradient of the first, weights and their average after the last."""
    gradients: dict[str, Tensor] = {}
    clip_gradient = loop.clip_gradient

    def watched(trainable: Any, *rest: Any) -> float:
        if not gradients:
            found = {name: t.grad for name, t in trainable.items() if t.grad is not None}
            gradients.update({name: whole(gradient).clone() for name, gradient in found.items()})
        return clip_gradient(trainable, *rest)

    loop.clip_gradient = watched
    try:
        made = [run.step(step, *run.batches[step]) for step in STEPS]
    finally:
        loop.clip_gradient = clip_gradient
    tensors = run.tensors()
    return {
        "losses": [[one.loss, *one.terms.values()] for one in made],
        "norms": [one.norm for one in made],
        "gradients": gradients,
        "tensors": {n: t for n, t in tensors.items() if n.startswith(("clip.", "heads.", "average.", "objective."))},
        "held": sum(local(p).numel() for p in run.clip.parameters()),
        "moments": sum(local(t).numel() for t in run.loop.state().values()),
        "sharded": sum(map(is_sharded, run.clip.parameters())),
    }


def every_system(clip: CLIP, folder: str, strategy: Strategy) -> None:
    found = {}
    for name in [*systems("pretrain"), *systems("distill"), *VARIANTS]:
        if strategy == "fsdp" and find_objective(name.partition(",")[0]).reshapes:
            continue  # refused, with the reason
        found[name] = measure(run_of(name.partition(",")[0], clip, strategy, VARIANTS.get(name, {})))
    if os.environ["RANK"] == "0":
        torch.save(found, f"{folder}/{strategy}-{os.environ['WORLD_SIZE']}.pt")


def every_tower(clip: CLIP, folder: str, strategy: Strategy) -> None:
    """Every kind of tower, sharded, with half of the rows: the largest difference of its gradients from the whole's."""
    sys.path.append(str(Path(__file__).parents[1] / "core"))
    from models import IMAGES, STAGED, TEXTS, image_kind, some_pixels, text_kind, tokens_for
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    loop.runtime(torch.device("cpu"))
    rank, found = distributed.get_rank(), {}
    mesh = init_device_mesh("cpu", (2,))
    for name in [*IMAGES, *STAGED, *(f"text {name}" for name in TEXTS)]:
        kind = text_kind(name[5:]) if name.startswith("text ") else image_kind(name)
        tower = deepcopy(kind.tower).requires_grad_(True).double()
        pixels = torch.cat([some_pixels(), some_pixels()[:1]]).double()
        rows: Any = tokens_for(tower) if name.startswith("text ") else pixels
        tower(rows).embedding.square().mean().backward()
        whole_gradients = {n: p.grad for n, p in tower.named_parameters() if p.grad is not None}
        tower.zero_grad()
        shard_tower(tower, mesh)
        half = slice(2 * rank, 2 * rank + 2)
        own = rows.take(half, trim=False) if name.startswith("text ") else rows[half]
        for _ in range(2):  # as steps are
            tower.zero_grad()
            tower(own).embedding.square().mean().backward()
        gradients = {n: whole(p.grad) for n, p in tower.named_parameters() if p.grad is not None}
        assert gradients.keys() == whole_gradients.keys(), name
        found[name] = max(float((gradients[n] - g).abs().max()) for n, g in whole_gradients.items())
    if rank == 0:
        tell(folder, "towers", json.dumps(found))


# -- whole runs --------------------------------------------------------------------------------------------------------


def train(clip: CLIP, out: str, **options: Any) -> Any:
    settings = {"recipe.crop": "1", "recipe.ema": "0.9", **options.pop("settings", {})}
    return diptych.train("clip", world(), model=deepcopy(clip), out=out, settings=settings, steps=6, batch=8, rate=1e-3,
        device="cpu", workers=0, save_every=2, **options)  # fmt: skip


def stopped(clip: CLIP, folder: str, strategy: Strategy) -> None:
    """Sharded, ended by the fourth step: what one process takes up afterwards."""

    def stop(row: Any, plan: Any) -> None:
        if row["step"] == 5:
            os._exit(0)

    try:
        train(clip, f"{folder}/taken-up", strategy=strategy, progress=stop)
    except DiptychError:  # the second, of the first
        os._exit(0)


def finished(clip: CLIP, folder: str, strategy: Strategy) -> None:
    train(clip, f"{folder}/{strategy}", strategy=strategy)


def alone(clip: CLIP, folder: str, strategy: Strategy) -> None:
    train(clip, f"{folder}/one")
    train(clip, f"{folder}/taken-up")


class Reads(Clip):
    """A system that uses a weight of a tower in its loss."""

    def loss(self, embeddings, clip, batch):
        return {"size": embeddings["image"].square().sum() + (clip.text.text_projection @ torch.ones(24)).sum()}


def refused(clip: CLIP, folder: str, strategy: Strategy) -> None:
    run = run_of("clip", clip, strategy, {})
    object.__setattr__(run.plan, "objective", Reads())
    try:
        run.step(0, *run.batches[0])
    except DiptychError as error:
        tell(folder, "refused", str(error))


def gone(clip: CLIP, folder: str, strategy: Strategy) -> None:
    lose(clip, folder, "gone", signal.SIGKILL)


def silent(clip: CLIP, folder: str, strategy: Strategy) -> None:
    loop.PATIENCE = timedelta(seconds=3)
    lose(clip, folder, "silent", signal.SIGSTOP)


def lose(clip: CLIP, folder: str, name: str, how: signal.Signals) -> None:
    """The second process ends, or stands still, in the third step; what the first says."""
    step = Run.step

    def watched(self: Run, number: int, *rest: Any) -> Any:
        if number == 2 and os.environ["RANK"] == "1":
            Path(folder, f"{name}.pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), how)
        return step(self, number, *rest)

    Run.step = watched
    start = time.perf_counter()
    try:
        train(clip, f"{folder}/{name}")
    except DiptychError as error:
        tell(folder, name, f"{time.perf_counter() - start:.1f} {error}")
    os._exit(0)


def tell(folder: str, name: str, words: str) -> None:
    Path(folder, f"{name}.txt").write_text(words)


# -- processes ---------------------------------------------------------------------------------------------------------


def work(own: int, size: int, port: int, nodes: int, job: Callable[..., None], *given: Any) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    here = size // nodes
    names = {"RANK": own, "WORLD_SIZE": size, "LOCAL_RANK": own % here, "LOCAL_WORLD_SIZE": here,
        "GROUP_RANK": own // here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    os.environ |= {name: str(value) for name, value in names.items()}
    job(*given)


def start(size: int, job: Callable[..., None], *given: Any, nodes: int = 1, lost: str = "") -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.start_processes(
        work, (size, port, nodes, job, *given), size, join=False, start_method="fork"
    )
    assert context is not None
    if not lost:
        while not context.join():
            pass
        return
    first, second = context.processes
    first.join(60)
    second.kill()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = sys.argv[1]
    clip = make_clip()
    seconds = {}
    for name, size, job, strategy, nodes in (
        ("one", 1, every_system, "ddp", 1),
        ("two", 2, every_system, "ddp", 1),
        ("four on two machines", 4, every_system, "ddp", 2),
        ("two, sharded", 2, every_system, "fsdp", 1),
        ("stopped", 2, stopped, "fsdp", 1),
        ("alone", 1, alone, "ddp", 1),
        ("finished, sharded", 2, finished, "fsdp", 1),
        ("towers", 2, every_tower, "fsdp", 1),
        ("refused", 2, refused, "fsdp", 1),
        ("gone", 2, gone, "ddp", 1),
        ("silent", 2, silent, "ddp", 1),
    ):
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        before = time.perf_counter()
        start(size, job, clip, place, strategy, nodes=nodes, lost=name if name in ("gone", "silent") else "")
        seconds[name] = time.perf_counter() - before
    json.dump(seconds, sys.stdout)
