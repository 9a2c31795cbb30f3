"""Gradient checkpointing: peak memory and time of a training step of a picture tower, against open_clip's own.

    python benchmarks/checkpointing.py --out docs/results/checkpointing.json      about a minute on one core

ViT-S-16 of open_clip on 4 pictures of 224 px: forward, backward. Each way runs in processes of its own, forked with
the model and the pictures in memory, in turns; memory is what the process grows by at its peak, seconds are processor
time of the second step. "open_clip" is its vision transformer with `set_grad_checkpointing`, which is torch's.
"""

import argparse
import ctypes
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from diptych.core.build import image_tower
from diptych.engine.provenance import provenance
from diptych.files import write_atomically

WAYS = ("kept", "diptych", "open_clip")
PICTURES = 4


def peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way: str, visual: Any, pixels: torch.Tensor, out: Any) -> None:
    ctypes.CDLL(None).malloc_trim(0)
    if way == "open_clip":
        visual.set_grad_checkpointing(True)
        run = visual
    else:
        tower = image_tower(visual, visual.output_dim).train()
        tower.set_checkpoint(way == "diptych")

        def run(pixels: torch.Tensor) -> torch.Tensor:
            return tower(pixels).embedding

    before, seconds = peak(), 0.0
    for _ in range(2):
        visual.zero_grad()
        start = time.process_time()
        run(pixels).square().mean().backward()
        seconds = time.process_time() - start
    gradients = [p.grad.double().sum().item() for p in visual.parameters()]
    out.put((peak() - before, seconds, gradients))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    import open_clip

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config: Any = open_clip.get_model_config("ViT-S-16")
    visual = open_clip.CLIP(**config).visual.train()
    pixels = torch.randn(PICTURES, 3, 224, 224)
    context = multiprocessing.get_context("fork")
    found: dict[str, list[tuple[float, float, list[float]]]] = {way: [] for way in WAYS}
    for _ in range(given.repeats):
        for way in WAYS:
            out = context.Queue()
            child = context.Process(target=measure, args=(way, visual, pixels, out))
            child.start()
            found[way].append(out.get(timeout=600))
            child.join()
    right = torch.tensor(found["kept"][0][2])
    result: dict[str, Any] = {"model": "ViT-S-16", "pictures": PICTURES}
    for way, rows in found.items():
        memory, seconds = ([row[i] for row in rows] for i in (0, 1))
        apart = max(float((torch.tensor(row[2]) - right).abs().max()) for row in rows)
        result[way] = {"peak_mb": memory, "cpu_seconds": seconds, "largest_difference_of_gradient_sums": apart}
    for way in ("diptych", "open_clip"):
        for key in ("peak_mb", "cpu_seconds"):
            share = statistics.median(result[way][key]) / statistics.median(result["kept"][key])
            result[way][f"{key}_of_kept"] = share
    print(json.dumps(result, indent=1))
    if given.out:
        write_atomically(given.out, json.dumps(result | {"provenance": provenance()}, indent=1).encode())


if __name__ == "__main__":
    main()
