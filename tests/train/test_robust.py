"""What a run leaves and says when things go wrong, or are strange; what its settings do for every system."""

import csv
import importlib.machinery
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pairs_world import caption, draw
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from train_world import World, make_clip

import diptych
from diptych.core.clip import CLIP
from diptych.data.pairs import read_pairs
from diptych.engine.loop import Diverged
from diptych.errors import DiptychError
from diptych.methods.discover import systems
from diptych.methods.pretrain.clip import Clip
from diptych.training.plan import find_objective, make_plan
from diptych.training.run import Run

SYSTEMS = [*systems("pretrain"), *systems("distill")]
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
PLAIN: dict[str, Any] = {"device": "cpu", "batch": 12, "rate": 1e-3, "workers": 0}


def run_of(system: str, clip: CLIP, pairs: Any, **settings: str) -> Run:
    known = {f.name for f in fields(find_objective(system).Config)}
    quick = {f"{system}.{k}": str(v) for k, v in QUICK.items() if k in known}
    options = {"epochs": None, "batch": 12, "rate": 1e-3, "seed": 0, "save_every": None, "eval_every": None}
    chosen = quick | {"recipe.crop": "1"} | settings
    return Run(make_plan(system, len(pairs), chosen, steps=10, **options), clip, pairs, None)  # type: ignore[arg-type]


# -- killed ------------------------------------------------------------------------------------------------------------


def test_killed_anywhere_the_weights_are_those_of_an_unbroken_run(tmp_path: Path):
    """Places fixed (checkpoints half written) and drawn; with heads, a system's memory, EMA, crops, threads."""
    system, rng = "protoclip", np.random.default_rng(0)
    places = ["t1", "t2", *(f"{rng.choice(list('sgl'))}{rng.integers(1, 4)}" for _ in range(2)), "k1"]
    program = Path(__file__).with_name("kills.py")
    paths = os.pathsep.join([str(program.parent), str(program.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(program), system, str(tmp_path), *places]
    ended = subprocess.run(words, timeout=300, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for file in ("model/open_clip_model.safetensors", "checkpoints/00000010/tensors.safetensors"):
        whole, killed = (load_file(tmp_path / name / file) for name in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[name], killed[name]) for name in whole)
    kept = load_file(tmp_path / "killed" / "checkpoints" / "00000010" / "tensors.safetensors")
    parts = {name.partition(".")[0] for name in kept}
    assert parts == {"clip", "optimiser", "average", "objective", "heads"}
    tables = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "killed")]
    whole, killed = ([without_time(row) for row in csv.DictReader(table)] for table in tables)
    assert whole == killed and len(whole) == 10


def without_time(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in ("samples_per_second", "seconds")}


# -- nothing half-written ----------------------------------------------------------------------------------------------


def test_a_start_that_fails_leaves_nothing_and_the_corrected_command_goes(tmp_path: Path, tiny: str, shards: Path):
    out = tmp_path / "run"
    with pytest.raises(DiptychError, match="no pair has a vector"):  # in prepare
        diptych.train("symile", shards, model=tiny, out=out, steps=2, **PLAIN)
    assert not out.exists()
    with pytest.raises(DiptychError, match="alip needs a second text"):  # while the first batch is read
        diptych.train("alip", shards, model=tiny, out=out, steps=2, **PLAIN)
    assert not out.exists()
    assert diptych.train("clip", shards, model=tiny, out=out, steps=2, **PLAIN).rows


def test_a_run_that_broke_in_its_first_step_may_be_begun_otherwise(tmp_path: Path, tiny: str, shards: Path):
    from diptych.core.fresh import fresh

    out, broken = tmp_path / "run", fresh(tiny)
    broken.image.get_parameter("visual.proj").data[0, 0] = float("nan")
    with pytest.raises(Diverged):
        diptych.train("clip", shards, model=broken, out=out, steps=2, **PLAIN)
    assert [path.name for path in out.iterdir()] == ["broken.json"]
    assert diptych.train("clip", shards, model=tiny, out=out, steps=2, **PLAIN).rows
    with pytest.raises(DiptychError, match="another run"):
        diptych.train("clip", shards, model=tiny, out=out, steps=3, **PLAIN)


