"""Writing a module as ONNX: any batch size, named inputs and outputs, nothing that tells of this machine."""

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import DiptychError, missing_extra

SINGLE_FILE = 1 << 30  # bytes of weights; ONNX files end at 2 GB, so that larger models put theirs beside the graph


def need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "onnx", "export")


def check_folder(place: Path, mark: str, version: str, files: Sequence[str]) -> None:
    """Raise unless `place` is new, empty, or holds `files` alone, of which `mark` is JSON with this "format"."""
    if not place.exists():
        return
    if not place.is_dir():
        raise DiptychError(f"{place} is a file; export writes a folder")
    names = sorted(path.name for path in place.iterdir() if path.name != "__pycache__")
    try:
        ours = json.loads((place / mark).read_text("utf-8"))["format"] == version
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    foreign = [name for name in names if not (ours and name in files)]
    if foreign:
        raise DiptychError(
            f"{place} holds {', '.join(foreign[:5])}{', ...' if len(foreign) > 5 else ''}: "
            "give a new folder, an empty one, or one with an earlier export alone"
        )


def write_onnx(
    program: nn.Module,
    input_name: str,
    example: Tensor,
    outputs: Sequence[str],
    path: Path,
    *,
    what: str,
    single_file: int = SINGLE_FILE,
    sizes: Mapping[int, Any] | None = None,
) -> None:
    """Trace `program` on `example` and write it. what: said where torch cannot.

    sizes: dimensions of the input that are left open, the batch among them, as `torch.export.Dim`.
    """
    weights = sum(t.nbytes for t in (*program.parameters(), *program.buffers()))
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            # A named Dim refuses a graph that would be right for some batch sizes alone. strict: the size stays open
            # where a tower asks for len(tensor), which plain tracing would fix.
            shapes = {input_name: dict(sizes or {0: torch.export.Dim("batch")})}
            traced = torch.export.export(program, (example,), dynamic_shapes=shapes, strict=True)
            onnx = torch.onnx.export(traced, dynamo=True, dynamic_shapes=shapes, verbose=False)
    except Exception as error:  # tracing runs foreign towers and raises anything at all
        first = str(error).strip().split("\n")[0]
        raise DiptychError(f"torch cannot write {what} as ONNX: {type(error).__name__} {first}") from error
    assert onnx is not None
    graph = onnx.model.graph
    values = [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for value in values:
        if value.name in (input_name, *outputs):  # torch names inner values after their operation: "embedding" is one
            value.name = f"inner_{value.name}"
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    for node in graph:
        node.metadata_props.clear()  # stack traces with paths of this machine
    onnx.save(path, external_data=weights > single_file)
