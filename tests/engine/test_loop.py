"""The loop against plain torch, its schedules against their formulae, and its errors."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from diptych.engine.loop import Cosine, Diverged, Group, Loop, Milestones, Optimiser, train


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(64, 5, generator=g), torch.randn(64, generator=g), torch.randn(5, generator=g)


def squares(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return ((x @ w - y) ** 2).mean()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_equals_plain_torch(kind):
    x, y, start = problem()
    ours = start.clone().requires_grad_()
    train({"w": ours}, lambda _: squares(x, y, ours), Optimiser(kind, 0.05, weight_decay=0.01), 20)
    theirs = start.clone().requires_grad_()
    optimizer = (
        torch.optim.SGD([theirs], 0.05, momentum=0.9, weight_decay=0.01)
        if kind == "sgd"
        else torch.optim.AdamW([theirs], 0.05, weight_decay=0.01)
    )
    for _ in range(20):
        optimizer.zero_grad()
        squares(x, y, theirs).backward()
        optimizer.step()
    assert torch.equal(ours, theirs)


def test_accumulated_parts_equal_the_whole_batch():
    x, y, start = problem()
    whole, parts = start.clone().requires_grad_(), start.clone().requires_grad_()
    one = train({"w": whole}, lambda _: squares(x, y, whole), Optimiser("sgd", 0.05), 10)
    four = train(
        {"w": parts},
        lambda i: squares(x[i % 4 :: 4], y[i % 4 :: 4], parts),
        Optimiser("sgd", 0.05),
        10,
        accumulate=4,
    )
    assert torch.allclose(whole, parts, atol=1e-6)
    assert one == pytest.approx(four, abs=1e-5)


def test_named_losses_are_summed():
    x, y, start = problem()
    w = start.clone().requires_grad_()
    losses = train({"w": w}, lambda _: {"fit": squares(x, y, w), "size": w.square().sum()}, Optimiser("sgd", 0.0), 1)
    assert losses[0] == pytest.approx(float(squares(x, y, start) + start.square().sum()), rel=1e-6)


def test_gradient_is_clipped_to_the_norm():
    a, b = torch.zeros(3, requires_grad=True), torch.zeros(4, requires_grad=True)
    train({"a": a, "b": b}, lambda _: 30 * a.sum() + 40 * b.sum(), Optimiser("sgd", 1.0), 1, clip=1.0)
    assert float(torch.cat([a, b]).detach().norm()) == pytest.approx(1.0, rel=1e-5)


def test_cosine_with_a_constant_first_epoch():
    """As the toolbox of CoOp has it: epoch 0 at 1e-5, then from the peak along a cosine over all epochs."""
    schedule = Cosine(every=3, warmup=1, constant=1e-5)
    rates = [schedule.rate(0.002, step, 30) for step in range(30)]
    assert rates[:3] == [1e-5] * 3
    for epoch in range(1, 10):
        expected = 0.001 * (1 + math.cos(math.pi * (epoch - 1) / 10))
        assert rates[3 * epoch : 3 * epoch + 3] == pytest.approx([expected] * 3)


def test_cosine_with_a_rising_start():
    schedule = Cosine(warmup=4, least=0.1)
    rates = [schedule.rate(1.0, step, 104) for step in range(104)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[54] == pytest.approx(0.55)
    assert 0.1 < rates[-1] < 0.102


def test_progress_counts_steps():
    w = torch.zeros(1, requires_grad=True)
    seen: list[tuple[int, int]] = []
    train({"w": w}, lambda _: w.sum(), Optimiser("sgd", 0.1), 3, progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_term_that_broke_is_named():
    w = torch.ones(1, requires_grad=True)

    def loss(step: int) -> dict[str, Tensor]:
        return {"fine": w.sum(), "ratio": w.sum() / (0.0 if step == 2 else 1.0)}

    with pytest.raises(Diverged, match=r"ratio became inf at step 3 of 5"):
        train({"w": w}, loss, Optimiser("sgd", 0.01), 5)


def test_the_tensor_whose_gradient_broke_is_named():
    good, bad = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    with pytest.raises(Diverged, match="gradient of bad"):
        train({"good": good, "bad": bad}, lambda _: good.sum() + bad.sqrt().sum(), Optimiser("sgd", 0.1), 1)


def test_a_tensor_out_of_reach_is_a_mistake():
    reached, lonely = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient reaches lonely"):
        train({"reached": reached, "lonely": lonely}, lambda _: reached.sum(), Optimiser("sgd", 0.1), 1)


def test_only_leaf_tensors():
    with pytest.raises(ValueError, match="leaf tensors"):
        train({"w": torch.ones(1)}, lambda _: torch.ones(()), Optimiser("sgd", 0.1), 1)


def test_one_cpu_process_imports_neither_fabric_nor_the_compiler():
    code = (
        "import sys, torch; from diptych.engine.loop import *; w = torch.ones(1, requires_grad=True);"
        "train({'w': w}, lambda _: w.sum(), Optimiser('sgd', .1), 2);"
        "assert not any(m.startswith(('lightning', 'torch._dynamo')) for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


WORKER = """
import os, sys, torch
from diptych.engine.loop import Optimiser, train
rank = int(os.environ["RANK"])
g = torch.Generator().manual_seed(0)
x, y, w = torch.randn(64, 5, generator=g), torch.randn(64, generator=g), torch.randn(5, generator=g).requires_grad_()
train({"w": w}, lambda _: ((x[rank::2] @ w - y[rank::2]) ** 2).mean(), Optimiser("sgd", 0.05), 10)
torch.save(w.detach(), sys.argv[1] + os.environ["RANK"])
"""


@pytest.mark.skipif("DIPTYCH_SLOW_TESTS" not in os.environ, reason="needs DIPTYCH_SLOW_TESTS=1 (starts processes)")
def test_two_processes_equal_one(tmp_path):
    pytest.importorskip("lightning_fabric")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launch, str(script), str(tmp_path / "rank")]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    x, y, start = problem()
    alone = start.clone().requires_grad_()
    train({"w": alone}, lambda _: squares(x, y, alone), Optimiser("sgd", 0.05), 10)
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"rank{rank}", weights_only=True), alone, atol=1e-6)


def test_groups_are_those_of_torch():
    x, y, start = problem()
    ours = {name: start.clone().requires_grad_() for name in ("w", "b")}
    spec = Optimiser("adamw", 0.05, beta2=0.98, eps=1e-6)
    groups = [Group(("w",), weight_decay=0.3), Group(("b",), rate=0.1)]
    loop = Loop(ours, spec, 10, groups=groups, schedule=Cosine(warmup=3))
    theirs = {name: start.clone().requires_grad_() for name in ("w", "b")}
    optimizer = torch.optim.AdamW(
        [{"params": [theirs["w"]], "weight_decay": 0.3}, {"params": [theirs["b"]], "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    for step in range(10):
        loop.step(step, lambda _: squares(x, y, ours["w"] + ours["b"]))
        rate = Cosine(warmup=3).rate(0.05, step, 10)
        for group, share in zip(optimizer.param_groups, (1, 0.1), strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        squares(x, y, theirs["w"] + theirs["b"]).backward()
        optimizer.step()
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_a_loop_taken_up_again_is_the_same():
    x, y, start = problem()

    def run(stop: int, state: dict[str, Tensor] | None = None, at: Tensor = start) -> tuple[Tensor, dict[str, Tensor]]:
        w = at.clone().requires_grad_()
        loop = Loop({"w": w}, Optimiser("adamw", 0.05), 12, schedule=Cosine(cycles=2))
        if state:
            loop.load_state(state)
        for step in range(0 if state is None else 5, stop):
            loop.step(step, lambda _: squares(x, y, w))
        return w.detach(), loop.state()

    whole, _ = run(12)
    half, state = run(5)
    assert torch.equal(run(12, state, half)[0], whole)


def test_a_cosine_with_restarts_begins_again_at_the_peak():
    rates = [Cosine(warmup=2, cycles=2).rate(1.0, step, 12) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[7] == 1.0
    assert rates[3:7] == pytest.approx(rates[8:12]) and rates[6] < 0.1


def test_a_tensor_that_no_gradient_reaches_stays_where_that_is_allowed():
    x, y, start = problem()
    w, unused = start.clone().requires_grad_(), torch.ones(1, requires_grad=True)
    loop = Loop({"w": w, "unused": unused}, Optimiser("adamw", 0.05, weight_decay=0.5), 1, strict=False)
    done = loop.step(0, lambda _: {"fit": squares(x, y, w)})
    assert unused.item() == 1.0 and not torch.equal(w, start)
    assert done.terms == {"fit": done.loss} and done.norm > 0


def test_milestones_multiply_the_rate_from_their_share_of_the_run_on():
    schedule = Milestones((0.5, 0.75), factor=0.1)
    rates = [schedule.rate(2.0, step, 8) for step in range(8)]
    assert rates == pytest.approx([2, 2, 2, 2, 0.2, 0.2, 0.02, 0.02])
