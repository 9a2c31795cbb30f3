"""joint: a session is trained on from the start, on everything so far."""

from continual_world import Once, equal, learner_of, sessions, weights
from train_world import make_clip

from diptych.methods.continual.joint import Joint, Together
from diptych.methods.continual.parts.learner import Joined


def test_a_session_is_the_training_on_all_from_the_first_model():
    learner, trainer, every = learner_of(Joint), Once(), sessions()
    for session in every:
        learner.observe(session, trainer)
    assert [(len(pairs), times) for _, pairs, times in trainer.asked] == [(20, 1.0), (40, 2.0), (60, 3.0)]
    together = Joined("all", tuple((session.pairs, range(20)) for session in every))
    clip = make_clip()
    Once().train(clip, Together(learner.config), together)
    assert equal(weights(clip), weights(learner.clip()))
    assert not learner.state(), "the sessions are handed over again"
