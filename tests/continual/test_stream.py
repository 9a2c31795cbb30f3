"""`teach` and its verb: what is held out, what is measured and written, tables, kills, and what goes wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from continual_world import sessions, world
from pairs_world import caption, draw
from train_world import CONFIG, make_clip

import diptych
from diptych.cli.main import main
from diptych.data.pairs import read_pairs
from diptych.errors import DiptychError
from diptych.metrics.drift import rotation
from diptych.training.held_out import Embedded, hold_out
from diptych.training.stream import drift_between, names_of

QUICK: dict[str, Any] = {"steps": 3, "batch": 6, "held": 4, "workers": 0, "device": "cpu"}


def test_what_a_comparison_leaves(tmp_path: Path):
    """Two systems on two sessions: matrices, measures, pictures of them, and models that open."""
    data = {session.name: session.pairs for session in sessions(2)}
    said: list[str] = []
    model = make_clip()
    taught = diptych.teach(["replay", "fine_tune"], data, model=model, out=tmp_path / "out", say=said.append, **QUICK)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["sessions"] == ["plain", "turned"] and set(found["systems"]) == {"replay", "fine_tune"}
    for name, course in taught.courses.items():
        kept = found["systems"][name]
        assert kept["measures"]["average"] == pytest.approx(course.scores[-1].mean().item())
        assert [step["session"] for step in kept["after"]] == ["plain", "turned"]
        assert kept["after"][1]["recalls"][0]["image to text"].keys() == {"1", "5", "10"}
        assert (tmp_path / "out" / name / "sessions" / "02-turned" / "0" / "metrics.csv").is_file()
        again = diptych.load(str(tmp_path / "out" / name / "model"), device="cpu")
        torch.testing.assert_close(again.encode_text(["a red patch"]), course.clip.encode_text(["a red patch"]))
    assert found["systems"]["replay"]["before"] == found["systems"]["fine_tune"]["before"]
    report = (tmp_path / "out" / "report.html").read_text()
    for words in ("forgetting", "backward transfer", "Drift of replay", "deviation", "after session"):
        assert words in report
    assert len(said) == 4 and said[1].startswith("replay, after turned: R@1 plain ")


def test_a_held_out_picture_is_in_no_batch_and_nothing_is_lost():
    pairs = world("plain", 30)
    rest, held = hold_out(pairs, 7, 3)
    rows = [row for rows in held.pictures for row in rows]
    trained = {rest[i].id for i in range(len(rest))}
    assert len(held.pictures) == 7 and len(trained) == 23 and not trained & {pairs[row].id for row in rows}
    assert hold_out(pairs, 7, 3)[1].pictures == held.pictures != hold_out(pairs, 7, 4)[1].pictures
    assert len(hold_out(pairs, None, 0)[1].pictures) == 6, "a fifth"


def table(folder: Path, pictures: int = 12, captions: int = 3, broken: tuple[int, ...] = ()) -> Path:
    """A row for each caption of a picture."""
    folder.mkdir(exist_ok=True)
    with open(folder / "captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number in range(pictures):
            (folder / f"{number}.png").write_bytes(b"no picture" if number in broken else draw(7 * number))
            rows.writerows([f"{number}.png", f"{caption(7 * number)} {number} {k}"] for k in range(captions))
    return folder / "captions.csv"


def test_rows_of_one_picture_stay_together(tmp_path: Path):
    pairs = read_pairs(table(tmp_path, broken=(3, 4)))
    rest, held = hold_out(pairs, 5, 0)
    assert [len(rows) for rows in held.pictures] == [3] * 5
    held_pictures = {pairs[row].extra["picture"] for rows in held.pictures for row in rows}
    assert len(held_pictures) == 5 and len(rest) == 36 - 15
    assert not held_pictures & {rest[i].extra["picture"] for i in range(len(rest))}
    assert not {"3.png", "4.png"} & {Path(name).name for name in held_pictures}, "they cannot be read"
    found = held.embed(make_clip())
    assert found.image.shape[0] == 5 and found.text.shape[0] == 15
    assert found.own.sum(1).tolist() == [3] * 5 and found.own.sum(0).tolist() == [1] * 15


def test_recalls_of_known_answers():
    """Three pictures, the first with two texts, of which the second is also that of the last picture."""
    text = torch.eye(3)
    own = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 1, 0]]).bool()
    found = Embedded(torch.eye(3)[[0, 2, 0]], text, own).recalls()
    assert found["image to text"][1] == pytest.approx(2 / 3)
    assert found["text to image"][1] == pytest.approx(1 / 3), "what stands level with another is not found first"
    assert found["mean"][1] == pytest.approx(1 / 2) and found["mean"][5] == 1


def test_drift_of_a_common_rotation():
    torch.manual_seed(0)
    rows = [torch.nn.functional.normalize(torch.randn(20, 6), dim=1) for _ in range(2)]
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    own = torch.eye(20).bool()
    found = drift_between(Embedded(rows[0], rows[1], own), Embedded(rows[0] @ turn, rows[1] @ turn, own))
    assert (
        found["rotation of pictures"] == pytest.approx(rotation(rows[0], rows[0] @ turn)) and found["deviation"] < 0.1
    )
    assert found["flipped matches"] == 0 and found["angles among texts"] < 0.1


def test_names_of_sessions():
    names = ["scenes:90", "scenes:80:sketch:de", "a/coco.csv", "b/coco.csv", "web/{00..09}.tar", world()]
    assert names_of(names) == ["scenes", "sketch-de", "coco", "coco-2", "web", "session6"]


LESSON = """
import sys, torch, diptych
from continual_world import sessions
from train_world import CONFIG, make_clip
torch.set_num_threads(1)
data = {session.name: session.pairs for session in sessions(2)}
diptych.teach("replay", data, model=make_clip(), out=sys.argv[1], steps=6, batch=6, held=4, workers=1, device="cpu",
    save_every=1)
