"""Runs: open_clip's own steps, resuming after kill -9, batches that workers do not change, and what goes wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs_world import caption, draw, write_shards
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from train_world import CONFIG, make_clip

import diptych
from diptych.core.clip import CLIP
from diptych.data.pairs import read_pairs
from diptych.engine.loop import Diverged
from diptych.errors import DiptychError
from diptych.training.batches import Batches, Order
from diptych.training.folder import TrainingFolder
from diptych.training.plan import make_plan
from diptych.training.run import Run

PLAIN: dict[str, Any] = {"device": "cpu", "batch": 12, "rate": 1e-3, "workers": 0}


def plan_of(pairs: int, steps: int = 5, system: str = "clip", **settings: Any):
    settings = {"recipe.crop": "1", **settings}
    options = {"epochs": None, "batch": 12, "rate": 1e-3, "seed": 0, "save_every": None, "eval_every": None}
    return make_plan(system, pairs, settings, steps=steps, **options)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "open_clip_model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("system", ["clip", "siglip"])
def test_a_step_is_that_of_open_clip(shards: Path, clip: CLIP, system: str):
    """Same weights, same batches: equal losses and weights after five updates of open_clip's own loop."""
    import open_clip
    from open_clip.loss import ClipLoss, SigLipLoss

    pairs = read_pairs(shards)
    run = Run(plan_of(len(pairs), system=system), clip, pairs, None)
    bias = {"init_logit_bias": -10.0} if system == "siglip" else {}
    model: Any = open_clip.CLIP(**CONFIG, **bias)
    from diptych.core.save import open_clip_names

    assert clip.origin
    model.load_state_dict({n: t.clone() for n, t in open_clip_names(clip, clip.origin, clip.state_dict()).items()})
    tokenize = open_clip.SimpleTokenizer(context_length=20)
    recipe = run.plan.recipe
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2]
    others = [p for n, p in model.named_parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
    )
    schedule = open_clip_schedule(run.plan)
    loss_of = SigLipLoss() if system == "siglip" else ClipLoss()
    clip.train()
    for step in range(5):
        batch, ids = run.batches[step]
        texts = tokenize([pairs[int(i)].texts[0] for i in batch.index])
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad()
        image, text = model.encode_image(batch.pixels, normalize=True), model.encode_text(texts, normalize=True)
        expected = loss_of(image, text, model.logit_scale.exp(), *([model.logit_bias] if bias else []))
        expected.backward()
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, torch.tensor(100.0).log())
        made = run.step(step, batch, ids)
        assert made.loss == pytest.approx(float(expected.detach()), abs=1e-5)
    ours = open_clip_names(clip, clip.origin, clip.state_dict())
    for name, tensor in model.state_dict().items():
        if name.endswith("in_proj_bias"):  # a softmax ignores the keys' bias: its gradient is rounding alone
            ours[name], tensor = (t.reshape(3, -1)[[0, 2]] for t in (ours[name], tensor))
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=5e-5, msg=lambda text, name=name: f"{name} {text}")


def open_clip_schedule(plan):
    from open_clip_train.scheduler import cosine_lr

    class Rate:
        param_groups = [{"lr": 0.0}]  # noqa: RUF012

    rate = Rate()
    adjust = cosine_lr(rate, plan.recipe.rate, plan.warmup, plan.steps)

    def at(step: int) -> float:
        return adjust(step)

    return at


def test_the_saved_model_is_open_clips(shards: Path, tiny: str, tmp_path: Path):
    import open_clip

    made = diptych.train("clip", shards, model=tiny, out=tmp_path / "run", steps=4, **PLAIN)
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/run/model")
    again = diptych.load(str(tmp_path / "run" / "model"), device="cpu")
    texts = [caption(n) for n in range(4)]
    with torch.no_grad():
        expected = theirs.eval().encode_text(open_clip.SimpleTokenizer(context_length=20)(texts))  # type: ignore
        torch.testing.assert_close(again.encode_text(texts), expected, rtol=0, atol=1e-5)
        pixels = torch.stack([again.preprocess(read_pairs(shards)[i].picture()) for i in range(3)])
        torch.testing.assert_close(again.encode_image(pixels), theirs.encode_image(pixels), rtol=0, atol=1e-5)  # type: ignore
    assert torch.equal(again.log_scale, made.clip.log_scale)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith("step,epoch,loss,contrastive,temperature")
    report = (tmp_path / "run" / "report.html").read_text()
    assert "multiplier of the cosine" in report


