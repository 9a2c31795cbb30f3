"""ewc: importance against a loop, the penalty in closed form, and that it holds what mattered."""

import pytest
import torch
from continual_world import Once, learner_of, seen_by, sessions, world
from train_world import make_clip

from diptych.methods.continual.ewc import Config, Elastic, Ewc, distance, fisher
from diptych.methods.continual.fine_tune import FineTune


def test_importance_is_the_mean_of_squared_gradients_of_batches_times_their_size():
    clip, objective = make_clip(), Elastic(Config(), {}, {})
    batches = [seen_by(objective, clip, world(), [i, i + 1, i + 2]) for i in (0, 5)]
    found = fisher(objective, clip, batches)
    expected = {name: torch.zeros_like(p) for name, p in clip.named_parameters()}
    for batch in batches:
        clip.requires_grad_(True)
        objective.loss(objective.embed(clip, batch), clip, batch)["contrastive"].backward()
        for name, parameter in clip.named_parameters():
            if parameter.grad is not None:
                expected[name] += 3 * parameter.grad**2 / 2
                parameter.grad = None
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    assert found["log_scale"] > 0


def test_the_penalty_is_a_parabola_around_the_anchor():
    clip = make_clip()
    anchor = {name: p.detach().clone() for name, p in clip.named_parameters()}
    importance = {name: torch.full_like(p, 2.0) for name, p in anchor.items()}
    assert distance(clip, importance, anchor) == 0
    with torch.no_grad():
        clip.log_scale += 0.5
    assert distance(clip, importance, anchor).item() == pytest.approx(2 * 0.25, rel=1e-5)
    objective = Elastic(Config(strength=8.0), importance, anchor)
    batch = seen_by(objective, clip, world(), [0, 1, 2])
    assert objective.loss(objective.embed(clip, batch), clip, batch)["penalty"].item() == pytest.approx(2.0, rel=1e-5)


def test_importances_add_up_and_the_anchor_is_the_last_session():
    learner, every = learner_of(Ewc, batches=2, strength=0.01), sessions()
    learner.observe(every[0], Once())
    first = {name: tensor.clone() for name, tensor in learner.importance.items()}
    assert all(torch.equal(learner.anchor[name], p) for name, p in learner.model.named_parameters())
    learner.observe(every[1], Once())
    assert all(bool((learner.importance[name] >= tensor).all()) for name, tensor in first.items())
    assert any(bool((learner.importance[name] > tensor).any()) for name, tensor in first.items())


def test_what_mattered_moves_less_than_by_fine_tuning():
    """Weighted by importance, the weights stay nearer to where the first session left them."""
    moved = {}
    for strength in (0.0, 300.0):
        learner, every = learner_of(Ewc, batches=4, strength=strength), sessions()
        learner.observe(every[0], Once(4))
        importance, anchor = dict(learner.importance), dict(learner.anchor)
        importance = {name: tensor.clone() for name, tensor in importance.items()}
        learner.observe(every[1], Once(6))
        moved[strength] = float(distance(learner.clip(), importance, anchor))
    assert moved[300.0] < 0.8 * moved[0.0]
    plain = learner_of(FineTune)
    plain.observe(sessions()[0], Once(4))
    assert not plain.state()
