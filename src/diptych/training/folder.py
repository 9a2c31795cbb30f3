"""The folder of a training run: run.json, metrics.csv, checkpoints/, report.html, model/; nothing half-written.

A checkpoint is a folder with tensors.safetensors and state.json, named by the steps that were done.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.comparison.folder import RunFolder
from diptych.errors import DiptychError
from diptych.files import atomic_folder, write_atomically

KEPT = 2  # checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """step: how many are done."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix.`"""
        return {k.removeprefix(f"{prefix}."): v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}


class TrainingFolder(RunFolder):
    """`RunFolder` of a training: continues the same run, refuses another. One without a finished step is none yet."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        super().__init__(path, identity)
        self.checkpoints, self.metrics = path / "checkpoints", path / "metrics.csv"
        self.columns: list[str] = []

    def is_none(self) -> bool:
        """Whether no step has been finished here: then another run may begin."""
        if not self.path.is_dir():
            return not self.path.exists()
        there = {path.name for path in self.path.iterdir()}
        return all(name.startswith(("broken", ".run.json.")) for name in there) or (
            "run.json" in there and "model" not in there and not self.rows() and not self.steps()
        )

    def refuse_others(self) -> None:
        if not self.is_none():
            super().refuse_others()

    def open(self) -> None:
        if self.is_none():  # at once in its place: stopped in between, the folder would be nobody's
            write_atomically(self.path / "run.json", json.dumps(self.identity, indent=1).encode())
        else:
            super().open()

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint, then drop the oldest."""
        from diptych.core.save import write_tensors

        with atomic_folder(self.checkpoints / f"{step:08d}") as place:
            write_tensors(tensors, place / "tensors.safetensors")
            (place / "state.json").write_text(json.dumps({"step": step, **state}))
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(self.checkpoints / f"{old:08d}")

    def steps(self) -> list[int]:
        """Of the checkpoints that are there."""
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def last(self) -> Checkpoint | None:
        """The latest checkpoint; remains of one that was being written are removed."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.checkpoints.is_dir():
            for remains in self.checkpoints.glob(".*"):
                shutil.rmtree(remains, ignore_errors=True)
        steps = self.steps()
        if not steps:
            return None
        place = self.checkpoints / f"{steps[-1]:08d}"
        try:
            state = json.loads((place / "state.json").read_text())
            return Checkpoint(steps[-1], load_file(place / "tensors.safetensors"), state)
        except (OSError, ValueError, SafetensorError) as error:
            raise DiptychError(f"{place} is damaged ({error}); remove it to go on from the one before") from error

    def rows(self) -> list[dict[str, float]]:
        """metrics.csv; cells that say nothing are left out."""
        if not self.metrics.is_file():
            return []
        with open(self.metrics, newline="") as file:
            lines = list(csv.DictReader(file))
        return [{k: float(v) for k, v in line.items() if k and v} for line in lines if line.get("seconds")]

    def begin(self, done: int, columns: Iterable[str] = ()) -> list[dict[str, float]]:
        """Keep the metrics of the steps that are done, drop later ones (they come again); -> those kept."""
        kept = [row for row in self.rows() if row["step"] <= done]
        names = dict.fromkeys(name for row in [*kept, dict.fromkeys(columns)] for name in row if name != "seconds")
        self.columns = [*names, "seconds"]  # last: a line without it was cut off
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns)
        writer.writeheader()
        writer.writerows({k: plain(v) for k, v in row.items()} for row in kept)
        write_atomically(self.metrics, out.getvalue().encode())
        return kept

    def log(self, row: dict[str, float]) -> None:
        """Append a line; a quantity that was not there before gets its column."""
        if not set(row) <= set(self.columns):
            self.begin(int(row["step"]) - 1, row)
        with open(self.metrics, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow({k: plain(v) for k, v in row.items()})


def plain(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.9g}"