"""


def test_kill_9_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed in its second session and taken up again, it gives what it gives in one go."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LESSON, str(tmp_path / "killed")]
    running = subprocess.Popen(words, env=environment)
    waiting = time.monotonic() + 240
    second = tmp_path / "killed" / "sessions" / "02-turned" / "0" / "checkpoints"
    while not (second.is_dir() and any(p.name.isdecimal() for p in second.iterdir())):
        assert running.poll() is None and time.monotonic() < waiting
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed" / "model").exists()
    for out in ("killed", "whole"):
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path / out)])
        exec(LESSON, {})
    killed, whole = (
        json.loads((tmp_path / out / "results.json").read_text())["systems"] for out in ("killed", "whole")
    )
    for one in (killed, whole):
        for step in one["replay"]["after"]:
            step.pop("seconds")
    assert killed == whole
    models = [diptych.load(str(tmp_path / out / "model"), device="cpu").fingerprint for out in ("killed", "whole")]
    assert models[0] == models[1]


def test_another_stream_in_the_same_folder_is_refused(tmp_path: Path):
    out = tmp_path / "out"
    diptych.teach("fine_tune", {"a/b": world()}, model=make_clip(), out=out, **QUICK)
    assert (out / "sessions" / "01-a-b").is_dir()
    with pytest.raises(DiptychError, match="holds another run"):
        diptych.teach("fine_tune", [world()], model=make_clip(), out=out, **QUICK | {"steps": 4})


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("this stream has mod_x.FIELD, recipe.FIELD", {"settings": {"ewc.strength": 1}}),
        ('no setting "alhpa"', {"settings": {"mod_x.alhpa": 1}}),
        ("both say how long", {"epochs": 1}),
        ("both need two", {"held": 19}),
    ],
)
def test_mistakes_are_found_before_anything_is_written(said: str, given: dict, tmp_path: Path):
    with pytest.raises(DiptychError, match=said):
        diptych.teach("mod_x", [world()], model=make_clip(), out=tmp_path / "out", **{**QUICK, **given})
    for data, words in (("scenes:9", "as a list"), ([], "at least one session")):
        with pytest.raises(DiptychError, match=words):
            diptych.teach("mod_x", data, model=make_clip(), out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_the_verb_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture, tmp_path: Path):
    for words, said in (
        (["teach", "modx", "--from", "micro", "--data", "scenes:9"], 'no system "modx"; did you mean "mod_x"?'),
        (["teach", "mod_x", "--from", "micro", "--data", "scenes:9:sktech"], 'no style or language "sktech"'),
        (["teach", "mod_x", "--from", "micro"], "--data"),
        (["teach", "mod_x", "--from", "micro", "--data", "scenes:9", "--set", "clip.max_scale=1"], 'no system "clip"'),
    ):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_verb_says_what_is_left_and_what_is_next(capsys: pytest.CaptureFixture, tmp_path: Path):
    """From fresh weights; the same words again train nothing and say the same."""
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    words = ["teach", "mod_x", "--from", str(tmp_path / "tiny.json"), "--data", str(table(tmp_path / "a")), "--data",
             "scenes:20:sketch", "--steps", "2", "--batch", "4", "--held", "4", "--device", "cpu", "--workers", "0",
             "--set", "mod_x.alpha=1", "--out", str(tmp_path / "out")]  # fmt: skip
    said = []
    for _ in range(2):
        assert main(words) == 0
        said.append(capsys.readouterr().out)
    assert "mod_x, after captions: R@1 captions" in said[0] and "mod_x, after" not in said[1]
    assert said[0].split("system")[1] == said[1].split("system")[1]
    assert said[0].rstrip().endswith(f"Next: diptych compare ./photos --model {tmp_path}/out/model")
    folders = [tmp_path / "out" / "sessions" / name / "0" for name in ("01-captions", "02-sketch")]
    rows = [list(csv.DictReader((folder / "metrics.csv").read_text().splitlines())) for folder in folders]
    assert "distillation" not in rows[0][0] and "distillation" in rows[1][0], "fresh weights are not held on to"
