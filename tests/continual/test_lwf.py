"""lwf: its distillation against a loop, where it is nothing, and what it holds on to."""

import math

import pytest
import torch
from continual_world import Once, seen_by, sessions, world
from torch import Tensor
from torch.nn import functional as F
from train_world import make_clip

from diptych.methods.continual.fine_tune import Contrastive, FineTune
from diptych.methods.continual.lwf import Answers, Config, Lwf
from diptych.methods.continual.parts.learner import snapshot


def unit(seed: int) -> Tensor:
    return F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def test_the_distillation_is_the_loop():
    """KL of softened answers times the square of the temperature, of pictures and of texts, each at its own scale."""
    clip, before = make_clip(), make_clip()
    with torch.no_grad():
        before.log_scale.fill_(math.log(20.0))
    new, old = (unit(1), unit(2)), (unit(3), unit(4))
    scales, total = (float(clip.logit_scale), float(before.logit_scale)), 0.0
    for way in (0, 1):
        for i in range(5):
            now, then = ([s / 3 * float(r[way][i] @ r[1 - way][j]) for j in range(5)]
                         for s, r in zip(scales, (new, old), strict=True))  # fmt: skip
            p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (then, now))
            total += 9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5 / 2
    found = Answers(Config(temperature=3.0, weight=0.5), before).distillation(new, old, clip, before, None)
    assert found.item() == pytest.approx(total / 2, rel=1e-5)


def test_before_the_first_step_there_is_nothing_to_lose():
    clip = make_clip()
    learner = Lwf()
    learner.begin(clip)
    objective = Answers(Config(), learner.old())
    batch = seen_by(objective, clip, world(), [0, 3, 5, 9])
    assert objective.loss(objective.embed(clip, batch), clip, batch)["distillation"].item() == pytest.approx(
        0, abs=1e-5
    )


def test_answers_stay_nearer_to_the_old_ones_than_by_fine_tuning():
    """On the new pairs, after equal steps, from a model that knows something."""
    old, moved = make_clip(), {}
    Once(steps=40).train(old, Contrastive(Config()), sessions()[0].pairs)
    for system in (FineTune, Lwf):
        learner, session = system(), sessions()[1]
        learner.begin(snapshot(old))
        learner.observe(session, Once(steps=25, rate=0.02))
        objective = Answers(Config(), old)
        batch = seen_by(objective, learner.clip(), session.pairs, list(range(20)))
        with torch.no_grad():
            terms = objective.loss(objective.embed(learner.clip(), batch), learner.clip(), batch)
        moved[system] = float(terms["distillation"])
    assert moved[Lwf] < 0.5 * moved[FineTune]


def test_a_fresh_model_is_not_held_on_to():
    learner, trainer = Lwf(), Once()
    learner.begin(make_clip(), fresh=True)
    for session in sessions(2):
        learner.observe(session, trainer)
    assert [sorted(terms) for terms in trainer.seen[::2]] == [["contrastive"], ["contrastive", "distillation"]]
