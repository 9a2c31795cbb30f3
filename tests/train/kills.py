"""Run by test_robust.py: a system trained whole, and killed again and again at the places it is told, to the end.

kills.py SYSTEM FOLDER PLACE...: a place is a letter and a number, the so-manieth time of: s a step begins, g its
gradients are there, t a checkpoint's tensors are written and the rest is not, k it is there, l a line is logged.
"""

import importlib.util
import os
import signal
import sys
import time
import traceback
from dataclasses import fields
from typing import Any

import matplotlib.backends.backend_svg  # noqa: F401 - once, before the forks; so is TensorBoard
import torch
from several import QUICK, make_clip, world

import diptych
import diptych.core.save
import diptych.training.pages
from diptych.engine import loop
from diptych.methods.discover import find
from diptych.training.folder import TrainingFolder
from diptych.training.run import Run

TOLD = 0  # where a child tells what it does


def telling(owner: Any, name: str, letter: str, *, after: bool = False) -> None:
    function = getattr(owner, name)

    def tell() -> None:
        if TOLD:
            os.write(TOLD, letter.encode())
            time.sleep(0.02)  # to be killed in

    def told(*given: Any, **named: Any) -> Any:
        if not after:
            tell()
        found = function(*given, **named)
        if after:
            tell()
        return found

    setattr(owner, name, told)


def train(system: str, out: str) -> None:
    known = {f.name for f in fields(find("pretrain", system).Config)}
    settings = {f"{system}.{k}": str(v) for k, v in QUICK.items() if k in known}
    settings |= {"recipe.crop": "0.5", "recipe.ema": "0.9"}
    diptych.train(system, world(), model=make_clip(), out=out, settings=settings, steps=10, batch=8, rate=1e-3,
        device="cpu", workers=2, save_every=2)  # fmt: skip


def child(system: str, out: str, heard: int, told: int) -> int:
    global TOLD
    if pid := os.fork():
        os.close(told)
        return pid
    os.close(heard)
    TOLD = told
    try:
        train(system, out)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def kill(system: str, out: str, place: str) -> bool:
    """Train until the place, or the end; -> whether it was killed there."""
    letter, times = place[0], int(place[1:])
    heard, told = os.pipe()
    pid = child(system, out, heard, told)
    with os.fdopen(heard, "rb", buffering=0) as events:
        while times and (event := events.read(1)):
            times -= event.decode() == letter
        if not times:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert status == (0 if times else signal.SIGKILL), f"{place}: it ended with {status}"
    return not times


if __name__ == "__main__":
    if importlib.util.find_spec("tensorboard"):
        importlib.import_module("torch.utils.tensorboard")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    telling(Run, "step", "s")
    telling(loop, "clip_gradient", "g")
    telling(diptych.core.save, "write_tensors", "t", after=True)
    telling(TrainingFolder, "save", "k", after=True)
    telling(TrainingFolder, "log", "l", after=True)
    system, folder, *places = sys.argv[1:]
    for name in ("whole", "killed"):  # each in a process of its own, as the killed one is
        done = [kill(system, f"{folder}/{name}", place) for place in (places if name == "killed" else [])]
        assert all(done), f"not killed at {[p for p, was in zip(places, done, strict=True) if not was]}"
        assert not kill(system, f"{folder}/{name}", "s1000")
