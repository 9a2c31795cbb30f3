"""symile: the loss with a third modality, missing ones, and its effect: it sees an exclusive or, pairs do not."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.tower import Tokens, TowerOutput
from diptych.engine.loop import Optimiser, train
from diptych.errors import DiptychError
from diptych.methods.discover import find
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.parts.objective import Batch
from diptych.methods.pretrain.symile import Config, Symile, Towers

BITS, SIZE = 4, 16


@dataclass(frozen=True)
class Pair:
    """Three sets of bits; the first is the exclusive or of the others."""

    number: int
    extra: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    picture: Any = None
    texts: tuple[str, ...] = ("",)


class Bits:
    """`share` of the pictures, of the texts and of the codes are missing; something stands in their place."""

    source = "bits"

    def __init__(self, count: int, seed: int, share: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.text, self.code = rng.integers(0, 2, (2, count, BITS)) * 2.0 - 1
        self.image = -self.text * self.code
        gone = rng.random((count, 3)) < share
        missing = [tuple(n for n, out in zip(("image", "text", "code"), row, strict=True) if out) for row in gone]
        self.pairs = [
            Pair(i, {"code": c, "missing": m}) for i, (c, m) in enumerate(zip(self.code, missing, strict=True))
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> Pair:
        return self.pairs[index]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(BITS, SIZE)

    def forward(self, bits: Tensor | Tokens) -> TowerOutput:
        bits = bits.ids if isinstance(bits, Tokens) else bits
        return TowerOutput(self.map(bits.flatten(1)))


class Small(nn.Module):
    """What of a CLIP the objective sees: two linear towers and a temperature."""

    embed_dim, device = SIZE, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = Linear(), Linear()
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()


def batch_of(objective: Symile, pairs: Bits, index: list[int], step: int = 0) -> Batch:
    extra = [objective.extra_of(pairs[i], i) for i in index]
    codes = {name: torch.from_numpy(np.stack([e[name] for e in extra])) for name in extra[0]}
    there = torch.tensor(["text" not in pairs[i].extra["missing"] for i in index])[:, None]
    text = torch.from_numpy(pairs.text[index]).float() * there  # zeros are no bits: the empty text
    tokens = Tokens(text, torch.ones_like(text).bool(), torch.zeros(len(index)))
    return Batch(torch.tensor(index), torch.from_numpy(pairs.image[index]).float(), {"text": tokens}, codes, step)


def trained(objective: Symile, share: float = 0.0, batch: int = 128) -> tuple[Any, Symile]:
    torch.manual_seed(0)
    clip: Any = Small()
    pairs = Bits(2000, 1, share)
    objective.prepare(clip, pairs, 0)
    assert objective.heads is not None
    rng = np.random.default_rng(0)

    def loss(step: int) -> dict[str, Tensor]:
        seen = batch_of(objective, pairs, rng.permutation(len(pairs))[:batch].tolist(), step)
        return objective.loss(objective.embed(clip, seen), clip, seen)

    moving = dict([*clip.named_parameters(), *objective.heads.named_parameters()])
    train(moving, loss, Optimiser("adamw", 0.02), 150)
    return clip, objective


@torch.no_grad()
def right(clip: Any, objective: Symile) -> float:
    """Share of pictures found among all 16 from their text and code, in 0..1."""
    every = torch.tensor([[1.0 if i >> b & 1 else -1.0 for b in range(BITS)] for i in range(2**BITS)])
    pairs = Bits(500, 2)
    rows = objective.embed(clip, batch_of(objective, pairs, list(range(500))))
    known = {name: rows[name] for name in ("text", "code")}
    best = objective.scores(known, "image", clip.image(every).embedding, clip).argmax(1)
    return float((every[best] == torch.from_numpy(pairs.image)).all(1).float().mean())


@pytest.mark.parametrize("norm", ["unit", "layer"])
@pytest.mark.parametrize("negatives", ["shuffled", "all"])
def test_an_exclusive_or_is_seen(negatives: str, norm: str):
    objective = Symile(Config("code", negatives, norm))
    assert right(*trained(objective, batch=128 if negatives == "shuffled" else 32)) >= 0.95


def test_pairs_do_not_see_it():
    assert right(*trained(Symile(Config("code", contrast="pairs")))) <= 0.2


def test_any_modality_may_be_missing():
    """Of two pairs in three something is."""
    assert right(*trained(Symile(Config("code")), share=0.3)) >= 0.95


def test_finished_towers_are_taken_up_without_the_pairs():
    clip, objective = trained(Symile(Config("code", norm="layer", hidden=8)), share=0.3)
    assert objective.heads is not None
    again = Symile(objective.config)
    again.restore(objective.heads.state_dict(), clip)
    assert right(clip, again) == right(clip, objective)


def rows(seed: int, count: int = 5) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_a_loop_over_anchors_and_others():
    """All combinations of three modalities, the product of unit rows times the square root of D."""
    clip: Any = Small()
    found = Symile(Config("code", "all")).loss({"a": rows(1), "b": 2 * rows(2), "c": rows(3)}, clip, batch())
    units = [F.normalize(rows(s), dim=1).double() for s in (1, 2, 3)]
    total = 0.0
    for m in range(3):
        x, (y, z) = units[m], (units[k] for k in range(3) if k != m)
        for i in range(5):
            logits = (
                clip.logit_scale.item()
                * 4
                * torch.stack([(x[i] * y[j] * z[k]).sum() for j in range(5) for k in range(5)])
            )
            total += float(logits.logsumexp(0) - logits[6 * i]) / 15
    assert found["multilinear"].item() == pytest.approx(total, abs=1e-5)


def batch(step: int = 0) -> Batch:
    return Batch(torch.arange(5), torch.zeros(5, 3, 1, 1), {}, step=step)


def test_two_modalities_are_clip():
    clip: Any = Small()
    embeddings = {"image": rows(1), "text": rows(2)}
    found, right = (o.loss(embeddings, clip, batch()) for o in (Symile(), Clip()))
    assert found["multilinear"].item() == pytest.approx(right["contrastive"].item(), abs=1e-6)


def test_shuffles_are_of_the_step_alone():
    objective, clip = Symile(Config("code")), Small()
    embeddings = {"image": rows(1), "text": rows(2), "code": rows(3)}
    found = [objective.loss(embeddings, clip, batch(s))["multilinear"].item() for s in (0, 0, 1)]  # type: ignore
    assert found[0] == found[1] != found[2]


def test_all_vectors_are_modalities_unless_some_are_named():
    pairs = Bits(20, 1)
    for pair in pairs.pairs:
        pair.extra.update(language="de", pulse=[60.0, 61.0], weight=3.0, classes=(1, 2, 3))
    for named, found in [("", {"code", "pulse"}), ("pulse", {"pulse"})]:
        objective = Symile(Config(named))
        objective.prepare(Small(), pairs, 0)  # type: ignore[arg-type]
        assert found == set(objective.widths) == set(objective.extra_of(pairs[0], 0)) - {"no image"}


def test_what_is_missing_has_a_placeholder_that_can_be_told_from_the_rest():
    """Of a vector also parts; the value that stands in its place has no part in it."""
    clip, objective, pairs = Small(), Symile(Config("code")), Bits(200, 1, share=0.5)
    objective.prepare(clip, pairs, 0)  # type: ignore[arg-type]
    gone = {n: next(i for i in range(200) if n in pairs[i].extra["missing"]) for n in ("image", "text", "code")}
    assert isinstance(objective.heads, Towers) and objective.heads.no_image is not None
    rows = objective.embed(clip, batch_of(objective, pairs, [gone["image"], 0]))  # type: ignore[arg-type]
    assert torch.equal(rows["image"][0], objective.heads.no_image)
    assert objective.words(pairs[gone["text"]], np.random.default_rng(0)) == {"text": ""}  # type: ignore[arg-type]
    assert np.isnan(objective.extra_of(pairs[gone["code"]], 0)["code"]).all()  # type: ignore[arg-type]
    tower: Any = objective.heads.vectors["code"]
    known = np.stack([p.extra["code"] for p in pairs.pairs if "code" not in p.extra["missing"]])
    torch.testing.assert_close(tower.mean, torch.from_numpy(known.mean(0)).float())
    torch.testing.assert_close(tower.deviation, torch.from_numpy(known.std(0)).float())
    found = [tower(torch.where(torch.arange(BITS) < k, torch.nan, tower.mean)[None]) for k in range(BITS + 1)]
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(found))
    sure = Symile(Config("code"))
    sure.prepare(clip, Bits(20, 1), 0)  # type: ignore[arg-type]
    with pytest.raises(DiptychError, match="has no picture"):
        sure.extra_of(pairs[gone["image"]], 0)  # type: ignore[arg-type]


def test_what_is_wrong_is_said():
    assert find("pretrain", "symile") is Symile
    with pytest.raises(DiptychError, match='did you mean "all"'):
        Symile(Config("code", "al"))
    with pytest.raises(DiptychError, match='did you mean "layer"'):
        Symile(Config("code", norm="lyer"))
    with pytest.raises(DiptychError, match="further ones"):
        Symile(Config("text code"))
    with pytest.raises(DiptychError, match="no pair has a vector"):
        Symile().prepare(Small(), Bits(20, 1, share=1.0), 0)  # type: ignore[arg-type]
    with pytest.raises(DiptychError, match='bits: "sound" must be a vector'):
        Symile(Config("sound")).prepare(Small(), Bits(20, 1), 0)  # type: ignore[arg-type]
