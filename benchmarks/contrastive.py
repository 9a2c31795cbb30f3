"""Large contrastive batches against open_clip: memory and time of the loss, and what batches in chunks cost.

    OMP_NUM_THREADS=1 python benchmarks/contrastive.py [--write] [--rows 16384] [--width 512] [--repeats 3]

"softmax", "sigmoid": `tiled_contrastive` and `tiled_sigmoid` against open_clip's `ClipLoss` and `SigLipLoss`, forward
and backward, one thread. Each side runs in a fresh process; its extra memory is the peak of the resident set less what
was resident once the inputs stood (a small batch has run before, so that loading libraries is not counted). The sides
take turns; times are medians of processor time.

"chunks": one step of a batch in eight chunks, `embed_in_chunks` and one loss against open_clip's training loop with
`accum_freq=8`, rebuilt here from its source: embeddings of all chunks without a graph, then each chunk again with the
others' rows as constants, a loss and a backward pass for each. "Loss part" is all between embeddings and their
gradients. Gradients are compared with those of the whole batch in one graph, as a share of each tensor's largest.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.engine.chunks import embed_in_chunks
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.losses.tiled import tiled_contrastive, tiled_sigmoid

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "contrastive.json"
ASKED = {"memory": 1 / 12, "time": 1.2, "loss_part": 1 / 4, "difference": 1e-6}
CHUNKS = 8
SIDES = ("open_clip", "diptych")
LOSSES: dict[str, dict[str, Callable[..., Tensor]]] = {
    "softmax": {
        "open_clip": lambda a, b, scale, bias: ClipLoss()(a, b, scale),
        "diptych": lambda a, b, scale, bias: tiled_contrastive(a, b, scale),
    },
    "sigmoid": {"open_clip": SigLipLoss(), "diptych": tiled_sigmoid},
}


# -- the loss --------------------------------------------------------------------------------------------------------


def inputs(rows: int, width: int) -> list[Tensor]:
    """Two sets of unit rows that agree a little, the logarithm of the temperature's inverse, and a bias."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, width, generator=generator) for _ in range(2))
    return [F.normalize(a, dim=1), F.normalize(b + 0.3 * a, dim=1), torch.tensor(1 / 0.07).log(), torch.tensor(-10.0)]


def resident(field: str) -> int:
    """Bytes; VmRSS: now, VmHWM: at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def one_side(name: str, side: str, rows: int, width: int, kept: Path) -> dict[str, float]:
    """Forward and backward once, in this process; gradients go to `kept`."""
    loss = LOSSES[name][side]
    a, b, log_scale, bias = (t.requires_grad_() for t in inputs(256, width))
    loss(a, b, log_scale.exp(), bias).backward()
    a, b, log_scale, bias = (t.requires_grad_() for t in inputs(rows, width))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, wall, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    value = loss(a, b, log_scale.exp(), bias)
    value.backward()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found = {"bytes": resident("VmHWM") - before, "cpu": cpu, "wall": wall, "loss": value.item()}
    tensors = {"a": a, "b": b, "log_scale": log_scale, "bias": bias}
    save_file({name: t.grad for name, t in tensors.items() if t.grad is not None}, kept)
    return found


def compare_losses(name: str, rows: int, width: int, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    gradients: dict[str, dict[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            for side in [*SIDES][:: 1 if i % 2 else -1]:
                kept = Path(folder, side)
                words = [
                    sys.executable,
                    __file__,
                    "--loss",
                    name,
                    "--side",
                    side,
                    "--rows",
                    str(rows),
                    "--width",
                    str(width),
                ]
                done = subprocess.run([*words, "--kept", str(kept)], capture_output=True, text=True, check=True)
                runs[side].append(json.loads(done.stdout))
                gradients[side] = load_file(kept)
                print(f"{name}, {side}: {runs[side][-1]}", file=sys.stderr)

    def median(side: str, what: str) -> float:
        return statistics.median(run[what] for run in runs[side])

    def ratio(what: str) -> float:
        pairs = zip(runs["diptych"], runs["open_clip"], strict=True)
        return round(statistics.median(ours[what] / theirs[what] for ours, theirs in pairs), 4)

    values = {side: runs[side][0]["loss"] for side in SIDES}
    row = {
        "what": name,
        "rows": rows,
        "width": width,
        "repeats": repeats,
        "extra_mb": {side: round(median(side, "bytes") / 1e6, 1) for side in SIDES},
        "memory_ratio": ratio("bytes"),
        "cpu_seconds": {side: round(median(side, "cpu"), 2) for side in SIDES},
        "cpu_ratio": ratio("cpu"),
        "wall_ratio": ratio("wall"),
        "loss": values,
        "gradient_difference": shares(gradients["diptych"], gradients["open_clip"]),
    }
    equal = max(row["gradient_difference"].values()) <= 1e-5 and math.isclose(*values.values(), rel_tol=1e-6)
    row["reached"] = row["memory_ratio"] <= ASKED["memory"] and row["cpu_ratio"] <= ASKED["time"] and equal
    return row


def shares(found: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each tensor as a share of its largest entry."""
    return {name: float((found[name] - right[name]).abs().max() / right[name].abs().max()) for name in right}


