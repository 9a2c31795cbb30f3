"""symile: the loss against loops, the exclusive or that pairs cannot learn, and missing kinds of data."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_world import Tile, Tiles, batch_of, linear_clip, train, words_of

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.losses.multilinear import pairwise_contrastive, pairwise_scores, permutations_of
from diptych.methods.pretrain.parts.objective import Batch, Embeddings
from diptych.methods.pretrain.symile import KINDS, Config, Symile


class Pairwise(Symile):
    """The baseline: clip's loss for each two of the three."""

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        rows = [F.normalize(embeddings[kind], dim=1) for kind in KINDS]
        return {"pairwise": pairwise_contrastive(rows, clip.logit_scale)}

    def score(self, clip: CLIP, queries: list[Tensor], candidates: Tensor) -> Tensor:
        return pairwise_scores([F.normalize(q, dim=1) for q in queries], F.normalize(candidates, dim=1))


def bits(count: int, seed: int = 0, *, exclusive: bool = True, lost: float = 0.0) -> Tiles:
    """A picture of one bit, a word for another, and a vector for a third: of both bits (or the picture's again)."""
    rng, pairs = np.random.default_rng(seed), Tiles(0)
    for i in range(count):
        a, b = (int(bit) for bit in rng.integers(0, 2, 2))
        c = a ^ b if exclusive else b
        gone = [kind for kind in KINDS if rng.random() < lost]
        extra: dict[str, Any] = {"bits": (a, b, c), "missing": gone}
        if "third" not in gone:
            extra["vector"] = np.eye(2, dtype=np.float32)[c]
        pairs.append(Tile(str(1_000_000 * seed + i), (a,) * 6, (words_of((b,)),), extra))
    return pairs


@torch.no_grad()
def right(system: Symile, clip: CLIP, pairs: Tiles) -> float:
    """How often the word is found, of two, from the picture and the vector."""
    made = system.embed(clip, batch_of(system, clip, pairs, list(range(len(pairs)))))
    candidates = clip.encode_text([words_of((0,)), words_of((1,))])
    found = system.score(clip, [made["image"], made["third"]], candidates).argmax(1)
    return float((found == torch.tensor([pair.extra["bits"][1] for pair in pairs])).float().mean())


@pytest.mark.parametrize("all_negatives", [False, True])
@pytest.mark.parametrize("norm", ["layer", "unit"])
def test_the_loss_is_the_papers(norm: str, all_negatives: bool):
    clip, pairs, count = linear_clip(), bits(5), 5
    symile = Symile(Config(norm=norm, all_negatives=all_negatives))
    symile.prepare(clip, pairs, 3)
    made = dict(zip(KINDS, torch.randn(3, count, 24, generator=torch.Generator().manual_seed(1)), strict=True))
    batch = Batch(torch.arange(count), torch.zeros(count, 3, 12, 12), {}, step=8)
    ours = float(symile.loss(made, clip, batch)["multilinear"].detach())

    def normed(row: list[float]) -> list[float]:
        mean = sum(row) / 24 if norm == "layer" else 0.0
        length = math.sqrt(sum((v - mean) ** 2 for v in row) / (24 if norm == "layer" else 1))
        return [(v - mean) / length for v in row]

    rows = [[normed(row) for row in made[kind].double().tolist()] for kind in KINDS]
    orders = permutations_of(3, count, torch.Generator().manual_seed((3 << 32) + 8)).tolist()
    scale, total = float(clip.logit_scale), 0.0

    def product(m: int, i: int, j: int, k: int) -> float:
        one, two = (n for n in range(3) if n != m)
        return scale * sum(x * y * z for x, y, z in zip(rows[m][i], rows[one][j], rows[two][k], strict=True))

    for m in range(3):
        one, two = (n for n in range(3) if n != m)
        for i in range(count):
            if all_negatives:
                others = [product(m, i, j, k) for j in range(count) for k in range(count)]
            else:
                others = [product(m, i, orders[m][one][j], orders[m][two][j]) for j in range(count)]
                others[i] = product(m, i, i, i)
            total += math.log(sum(map(math.exp, others))) - product(m, i, i, i)
    assert ours == pytest.approx(total / 3 / count, abs=2e-5)


def test_negatives_follow_seed_and_step():
    clip, pairs = linear_clip(), bits(20)
    symile = Symile()
    symile.prepare(clip, pairs, 0)
    losses = [
        float(symile.loss(symile.embed(clip, seen), clip, seen)["multilinear"].detach())
        for step in (0, 0, 1)
        for seen in [batch_of(symile, clip, pairs, list(range(20)), step=step)]
    ]
    assert losses[0] == losses[1] != losses[2]


def trained(system: Symile, pairs: Tiles, steps: int = 150) -> CLIP:
    clip = linear_clip(16)
    train(system, clip, pairs, steps=steps, rate=2e-2)
    return clip


@pytest.mark.parametrize("config", [Config(), Config(norm="unit"), Config(all_negatives=True)])
def test_an_exclusive_or_is_solved_that_pairs_cannot_see(config: Config):
    pairs, held_out = bits(1000), bits(1000, 1)
    scores = {}
    for system in (Symile(config), Pairwise(config)):
        scores[type(system)] = right(system, trained(system, pairs), held_out)
    assert scores[Symile] >= 0.95
    assert abs(scores[Pairwise] - 0.5) <= 0.05


def test_what_pairs_can_see_both_learn():
    pairs, held_out = bits(1000, exclusive=False), bits(400, 1, exclusive=False)
    assert all(right(s, trained(s, pairs), held_out) >= 0.95 for s in (Symile(), Pairwise()))


@pytest.mark.parametrize(("lost", "count", "steps", "least"), [(0.2, 1000, 250, 0.9), (0.5, 3000, 400, 0.85)])
def test_it_learns_where_kinds_are_missing(lost: float, count: int, steps: int, least: float):
    """Of what is lost by half, an eighth of the pairs is whole."""
    symile = Symile(Config(norm="unit"))
    assert right(symile, trained(symile, bits(count, lost=lost), steps), bits(400, 1)) >= least


def test_what_is_missing_is_marked():
    clip, pairs = linear_clip(), bits(3)
    symile = Symile()
    symile.prepare(clip, pairs, 0)
    pairs.append(Tile("9", (1,) * 6, ("a1",), {"missing": ("image", "text")}))
    seen = batch_of(symile, clip, pairs, [0, 3])
    assert seen.extra["has_vector"].tolist() == [True, False] and seen.extra["has_image"].tolist() == [True, False]
    assert seen.texts["text"].ids[1].tolist() == [1]
    made = symile.embed(clip, seen)
    assert torch.equal(made["image"][1], clip.image(torch.zeros(1, 3, 12, 12)).embedding[0])
    assert symile.heads is not None
    mean = symile.heads.get_buffer("mean")[None]
    assert torch.allclose(made["third"][1], symile.heads(mean, torch.tensor([0]))[0], atol=1e-6)
    assert not torch.allclose(made["third"][1], symile.heads(mean, torch.tensor([1]))[0])


def test_data_without_a_third_kind_is_refused():
    with pytest.raises(DiptychError, match=r'extra\["vector"\]'):
        Symile().prepare(linear_clip(), Tiles(3), 0)
    symile, pairs = Symile(), bits(2)
    symile.prepare(linear_clip(), pairs, 0)
    with pytest.raises(DiptychError, match="3 numbers"):
        symile.extra_of(Tile("x", (0,) * 6, ("a0",), {"vector": np.zeros(3)}), 0)
