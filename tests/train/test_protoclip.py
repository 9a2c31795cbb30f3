"""protoclip: back translation, the prototypes' loss against a loop, the gap between modalities, stages, state."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_world import Tile, Tiles, batch_of, linear_clip, pixels_of, train, words_of

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain import protoclip
from diptych.methods.pretrain.clip import Clip
from diptych.methods.pretrain.parts.objective import Phase
from diptych.methods.pretrain.protoclip import Config, Heads, ProtoClip

QUICK = Config(episodes=5, shortest=1, clusters=4, restarts=1, hidden=16, projection=8)


def ready(config: Config = QUICK, pairs: Tiles | None = None, step: int = 5) -> tuple[ProtoClip, CLIP, Tiles]:
    """In its second episode of five, of ten steps."""
    clip, pairs, system = linear_clip(), pairs or Tiles(60), ProtoClip(config)
    system.prepare(clip, pairs, 0)
    system.phase(step, 25)
    return system, clip, pairs


def given(system: ProtoClip, monkeypatch: pytest.MonkeyPatch, rows: dict[str, Tensor], kept: Tensor) -> None:
    monkeypatch.setattr(system, "read", lambda *_: (rows, kept))


def unit(count: int, size: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_clusters_are_said_again_in_the_students_own_space(monkeypatch: pytest.MonkeyPatch):
    """Where pictures are texts turned in space, so are the texts' clusters."""
    system, clip, _ = ready()
    text = unit(60, 8, 0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    given(system, monkeypatch, {"image": text @ turn, "text": text}, torch.arange(60))
    system.begin(clip)
    centres = torch.stack([text[system.made["text labels"] == k].mean(0) for k in range(4)])
    assert torch.allclose(system.made["image from text"], centres @ turn, atol=1e-5)
    assert bool(system.made["text present"].all())
    assert not any(tensor.requires_grad for tensor in system.made.values())


@pytest.mark.parametrize("temperature", [0.01, 0.5, 0.0])
def test_the_loss_is_the_papers(temperature: float):
    system, clip, pairs = ready(replace(QUICK, temperature=temperature))
    batch = batch_of(system, clip, pairs, [3, 1, 40, 22, 9], step=5)
    rows = system.embed(clip, batch)
    assert isinstance(system.heads, Heads)
    system.heads.eval()
    terms = system.loss(rows, clip, batch)
    projected = {kind: system.heads.project(kind, rows[kind]).tolist() for kind in ("image", "text")}
    made, scale, total = {n: t.tolist() for n, t in system.made.items()}, system.heads.log_scale.exp().item(), 0.0

    def softmax(values: list[float]) -> list[float]:
        top = max(values)
        weights = [math.exp(v - top) for v in values]
        return [w / sum(weights) for w in weights]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    for student, teacher in (("image", "text"), ("text", "image")):
        for row, index in zip(projected[student], batch.index.tolist(), strict=True):
            label = made[f"{teacher} labels"][made["place"][index]]
            centres = made[f"{teacher} centres"]
            target = [float(k == label) for k in range(4)]
            if temperature:
                target = softmax([dot(centres[label], c) / temperature for c in centres])
            found = softmax([scale * dot(row, s) for s in made[f"{student} from {teacher}"]])
            total -= sum(t * math.log(f) for t, f in zip(target, found, strict=True)) / 5 / 2
    assert float(terms["prototypes"].detach()) == pytest.approx(total, abs=1e-4)
    image, text = (F.normalize(rows[kind], dim=1) for kind in ("image", "text"))
    plain = float(softmax_contrastive(image, text, clip.logit_scale).detach())
    assert float(terms["contrastive"].detach()) == pytest.approx(plain, abs=1e-6)


def test_pairs_that_were_not_read_take_the_nearest_cluster():
    system, clip, _ = ready(replace(QUICK, episode=40))
    system.begin(clip)
    read = system.made["place"] >= 0
    assert int(read.sum()) == 40 and len(system.made["text labels"]) == 40
    with torch.no_grad():
        rows, _ = system.read(clip, list(range(60)))
    found = system.labels("text", rows["text"], torch.arange(60))
    distances = torch.cdist(rows["text"], system.made["text centres"])
    assert torch.equal(found[~read], distances.argmin(1)[~read])
    assert torch.equal(found[read], system.made["text labels"][system.made["place"][read]])


def test_pictures_far_from_texts_find_their_texts_clusters_in_their_own_space(monkeypatch: pytest.MonkeyPatch):
    """All pictures are moved by the same vector: prototypes of their own move too, the texts' do not."""
    right = {}
    for own in (True, False):
        system, clip, _ = ready(replace(QUICK, clusters=20, back_translation=own), Tiles(400))
        centres = unit(20, 8, 3)
        text = F.normalize(centres[torch.arange(400) % 20] + 0.1 * torch.randn(400, 8), dim=1)
        image = F.normalize(text + 3 * unit(1, 8, 4), dim=1)
        given(system, monkeypatch, {"image": image, "text": text}, torch.arange(400))
        system.begin(clip)
        found = (image @ system.made["image from text"].T).argmax(1)
        right[own] = float((found == system.made["text labels"]).float().mean())
    assert right[True] > 5 / 20 and right[False] < right[True] - 0.1


def test_stages_plain_then_prototypes_then_a_locked_picture_tower():
    system, _, _ = ready()
    stages = [system.phase(step, 100) for step in range(100)]
    assert all(stage == Phase(terms=("contrastive",)) for stage in stages[:20])
    assert all(stage == Phase() for stage in stages[20:60])
    assert all(stage == Phase(("towers.text.*", "log_scale"), ("contrastive",)) for stage in stages[60:])
    long = ProtoClip()
    locked = [long.phase(step, 40_000).trains != ("*",) for step in range(0, 40_000, 50)]
    assert sum(locked) == 4 and all(locked[-4:]), "the last two of four hundred"


def test_a_run_clusters_once_an_episode(monkeypatch: pytest.MonkeyPatch):
    system, clip, pairs = ready()
    begun: list[int] = []
    begin = system.begin
    monkeypatch.setattr(system, "begin", lambda c: (begun.append(system.now), begin(c)))
    said = train(system, clip, pairs, steps=25, batch=20)
    assert begun == [1, 2]
    assert [set(terms) for terms in said[4:6]] == [{"contrastive"}, {"contrastive", "prototypes"}]
    assert "image from text" in system.state()


def test_reading_leaves_modes_and_statistics_alone():
    system, clip, _ = ready()
    assert isinstance(system.heads, Heads)
    clip.train()
    before = {name: tensor.clone() for name, tensor in system.heads.state_dict().items()}
    system.begin(clip)
    assert clip.training and system.heads.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in system.heads.state_dict().items())


