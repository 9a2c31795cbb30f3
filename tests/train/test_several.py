"""Several processes, and weights shared out among them, are one process with the whole batch: every system."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs_world import write_shards
from safetensors.torch import load_file

import diptych
from diptych.errors import DiptychError
from diptych.methods.discover import find, systems
from diptych.training.plan import find_objective

SYSTEMS = [*systems("pretrain"), *systems("distill")]
PROGRAM = Path(__file__).with_name("several.py")
SLOW = pytest.mark.skipif("DIPTYCH_SLOW_TESTS" not in os.environ, reason="needs DIPTYCH_SLOW_TESTS=1 (many processes)")
WAYS = [
    pytest.param("ddp-2", id="two"),
    pytest.param("fsdp-2", id="two, sharded"),
    pytest.param("ddp-4", id="four on two machines", marks=SLOW),
]
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs jobs of several.py once, into one folder."""
    place = tmp_path_factory.mktemp("several")
    done: set[str] = set()

    def run(*jobs: str) -> Path:
        if not done >= set(jobs):
            words = [sys.executable, str(PROGRAM), str(place), *jobs]
            paths = os.pathsep.join([str(PROGRAM.parent.parent), os.environ.get("PYTHONPATH", "")])
            environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
            assert ended.returncode == 0, ended.stderr[-4000:]
            done.update(jobs)
        return place

    return run


@pytest.fixture(scope="module")
def measured(ran: Callable[..., Path]) -> Callable[[str], Found]:
    jobs = {"ddp-2": "two", "ddp-4": "four on two machines", "fsdp-2": "two, sharded"}
    four = ["ddp-4"] if "DIPTYCH_SLOW_TESTS" in os.environ else []

    def read(way: str) -> Found:
        place = ran("one", *(jobs[one] for one in ("ddp-2", "fsdp-2", *four)))
        return torch.load(place / f"{way}.pt", weights_only=True)

    return read


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*SYSTEMS, "clip, all settings", "siglip, checkpoint"])
def test_any_number_of_processes_is_one(measured: Callable[[str], Found], name: str, way: str):
    """Losses and norms of three steps, every gradient of the first (the temperature's and the heads' too), all weights
    and their average after the last."""
    if name in SYSTEMS and find_objective(name).per_process:
        pytest.skip(f"{name}: {find_objective(name).per_process}")
    if way.startswith("fsdp") and name in SYSTEMS and find_objective(name).reshapes:
        pytest.skip(f"{name} cuts its model as it goes, which fsdp cannot have")
    one, many = measured("ddp-1")[name], measured(way)[name]
    for right, found in zip(one["losses"], many["losses"], strict=True):
        assert found == pytest.approx(right, rel=0, abs=1e-6)
    assert many["norms"] == pytest.approx(one["norms"], rel=1e-6)
    assert set(many["gradients"]) == set(one["gradients"]) and len(one["gradients"]) > 25
    for key, gradient in one["gradients"].items():
        difference = float((gradient - many["gradients"][key]).abs().max())
        assert difference < 1e-6, f"{key} differs by {difference:.1e}"
    if "log_scale" in one["gradients"]:
        assert float(one["gradients"]["log_scale"].abs()) > 1e-3, "too small for a wrong factor to show"
    assert set(many["tensors"]) == set(one["tensors"])
    for key, tensor in one["tensors"].items():
        difference = float((tensor.double() - many["tensors"][key].double()).abs().max())
        assert difference < 2e-6, f"{key} differs by {difference:.1e}"


def test_settings_that_save_memory_change_nothing(measured: Callable[[str], Found]):
    """Chunks, checkpointing and dropped patches against FLIP's own dropping; checkpointing alone."""
    one = measured("ddp-1")
    for plain, saved in (("flip", "clip, all settings"), ("siglip", "siglip, checkpoint")):
        for key, gradient in one[plain]["gradients"].items():
            torch.testing.assert_close(one[saved]["gradients"][key], gradient, rtol=0, atol=1e-9)


def test_each_process_holds_half(measured: Callable[[str], Found]):
    one, parts = measured("ddp-1"), measured("fsdp-2")
    for name in (name for name in SYSTEMS if not find_objective(name).reshapes):
        assert parts[name]["held"] < 0.51 * one[name]["held"]
        assert parts[name]["moments"] < 0.52 * one[name]["moments"]
        assert parts[name]["sharded"] > 50 and not one[name]["sharded"]


def test_every_kind_of_tower_can_be_shared_out(ran: Callable[..., Path]):
    differences = json.loads((ran("towers") / "towers.txt").read_text())
    assert len(differences) > 20 and max(differences.values()) < 1e-9, differences


