"""CLIP as open_clip trained it on LAION-400M: ViT-B/32, 32 epochs in batches of 32,768.

    python recipes/clip.py --data "laion400m/{00000..41455}.tar" --eval imagenet/val --devices 8
    36 hours on 128 A100; ImageNet zero-shot 62.9%

    python recipes/clip.py --tiny
    32 s of one core; held-out scenes 18% (chance 1.7%)

Method: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020. The run
is open_clip's `ViT-B-32:laion400m_e32`, whose data can be collected again. Chunks of 256 pairs let any number of
devices take part: the gradients are those of the whole batch.
"""

from typing import Any

from diptych.training.recipes import TINY, held_out, run, scenes


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "clip",
            "model": TINY,
            "data": scenes("short"),
            "evaluate": held_out(),
            "steps": 200,
            "eval_every": 200,
            "batch": 64,
            "rate": 2e-3,
            "out": "runs/clip-tiny",
        }
    return {
        "system": "clip",
        "model": "ViT-B-32",
        "epochs": 32,
        "batch": 32_768,
        "rate": 5e-4,
        "settings": {"recipe.warmup": 2000, "recipe.weight_decay": 0.2, "recipe.chunk": 256},
        "out": "runs/clip",
    }


if __name__ == "__main__":
    run(__doc__, arguments)
