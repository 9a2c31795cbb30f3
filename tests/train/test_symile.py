"""symile: the loss with a third modality, missing ones, and its effect: it sees an exclusive or, pairs do not."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.tower import Tokens, TowerOutput
from diptych.engine.loop import Optimiser, train
from diptych.errors import DiptychError
from diptych.losses.multilinear import pairwise_contrastive, pairwise_scores
from diptych.methods.discover import find
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.parts.objective import Batch, Embeddings
from diptych.methods.pretrain.symile import Config, Symile, scores

BITS, SIZE = 4, 16


@dataclass(frozen=True)
class Pair:
    """Three sets of bits; the first is the exclusive or of the others. The code may be missing."""

    number: int
    extra: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    picture: Any = None
    texts: tuple[str, ...] = ("",)


class Bits:
    """`share` of the codes are missing."""

    source = "bits"

    def __init__(self, count: int, seed: int, share: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.text, self.code = rng.integers(0, 2, (2, count, BITS)) * 2.0 - 1
        self.image = -self.text * self.code
        codes = [None if gone else code for gone, code in zip(rng.random(count) < share, self.code, strict=True)]
        self.pairs = [Pair(i, {"code": code}) for i, code in enumerate(codes)]

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
    text = torch.from_numpy(pairs.text[index]).float()
    tokens = Tokens(text, torch.ones_like(text).bool(), torch.zeros(len(index)))
    return Batch(torch.tensor(index), torch.from_numpy(pairs.image[index]).float(), {"text": tokens}, codes, step)


class Pairwise(Symile):
    """The baseline: the same towers, all pairs of modalities."""

    def loss(self, embeddings: Embeddings, clip: Any, batch: Batch) -> dict[str, Tensor]:
        rows = [F.normalize(row, dim=-1) for row in embeddings.values()]
        return {"pairs": pairwise_contrastive(rows, clip.logit_scale)}


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
def right(clip: Any, objective: Symile, score: Any) -> float:
    """Share of pictures found among all 16 from their text and code, in 0..1."""
    every = torch.tensor([[1.0 if i >> b & 1 else -1.0 for b in range(BITS)] for i in range(2**BITS)])
    pairs = Bits(500, 2)
    rows = objective.embed(clip, batch_of(objective, pairs, list(range(500))))
    best = score([rows["text"], rows["code"]], clip.image(every).embedding).argmax(1)
    return float((every[best] == torch.from_numpy(pairs.image)).all(1).float().mean())


def pair_scores(known: list[Tensor], candidates: Tensor) -> Tensor:
    return pairwise_scores([F.normalize(r, dim=-1) for r in known], F.normalize(candidates, dim=-1))


@pytest.mark.parametrize("negatives", ["shuffled", "all"])
def test_an_exclusive_or_is_seen(negatives: str):
    clip, objective = trained(Symile(Config("code", negatives)), batch=128 if negatives == "shuffled" else 32)
    assert right(clip, objective, scores) >= 0.95


def test_pairs_do_not_see_it():
    assert right(*trained(Pairwise(Config("code"))), pair_scores) <= 0.2


def test_missing_codes_are_lived_with():
    assert right(*trained(Symile(Config("code")), share=0.4), scores) >= 0.95


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
        pair.extra.update(language="de", pulse=[60.0, 61.0], weight=3.0)
    for named, found in [("", {"code", "pulse"}), ("pulse", {"pulse"})]:
        objective = Symile(Config(named))
        objective.prepare(Small(), pairs, 0)  # type: ignore[arg-type]
        assert set(objective.heads) == found == set(objective.extra_of(pairs[0], 0))  # type: ignore[arg-type]


def test_a_missing_vector_is_the_mean_and_known_as_missing():
    objective, pairs = Symile(Config("code")), Bits(200, 1, share=0.5)
    objective.prepare(Small(), pairs, 0)  # type: ignore[arg-type]
    gone = next(i for i in range(200) if pairs[i].extra["code"] is None)
    assert np.isnan(objective.extra_of(pairs[gone], gone)["code"]).all()
    assert objective.heads is not None
    head: Any = objective.heads["code"]
    known = np.stack([p.extra["code"] for p in pairs.pairs if p.extra["code"] is not None])
    torch.testing.assert_close(head.mean, torch.from_numpy(known.mean(0)).float())
    missing, mean = head(torch.full((1, BITS), torch.nan)), head(head.mean[None])
    assert missing.isfinite().all() and (missing - mean).abs().max() > 1e-3


def test_what_is_wrong_is_said():
    assert find("pretrain", "symile") is Symile
    with pytest.raises(DiptychError, match='did you mean "all"'):
        Symile(Config("code", "al"))
    with pytest.raises(DiptychError, match="further ones"):
        Symile(Config("text code"))
    with pytest.raises(DiptychError, match="no pair has a vector"):
        Symile().prepare(Small(), Bits(20, 1, share=1.0), 0)  # type: ignore[arg-type]
    with pytest.raises(DiptychError, match='bits: "sound" must be a vector'):
        Symile(Config("sound")).prepare(Small(), Bits(20, 1), 0)  # type: ignore[arg-type]
