"""FLIP on LAION-400M: ViT-L/16 that sees half of the patches, 6.4 epochs in batches of 32,768.

    python recipes/flip.py --data "laion400m/{00000..41455}.tar" --eval imagenet/val --devices 8
    about 250 TPU-days (CLIP's 32 epochs take 2,500, figure 1); ImageNet zero-shot 70.1%

    python recipes/flip.py --tiny
    50 s of one core; held-out scenes 12% (chance 1.7%)

Li et al., Scaling Language-Image Pre-training via Masking, arXiv 2212.00794, table 1: rate 4e-6 for each 256 pairs of
the batch, 51.2 million pairs of warm-up, and 0.32 epochs on whole pictures at the end (69.6% without).
The tiny variant's pictures have 16 patches, of which half is little.
"""

from typing import Any

from diptych.training.recipes import TINY, held_out, run, scenes


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "flip",
            "model": TINY,
            "data": scenes("short"),
            "evaluate": held_out(),
            "steps": 400,
            "eval_every": 400,
            "batch": 64,
            "rate": 2e-3,
            "settings": {"flip.finish": 0.1, "recipe.crop": 0.9},
            "out": "runs/flip-tiny",
        }
    return {
        "system": "flip",
        "model": "ViT-L-16",
        "epochs": 6.4,
        "batch": 32_768,
        "rate": 4e-6 * 32_768 / 256,
        "settings": {
            "flip.keep": 0.5,
            "flip.finish": 0.32 / 6.4,
            "recipe.beta2": 0.95,
            "recipe.warmup": 51_200_000 // 32_768,
            "recipe.chunk": 256,
        },
        "out": "runs/flip",
    }


if __name__ == "__main__":
    run(__doc__, arguments)
