"""What a training step costs when the picture tower sees a part of the patches: ViT-B/16 of open_clip, one thread.

    OMP_NUM_THREADS=1 python benchmarks/patch_dropout.py [--batch 8] [--repeats 5] [--write]      five CPU minutes

"tower": forward and backward of the picture tower alone, with all 196 patches, half and a quarter of them. "step": the
whole step of `flip` on both towers, with the loss, AdamW and texts at their own length, which dropping patches leaves
as they are. Variants take turns; times are medians of processor time.
Checks: keeping every patch gives the tower's own embeddings, and so many tokens as are kept go through the blocks.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.fresh import fresh
from diptych.core.towers.blocks import only_patches
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.pretrain.parts.chance import chances
from diptych.methods.pretrain.parts.contrast import unit

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "patch_dropout.json"
KEPT = {"all": 1.0, "half": 0.5, "quarter": 0.25}
ASKED = 1.8
TEXTS = (
    "a photo of a small boat on a calm lake", "two dogs run through snow", "an old lighthouse at dusk by the sea",
    "kids playing football in the rain near a school", "tomato soup in a bowl", "a red tractor on a field in autumn",
    "a woman who is reading a newspaper on a train to the city", "bridge over a river in fog",
)  # fmt: skip


def keep(share: float, batch: int) -> Callable[[int], Tensor]:
    """As flip chooses: the first of a random order."""
    return lambda count: chances(0, 0, torch.arange(batch), count).argsort(1)[:, : max(1, round(share * count))]


def dropping(clip: Any, share: float, batch: int) -> Any:
    return nullcontext() if share == 1 else only_patches(clip.image, keep(share, batch))


def check(clip: Any, pixels: Tensor) -> float:
    """Largest difference of the embeddings where every patch is kept, and the number of tokens in the blocks."""
    seen: list[int] = []
    block = clip.image.block

    def counted(index: int, hidden: Tensor, *rest: Any) -> Any:
        seen.append(hidden.shape[1])
        return block(index, hidden, *rest)

    with torch.inference_mode():
        right = clip.image(pixels).embedding
        with only_patches(clip.image, lambda count: torch.arange(count).expand(len(pixels), -1)):
            found = clip.image(pixels).embedding
        clip.image.block = counted
        for share in KEPT.values():
            with dropping(clip, share, len(pixels)):
                clip.image(pixels)
        del clip.image.block
    assert seen[:: len(seen) // 3] == [1 + round(196 * share) for share in KEPT.values()], seen
    return float((found - right).abs().max())


def timed(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clip = fresh("ViT-B-16").train().requires_grad_(True)
    pixels = torch.randn(given.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    short = clip.tokenize([TEXTS[i % len(TEXTS)] for i in range(given.batch)])
    optimiser = torch.optim.AdamW(clip.parameters(), 1e-5)
    difference = check(clip, pixels[:2])
    assert difference < 1e-5, difference

    def tower(share: float) -> None:
        with dropping(clip, share, given.batch):
            clip.image(pixels).embedding.square().sum().backward()

    def step(share: float) -> None:
        optimiser.zero_grad()
        with dropping(clip, share, given.batch):
            image = clip.image(pixels).embedding
        rows = unit({"image": image, "text": clip.text(short).embedding}, "image", "text")
        softmax_contrastive(*rows, clip.logit_scale).backward()
        optimiser.step()

    parts = {"tower": tower, "step": step}
    works = {f"{what} {name}": (run, share) for what, run in parts.items() for name, share in KEPT.items()}
    for run, share in works.values():
        run(share)  # once before it counts
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(given.repeats):
        for name in [*works][:: 1 if turn % 2 else -1]:
            run, share = works[name]
            seconds[name].append(timed(lambda run=run, share=share: run(share)))
        print(f"{turn + 1}/{given.repeats}", {name: round(spent[-1], 2) for name, spent in seconds.items()}, flush=True)
    result: dict[str, Any] = {"batch": given.batch, "text_tokens": int(short.ids.shape[1]), "difference": difference}
    for what in ("tower", "step"):
        whole = seconds[f"{what} all"]
        result[what] = {"cpu_seconds": {n: round(statistics.median(seconds[f"{what} {n}"]), 3) for n in KEPT}}
        for name in ("half", "quarter"):
            ratios = [a / b for a, b in zip(whole, seconds[f"{what} {name}"], strict=True)]
            result[what] |= {f"times_faster_{name}": round(statistics.median(ratios), 2),
                             f"range_{name}": [round(min(ratios), 2), round(max(ratios), 2)]}  # fmt: skip
    result |= {"asked": ASKED, "reached": result["tower"]["times_faster_half"] >= ASKED, "provenance": provenance()}
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}, indent=1))
    if given.write:
        write_atomically(RESULTS, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