def test_training_learns_what_the_texts_say(shards: Path, tiny: str, tmp_path: Path):
    made = diptych.train("clip", shards, model=tiny, out=tmp_path / "run", steps=60, **PLAIN | {"rate": 5e-3})
    pairs = read_pairs(shards)
    with torch.no_grad():
        image = made.clip.encode_image(torch.stack([made.clip.preprocess(p.picture()) for p in pairs]))
        text = made.clip.encode_text([p.texts[0] for p in pairs])
        found = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
    assert (found == torch.arange(36)).float().mean() > 0.5, "chance is 1 in 36"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_batch(shards: Path, clip: CLIP, workers: int):
    pairs = read_pairs(shards)
    plan = plan_of(len(pairs))
    alone = Batches(pairs, clip, plan.objective, plan.order, workers=0)
    helped = Batches(pairs, clip, plan.objective, plan.order, workers=workers)
    seen = []
    for step, (batch, ids) in enumerate(helped.run(2, 7), 2):
        expected, names = alone[step]
        assert ids == names and torch.equal(batch.pixels, expected.pixels)
        assert torch.equal(batch.texts["text"].ids, expected.texts["text"].ids)
        seen += batch.index.tolist()
    assert len(set(seen[:12])) == 12 and sorted(seen[12:48] if len(seen) > 47 else seen[12:])


def test_an_epoch_holds_each_pair_once_and_epochs_differ():
    order = Order(pairs=30, batch=10, seed=3)
    first, second = ([i for step in range(s, s + 3) for i in order.rows(step).tolist()] for s in (0, 3))
    assert sorted(first) == sorted(second) == list(range(30)) and first != second


def test_unusable_pairs_are_replaced_and_counted(tmp_path: Path, tiny: str):
    folder = write_shards(tmp_path / "shards", 24)
    with open(folder / "00000.tar", "r+b") as file:  # the first picture's bytes
        file.seek(512 + 20)
        file.write(b"\0" * 40)
    (folder / "00009.tar").write_bytes(b"broken" * 200)
    pictures = tmp_path / "pairs"
    made = diptych.train("clip", folder, model=tiny, out=tmp_path / "run", steps=4, **PLAIN)
    assert [Path(one.id).name for one in made.set_aside] == ["00009.tar", "00000"]
    assert "broken shard" in made.set_aside[0].reason and made.set_aside[1].id == "00000/00000"
    assert "Set aside" in (tmp_path / "run" / "report.html").read_text()
    pictures.mkdir()
    for n in range(14):
        (pictures / f"{n}.png").write_bytes(draw(n))
        (pictures / f"{n}.txt").write_text(" " if n == 3 else caption(n))
    made = diptych.train("clip", pictures, model=tiny, out=tmp_path / "run2", steps=4, **PLAIN)
    assert [(one.id, one.reason) for one in made.set_aside] == [("3.png", "the text is empty")]


def test_chunks_have_the_gradient_of_the_whole(shards: Path):
    pairs = read_pairs(shards)
    runs = [Run(plan_of(len(pairs), **{"recipe.chunk": chunk}), make_clip(), pairs, None) for chunk in ("0", "5")]
    for step in range(3):
        one, two = (run.step(step, *run.batches[step]) for run in runs)
        assert one.loss == pytest.approx(two.loss, abs=1e-5) and one.norm == pytest.approx(two.norm, rel=1e-4)


def test_frozen_and_slow_parameters(shards: Path):
    pairs = read_pairs(shards)
    frozen = make_clip()
    settings = {"recipe.freeze": "towers.image.*", "recipe.slow": "towers.text.*", "recipe.slow_rate": "0"}
    run = Run(plan_of(len(pairs), **settings), frozen, pairs, None)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    run.step(0, *run.batches[0])
    changed = {name for name, tensor in frozen.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"log_scale"}
    with pytest.raises(DiptychError, match=r'no parameter is called "towers\.picture'):
        Run(plan_of(len(pairs), **{"recipe.freeze": "towers.picture.*"}), frozen, pairs, None)


def test_the_average_of_the_weights_is_what_is_saved(shards: Path, tiny: str, tmp_path: Path):
    made = diptych.train("clip", shards, model=tiny, out=tmp_path / "a", steps=3, settings={"recipe.ema": "1"}, **PLAIN)
    start = make_fresh(tiny)
    assert all(torch.equal(start[name], tensor) for name, tensor in made.clip.state_dict().items()), (
        "decay 1: the start"
    )


def make_fresh(tiny: str) -> dict[str, torch.Tensor]:
    from diptych.core.fresh import fresh

    return fresh(tiny, 0).state_dict()