def test_one_process_takes_up_what_several_began(ran: Callable[..., Path]):
    """Sharded over two and ended in the middle; what is saved at the end is what one process saves."""
    place = ran("stopped", "alone", "finished, sharded")
    models = [place / name / "model" / "open_clip_model.safetensors" for name in ("one", "taken-up", "fsdp")]
    one, taken, sharded = map(load_file, models)
    for key, tensor in one.items():
        torch.testing.assert_close(taken[key], tensor, rtol=0, atol=1e-9)
        torch.testing.assert_close(sharded[key], tensor, rtol=0, atol=1e-9)
    began = [line.split(",") for line in (place / "taken-up" / "metrics.csv").read_text().splitlines()]
    whole = [line.split(",") for line in (place / "one" / "metrics.csv").read_text().splitlines()]
    loss = whole[0].index("loss")
    assert len(began) == 7
    assert [float(row[loss]) for row in began[1:]] == pytest.approx([float(row[loss]) for row in whole[1:]], abs=1e-6)


def test_a_loss_of_a_towers_weights_is_refused_where_they_are_shared_out(ran: Callable[..., Path]):
    words = (ran("refused") / "refused.txt").read_text()
    assert "uses a tower's weights in its loss" in words and "use ddp" in words


def test_a_process_that_ends_is_told_to_the_others(ran: Callable[..., Path]):
    seconds, _, words = (ran("gone") / "gone.txt").read_text().partition(" ")
    assert float(seconds) < 60 and "another process of this run has ended or does not answer" in words


@SLOW
def test_a_process_that_stands_still_is_waited_for_no_longer_than_is_said(ran: Callable[..., Path]):
    seconds, _, words = (ran("silent") / "silent.txt").read_text().partition(" ")
    assert float(seconds) < 60 and "does not answer" in words


@SLOW
def test_two_machines_by_the_verb(tmp_path: Path, tiny: str):
    """Each starts the same command with its number; the result is one process's."""
    shards = write_shards(tmp_path / "shards", 36)
    words = [sys.executable, "-m", "diptych", "train", "clip", "--data", str(shards), "--model", tiny]
    words += ["--device", "cpu", "--steps", "6", "--batch", "12", "--rate", "1e-3", "--out"]
    subprocess.run([*words, str(tmp_path / "one")], check=True, timeout=300)
    for strategy in ("ddp", "fsdp"):
        more = ["--nodes", "2", "--devices", "1", "--strategy", strategy]
        there = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "OMP_NUM_THREADS": "1"}
        machines = [
            subprocess.Popen([*words, str(tmp_path / strategy), *more], env=there | {"NODE_RANK": str(number)})
            for number in range(2)
        ]
        assert [machine.wait(300) for machine in machines] == [0, 0]
        one, two = (losses(tmp_path / name / "metrics.csv") for name in ("one", strategy))
        assert two == pytest.approx(one, abs=1e-4)
        assert two[0] == pytest.approx(one[0], abs=1e-6)


def losses(path: Path) -> list[float]:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    return [float(line[lines[0].index("loss")]) for line in lines[1:]]


def test_what_a_system_does_by_process_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from diptych.cli.main import main

    monkeypatch.setattr(find("pretrain", "clip"), "per_process", "its test norm sees its own pictures")
    assert main(["systems", "clip"]) == 0
    assert "several processes: its test norm sees its own pictures" in capsys.readouterr().out
    assert main(["systems"]) == 0
    assert "its test norm sees its own pictures" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert main(["systems", "siglip"]) == 0
    assert "several processes: as one" in capsys.readouterr().out


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DiptychError, match="--batch 30 is no multiple of the 4 processes; 28 would be"):
        diptych.train("clip", "scenes:64", model=tiny, out=tmp_path / "run", batch=30, steps=2)
    assert not (tmp_path / "run").exists()


def test_machines_that_do_not_come_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch):
    from diptych.cli import training as train

    monkeypatch.setattr(train, "JOIN", 1)
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DiptychError, match=r"2 machines of this run did not find each other at 127\.0\.0\.1:29577"):
        train.launch(1, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "fsdp"], "--strategy is for several processes"),
        (["--strategy", "deep"], "invalid choice: 'deep'"),
        (["--nodes", "2"], "--nodes 2 needs NODE_RANK, MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_mistakes_before_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    from diptych.cli.main import main

    assert main(["train", "clip", "--data", "scenes:64", "--out", str(tmp_path / "run"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
