"""tinyclip: its loss and sizes against plain loops, the size that it reaches, runs taken up again, and its effect."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_world import World, batch_of, make_clip, scene_accuracy
from train_world import train as plain_train

import diptych
from diptych.core.clip import CLIP
from diptych.core.gates import Gates
from diptych.core.surgery import TOWERS, Shape, cut, leading
from diptych.engine.loop import Group, Loop, Optimiser, Plain
from diptych.errors import DiptychError
from diptych.methods.distill.parts.concrete import HIGH, LOW, TEMPERATURE, Concrete, Sized
from diptych.methods.distill.parts.inherit import smaller, spread
from diptych.methods.distill.tinyclip import Config, TinyClip
from diptych.methods.pretrain.clip import Clip
from diptych.training.folder import Checkpoint
from diptych.training.plan import make_plan
from diptych.training.run import Run

WIDE: dict[str, Any] = {  # 8 heads a block
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 8, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 8, "layers": 2},
}
FROZEN = {"recipe.freeze": "log_scale,towers.text.token_embedding.weight", "recipe.crop": "1"}


def start(
    clip: CLIP, world: World, steps: int, rate: float = 1e-3, batch: int = 32, beta1: float = 0.9, **settings: Any
) -> Run:
    given = FROZEN | {"recipe.beta1": beta1} | {f"tinyclip.{name}": value for name, value in settings.items()}
    options: dict[str, Any] = {"epochs": None, "seed": 0, "save_every": None, "eval_every": None}
    return Run(
        make_plan("tinyclip", len(world), given, steps=steps, batch=batch, rate=rate, **options), clip, world, None
    )


def shares(run: Run) -> tuple[int, float]:
    """Parameters of the blocks that are left, and their share of the teacher's."""
    tiny: Any = run.plan.objective
    left = sum(shape.parameters for shape in tiny.shapes.values())
    return left, left / tiny.whole


def go(run: Run, first: int, last: int) -> list[float]:
    return [run.step(step, *run.batches[step]).loss for step in range(first, last)]


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_plain_loop_and_reaches_no_teacher():
    clip, world = make_clip(), World(8)
    tiny = TinyClip(Config(mode="manual"))
    tiny.prepare(clip, world, 0)
    clip.requires_grad_(True)
    batch = batch_of(tiny, clip, world, list(range(6)))
    rows = tiny.embed(clip, batch)
    terms = tiny.loss(rows, clip, batch)
    v, t, v_star, t_star = (
        F.normalize(rows[name].detach().double(), dim=1) for name in ("image", "text", "teacher_image", "teacher_text")
    )
    expected = 0.0
    for image, text, star_image, star_text in ((v, t, v_star, t_star), (t, v, t_star, v_star)):
        for i in range(6):
            own = [math.exp(50 * float(image[i] @ text[j])) for j in range(6)]
            star = [math.exp(50 * float(star_image[i] @ star_text[j])) for j in range(6)]
            expected -= sum(star[j] / sum(star) * math.log(own[j] / sum(own)) for j in range(6)) / 12
    assert list(terms) == ["affinity"] and terms["affinity"].item() == pytest.approx(expected, rel=1e-5)
    terms["affinity"].backward()
    assert all(p.grad is None for p in tiny.teacher.parameters()) and clip.log_scale.grad is None
    assert any(p.grad is not None and bool(p.grad.any()) for p in clip.parameters())


def test_nothing_is_better_than_the_teacher_itself():
    clip, world = make_clip(), World(8)
    tiny = TinyClip()
    tiny.prepare(clip, world, 0)
    tiny.heads = None
    batch = batch_of(tiny, clip, world, list(range(6)))
    rows = tiny.embed(clip, batch)
    least = tiny.loss(rows, clip, batch)["affinity"]
    image, text = (F.normalize(rows[name], dim=1) for name in ("teacher_image", "teacher_text"))
    entropies = [-(p * p.log()).sum(1).mean() for p in ((50 * x).softmax(1) for x in (image @ text.T, text @ image.T))]
    torch.testing.assert_close(least, sum(entropies) / 2)  # type: ignore[arg-type]
    worse = tiny.loss(rows | {"text": rows["text"] + 0.1 * torch.randn_like(rows["text"])}, clip, batch)["affinity"]
    assert worse > least


