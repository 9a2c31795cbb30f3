"""What every continual system keeps, whatever it does. One added to the folder is tried here without an edit."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from continual_world import QUICK, Once, equal, sessions, weights, world
from train_world import LEFT, make_clip

import diptych
from diptych.errors import DiptychError
from diptych.methods.continual.parts.learner import Learner, Session
from diptych.methods.discover import describe_one, find, systems
from diptych.training.folder import TrainingFolder
from diptych.training.run import Run

SYSTEMS = systems("continual")


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else; what is drawn is tried in test_stream.py."""
    monkeypatch.setattr("diptych.training.stream_pages.write_results", lambda *_: None)
    monkeypatch.setattr("diptych.training.pages.write_report", lambda *_: None)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    return request.param


def made(system: str) -> Learner:
    declared = find("continual", system)
    known = {f.name for f in fields(declared.Config)}
    learner = declared(declared.Config(**{k: v for k, v in QUICK.items() if k in known}))
    learner.begin(make_clip())
    return learner


def test_it_learns_sessions_one_after_the_other(system: str):
    learner, trainer = made(system), Once()
    for number, session in enumerate(sessions()):
        before = weights(learner.clip())
        learner.observe(session, trainer)
        assert not equal(before, weights(learner.clip())), "nothing was learned"
        assert [one.number for one in learner.seen] == list(range(number + 1))
    assert all(value == value for terms in trainer.seen for value in terms.values())
    assert not any(p.requires_grad for p in learner.clip().parameters())


def test_what_it_keeps_between_sessions_is_saved(system: str):
    """Carried over to a fresh one, state and weights give the next session, bit for bit."""
    every, whole = sessions(), made(system)
    for session in every[:2]:
        whole.observe(session, Once())
    again = made(system)
    again.clip().load_state_dict(whole.model.state_dict())
    again.load_state({name: tensor.clone() for name, tensor in whole.state().items()}, every[:2])
    for learner in (whole, again):
        learner.observe(every[2], Once())
    assert equal(weights(whole.clip()), weights(again.clip()))
    assert equal(whole.state(), again.state())


def test_the_same_session_twice_gives_the_same(system: str):
    first, second = made(system), made(system)
    for learner in (first, second):
        learner.observe(sessions()[0], Once())
    assert equal(weights(first.clip()), weights(second.clip()))


def test_its_losses_train_in_chunks_and_with_the_engine(system: str, tmp_path: Path):
    """The whole batch and chunks of it have the same losses, by the stream's own trainer."""
    seen = []
    for chunk in (0, 4):
        folder = tmp_path / str(chunk)
        with torch.random.fork_rng():
            taught = teach(system, folder, **{"recipe.chunk": chunk})
        rows = TrainingFolder(next((folder / "sessions").glob("02-*")) / "0", {}).rows()
        seen.append([row["loss"] for row in rows])
        assert len(taught.courses[system].after) == 2
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)


def teach(system: str, out: Path, count: int = 2, **settings):
    declared = find("continual", system)
    known = {f.name for f in fields(declared.Config)}
    quick = {f"{system}.{k}": v for k, v in QUICK.items() if k in known}
    data = {session.name: session.pairs for session in sessions(count)}
    settings = quick | {"recipe.freeze": LEFT[0]} | settings
    return diptych.teach(
        system, data, model=make_clip(), out=out, settings=settings, steps=4, batch=8, rate=1e-3, held=5,
        workers=0, device="cpu", save_every=2,
    )  # fmt: skip


def test_a_stream_that_was_stopped_goes_on_with_the_same_result(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped in the middle of the second session's steps, and once more before its end is written down."""
    whole, base = teach(system, tmp_path / "whole"), make_clip()
    step, kept, count = Run.step, TrainingFolder.save, [0]

    def stops(self: Run, *given):
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt
        return step(self, *given)

    def full(self: TrainingFolder, number: int, *given):
        if (self.path / "sessions").exists() and number == 2:
            raise KeyboardInterrupt
        kept(self, number, *given)

    for name, owner, replaced in (("step", Run, stops), ("save", TrainingFolder, full)):
        monkeypatch.setattr(owner, name, replaced)
        with pytest.raises(KeyboardInterrupt):
            teach(system, tmp_path / "stopped")
        monkeypatch.undo()
    again = teach(system, tmp_path / "stopped")
    assert equal(weights(whole.clip), weights(again.clip))
    strip = [[{k: v for k, v in s.items() if k != "seconds"} for s in t.courses[system].after] for t in (whole, again)]
    assert strip[0] == strip[1]
    assert equal(weights(base), weights(make_clip())), "the model that it starts from stays as it is"
    assert not list(tmp_path.glob("*/sessions/*/*/checkpoints")), "finished sessions have none"


def test_the_model_it_starts_from_stays_as_it_is_and_one_session_is_enough(system: str, tmp_path: Path):
    clip = make_clip()
    before = weights(clip)
    taught = diptych.teach(
        system, [world()], model=clip, out=tmp_path / "out", steps=2, batch=8, held=5, workers=0, device="cpu"
    )
    assert equal(before, weights(clip)) and not equal(before, weights(taught.clip))
    assert taught.courses[system].scores.shape == (1, 1)
    assert (tmp_path / "out" / "model" / "README.md").is_file()


def test_an_empty_session_is_refused():
    with pytest.raises(DiptychError, match=r"session 2 \(night\) has 0 pairs"):
        Session("night", 1, [])  # pyright: ignore[reportArgumentType]


def test_tables_of_systems_can_show_it(system: str):
    about = describe_one("continual", system)
    assert about.summary and "keeps" in about.cost and about.settings
