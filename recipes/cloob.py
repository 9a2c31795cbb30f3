"""CLOOB on CC3M: RN50, 70 epochs in batches of 512.

    python recipes/cloob.py --data "cc3m/{00000..00331}.tar" --eval imagenet/val --devices 4
    not published; ImageNet zero-shot 24.0% (CLIP 20.3%)

    python recipes/cloob.py --tiny
    53 s of one core; held-out scenes 25% (chance 1.7%)

Fürst et al., CLOOB: Modern Hopfield Networks with InfoLOOB Outperform CLIP, arXiv 2110.11316, and the command of its
code for CC3M: a scale of 30 and a beta of 8 that stay, 20,000 steps of warm-up, ten cosines with hard restarts.
The tiny variant begins with clip's loss: fresh towers, whose rows are all alike, would retrieve nothing but the mean.
"""

from typing import Any

from diptych.training.recipes import TINY, held_out, run, scenes


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "cloob",
            "model": TINY,
            "data": scenes("short"),
            "evaluate": held_out(),
            "steps": 400,
            "eval_every": 400,
            "batch": 64,
            "rate": 2e-3,
            "settings": {"cloob.start": 200, "cloob.scale": 14.3, "recipe.cycles": 1},  # fresh towers stand still
            "out": "runs/cloob-tiny",
        }
    return {
        "system": "cloob",
        "model": "RN50",
        "epochs": 70,
        "batch": 512,
        "rate": 1e-3,
        "settings": {
            "cloob.beta": 8.0,
            "cloob.scale": 30.0,
            "recipe.weight_decay": 0.1,
            "recipe.warmup": 20_000,
            "recipe.cycles": 10,
        },
        "out": "runs/cloob",
    }


if __name__ == "__main__":
    run(__doc__, arguments)
