"""LiT on public data: a text tower learns to read from a ViT-B/16 of ImageNet-21k, locked; CC12M and YFCC100M.

    python recipes/lit.py --model imagenet21k-b16 --data "cc12m-yfcc/{00000..11000}.tar" --eval imagenet/val --devices 8
    not published; ImageNet zero-shot 72.1%

    python recipes/lit.py --tiny
    29 s of one core, after clip's; held-out scenes 26% (chance 1.7%)

Zhai et al., LiT: Zero-Shot Transfer with Locked-image Text Tuning, arXiv 2111.07991; 983 million pairs. The paper's
text tower is BERT's, pretrained; --model names a folder of a CLIP with the two towers. The tiny variant takes the
picture tower of `recipes/clip.py --tiny`, to be run before, and a text tower that knows nothing.
"""

from pathlib import Path
from typing import Any

from diptych.core.clip import CLIP
from diptych.core.fresh import fresh
from diptych.core.load import load
from diptych.errors import DiptychError
from diptych.training.recipes import TINY, held_out, run, scenes

TAUGHT = Path("runs/clip-tiny/model")


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "lit",
            "model": locked(),
            "data": scenes("short"),
            "evaluate": held_out(),
            "steps": 200,
            "eval_every": 200,
            "batch": 64,
            "rate": 2e-3,
            "out": "runs/lit-tiny",
        }
    return {
        "system": "lit",
        "model": "imagenet21k-b16",
        "steps": 60_000,
        "batch": 16_384,
        "rate": 1e-3,
        "settings": {"recipe.weight_decay": 1e-4, "recipe.chunk": 256},
        "out": "runs/lit",
    }


def locked() -> CLIP:
    """A picture tower that was taught, beside a fresh text tower."""
    if not TAUGHT.is_dir():
        raise DiptychError(f"{TAUGHT} is not there: run python recipes/clip.py --tiny before")
    clip = fresh(TINY)
    clip.image.load_state_dict(load(str(TAUGHT), device="cpu").image.state_dict())
    return clip


if __name__ == "__main__":
    run(__doc__, arguments)
