"""Where the metrics of a run go beside metrics.csv: TensorBoard, and Weights & Biases."""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Writer = Callable[[Mapping[str, float]], None]


@contextlib.contextmanager
def writers(folder: Path, done: int, about: Mapping[str, Any]) -> Iterator[list[Writer]]:
    """TensorBoard where it is installed (the `train` extra), W&B where it is and WANDB_PROJECT names a project.

    done: the steps that a run which is taken up again has behind it; what was written of later ones is dropped.
    about: the run's config.
    """
    found: list[Writer] = []
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            purge = done + 1 if done else None
            board = stack.enter_context(SummaryWriter(str(folder / "tensorboard"), purge_step=purge))

            def to_board(row: Mapping[str, float]) -> None:
                for name, value in row.items():
                    if name != "step":
                        board.add_scalar(name, value, int(row["step"]))

            found.append(to_board)
        if os.environ.get("WANDB_PROJECT") and importlib.util.find_spec("wandb"):
            import wandb  # pyright: ignore[reportMissingImports]

            same = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # one run there, however often begun
            run: Any = stack.enter_context(
                wandb.init(dir=str(folder), name=folder.name, id=same, resume="allow", config=dict(about))
            )
            found.append(lambda row: run.log(dict(row), step=int(row["step"])))
        yield found
