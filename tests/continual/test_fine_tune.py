"""fine_tune: each session is a plain CLIP training of its own, and nothing else is kept."""

from pathlib import Path

import torch
from continual_world import Once, equal, learner_of, sessions, weights, world
from train_world import make_clip

import diptych
from diptych.methods.continual.fine_tune import FineTune
from diptych.training.run import Run
from diptych.training.stream import SessionTrainer


def test_a_session_is_a_run_of_clip(tmp_path: Path):
    """The same steps on the same pairs by `diptych train clip` with the session's recipe give the same weights."""
    pairs = world("turned")  # one caption a picture: nothing is drawn
    taught = diptych.teach(
        "fine_tune", [pairs], model=make_clip(), out=tmp_path / "stream", steps=6, batch=4, held=4, workers=0,
        device="cpu", settings={"recipe.warmup_share": 0},
    )  # fmt: skip
    from diptych.training.held_out import hold_out

    recipe = {"weight_decay": 0.1, "beta2": 0.999, "eps": 1e-8, "warmup": 0, "rate": 5e-4}
    trained = diptych.train(
        "clip", hold_out(pairs, 4, 0)[0], model=make_clip(), out=tmp_path / "run", steps=6, batch=4, workers=0,
        device="cpu", settings={f"recipe.{name}": value for name, value in recipe.items()},
    )  # fmt: skip
    assert equal(weights(taught.clip), weights(trained.clip))


def test_every_session_begins_with_a_fresh_optimiser_and_its_own_warm_up(tmp_path: Path, monkeypatch):
    rates: list[float] = []
    step = Run.step

    def noted(self: Run, *given):
        made = step(self, *given)
        rates.append(made.rate)
        return made

    monkeypatch.setattr(Run, "step", noted)
    data = [world("turned"), world("short")]
    diptych.teach(
        "fine_tune",
        data,
        model=make_clip(),
        out=tmp_path,
        steps=10,
        batch=4,
        held=4,
        workers=0,
        device="cpu",
        rate=1e-3,
    )
    assert rates[:10] == rates[10:], "the schedule of the second session is that of the first"
    assert rates[:3] == [0.5e-3, 1e-3, 1e-3] and rates[9] < 0.1e-3, "a fifth of the steps, then a cosine down"
    assert SessionTrainer.trained == 0


def test_one_of_several_captions_is_drawn_each_time():
    learner, trainer = learner_of(FineTune), Once()
    session = sessions()[0]
    learner.observe(session, trainer)
    objective, pairs, _ = trainer.asked[0]
    import numpy as np

    found = {objective.words(pairs[0], np.random.default_rng(i))["text"] for i in range(20)}
    assert found == set(pairs[0].texts) and len(found) == 2
    assert not learner.state() and torch.is_tensor(learner.clip().log_scale)
