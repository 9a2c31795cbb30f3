"""What every system of pretraining keeps, whatever it does. One added to the folder is tried here without an edit."""

import importlib
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from train_world import World, batch_of, make_clip, named, pixels_of, total, trainable

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.methods.discover import describe_one, systems
from diptych.methods.pretrain.parts.objective import Batch, Objective, Phase
from diptych.training.folder import Checkpoint
from diptych.training.plan import find_objective, make_plan
from diptych.training.run import Run

SYSTEMS = [*systems("pretrain"), *systems("distill")]
# Settings that cost time are cut, wherever a system has them; what they do is tried in its own test.
QUICK = {"clusters": 4, "restarts": 1, "episode": 24, "hidden": 16, "projection": 8, "tokens": 40, "first": 4}
INDEX = [5, 2, 9, 0, 7, 11]
UNDEFINED_FOR_ONE = {"cloob"}  # a loss that leaves the positive out has nothing left


def world() -> World:
    """Drawings with whatever the systems ask for: several texts, and numbers of a third kind."""
    return World(
        24,
        texts=lambda s: (s.caption(), f"{s.colour} on {s.ground}, at the {s.place}", f"{s.place}: {s.colour}"),
        extra=lambda s: {"vector": np.eye(4, dtype=np.float32)[len(s.colour) % 4]},
    )


@pytest.fixture(params=SYSTEMS)
def made(request: pytest.FixtureRequest) -> Callable[[], tuple[Objective, CLIP, Batch]]:
    """Makes the system, the CLIP that it prepared, and a batch; every time the same. In the middle of the training."""
    system = find_objective(request.param)
    known = {f.name for f in fields(system.Config)}
    config = system.Config(**{k: v for k, v in QUICK.items() if k in known})

    def make() -> tuple[Objective, CLIP, Batch]:
        objective, clip, pairs = system(config), make_clip(), world()
        torch.manual_seed(1)
        objective.prepare(clip, pairs, 3)
        clip.train()
        clip.requires_grad_(True)
        objective.phase(12, 24)
        return objective, clip, batch_of(objective, clip, pairs, INDEX, step=12)

    return make


Make = Callable[[], tuple[Objective, CLIP, Batch]]


def loss_of(objective: Objective, clip: CLIP, batch: Batch) -> Tensor:
    terms = objective.loss(objective.embed(clip, batch), clip, batch)
    assert terms and all(value.dim() == 0 and bool(value.isfinite()) for value in terms.values())
    return total(terms, objective.phase(12, 24))


def test_the_same_seed_gives_the_same_loss(made: Make):
    first, second = (float(loss_of(*made()).detach()) for _ in range(2))
    assert first == second


def test_rows_belong_to_pairs(made: Make):
    objective, clip, batch = made()
    rows = objective.embed(clip, batch)
    assert {"image", "text"} <= set(rows)
    assert all(len(tensor) == len(INDEX) for tensor in rows.values())


def test_the_gradient_reaches_exactly_what_is_declared(made: Make):
    """Over all stages of a run: each parameter is reached if and only if neither recipe nor stage leaves it out."""
    objective, clip, batch = made()
    for name, parameter in named(objective, clip).items():
        frozen = any(fnmatchcase(name, pattern) for pattern in objective.recipe.freeze.replace(",", " ").split())
        parameter.requires_grad_(not frozen)
    for step in (0, 12, 23):
        phase = objective.phase(step, 24)
        moving = trainable(objective, clip, phase)
        gradients = torch.autograd.grad(
            total(objective.loss(objective.embed(clip, batch), clip, batch), phase),
            list(moving.values()),
            allow_unused=True,
        )
        unreached = {n for n, g in zip(moving, gradients, strict=True) if g is None or not bool(g.any())}
        in_use = {n for n in unreached if step == 12 or not n.startswith("heads.")}  # heads may begin later
        assert not in_use, f"{objective.system()}, step {step}: no gradient for {sorted(in_use)}"
    declared = {"image tower" in objective.trains or "both towers" in objective.trains}
    assert declared == {any(n.startswith("towers.image") for n in trainable(objective, clip, objective.phase(12, 24)))}


def test_a_batch_in_chunks_is_the_batch(made: Make):
    """Rows of chunks, put together, give the loss of the whole; so do the chunks' own graphs its gradient."""
    objective, clip, batch = made()
    clip.eval()
    if objective.heads is not None:
        objective.heads.eval()  # statistics over the batch are the one thing that chunks do not share
    whole = loss_of(objective, clip, batch).detach()
    objective, clip, batch = made()
    clip.eval()
    if objective.heads is not None:
        objective.heads.eval()
    parts = [objective.embed(clip, batch.rows(slice(i, i + 2))) for i in range(0, len(INDEX), 2)]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    chunked = total(objective.loss(rows, clip, batch), objective.phase(12, 24))
    assert float(chunked.detach()) == pytest.approx(float(whole), rel=1e-5, abs=1e-6)