def test_what_is_no_number_is_named(shards: Path, tiny: str, tmp_path: Path):
    from diptych.core.fresh import fresh

    clip = fresh(tiny)
    clip.image.get_parameter("visual.proj").data[0, 0] = float("nan")
    with pytest.raises(Diverged) as caught:
        diptych.train("clip", shards, model=clip, out=tmp_path / "run", steps=4, **PLAIN)
    words = str(caught.value)
    assert "contrastive became nan at step 1 of 4" in words
    assert "parameter towers.image.visual.proj" in words and "00" in words
    broken = json.loads((tmp_path / "run" / "broken.json").read_text())
    assert len(broken["pairs"]) == 12 and broken["pairs"][0] in words


SCRIPT = """
import os, signal, sys, time, torch
import matplotlib.backends.backend_svg, open_clip
import diptych, diptych.training.pages, diptych.training.run as run

data, model, folder = sys.argv[1:4]
step = run.Run.step


def slow(self, number, *rest):
    os.write(told, b"%d\\n" % number)
    time.sleep(0.1)
    return step(self, number, *rest)


def start(out, workers):
    if pid := os.fork():
        return pid
    diptych.train("clip", data, model=model, out=f"{folder}/{out}", steps=12, batch=12, rate=1e-3, device="cpu",
                  workers=workers, save_every=3, settings={"recipe.ema": "0.9"})
    os._exit(0)


torch.set_num_threads(1)
run.Run.step = slow
for last, pause in ((1, 0.02), (7, 0.11)):
    heard, told = os.pipe()
    child = start("killed", 2)
    with os.fdopen(heard) as lines:
        os.close(told)
        while int(lines.readline()) < last:
            pass
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not os.path.exists(f"{folder}/killed/model")
run.Run.step = step
assert os.waitpid(start("killed", 2), 0)[1] == 0
"""


