"""ProtoCLIP on CC2.5M: RN50, 400 episodes of 200,000 pairs in batches of 512.

    python recipes/protoclip.py --data "cc/{00000..00263}.tar" --eval imagenet/val --devices 8
    not published (8 epochs took 1.8 times CLIP's time); ImageNet zero-shot 21.5% (CLIP 19.5%)

    python recipes/protoclip.py --tiny
    34 s of one core; held-out scenes 16% (chance 1.7%)

Chen et al., ProtoCLIP: Prototypical Contrastive Language Image Pretraining, arXiv 2206.10996, and the commands of its
code. The published run has colour jitter, grey and blur too, and an external teacher (protoclip.teacher) in its best
rows.
"""

from typing import Any

from diptych.training.recipes import TINY, held_out, run, scenes


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "protoclip",
            "model": TINY,
            "data": scenes("short"),
            "evaluate": held_out(),
            "steps": 200,
            "eval_every": 200,
            "batch": 64,
            "rate": 2e-3,
            "settings": {
                "protoclip.episode": 1024,
                "protoclip.clusters": 60,
                "protoclip.hidden": 256,
                "recipe.weight_decay": 0.2,
            },
            "out": "runs/protoclip-tiny",
        }
    return {
        "system": "protoclip",
        "model": "RN50",
        "steps": 400 * 200_000 // 512,
        "batch": 512,
        "rate": 5e-4,
        "settings": {
            "protoclip.episodes": 400,
            "protoclip.episode": 200_000,
            "protoclip.clusters": 20_000,
            "recipe.weight_decay": 0.5,
            "recipe.warmup": 15_625,
            "recipe.clip": 10.0,
        },
        "out": "runs/protoclip",
    }


if __name__ == "__main__":
    run(__doc__, arguments)