def test_what_it_remembers_is_saved_and_loaded(made: Make):
    """After a step, state and heads carried over to a fresh one give the next loss, bit for bit."""
    objective, clip, batch = made()
    loss_of(objective, clip, batch)
    objective.after_step(clip)
    state = {name: tensor.clone() for name, tensor in objective.state().items()}
    heads = None if objective.heads is None else {n: t.clone() for n, t in objective.heads.state_dict().items()}
    weights = {n: t.clone() for n, t in clip.state_dict().items()}
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    following = float(loss_of(objective, clip, batch).detach())

    fresh, other, again = made()
    other.load_state_dict(weights)
    fresh.load_state(state)
    if heads is not None and fresh.heads is not None:
        fresh.heads.load_state_dict(heads)
    assert float(loss_of(fresh, other, again).detach()) == following


def test_heads_are_not_in_the_clip(made: Make):
    objective, clip, _ = made()
    if objective.heads is None:
        return
    own = {id(parameter) for parameter in clip.parameters()}
    assert not own & {id(parameter) for parameter in objective.heads.parameters()}
    assert any(True for _ in objective.heads.parameters()), "heads without parameters are none"


def test_a_batch_of_one_gives_a_number_or_says_what_is_wrong(made: Make):
    objective, clip, batch = made()
    clip.eval()
    if objective.heads is not None:
        objective.heads.eval()
    one = batch.rows(slice(0, 1))
    if objective.system() in UNDEFINED_FOR_ONE:
        with pytest.raises(DiptychError, match="at least two"):
            loss_of(objective, clip, one)
    else:
        loss_of(objective, clip, one)


def test_the_temperature_stays_in_bounds_and_the_model_scores_plainly(made: Make):
    objective, clip, _ = made()
    with torch.no_grad():
        clip.log_scale.fill_(50.0)
    objective.after_step(clip)
    assert bool(clip.logit_scale.isfinite())
    clip.eval()
    with torch.no_grad():
        logits = clip.score(clip.encode_image(pixels_of(clip, world())[:3]), clip.encode_text(["a", "b b"]))
    assert logits.shape == (3, 2) and bool(logits.isfinite().all())


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_trainer_runs_it_in_chunks_and_takes_it_up_again(name: str):
    """Ten steps, and five of them again from the tensors of a checkpoint: the same losses."""
    known = {f.name for f in fields(find_objective(name).Config)}
    settings = {f"{name}.{k}": str(v) for k, v in (QUICK | {"shortest": 1}).items() if k in known}
    settings |= {"recipe.crop": "1", "recipe.chunk": "4"}

    def fresh(seed: int = 0) -> Run:
        options = {"epochs": None, "batch": 12, "rate": 1e-3, "seed": 0, "save_every": None, "eval_every": None}
        plan = make_plan(name, 24, settings, steps=10, **options)  # type: ignore[arg-type]
        return Run(plan, make_clip(seed), world(), None)

    def losses(run: Run, first: int, last: int) -> list[float]:
        return [run.step(step, *run.batches[step]).loss for step in range(first, last)]

    run = fresh()
    losses(run, 0, 5)
    kept = Checkpoint(5, {n: t.clone() for n, t in run.tensors().items()}, run.state())
    rest = losses(run, 5, 10)
    again = fresh(seed=0 if hasattr(run.plan.objective, "teacher") else 1)  # a teacher is opened again, not kept
    assert again.take_up(kept) == 5
    assert losses(again, 5, 10) == rest


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_says_what_it_is(name: str):
    system = find_objective(name)
    about = importlib.import_module(system.__module__).__doc__ or ""
    assert re.search(r"\bUse it\b", about), "the docstring says when to use it"
    assert re.search(r"\bNot\b", about), "the docstring says when not to use it"
    assert re.search(r"arXiv \d{4}\.\d{5}", about), "the docstring names the paper"
    assert len(about.splitlines()[0]) <= 120, "the first line is the summary in tables"
    assert is_dataclass(system.Config) and system.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in fields(system.Config):
        value: Any = getattr(system.Config(), field.name)
        for one in value if isinstance(value, tuple) else (value,):
            assert isinstance(one, (bool, int, float, str)), f"--set {name}.{field.name} cannot reach {one!r}"
    family = "distill" if name in systems("distill") else "pretrain"
    assert describe_one(family, name).summary
    assert isinstance(Phase(), type(system().phase(0, 1)))
    place = Path(__file__).parents[1] / {"pretrain": "train"}.get(family, family)
    assert (place / f"test_{name}.py").is_file(), "a system is two files: itself and its test"
