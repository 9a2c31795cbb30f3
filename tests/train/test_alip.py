"""alip: the weights against a loop and without gradient, the running means, and what wrong texts come to weigh."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from train_world import FACTORS, Tiles, batch_of, linear_clip, tile_accuracy, train, words_of

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain.alip import Alip, Config, gates, similarities
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.parts.objective import Batch


def rows(count: int = 6) -> dict[str, torch.Tensor]:
    made = torch.randn(3, count, 24, generator=torch.Generator().manual_seed(0))
    return dict(zip(("image", "text", "caption"), made, strict=True))


def batch(count: int = 6) -> Batch:
    return Batch(torch.arange(count), torch.zeros(count, 3, 16, 16), {})


def naive(found: list[list[float]], means: list[float], gamma_s: float, gamma_p: float) -> list[tuple[float, float]]:
    """The two gates, sample by sample."""
    out = []
    for tc, xt, xc in zip(*found, strict=True):
        sample = min(1.0, math.exp(gamma_s * (tc - means[0])))
        trusted = tc >= means[0]
        text = 1.0 if trusted else math.exp(gamma_p * (xt - means[1]))
        caption = 1.0 if trusted else math.exp(gamma_p * (xc - means[2]))
        out.append((sample * text, sample * caption))
    return out


def test_the_loss_is_the_papers(clip: CLIP):
    alip, made = Alip(), rows()
    alip.prepare(clip, Tiles(1), 0)
    ours = alip.loss(made, clip, batch())
    x, t, c = (F.normalize(made[n].double(), dim=1) for n in ("image", "text", "caption"))
    found = [[float(a[i] @ b[i]) for i in range(6)] for a, b in ((t, c), (x, t), (x, c))]
    means = [0.99 * 1 + 0.01 * sum(row) / 6 for row in found]
    assert alip.means.tolist() == pytest.approx(means, abs=1e-6), "moved before they are used"
    weights, scale = naive(found, means, 2, 2), float(clip.logit_scale)
    for name, other, which in (("text", t, 0), ("caption", c, 1)):
        total = 0.0
        for i in range(6):
            row = [scale * float(x[i] @ other[j]) for j in range(6)]
            column = [scale * float(x[j] @ other[i]) for j in range(6)]
            both = [math.log(sum(map(math.exp, line))) - line[i] for line in (row, column)]
            total += weights[i][which] * sum(both) / 2 / 6
        assert float(ours[name]) == pytest.approx(total, abs=1e-5)


def test_weights_of_one_leave_two_plain_losses(clip: CLIP):
    made, alip = rows(), Alip(Config(sample_gamma=0.0, pair_gamma=0.0))
    alip.prepare(clip, Tiles(1), 0)
    x, t, c = (F.normalize(made[n], dim=1) for n in ("image", "text", "caption"))
    plain = softmax_contrastive(x, t, clip.logit_scale) + softmax_contrastive(x, c, clip.logit_scale)
    assert float(sum(alip.loss(made, clip, batch()).values())) == pytest.approx(float(plain), abs=1e-6)


def test_the_gates_carry_no_gradient_and_trusted_pairs_weigh_one():
    made = {name: F.normalize(tensor, dim=1).requires_grad_() for name, tensor in rows(50).items()}
    found = similarities(made["image"], made["text"], made["caption"])
    text, caption = gates(found, torch.zeros(3), 2.0, 2.0)
    assert not (found.requires_grad or text.requires_grad or caption.requires_grad)
    agree = found[0] >= 0
    assert bool((text[agree] == 1).all() and (caption[agree] == 1).all())
    assert float(gates(torch.tensor([[-0.1], [0.9], [0.0]]), torch.zeros(3), 2.0, 2.0)[0]) > 1, "a text that fits well"


def test_means_may_start_at_the_first_batch(clip: CLIP):
    alip, made = Alip(Config(first_batch=True)), rows()
    alip.prepare(clip, Tiles(1), 0)
    alip.loss(made, clip, batch())
    x, t, c = (F.normalize(made[n], dim=1) for n in ("image", "text", "caption"))
    first = similarities(x, t, c).mean(1)
    assert torch.allclose(alip.means, first)
    alip.loss({name: tensor.flip(1) + 1 for name, tensor in made.items()}, clip, batch())
    assert 0 < float((alip.means - first).abs().max()) < 0.03


def test_a_second_text_is_asked_for():
    with pytest.raises(DiptychError, match="second text"):
        Alip().words(Tiles(1)[0], np.random.default_rng(0))


def noisy(wrong: str, seed: int = 0) -> tuple[Tiles, np.ndarray]:
    """Tiles whose texts ("text") or captions ("caption") are another picture's in 40 of 100; captions leave out two
    patches. -> (pairs, which are wrong)."""
    pairs, rng = Tiles(1200, seed), np.random.default_rng(seed + 50)
    bad = rng.random(len(pairs)) < 0.4
    for i, pair in enumerate(list(pairs)):
        other = pairs[(i + 601) % len(pairs)].values
        said = [other if bad[i] and wrong == kind else pair.values for kind in ("text", "caption")]
        left_out = rng.permutation(FACTORS)[:2].tolist()
        pairs[i] = replace(pair, texts=(words_of(said[0]), words_of(said[1], left_out)))
    return pairs, bad


def above(weights: torch.Tensor, bad: np.ndarray) -> float:
    """How often a right one weighs more than a wrong one."""
    right, wrong = weights[~bad].numpy(), weights[bad].numpy()
    return float((right[:, None] > wrong[None]).mean() + (right[:, None] == wrong[None]).mean() / 2)


@pytest.mark.parametrize("wrong", ["text", "caption"])
def test_wrong_texts_come_to_weigh_little_and_the_model_gains(wrong: str):
    pairs, bad = noisy(wrong)
    held_out = Tiles(400, 1)
    systems = {"alip": Alip(Config(first_batch=True)), "clip": Clip()}
    systems["even"] = Alip(Config(sample_gamma=0.0, pair_gamma=0.0))
    right = {}
    for name, system in systems.items():
        clip = linear_clip()
        train(system, clip, pairs, steps=150, rate=4e-3)
        right[name] = tile_accuracy(clip, held_out)
        if name == "alip":
            seen = batch_of(system, clip, pairs, list(range(len(pairs))))
            with torch.no_grad():
                made = system.embed(clip, seen)
            found = similarities(*(F.normalize(made[n], dim=1) for n in ("image", "text", "caption")))
            weights = gates(found, found.mean(1), 2.0, 2.0)[wrong == "caption"]
            assert above(weights, bad) > 0.85
            assert float(weights[bad].mean()) < 0.5 * float(weights[~bad].mean())
    assert right["alip"] > right["clip"] + (0.05 if wrong == "text" else -0.01), "clip reads the texts alone"
    assert right["alip"] > right["even"] - 0.02, "linear towers average noise out by themselves; transformers do not"
