"""mod_x: its loss against a loop over rows, what is left out, and its effect against plain fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from continual_world import seen_by, world
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from train_world import LEFT, Drawn, World, make_clip, train

import diptych
from diptych.methods.continual.mod_x import Config, ModX, OffDiagonal
from diptych.methods.pretrain.clip import Clip
from diptych.training.held_out import hold_out
from diptych.training.stream import drift_between

B, D = 7, 5


def unit(seed: int) -> Tensor:
    return F.normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


OLD = (unit(3), F.normalize(unit(3) + 1.2 * unit(4), dim=1))  # it has some rows right and some wrong


def replaced_rows(now: Tensor, then: Tensor) -> Tensor:
    """The paper's words, row by row: one that the old model has wrong becomes the new model's own. Sum of KL."""
    total = now.new_zeros(())
    for i in range(B):
        row = then[i] if then[i].argmax() == i else now[i]
        p, q = row.softmax(0), now[i].softmax(0)
        total = total + sum(p[j] * (p[j].log() - q[j].log()) for j in range(B))
    return total


@pytest.mark.parametrize("selection", [True, False])
def test_the_loss_and_its_gradient_are_those_of_the_loop(selection: bool):
    objective, clip = OffDiagonal(Config(selection=selection), make_clip()), make_clip()
    then = OLD[0] @ OLD[1].T
    rights = [(m.argmax(1) == torch.arange(B)).sum().item() for m in (then, then.T)]
    assert all(0 < right < B for right in rights)
    found = []
    for loop in (False, True):
        new = [unit(1).requires_grad_(), unit(2).requires_grad_()]
        now = new[0] @ new[1].T
        if not loop:
            loss = objective.distillation((new[0], new[1]), OLD, clip, clip, None)
        elif selection:
            loss = 20 * 280 / B * (replaced_rows(now, then) + replaced_rows(now.T, then.T)) / 2
        else:
            rows = [
                F.kl_div(m.log_softmax(1), o.softmax(1), reduction="sum") for m, o in ((now, then), (now.T, then.T))
            ]
            loss = 20 * 280 / B * sum(rows) / 2
        loss.backward()
        found.append((loss.item(), new[0].grad, new[1].grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_batch_of_280_has_the_papers_weight():
    """alpha times half the sum over rows, at the published batch; the same a row at any other."""
    rows = [
        F.normalize(torch.randn(280, D, generator=torch.Generator().manual_seed(i)).double(), dim=1) for i in range(4)
    ]
    now, then = rows[0] @ rows[1].T, rows[2] @ rows[3].T
    expected = 10 * sum(
        F.kl_div(a.log_softmax(1), b.softmax(1), reduction="sum") for a, b in ((now, then), (now.T, then.T))
    )
    clip = make_clip()
    found = OffDiagonal(Config(selection=False), clip).distillation(
        (rows[0], rows[1]), (rows[2], rows[3]), clip, clip, None
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_before_the_first_step_nothing_has_moved():
    clip, pairs = make_clip(), world()
    learner = ModX()
    learner.begin(clip)
    objective = OffDiagonal(Config(), learner.old())
    batch = seen_by(objective, clip.requires_grad_(True).eval(), pairs, [4, 1, 8, 2, 0])
    terms = objective.loss(objective.embed(clip, batch), clip, batch)
    assert terms["distillation"].item() == pytest.approx(0, abs=1e-4) and terms["contrastive"] > 0
    terms["distillation"].backward()
    assert max(float(p.grad.abs().max()) for p in clip.parameters() if p.grad is not None) < 1e-3
    assert not any(p.requires_grad for p in objective.old.parameters())  # type: ignore[union-attr]


def test_fresh_weights_are_not_held_on_to():
    learner = ModX()
    learner.begin(make_clip(), fresh=True)
    assert learner.old() is None
    learner.seen.append(None)  # type: ignore[arg-type]
    assert learner.old() is not None


def test_several_captions_of_a_picture_are_all_its_own():
    """Rows 0 and 1 show one picture, and the old model takes one's text for the other's: both are kept."""
    objective, clip, pairs = OffDiagonal(Config(), make_clip()), make_clip(), world()
    then = torch.eye(B).double()
    then[[0, 1]] = then[[1, 0]]
    old = (torch.eye(B).double(), then)
    new = (unit(1), unit(2))
    apart = objective.distillation(new, old, clip, clip, None)
    same = torch.eye(B).bool()
    same[0, 1] = same[1, 0] = True
    together = objective.distillation(new, old, clip, clip, same)
    assert together > apart
    rows = [replace(pairs[i], extra={"picture": "a.jpg" if i < 2 else f"{i}.jpg"}) for i in range(5)]
    listed = type("Rows", (list,), {"source": "rows"})(rows)
    batch = seen_by(objective, clip, listed, [0, 1, 2, 3])
    seen: list[Tensor | None] = []
    objective.distillation = lambda *given: seen.append(given[-1]) or torch.zeros(())  # type: ignore[method-assign]
    objective.loss(objective.embed(clip, batch), clip, batch)
    assert seen[0] is not None and seen[0].sum() == 4 + 2 and bool(seen[0][0, 1])


# -- the effect --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tinted(Drawn):
    """The same drawing in violet light."""

    @property
    def picture(self) -> Callable[[], Image.Image]:
        return lambda: Image.blend(
            self.scene.draw(self.side), Image.new("RGB", (self.side, self.side), (150, 0, 200)), 0.4
        )


def tinted(count: int, seed: int) -> World:
    found = World(count, seed)
    found.pairs = [Tinted(p.id, p.scene, (f"{p.scene.ground} {p.scene.place} {p.scene.colour}",)) for p in found.pairs]
    return found


def test_an_old_domain_is_kept_and_a_new_one_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Drawings, then others in violet light and other words: at least 5 points more on the old than fine-tuning, at
    most 2 less on the new, and the two towers turn less far apart."""
    monkeypatch.setattr("diptych.training.stream_pages.write_results", lambda *_: None)
    clip = make_clip()
    train(Clip(), clip, World(256), steps=120, batch=48)
    taught = diptych.teach(
        ["fine_tune", "mod_x"], {"new": tinted(300, 2)}, model=clip, out=tmp_path / "out", steps=30, batch=48,
        rate=1e-3, held=100, workers=0, device="cpu", save_every=1000,
        settings={"recipe.freeze": LEFT[0], "recipe.crop": 1},
    )  # fmt: skip
    old = hold_out(World(240, seed=5), 200, 0)[1]
    kept, drifts = {}, {}
    for name, course in taught.courses.items():
        now = old.embed(course.clip)
        kept[name], drifts[name] = now.recalls()["mean"][1], drift_between(old.embed(clip), now)
    new = {name: float(course.scores[0, 0]) for name, course in taught.courses.items()}
    assert old.embed(clip).recalls()["mean"][1] > kept["fine_tune"] + 0.1, "fine-tuning forgets"
    assert kept["mod_x"] > kept["fine_tune"] + 0.05
    assert new["mod_x"] > new["fine_tune"] - 0.02
    assert drifts["mod_x"]["deviation"] < drifts["fine_tune"]["deviation"]
