"""Run a piece of work in a forked process: its peak memory is its own, and what kills it kills nothing else.

The parent must not have run anything on several threads before (OpenMP's threads do not survive a fork): it holds
torch to one thread, the child takes all.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diptych.core.device import keep_freed_memory
from diptych.errors import DiptychError

Message = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """value: what the work returned (JSON-able); error: a sentence; trace: set where the error is a bug of ours."""

    value: Any = None
    error: str | None = None
    trace: str | None = None
    peak_mb: float = 0.0


def can_fork() -> bool:
    return sys.platform == "linux"


def threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hold_to_one_thread() -> None:
    """Call once in a process that will fork, before any computation."""
    import torch

    torch.set_num_threads(1)


def run_here(work: Callable[[Message], Any], tell: Message) -> Outcome:
    """The same without a fork: for other platforms and for callers that already computed."""
    reset_peak()
    try:
        return Outcome(work(tell), peak_mb=peak_mb())
    except DiptychError as error:
        return Outcome(error=str(error))


def run_forked(work: Callable[[Message], Any], tell: Message, idle: Callable[[], None]) -> Outcome:
    """Run `work(tell)` in a child. `tell` gets its messages here; `idle` is called a few times a second."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ctrl-C waits until the fork is over: Python would lose it in what libraries have registered to run at a fork.
    waiting: list[int] = []
    interrupted = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    child = os.fork()
    if child == 0:
        os.close(reader)
        serve(work, writer)
    try:
        os.close(writer)
        signal.signal(signal.SIGINT, interrupted)
        if waiting:
            raise KeyboardInterrupt
        outcome = listen(reader, tell, idle)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reader)
    _, status = os.waitpid(child, 0)
    if outcome is not None:
        return outcome
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status)
    if killed == signal.SIGKILL:
        return Outcome(error="was killed, most likely for lack of memory")
    return Outcome(error=f"its process ended with status {status}", trace="no traceback: the process died")


def serve(work: Callable[[Message], Any], writer: int) -> None:
    """The child's whole life."""
    import torch

    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        torch.set_num_threads(threads())
        keep_freed_memory()
        with os.fdopen(writer, "w", buffering=1) as out:

            def tell(message: dict[str, Any]) -> None:
                out.write(json.dumps(message) + "\n")

            try:
                final = {"value": work(tell), "peak_mb": peak_mb()}
                code = 0
            except DiptychError as error:
                final = {"error": str(error)}
            except MemoryError:
                final = {"error": "ran out of memory"}
            except Exception as error:
                final = {"error": f"failed: {type(error).__name__}: {error}", "trace": traceback.format_exc()}
            tell({"final": final})
    finally:
        os._exit(code)


def listen(reader: int, tell: Message, idle: Callable[[], None]) -> Outcome | None:
    waiting = b""
    while True:
        idle()
        if not select.select([reader], [], [], 0.2)[0]:
            continue
        if not (chunk := os.read(reader, 1 << 16)):
            return None
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "final" in message:
                return Outcome(**message["final"])
            tell(message)


def die_with_parent() -> None:
    """Linux: the child must not outlive a killed parent."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def peak_mb() -> float:
    """Peak resident memory of this process in MB (since `reset_peak`, where Linux allows it)."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        import resource  # not on Windows, where the caller asks for no figure

        scale = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