def test_part_of_the_loss_may_be_clips_own():
    clip, world = make_clip(), World(8)
    tiny = TinyClip(Config(mode="manual", alpha=0.25))
    tiny.prepare(clip, world, 0)
    batch = batch_of(tiny, clip, world, list(range(6)))
    rows = tiny.embed(clip, batch)
    terms = tiny.loss(rows, clip, batch)
    logits = 50 * F.normalize(rows["image"], dim=1) @ F.normalize(rows["text"], dim=1).T
    own = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(terms["contrastive"], 0.75 * own)


# -- gates -------------------------------------------------------------------------------------------------------------


def test_gates_close_as_often_as_they_say():
    gates = Concrete(Shape(3, (1,), (1,), 4))
    with torch.no_grad():
        gates.hidden.copy_(torch.tensor([-1.0, 0.0, 1.5]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([gates.sample(generator).hidden for _ in range(4000)])
    assert bool(((drawn >= 0) & (drawn <= 1)).all()) and bool((drawn == 1).any(0).all())
    torch.testing.assert_close((drawn > 0).float().mean(0), gates.chances().hidden, rtol=0, atol=0.025)
    expected = torch.sigmoid(gates.hidden - TEMPERATURE * math.log(-LOW / HIGH))
    torch.testing.assert_close(gates.chances().hidden, expected)


def test_the_expected_size_is_exact_for_decided_gates_and_the_mean_of_draws_otherwise():
    shape = Shape(12, (3, 2), (20, 7), 4)
    gates = Concrete(shape)
    assert gates.size().item() == pytest.approx(shape.parameters, rel=2e-3)
    torch.manual_seed(0)
    with torch.no_grad():
        for a in gates.parameters():
            a.copy_(torch.randn_like(a))
    chances, total = gates.chances(), 0.0
    generator = torch.Generator().manual_seed(1)

    def count(gate: Tensor) -> int:
        return int((torch.rand(len(gate), generator=generator) < gate).sum())

    draws = 4000
    for _ in range(draws):
        heads, units = tuple(map(count, chances.heads)), tuple(map(count, chances.units))
        total += Shape(count(chances.hidden), heads, units, 4).parameters / draws
    assert gates.size().item() == pytest.approx(total, rel=0.02)


def test_the_least_likely_are_closed_in_each_block():
    gates = Concrete(Shape(6, (4, 4), (5, 5), 4))
    with torch.no_grad():
        gates.heads.copy_(torch.tensor([4.0, -4.0, 3.0, -4.5, 4.0, 4.0, 4.0, -4.0]))
        gates.units[5:] = -4.6
        gates.hidden[2] = -4.6
    settled = gates.settled()
    assert [(gate > 0).tolist() for gate in settled.heads] == [[True, False, True, False], [True, True, True, False]]
    assert bool(settled.units[0].all()) and not bool(settled.units[1].any())
    assert (settled.hidden > 0).tolist() == [True, True, False, True, True, True]
    with torch.no_grad():
        gates.hidden.fill_(-4.6)
    assert int((gates.settled().hidden > 0).sum()) == 1, "a tower without channels is none"


def test_a_smaller_size_is_free_and_a_larger_one_costs_by_both_towers_multipliers():
    sized = Sized({name: Shape(12, (3,), (20,), 4) for name in TOWERS}, 2 * Shape(12, (3,), (20,), 4).parameters)
    share = sized.share()
    assert sized.penalty(1.0).item() == 0
    with torch.no_grad():
        sized.multipliers.copy_(torch.tensor([[1.0, 5.0], [3.0, 7.0]]))
    excess = share - 0.6
    torch.testing.assert_close(sized.penalty(0.6), 2 * excess + 6 * excess**2)
    sized.penalty(0.6).backward()
    assert sized.multipliers.grad is not None and bool((sized.multipliers.grad > 0).all())  # uphill: they grow


@pytest.mark.parametrize("rate", [-0.05, 0.05])
def test_the_size_asked_for_is_reached_and_only_with_multipliers_that_climb(rate: float):
    """A loss that wants some gates open more than others pulls against it."""
    torch.manual_seed(0)
    shape = Shape(32, (4,), (64,), 8)
    sized = Sized(dict.fromkeys(TOWERS, shape), 2 * shape.parameters)
    worth = {name: [torch.rand_like(a) for a in gates.parameters()] for name, gates in sized.each()}
    generator = torch.Generator().manual_seed(1)

    def loss(step: int) -> Tensor:
        total = sized.penalty(1 - 0.5 * min(1, step / 250))
        for name, gates in sized.each():
            z = gates.sample(generator)
            for gate, each in zip((z.hidden, *z.heads, *z.units), worth[name], strict=True):
                total = total + 3 * (each * (1 - gate).square()).mean()
        return total

    named = dict(sized.named_parameters())
    gates_of = tuple(name for name in named if name != "multipliers")
    groups = [Group(gates_of, 0.05, fixed=True), Group(("multipliers",), rate, fixed=True)]
    loop = Loop(named, Optimiser("adamw", 1.0, beta2=0.98, eps=1e-6), 400, groups=groups, strict=False, run=Plain())
    for step in range(400):
        loop.step(step, loss)
        for _, gates in sized.each():
            gates.bound()
    left = 0
    for _, gates in sized.each():
        z = gates.settled()
        heads, units = (tuple(int((gate > 0).sum()) for gate in each) for each in (z.heads, z.units))
        left += Shape(int((z.hidden > 0).sum()), heads, units, 8).parameters
    share = left / (2 * shape.parameters)
    assert (abs(share / 0.5 - 1) < 0.03) == (rate < 0), share


# -- the run -----------------------------------------------------------------------------------------------------------


def test_stages_gates_and_cuts_come_when_they_should():
    clip, world = make_clip(0, WIDE), World(64)
    run = start(clip, world, 24, batch=16, stages="0.7", keep=0.4, prune_step=5, sparsity_warmup=1)
    tiny: Any = run.plan.objective
    seen: list[tuple[bool, int]] = []
    rates: list[float] = []
    for step in range(24):
        rates.append(run.step(step, *run.batches[step]).rate)
        seen.append((tiny.heads is not None, tiny.stage))
    assert [gates for gates, _ in seen] == [True] * 5 + [False] * 7 + [True] * 5 + [False] * 7
    assert [stage for _, stage in seen] == [0] * 12 + [1] * 12
    peak = rates.index(max(rates))
    assert peak < 3 and rates[peak:] == sorted(rates[peak:], reverse=True)  # one cosine, no second warm-up
    assert [tiny.target(step) for step in (12, 13, 16)] == pytest.approx([0.7, 0.4, 0.4])
    named = set(run.trainable)
    assert not any(name.startswith("heads.") for name in named)
    assert set(run.loop.trainable) == named == {n for n, p in clip.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("mode", ["auto", "manual"])
@pytest.mark.parametrize("at", [3, 8, 12, 14, 20])
def test_a_run_taken_up_again_is_the_same_before_and_after_each_cut(mode: str, at: int):
    """24 steps in two stages: gates until 6, cut, the next stage's gates from 12 to 18, cut."""
    world = World(48)

    def fresh(seed: int = 0) -> Run:
        return start(make_clip(seed, WIDE), world, 24, batch=8, stages="0.7", keep=0.4, mode=mode)

    run = fresh()
    go(run, 0, at)
    kept = Checkpoint(at, {n: t.clone() for n, t in run.tensors().items()}, run.state())
    rest = go(run, at, 24)
    again = fresh()
    assert again.take_up(kept) == at
    assert go(again, at, 24) == rest
    ours, theirs = run.clip.state_dict(), again.clip.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert run.clip.origin == again.clip.origin


def test_a_manual_cut_is_a_model_of_open_clip():
    assert spread(12, 6, "step") == (0, 2, 4, 6, 8, 10) and spread(12, 9, "step") == tuple(range(9))
    assert spread(12, 9, "uniform") == (0, 1, 3, 4, 6, 7, 8, 10, 11) and spread(12, 1, "uniform") == (0,)
    base = Shape(768, (12,) * 12, (3072,) * 12, 64)
    assert smaller(base, 0.45) == Shape(512, (8,) * 12, (2048,) * 12, 64)
    assert smaller(base, 0.5, 6) == Shape(768, (12,) * 6, (3072,) * 6, 64)
    clip = make_clip(0, WIDE)
    TinyClip(Config(mode="manual", text_layers=1)).prepare(clip, World(4), 0)
    assert clip.origin is not None and "shapes" not in clip.origin
    assert clip.origin["model_cfg"]["text_cfg"] | {"width": 64, "layers": 1} == clip.origin["model_cfg"]["text_cfg"]


def test_what_cannot_be_is_refused():
    for config, what in (
        (Config(mode="automatic"), 'mode cannot be "automatic"'),
        (Config(stages="0.4"), "shares must fall"),
        (Config(stages="a half"), "stages cannot be"),
        (Config(keep=1.5), "shares must fall"),
    ):
        with pytest.raises(DiptychError, match=what):
            TinyClip(config)
    with pytest.raises(DiptychError, match="cannot be taken from a tower of 2"):
        TinyClip(Config(mode="manual", image_layers=3)).prepare(make_clip(), World(4), 0)
    with pytest.raises(DiptychError, match="learned from data"):
        TinyClip().prepare(make_clip(), World(0), 0)


def test_gates_of_a_step_are_the_same_for_every_chunk_of_a_batch():
    clip, world = make_clip(0, WIDE), World(16)
    tiny = TinyClip()
    tiny.prepare(clip, world, 3)
    assert isinstance(tiny.heads, Sized)
    with torch.no_grad():
        for a in tiny.heads.towers.parameters():
            a.fill_(0.0)
    batch = batch_of(tiny, clip, world, list(range(8)), step=5)
    whole, part = tiny.embed(clip, batch), tiny.embed(clip, batch.rows(slice(2, 5)))
    torch.testing.assert_close(part["image"], whole["image"][2:5], rtol=1e-4, atol=1e-5)
    other = tiny.embed(clip, batch_of(tiny, clip, world, list(range(8)), step=6))
    assert (other["image"] - whole["image"]).abs().max().item() > 1e-2
    assert isinstance(next(iter(tiny.heads.each()))[1].sample(torch.Generator()), Gates)


@pytest.mark.parametrize("stop", [5, 9])
def test_a_run_stopped_before_or_after_the_cut_ends_as_one_that_was_not(stop: int, tmp_path: Path):
    """Cut before step 6; checkpoints every 4 steps. And what is said at the end, of pairs that were held out."""
    given: dict[str, Any] = {
        "settings": FROZEN, "keep": 0.5, "steps": 12, "batch": 8, "rate": 1e-3, "save_every": 4, "workers": 0,
        "device": "cpu",
    }  # fmt: skip

    def at(step: int) -> Any:
        def progress(row: dict[str, float], plan: Any) -> None:
            if row["step"] == step:
                raise KeyboardInterrupt

        return progress

    whole = diptych.make("tinyclip", make_clip(0, WIDE), World(64), out=tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        diptych.make("tinyclip", make_clip(0, WIDE), World(64), out=tmp_path / "run", progress=at(stop), **given)
    again = diptych.make("tinyclip", make_clip(0, WIDE), World(64), out=tmp_path / "run", **given)
    assert again.clip.fingerprint == whole.clip.fingerprint
    assert diptych.load(str(tmp_path / "run" / "model"), "cpu").fingerprint == whole.clip.fingerprint
    said = {what: value for what, value, _ in again.facts}
    assert {"parameters", "of the blocks' parameters", "speed of pictures", "affinities apart"} <= set(said)
    assert said["parameters"] == f"{sum(p.numel() for p in whole.clip.parameters()):,}"
    notes = {what: note for what, _, note in again.facts}
    assert "of 6 held-out pictures" in notes["text to image, R@1"]


def test_a_manual_cut_needs_no_data(tmp_path: Path):
    made = diptych.make("tinyclip", make_clip(0, WIDE), settings={"tinyclip.mode": "manual"}, out=tmp_path / "run")
    assert not made.rows and made.forms["open_clip"] == "yes"
    assert [what for what, _, _ in made.facts][:2] == ["parameters", "of the blocks' parameters"]
    assert diptych.load(str(tmp_path / "run" / "model"), "cpu").image.width == 48


# -- its effect --------------------------------------------------------------------------------------------------------


def test_half_a_clip_knows_more_than_as_small_a_one_from_scratch_at_equal_steps():
    world, held_out = World(256), World(300, seed=1)
    teacher = make_clip()
    plain_train(Clip(), teacher, world, steps=150, rate=4e-3)
    small, scratch = deepcopy(teacher), make_clip(1)
    run = start(small, world, 60, rate=2e-3, beta1=0.5)
    go(run, 0, 60)
    for name, shape in run.plan.objective.shapes.items():  # type: ignore[attr-defined]
        cut(scratch.towers[name], leading(shape))  # type: ignore[arg-type]
    plain_train(Clip(), scratch, world, steps=60, batch=32, rate=2e-3)
    share, *scores = shares(run)[1], *(scene_accuracy(clip.eval(), held_out) for clip in (teacher, small, scratch))
    print(share, scores)
    assert share < 0.6 and scores[1] > scores[2] + 0.1, scores
