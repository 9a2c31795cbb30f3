"""replay: what is kept, how much of each batch it is, and that the old is kept better than by fine-tuning."""

from collections import Counter

import numpy as np
import pytest
import torch
from continual_world import Once, learner_of, sessions
from torch.nn import functional as F

from diptych.methods.continual.fine_tune import FineTune
from diptych.methods.continual.parts.learner import Joined
from diptych.methods.continual.replay import Replay, kept, repeated
from diptych.training.held_out import hold_out


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_memory_is_shared_out_evenly_and_makes_up_its_part(share: float):
    learner, trainer, every = learner_of(Replay, memory=8, old=share), Once(), sessions()
    for session in every:
        learner.observe(session, trainer)
    assert [len(pairs) for _, pairs, _ in trainer.asked] == [20, *[round(20 / (1 - share))] * 2]
    third = trainer.asked[2][1]
    texts = Counter(third[i].texts for i in range(20, len(third)))
    memory = {every[n].pairs[i].texts for n in (0, 1) for i in kept(every[n], 4, n)}
    assert set(texts) <= memory
    assert max(texts.values()) <= 2 * (len(third) - 20) / 8 + 2, "each of the eight comes about as often"
    assert trainer.asked[2][2] == 1.0, "as many steps as the session has alone"


def test_what_is_kept_never_changes_and_shrinks_from_its_end():
    session = sessions()[0]
    assert kept(session, 3, 0).tolist() == kept(session, 8, 0).tolist()[:3]
    assert len(kept(session, 1000, 0)) == 20


def test_rows_repeat_evenly():
    parts = repeated([("a", np.arange(3)), ("b", np.arange(10, 13))], 20)
    counts = Counter(row for _, rows in parts for row in rows.tolist())
    assert sum(counts.values()) == 20 and set(counts.values()) <= {3, 4}


def test_parts_are_found_by_number():
    joined = Joined("x", (([1, 2, 3], [2, 0]), (["a", "b"], [1])))  # type: ignore[arg-type]
    assert [joined[i] for i in range(3)] == [3, 1, "b"] and len(joined) == 3
    with pytest.raises(IndexError):
        joined[3]


def test_the_old_session_is_kept_better_than_by_fine_tuning():
    """The loss on the first session after a second one, on pictures held out of it."""
    losses = {}
    for system, config in ((FineTune, {}), (Replay, {"memory": 20, "old": 0.5})):
        learner, every = learner_of(system, **config), sessions()
        for session in every[:2]:
            learner.observe(session, Once(30))
        found = hold_out(every[0].pairs, 10, 0)[1].embed(learner.clip())
        scores = float(learner.clip().logit_scale) * found.image @ found.text.T
        losses[system] = float(F.cross_entropy(scores, found.own.float() / found.own.sum(1, keepdim=True)))
    assert losses[Replay] < losses[FineTune]
    assert torch.tensor(list(losses.values())).isfinite().all()