def test_one_cluster_is_clips_loss():
    system, clip, pairs = ready(replace(QUICK, clusters=1))
    batch = batch_of(system, clip, pairs, [0, 1, 2], step=5)
    assert float(system.loss(system.embed(clip, batch), clip, batch)["prototypes"].detach()) == 0


def test_the_first_clusters_are_of_rows_that_the_heads_know():
    """The norms of the heads follow the batches of the plain episode too."""
    system, clip, pairs = ready(step=0)
    assert system.plain
    system.loss(
        system.embed(clip, batch_of(system, clip, pairs, list(range(8)))), clip, batch_of(system, clip, pairs, [0])
    )
    assert isinstance(system.heads, Heads)
    for kind in ("image", "text"):
        norm: Any = system.heads.get_submodule(kind)[1]  # type: ignore[index]
        assert float(norm.running_var.sub(1).abs().max()) > 1e-4


def test_processes_share_the_reading(monkeypatch: pytest.MonkeyPatch):
    system, clip, _ = ready()
    with torch.no_grad():
        alone, numbers = system.read(clip, list(range(31)))
        monkeypatch.setattr(protoclip, "world", lambda: 2)
        halves = []
        for rank in (0, 1):
            monkeypatch.setattr(protoclip, "rank", lambda rank=rank: rank)
            halves.append(system.read(clip, list(range(31))))
    assert numbers.tolist() == list(range(31))
    assert [kept.tolist() for _, kept in halves] == [list(range(0, 31, 2)), list(range(1, 31, 2))]
    for half, (rows, _) in enumerate(halves):
        torch.testing.assert_close(rows["image"], alone["image"][half::2])