def test_killed_and_resumed_is_bit_identical(shards: Path, tiny: str, tmp_path: Path):
    """Killed twice, before a checkpoint and after one, then left alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options: dict[str, Any] = {"model": tiny, "steps": 12, "save_every": 3, **PLAIN}
    average = {"recipe.ema": "0.9"}
    diptych.train("clip", shards, settings=average, out=tmp_path / "whole", **options)
    torch.set_num_threads(threads)
    words = [sys.executable, "-c", SCRIPT, str(shards), tiny, str(tmp_path)]
    subprocess.run(words, check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    whole, resumed = (metrics(tmp_path / name) for name in ("whole", "killed"))
    assert whole == resumed and len(whole) == 12
    again = diptych.train("clip", shards, settings=average, out=tmp_path / "killed", **options)
    assert len(again.rows) == 12, "a finished run is not trained again"
    with pytest.raises(DiptychError, match="another run: recipe differ"):
        diptych.train("clip", shards, out=tmp_path / "killed", **options)


def metrics(folder: Path) -> list[str]:
    """Without speed and time."""
    return [line.rsplit(",", 2)[0] for line in (folder / "metrics.csv").read_text().splitlines()[1:]]


def test_the_check_says_whether_it_can_work(shards: Path, tiny: str, tmp_path: Path):
    said: list[str] = []
    diptych.train("clip", shards, model=tiny, out=tmp_path / "a", steps=2, check=True, say=said.append,
        **PLAIN | {"rate": 1e-2})  # fmt: skip
    assert "32 different texts" in said[0] and "can be learned by heart" in said[0]
    same = tmp_path / "same"
    same.mkdir()
    for n in range(12):
        (same / f"{n}.png").write_bytes(draw(0))
        (same / f"{n}.txt").write_text("the same")
    with pytest.raises(DiptychError, match=r"cannot be learned by heart \(their texts or pictures repeat"):
        diptych.train("clip", same, model=tiny, out=tmp_path / "b", steps=2, check=True, **PLAIN | {"rate": 1e-2})


def test_zero_shot_as_it_trains(shards: Path, tiny: str, tmp_path: Path):
    rng = np.random.default_rng(0)
    for name, colour in zip(("red", "blue"), ((255, 0, 0), (0, 0, 255)), strict=True):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "classes" / name / f"{number}.png")
    options = PLAIN | {"evaluate": tmp_path / "classes", "eval_every": 2, "steps": 5}
    made = diptych.train("clip", shards, model=tiny, out=tmp_path / "run", **options)
    judged = {int(row["step"]): row["accuracy"] for row in made.rows if "accuracy" in row}
    assert list(judged) == [2, 4, 5] and all(0 <= share <= 1 for share in judged.values())
    plain = diptych.train("clip", shards, model=tiny, out=tmp_path / "plain", steps=5, **PLAIN)
    assert equal(plain.clip.state_dict(), made.clip.state_dict()), "looking changes nothing"
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "accuracy" in lines[0] and len(lines) == 6


def test_wrong_settings_are_found_at_once(shards: Path, tiny: str, tmp_path: Path):
    def train(**words: Any):
        return diptych.train("clip", shards, model=tiny, out=tmp_path / "run", device="cpu", **words)

    with pytest.raises(DiptychError, match='clip has no setting "max_scal"; did you mean "max_scale"'):
        train(settings={"clip.max_scal": "3"})
    with pytest.raises(DiptychError, match="this run has the settings clip"):
        train(settings={"siglip.bias": "3"})
    with pytest.raises(DiptychError, match="--batch 400 is more than the 36 pairs"):
        train(batch=400)
    with pytest.raises(DiptychError, match="give one"):
        train(steps=3, epochs=2)
    with pytest.raises(DiptychError, match='no architecture is called "ViT-B-61"; did you mean'):
        diptych.train("clip", shards, model="ViT-B-61", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_phases_lock_and_terms_count(shards: Path, clip: CLIP):
    from diptych.methods.pretrain.clip import Clip
    from diptych.methods.pretrain.parts.objective import Phase

    class Staged(Clip):
        def loss(self, embeddings, clip, batch):
            terms = super().loss(embeddings, clip, batch)
            return terms | {"size": embeddings["image"].square().mean()}

        def phase(self, step: int, steps: int) -> Phase:
            return Phase(("towers.text.*",), ("contrastive",)) if step == 0 else Phase()

    pairs = read_pairs(shards)
    plan = plan_of(len(pairs))
    run = Run(replace(plan, objective=Staged()), clip, pairs, None)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    first = run.step(0, *run.batches[0])
    changed = {name for name, tensor in clip.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed and all(name.startswith("towers.text.") for name in changed) and set(first.terms) == {"contrastive"}
    assert set(run.step(1, *run.batches[1]).terms) == {"contrastive", "size"}


@pytest.mark.skipif("DIPTYCH_SLOW_TESTS" not in os.environ, reason="needs DIPTYCH_SLOW_TESTS=1 (starts processes)")
def test_two_processes_are_one_big_batch(shards: Path, tiny: str, tmp_path: Path):
    words = [
        sys.executable,
        "-m",
        "diptych",
        "train",
        "clip",
        "--data",
        str(shards),
        "--model",
        tiny,
        "--device",
        "cpu",
    ]
    words += ["--steps", "6", "--batch", "12", "--rate", "1e-3", "--out"]
    subprocess.run([*words, str(tmp_path / "two"), "--devices", "2"], check=True, timeout=200)
    subprocess.run([*words, str(tmp_path / "one")], check=True, timeout=200)
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_the_verb_is_the_function(shards: Path, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from diptych.cli.main import main

    words = ["train", "siglip", "--data", str(shards), "--model", tiny, "--device", "cpu", "--steps", "3"]
    assert main([*words, "--batch", "12", "--rate", "1e-3", "--out", str(tmp_path / "verb")]) == 0
    said = capsys.readouterr().out
    assert "3/3" in said and "model" in said
    diptych.train("siglip", shards, model=tiny, out=tmp_path / "function", steps=3, **PLAIN)
    assert equal(weights(tmp_path / "verb"), weights(tmp_path / "function"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clop"], 'no system "clop"; did you mean "clip"?'),
        (["clip", "--model", "ViT-B-61"], 'no model "ViT-B-61"; did you mean'),
        (["clip", "--set", "siglip.bias=1"], "--set siglip.bias has no effect"),
        (["clip", "--set", "recipe"], "--set takes SYSTEM.FIELD=VALUE"),
        (["clip", "--batch", "1"], "--batch takes a whole number from 2"),
        (["clip", "--rate", "0"], "--rate takes a number above 0"),
        (["clip", "--set", "recipe.wieght_decay=1"], 'recipe has no setting "wieght_decay"; did you mean'),
        (["clip", "--text", "caption"], "is no table and has no text column 'caption'"),
    ],
)
def test_mistakes_are_said_in_words(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    from diptych.cli.main import main

    assert main(["train", *words, "--data", str(shards), "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_first_line_begins_again(tmp_path: Path):
    """At any place between an empty folder and a first line of metrics.csv."""
    folder = TrainingFolder(tmp_path / "run", {"seed": 0})
    for seed in range(4):  # each but the first finds what another left
        folder = TrainingFolder(tmp_path / "run", {"seed": seed})
        folder.refuse_others()
        folder.open()
        folder.begin(0, ["step", "loss"])
        assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"seed": seed}
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ".run.json.x7f3").write_text('{"se')
    TrainingFolder(tmp_path / "cut", {"seed": 0}).open()
    folder.log({"step": 1, "loss": 2.0, "seconds": 1.0})
    with pytest.raises(DiptychError, match="holds another run"):
        TrainingFolder(tmp_path / "run", {"seed": 9}).open()


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(DiptychError, match="is not a run of diptych"):
        TrainingFolder(tmp_path, {"seed": 0}).open()
