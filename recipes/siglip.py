"""SigLIP from scratch: ViT-B/16, 9 billion pairs of WebLI in batches of 32,768.

    python recipes/siglip.py --data "webli/{00000..99999}.tar" --eval imagenet/val --devices 8
    5 days on 32 TPUv4 chips; ImageNet zero-shot 73.4%

    python recipes/siglip.py --tiny
    53 s of one core; held-out scenes 9% (chance 1.7%)

Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, table 1. WebLI is not public, and the
paper's text tower reads SentencePiece tokens; this one is CLIP's.
"""

from typing import Any

from diptych.training.recipes import TINY, held_out, run, scenes


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "siglip",
            "model": TINY,
            "data": scenes("short"),
            "evaluate": held_out(),
            "steps": 400,
            "eval_every": 400,
            "batch": 64,
            "rate": 2e-3,
            "settings": {"siglip.bias": -4.0},  # as many pairs of 64 x 64 are right; -10 suits 32,768
            "out": "runs/siglip-tiny",
        }
    return {
        "system": "siglip",
        "model": "ViT-B-16",
        "steps": 9_000_000_000 // 32_768,
        "batch": 32_768,
        "rate": 1e-3,
        "settings": {"recipe.weight_decay": 1e-4, "recipe.beta2": 0.95, "recipe.chunk": 256},
        "out": "runs/siglip",
    }


if __name__ == "__main__":
    run(__doc__, arguments)