def test_a_model_may_read_the_texts_and_teach(monkeypatch: pytest.MonkeyPatch):
    """Its unit rows in their main directions, which keep all distances where they are enough."""
    pairs, other = Tiles(60), linear_clip(seed=3)
    monkeypatch.setattr(protoclip, "load", lambda name, device: other)
    system, clip, _ = ready(replace(QUICK, teacher="mini"), pairs)
    assert system.vectors is not None and system.vectors.shape == (60, 24)
    rows = F.normalize(other.encode_text([pair.texts[0] for pair in pairs]), dim=1)
    rows = rows - rows.mean(0)
    torch.testing.assert_close(system.vectors @ system.vectors.T, rows @ rows.T, atol=1e-5, rtol=0)
    spread = system.vectors.var(0)
    assert bool((spread[:-1] >= spread[1:] - 1e-7).all()) and float(system.vectors.mean(0).abs().max()) < 1e-6
    batch = batch_of(system, clip, pairs, [0, 1, 2, 3], step=5)
    assert torch.equal(batch.extra["teacher"], system.vectors[:4])
    assert "teacher" in system.loss(system.embed(clip, batch), clip, batch)
    monkeypatch.undo()
    with pytest.raises(DiptychError, match='holds no "nothing"; as a model'):
        ready(replace(QUICK, teacher="nothing"))


def test_another_models_vectors_may_teach():
    pairs = Tiles(60)
    pairs[:] = [replace(pair, extra={"words": np.eye(4, dtype=np.float32)[pair.values[0]]}) for pair in pairs]
    system, clip, _ = ready(replace(QUICK, teacher="words"), pairs)
    batch = batch_of(system, clip, pairs, [0, 1, 2, 3], step=5)
    terms = system.loss(system.embed(clip, batch), clip, batch)
    assert set(terms) == {"contrastive", "prototypes", "teacher"} and float(terms["teacher"].detach()) > 0
    labels = system.made["teacher labels"]
    values = torch.tensor([pairs[i].values[0] for i in system.made["place"].argsort().tolist()])
    assert all(len(labels[values == v].unique()) == 1 for v in range(4))
    with pytest.raises(DiptychError, match=r'extra\["words"\]'):
        system.extra_of(Tiles(1)[0], 0)


class Groups(list[Tile]):
    """Pictures of eight groups; one patch in five is of any colour, a caption tells three of the six."""

    source = "groups"

    def __init__(self, count: int, seed: int) -> None:
        common, rng = np.random.default_rng(5).integers(0, 4, (8, 6)), np.random.default_rng(seed)
        self.groups = rng.integers(0, 8, count)
        values = np.where(rng.random((count, 6)) < 0.2, rng.integers(0, 4, (count, 6)), common[self.groups])
        for i, row in enumerate(values.tolist()):
            self.append(Tile(str(100_000 * seed + i), tuple(row), (words_of(row, rng.permutation(6)[3:].tolist()),)))


def test_alike_things_lie_closer_together_than_with_clip_for_as_many_pictures():
    """Agreement of k-means with the groups; what is read at the start of episodes counts as pictures."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    config, held_out = (
        Config(episodes=10, shortest=1, clusters=30, restarts=1, hidden=64, projection=24),
        Groups(400, 1),
    )
    runs = {"clip": (Clip, 200), "protoclip": (lambda: ProtoClip(config), 200 - 7 * 300 // 32)}
    agreement = dict.fromkeys(runs, 0.0)
    for name, (make, steps) in runs.items():
        for seed in range(3):
            clip = linear_clip(seed=seed)
            train(make(), clip, Groups(300, 10 + seed), steps=steps, batch=32, rate=4e-3, seed=seed)
            rows = F.normalize(clip.encode_image(pixels_of(clip, held_out)), dim=1).detach().numpy()
            found = KMeans(8, n_init=3, random_state=0).fit_predict(rows)
            agreement[name] += float(adjusted_rand_score(held_out.groups, found)) / 3
    assert agreement["protoclip"] > agreement["clip"] + 0.03
