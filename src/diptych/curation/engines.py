"""Who does the pieces: this process, several of this machine, or a Ray cluster. The result is the same: a piece is a
function of its number, and what it leaves is written whole or not at all.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from diptych.errors import DiptychError, missing_extra

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = ("local", "ray")
Task = Any
_work: Callable[[Task], None] | None = None  # of a worker process: unpickled once, so that models are loaded once


def run_all(
    function: Callable[[Task], None],
    tasks: Sequence[Task],
    *,
    engine: Engine = "local",
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Do every task. function: picklable, and so that doing a task twice is as doing it once."""
    progress(0, len(tasks))
    if engine == "ray":
        _on_ray(function, tasks, progress)
    elif workers > 1 and len(tasks) > 1:
        _in_processes(function, tasks, min(workers, len(tasks)), progress)
    else:
        for done, task in enumerate(tasks, 1):
            function(task)
            progress(done, len(tasks))


def _in_processes(
    function: Callable[[Task], None], tasks: Sequence[Task], workers: int, progress: Callable[[int, int], None]
) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (function, threads))
    try:
        waiting = [pool.submit(_do, task) for task in tasks]
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            progress(done, len(tasks))
        pool.shutdown()
    except BrokenProcessPool as error:
        raise DiptychError(
            "a worker was ended by the system, mostly for want of memory; the same command goes on where it was, "
            "try it with fewer --workers"
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(function: Callable[[Task], None], threads: int) -> None:
    """A worker leaves Ctrl-C to its parent and ends when that is gone."""
    import signal
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    global _work
    _work = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is loaded
    import pyarrow

    pyarrow.set_cpu_count(threads)
    pyarrow.set_io_thread_count(threads)


def _do(task: Task) -> None:
    assert _work is not None
    _work(task)


def _on_ray(function: Callable[[Task], None], tasks: Sequence[Task], progress: Callable[[int, int], None]) -> None:
    """Ray Data over the tasks. What a node that is lost had finished stays in the work folder, which all nodes must
    share; what it had begun another does again."""
    try:
        import ray
        import ray.data
        from ray.exceptions import RayTaskError
    except ImportError as error:
        raise missing_extra("ray", "ray", "--engine ray") from error
    begun = not ray.is_initialized()
    if begun:
        # the cluster that RAY_ADDRESS names, or one of this machine; its nodes get this very code
        package = str(Path(__file__).parents[1])
        ray.init(runtime_env={"py_modules": [package]}, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    blocks = min(len(tasks), 1000)
    try:
        numbers = ray.data.from_items([{"task": n} for n in range(len(tasks))], override_num_blocks=blocks)
        call = partial(_row, function, ray.put(list(tasks)))
        done = 0
        for batch in numbers.map(call).iter_batches(batch_size=None):
            done += len(batch["task"])
            progress(done, len(tasks))
    except RayTaskError as error:
        cause = error.cause
        while cause is not None and not isinstance(cause, DiptychError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        raise cause or error from None
    finally:
        if begun:
            ray.shutdown()


def _row(function: Callable[[Task], None], tasks: Any, row: dict[str, Any]) -> dict[str, Any]:
    import ray

    function(ray.get(tasks)[row["task"]])
    return {"task": row["task"]}
