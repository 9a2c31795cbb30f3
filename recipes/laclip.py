"""LaCLIP on CC12M: ViT-B/16, each caption beside four rewrites of it, 35 epochs in batches of 8,192.

    python recipes/laclip.py --data cc12m.parquet --text caption,chatgpt,bard,coco,human --eval imagenet/val --devices 8
    not published; ImageNet zero-shot 48.4% (CLIP 40.2%)

    python recipes/laclip.py --tiny
    35 s of one core; held-out scenes 14% (chance 1.7%)

Fan et al., Improving CLIP Training with Language Rewrites, arXiv 2305.20088, and the command of its code; rewrites are
made by `diptych.data.rewrites`. Normalisation is CLIP's, where the code has ImageNet's.
"""

from typing import Any

from diptych.training.recipes import TINY, held_out, run, scenes


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "laclip",
            "model": TINY,
            "data": scenes("short", *(f"rewrite {i}" for i in range(4))),
            "evaluate": held_out(),
            "steps": 200,
            "eval_every": 200,
            "batch": 64,
            "rate": 2e-3,
            "settings": {"recipe.crop": 0.9, "recipe.weight_decay": 0.2},
            "out": "runs/laclip-tiny",
        }
    return {
        "system": "laclip",
        "model": "ViT-B-16",
        "epochs": 35,
        "batch": 8192,
        "rate": 1e-3,
        "settings": {"recipe.weight_decay": 0.5, "recipe.warmup": 1330, "recipe.chunk": 256},
        "out": "runs/laclip",
    }


if __name__ == "__main__":
    run(__doc__, arguments)