# -- batches in chunks -----------------------------------------------------------------------------------------------


class Towers(nn.Module):
    """Two small towers and a temperature, with open_clip's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(192, 256), nn.GELU(), nn.Linear(256, width))
        self.text = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, width))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, chunk: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, texts = chunk
        return {
            "image_features": F.normalize(self.image(images), dim=1),
            "text_features": F.normalize(self.text(texts), dim=1),
        }


def timed_loss(loss: Callable[..., Tensor], rows: dict[str, Tensor], scale: Tensor) -> tuple[float, list[Tensor]]:
    """Processor seconds of the loss and its gradients; the gradients of the two features and of the scale."""
    leaves = [rows["image_features"].detach().requires_grad_(), rows["text_features"].detach().requires_grad_()]
    leaves.append(scale.detach().requires_grad_())
    start = time.process_time()
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    return time.process_time() - start, list(gradients)


def accumulated(model: Towers, chunks: list[tuple[Tensor, Tensor]]) -> float:
    """open_clip's loop with accum_freq; -> processor seconds of its loss parts."""
    with torch.no_grad():
        kept = [model(chunk) for chunk in chunks]
    seconds = 0.0
    for j, chunk in enumerate(chunks):
        own, scale = model(chunk), model.logit_scale.exp()
        start = time.process_time()
        rows = {name: torch.cat([*(k[name] for k in kept[:j]), own[name], *(k[name] for k in kept[j + 1 :])])
                for name in own}  # fmt: skip
        seconds += time.process_time() - start
        taken, gradients = timed_loss(ClipLoss(), rows, scale)
        seconds += taken
        place = slice(j * len(chunk[0]), (j + 1) * len(chunk[0]))
        torch.autograd.backward([*own.values(), scale], [gradients[0][place], gradients[1][place], gradients[2]])
    return seconds


def cached(model: Towers, chunks: list[tuple[Tensor, Tensor]]) -> float:
    """Ours; -> processor seconds of the one loss."""
    rows, scale = embed_in_chunks(model, chunks), model.logit_scale.exp()
    seconds, gradients = timed_loss(tiled_contrastive, rows, scale)
    torch.autograd.backward([*rows.values(), scale], gradients)
    return seconds


def compare_chunks(rows: int, width: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Towers(width)
    images, texts = torch.randn(rows, 192), torch.randn(rows, 64)
    chunks = list(zip(images.chunk(CHUNKS), texts.chunk(CHUNKS), strict=True))

    def gradients() -> dict[str, Tensor]:
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    whole = model((images, texts))
    ClipLoss()(*whole.values(), model.logit_scale.exp()).backward()
    right = gradients()
    seconds: dict[str, list[float]] = {"open_clip": [], "diptych": []}
    differences: dict[str, dict[str, float]] = {}
    scale: dict[str, float] = {"big_batch": float(right["logit_scale"])}
    for i in range(repeats):
        steps = {"open_clip": accumulated, "diptych": cached}
        for side in [*steps][:: 1 if i % 2 else -1]:
            seconds[side].append(steps[side](model, chunks))
            found = gradients()
            differences[side] = shares(found, right)
            scale[side] = float(found["logit_scale"])
    ratios = [ours / theirs for ours, theirs in zip(seconds["diptych"], seconds["open_clip"], strict=True)]
    row = {
        "what": "chunks",
        "rows": rows,
        "width": width,
        "chunks": CHUNKS,
        "repeats": repeats,
        "loss_part_cpu_seconds": {side: round(statistics.median(found), 3) for side, found in seconds.items()},
        "loss_part_ratio": round(statistics.median(ratios), 4),
        "largest_gradient_difference": {side: max(found.values()) for side, found in differences.items()},
        "gradient_difference_of_towers": {
            side: max(v for name, v in found.items() if name != "logit_scale") for side, found in differences.items()
        },
        "logit_scale_gradient": scale,
        "logit_scale_gradient_times": {side: round(scale[side] / scale["big_batch"], 5) for side in seconds},
    }
    close = row["largest_gradient_difference"]["diptych"] <= ASKED["difference"]
    row["reached"] = row["loss_part_ratio"] <= ASKED["loss_part"] and close
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/results/contrastive.json")
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--chunked-rows", type=int, default=4096, help="the batch in eight chunks")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loss", choices=[*LOSSES], help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=[*SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--kept", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side:
        print(json.dumps(one_side(options.loss, options.side, options.rows, options.width, options.kept)))
        return 0
    rows = [
        *(compare_losses(name, options.rows, options.width, options.repeats) for name in LOSSES),
        compare_chunks(options.chunked_rows, options.width, options.repeats),
    ]
    result = {"asked": ASKED, "rows": rows, "provenance": provenance() | {"threads": 1}}
    text = json.dumps(result, indent=1)
    print(text)
    if options.write:
        write_atomically(RESULTS, text.encode())
    return 0 if all(row["reached"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
