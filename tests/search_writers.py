"""Processes that index at one time, as `diptych index` does, with commits of a few rows."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diptych

SCRIPT = """
import json, sys
from fakes import colour_clip
from diptych.search import embed, run
from diptych.search.encoder import Encoder

encoder = Encoder(colour_clip())
run.Encoder.open = run.Encoder.of = lambda *_: encoder
embed.COMMIT = embed.BATCH = 4
print("ready", flush=True)
for line in sys.stdin:
    db, folder, captions = json.loads(line)
    made, (outcome,) = (lambda made, done: (made, done.values()))(*run.index(folder, db, captions=captions))
    counts = {name: getattr(outcome, name) for name in ("new", "changed", "gone", "same", "copies", "captions")}
    print(json.dumps(counts | {"set_aside": len(outcome.set_aside)}), flush=True)
"""


class Writers:
    """As many processes as there are folders to index at once."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.processes = processes

    def start(self, db: str | Path, folders: Sequence[Path], captions: bool = False) -> None:
        for process, folder in zip(self.processes, folders, strict=True):
            assert process.stdin
            process.stdin.write(json.dumps([str(db), str(folder), captions]) + "\n")
            process.stdin.flush()

    def done(self) -> list[dict[str, Any]]:
        return [json.loads(self.line(process)) for process in self.processes]

    def line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout and process.stderr
        return process.stdout.readline() or process.stderr.read()  # json tells a traceback apart


@contextlib.contextmanager
def writers(count: int = 2) -> Iterator[Writers]:
    path = [str(Path(diptych.__file__).parents[1]), str(Path(__file__).parent), *sys.path]
    options: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    options |= {"text": True, "env": os.environ | {"PYTHONPATH": os.pathsep.join(path)}}
    made = Writers([subprocess.Popen([sys.executable, "-c", SCRIPT], **options) for _ in range(count)])
    try:
        for process in made.processes:
            assert made.line(process) == "ready\n"
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.communicate()