@pytest.mark.parametrize("name", ["notes.txt", "metrics.csv"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, tiny: str, shards: Path, name: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(DiptychError, match="is not a run of diptych"):
        diptych.train("clip", shards, model=tiny, out=tmp_path / "run", steps=2, **PLAIN)
    assert (tmp_path / "run" / name).read_text() == "mine"


@pytest.mark.parametrize("source", ["missing/{00000..00003}.tar", "empty", "broken.tar"])
def test_shards_without_a_pair_are_an_error_before_the_start(tmp_path: Path, tiny: str, source: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 200)
    with pytest.raises(DiptychError, match=r"no such shard|holds no picture with a text"):
        diptych.train("clip", str(tmp_path / source), model=tiny, out=tmp_path / "run", steps=2, **PLAIN)
    assert not (tmp_path / "run").exists()


# -- where it broke ----------------------------------------------------------------------------------------------------


def test_the_layer_that_gives_no_number_first_is_named(clip: CLIP, shards: Path):
    run = run_of("clip", clip, read_pairs(shards))
    layer = clip.image.get_submodule("visual.transformer.resblocks.1.mlp.gelu")
    layer.register_forward_hook(lambda module, given, result: result / 0)
    with pytest.raises(Diverged) as caught:
        run.step(0, *run.batches[0])
    words = str(caught.value)
    assert "contrastive became nan" in words and "pairs of the batch: 0000" in words
    assert "what towers.image.visual.transformer.resblocks.1.mlp.gelu gives" in words


def test_a_weight_in_the_middle_of_a_tower_is_named(clip: CLIP, shards: Path):
    run = run_of("clip", clip, read_pairs(shards), **{"recipe.freeze": "towers.text.*"})
    clip.text.get_parameter("resblocks.1.mlp.c_fc.weight").data[3, 3] = float("inf")
    with pytest.raises(Diverged, match=r"parameter towers\.text\.resblocks\.1\.mlp\.c_fc\.weight"):
        run.step(0, *run.batches[0])


# -- settings for every system -----------------------------------------------------------------------------------------


def world() -> World:
    return World(24, texts=lambda s: (s.caption(), f"{s.colour} on {s.ground}", s.place),
        extra=lambda s: {"vector": np.eye(4, dtype=np.float32)[len(s.colour) % 4]})  # fmt: skip


def drops_by_itself(name: str) -> bool:
    """Whether a system's blocks see fewer tokens without the setting."""
    clip, seen = make_clip(), []
    run = run_of(name, clip, world())
    block = clip.image.block  # type: ignore[attr-defined]
    clip.image.block = lambda i, x, *rest: seen.append(x.shape[1]) or block(i, x, *rest)  # type: ignore[attr-defined]
    run.step(0, *run.batches[0])
    return set(seen) != {5}


@pytest.mark.parametrize("name", SYSTEMS)
def test_patches_are_dropped_for_any_system(name: str, monkeypatch: pytest.MonkeyPatch):
    clip = make_clip()
    settings = {"recipe.patch_dropout": "0.5", "recipe.checkpoint": "true"}
    if find_objective(name).reshapes:  # learns gates, and refuses to compute activations again
        refused = run_of(name, make_clip(), world(), **settings)
        with pytest.raises(DiptychError, match=r"recipe\.checkpoint=false"):
            refused.step(0, *refused.batches[0])
        del settings["recipe.checkpoint"]
    run = run_of(name, clip, world(), **settings)
    seen: list[int] = []
    block = clip.image.block  # type: ignore[attr-defined]
    monkeypatch.setattr(clip.image, "block", lambda i, x, *rest: seen.append(x.shape[1]) or block(i, x, *rest))
    if drops_by_itself(name):
        with pytest.raises(DiptychError, match="patches are dropped twice"):
            run.step(0, *run.batches[0])
        return
    done = run.step(0, *run.batches[0])
    assert done.norm > 0 and set(seen) == {3}, "two of four patches, and the class token"
    assert clip.image(torch.zeros(1, 3, 16, 16)).embedding.isfinite().all() and seen[-1] == 5, "whole pictures outside"


def test_a_tower_that_cannot_drop_patches_is_refused_before_the_start(tmp_path: Path, shards: Path):
    from tiny import bert_clip

    with pytest.raises(DiptychError, match="some patches alone"):
        diptych.train("clip", shards, model=bert_clip(), out=tmp_path / "run", steps=2,
            settings={"recipe.patch_dropout": "0.5"}, **PLAIN)  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("system", ["clip", "siglip"])
def test_pairs_that_share_a_text_or_a_number_belong_together(clip: CLIP, tmp_path: Path, system: str):
    """Against a plain loop over the batch; one pair comes twice, with another text, as a rewrite is."""
    (tmp_path / "pairs").mkdir()
    for n in range(12):
        (tmp_path / "pairs" / f"{n:02d}.png").write_bytes(draw(n))
        (tmp_path / "pairs" / f"{n:02d}.txt").write_text(caption(n % 5).upper() if n > 5 else caption(n % 5))
    pairs = read_pairs(tmp_path / "pairs")
    losses = {}
    for repeats in ("true", "false"):
        run = run_of(system, clip, pairs, **{"recipe.repeats": repeats})
        batch, ids = run.batches[0]
        texts = [pairs[int(i)].texts[0].lower() for i in batch.index]
        other = next(i for i, text in enumerate(texts) if text != texts[0])
        batch.index[other] = batch.index[0]
        losses[repeats] = float(next(iter(run.loss(batch, ids).values())).detach())
        embeddings = run.embed(batch)
    image, text = (embeddings[kind].detach() for kind in ("image", "text"))
    logits = clip.score(image, text).detach()
    joined = {texts[0], texts[other]}
    together = torch.tensor([[a == b or {a, b} == joined for b in texts] for a in texts])
    assert int(together.sum()) > 30
    assert losses["true"] == pytest.approx(by_hand(system, logits, together), abs=1e-5)
    assert losses["false"] == pytest.approx(by_hand(system, logits, torch.eye(12).bool()), abs=1e-5)
    assert abs(losses["true"] - losses["false"]) > 1e-4


def by_hand(system: str, logits: Tensor, together: Tensor) -> float:
    total = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            if system == "siglip":
                total -= float(F.logsigmoid(logits[i, j] if together[i, j] else -logits[i, j]))
            elif together[i, j]:
                share = 1 / int(together[i].sum())
                total -= share * float(logits[i].log_softmax(0)[j] + logits[:, i].log_softmax(0)[j]) / 2
    return total / len(logits)


def test_the_average_is_the_recursion_by_hand(clip: CLIP):
    run = run_of("clip", clip, world(), **{"recipe.ema": "0.7"})
    expected = {name: tensor.detach().clone() for name, tensor in run.trainable.items()}
    for step in range(4):
        run.step(step, *run.batches[step])
        expected = {n: 0.7 * t + 0.3 * run.trainable[n].detach() for n, t in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(run.average[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_system_of_each_process_sees_own_rows(clip: CLIP, monkeypatch: pytest.MonkeyPatch):
    """Its rows are not gathered, so that the loss needs no other process."""
    from diptych.training import run as module

    run = run_of("clip", clip, world())
    monkeypatch.setattr(run.batches, "share", (0, 2))
    monkeypatch.setattr(module, "gathered", lambda *_: pytest.fail("gathered"))
    monkeypatch.setattr(Clip, "per_process", "because")
    assert run.loss(*run.batches[0])["contrastive"] > 0


# -- where metrics go --------------------------------------------------------------------------------------------------


def test_tensorboard_has_what_the_table_has(tmp_path: Path, tiny: str, shards: Path):
    """Read back with its own reader; after a run is taken up again, each step is there once."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def stop(row: Mapping[str, float], plan: Any) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"model": tiny, "out": tmp_path / "run", "steps": 6, "save_every": 2, **PLAIN}
    with pytest.raises(KeyboardInterrupt):
        diptych.train("clip", shards, progress=stop, **options)
    made = diptych.train("clip", shards, **options)
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "contrastive", "temperature", "gradient_norm", "rate"} <= set(events.Tags()["scalars"])
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert found == pytest.approx({int(row["step"]): row["loss"] for row in made.rows}, rel=1e-6)


def test_wandb_is_told_where_a_project_is_named(
    tmp_path: Path, tiny: str, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    class Begun:
        def __enter__(self) -> "Begun":
            return self

        def __exit__(self, *_: object) -> None:
            logged.append((-1, {}))

        def log(self, row: dict[str, float], step: int) -> None:
            logged.append((step, row))

    module = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = lambda **words: begun.append(words) or Begun()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    diptych.train("clip", shards, model=tiny, out=tmp_path / "silent", steps=2, **PLAIN)
    assert not begun
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    made = diptych.train("clip", shards, model=tiny, out=tmp_path / "run", steps=2, **PLAIN)
    assert [step for step, _ in logged] == [1, 2, -1]
    assert [row["loss"] for _, row in logged[:2]] == [row["loss"] for row in made.rows]
    assert begun[0]["resume"] == "allow" and begun[0]["config"]["system"] == "clip" and begun[0]["name"] == "run"
    assert json.dumps(begun[0]["config"])
