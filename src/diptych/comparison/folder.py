"""The folder of a run: what it is a run of, its finished cells, its outputs. Finished cells are never redone."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import DiptychError
from diptych.files import atomic, is_bare

Key = tuple[str, int | str, int]


class RunFolder:
    """`identity` is everything that a figure depends on; a folder of another identity is refused.

    Layout: run.json, cells/<method>-<shots>-<seed>.json and .npz, results.json, report.html, winner.safetensors.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, json.loads(json.dumps(identity))
        self.cells = path / "cells"

    def open(self) -> None:
        """Start a run or continue the same one. Raises DiptychError naming what differs."""
        self.refuse_others()
        about = self.path / "run.json"
        if not about.exists():
            with atomic(about) as temporary:
                temporary.write_text(json.dumps(self.identity, indent=1))

    def refuse_others(self) -> None:
        """Raise DiptychError where the folder holds something else; write nothing."""
        about = self.path / "run.json"
        if about.exists():
            try:
                found = json.loads(about.read_text())
            except ValueError as error:
                raise DiptychError(f"{about} is damaged; remove the folder or choose another --out") from error
            differs = [k for k in self.identity if found.get(k) != self.identity[k]]
            if differs:
                first = differs[0]
                raise DiptychError(
                    f"{self.path} holds another run: {', '.join(differs)} differ "
                    f"({first}: {shorten(found.get(first))} there, {shorten(self.identity[first])} now); "
                    "choose another --out, or ask for the same again to continue it"
                )
        elif self.path.exists() and not (self.path.is_dir() and is_bare(self.path)):
            raise DiptychError(f"{self.path} exists and is not a run of diptych; choose another --out")

    def finished(self, name: str) -> dict[str, Any] | None:
        """The row of a finished cell; None where it is still to be done."""
        try:
            row = json.loads((self.cells / f"{name}.json").read_text())
            if "skipped" not in row:
                self.probabilities(name)
            return row
        except (OSError, ValueError, KeyError):
            return None

    def finish(self, name: str, row: dict[str, Any], probabilities: np.ndarray | None) -> None:
        """The probabilities first: a row that is there is whole."""
        if probabilities is not None:
            with atomic(self.cells / f"{name}.npz") as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, probabilities=probabilities.astype(np.float32))
        with atomic(self.cells / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(row))

    def probabilities(self, name: str) -> np.ndarray:
        with np.load(self.cells / f"{name}.npz", allow_pickle=False) as file:
            return file["probabilities"]


class Probabilities(Mapping[Key, np.ndarray]):
    """The finished cells' probabilities, read when they are asked for."""

    def __init__(self, folder: RunFolder, names: dict[Key, str]) -> None:
        self.folder, self.names = folder, names

    def __getitem__(self, key: Key) -> np.ndarray:
        return self.folder.probabilities(self.names[key])

    def __iter__(self) -> Iterator[Key]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def shorten(value: Any, width: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 3] + "..."
