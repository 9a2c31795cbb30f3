"""ALIP on YFCC15M with captions of OFA-base: ViT-B/32, 32 epochs in batches of 4,096.

    python recipes/alip.py --data yfcc15m.parquet --text raw,caption --eval imagenet/val --devices 8
    not published; ImageNet zero-shot 40.3% (CLIP 32.8%)

    python recipes/alip.py --tiny
    38 s of one core; held-out scenes 25% (chance 1.7%)

Yang et al., ALIP: Adaptive Language-Image Pre-training with Synthetic Caption, arXiv 2308.08428, and the script of its
code. The tiny variant has texts of which four in ten tell of another scene, and captions that are right.
"""

from typing import Any

from diptych.training.recipes import TINY, held_out, run, scenes


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "alip",
            "model": TINY,
            "data": scenes("noisy", "rewrite", text_noise=0.4),
            "evaluate": held_out(),
            "steps": 200,
            "eval_every": 200,
            "batch": 64,
            "rate": 2e-3,
            "settings": {"alip.first_batch": True},  # 1 would starve so short a run
            "out": "runs/alip-tiny",
        }
    return {
        "system": "alip",
        "model": "ViT-B-32",
        "epochs": 32,
        "batch": 4096,
        "rate": 1e-3,
        "settings": {
            "alip.sample_gamma": 2.0,
            "alip.pair_gamma": 2.0,
            "recipe.weight_decay": 0.2,
            "recipe.clip": 1.0,
            "recipe.chunk": 512,
        },
        "out": "runs/alip",
    }


if __name__ == "__main__":
    run(__doc__, arguments)
