import mmap
import os
import subprocess
import sys
import time

import pytest

from diptych.engine.isolate import can_fork, hold_to_one_thread, run_forked, run_here
from diptych.errors import DiptychError

pytestmark = pytest.mark.skipif(not can_fork(), reason="forked processes are used on Linux only")


@pytest.fixture(autouse=True)
def one_thread():
    hold_to_one_thread()


def launch(work, seen=None):
    return run_forked(work, (seen if seen is not None else []).append, lambda: None)


def test_value_and_messages_come_back():
    seen = []

    def work(tell):
        tell({"done": 1, "total": 2})
        return {"answer": 42}

    outcome = launch(work, seen)
    assert outcome.value == {"answer": 42}
    assert seen == [{"done": 1, "total": 2}]
    assert outcome.error is None


def test_a_users_mistake_is_a_sentence_and_a_bug_has_a_traceback():
    def mistake(tell):
        raise DiptychError("no such colour")

    def bug(tell):
        return 1 / 0

    assert launch(mistake).error == "no such colour"
    assert launch(mistake).trace is None
    assert "ZeroDivisionError" in (launch(bug).trace or "")


def test_a_killed_child_is_a_reason():
    outcome = launch(lambda tell: os.kill(os.getpid(), 9))
    assert "killed" in (outcome.error or "")
    assert outcome.trace is None


def test_peak_memory_is_the_childs_own():
    def large(tell):
        with mmap.mmap(-1, 200 << 20) as block:  # pages of its own, not what an earlier test has freed
            block[::4096] = b"x" * len(block[::4096])
            time.sleep(0.01)

    small, big = launch(lambda tell: None).peak_mb, launch(large).peak_mb
    assert 180 < big - small < 260
    assert abs(launch(lambda tell: None).peak_mb - small) < 30  # the large one left no trace


def test_torch_computes_on_several_threads_in_the_child():
    import torch

    def work(tell):
        torch.set_num_threads(2)
        return float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())

    assert launch(work).value == 600.0**3
    assert launch(work).value == 600.0**3


def test_run_here_gives_the_same():
    assert run_here(lambda tell: 5, lambda message: None).value == 5


def test_no_interrupt_is_lost_at_a_fork():
    program = """
import os, random, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from diptych.engine.isolate import hold_to_one_thread, run_forked
hold_to_one_thread()
caught = 0
for i in range(12):
    threading.Timer(0.05 + random.Random(i).random() / 20, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            run_forked(lambda tell: 1, print, lambda: None)
    except KeyboardInterrupt:
        caught += 1
print(caught)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["12"], done.stderr
