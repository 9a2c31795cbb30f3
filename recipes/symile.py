"""Symile: pictures, texts and a third modality, of which any two tell nothing of each other.

    python recipes/symile.py --data "m3/{00000..03300}.tar" --devices 8
    not published; above CLIP on pairs in all 3 experiments of the paper

    python recipes/symile.py --tiny
    54 s of one core; pictures from text and sound 77% (chance 25%)

Saporta et al., Contrasting with Symile: Simple Model-Agnostic Representation Learning for Unlimited Modalities, arXiv
2411.01053: shuffled negatives, AdamW with a decay of 0.01. Its rates and batches for Symile-M3, 33 million triples, are
not known to us: those below are the class's own. A triple is a picture, a text, and a .json with a vector, such as
{"sound": [0.1, ...]}. In the tiny variant a picture shows shape (q + s) mod 4, a text names shape q and a sound, given
as its spectrum, plays note s.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from diptych.data.pairs import Pair, Pairs
from diptych.data.scenes import Triples, TripleSpec
from diptych.losses.multilinear import multilinear_scores
from diptych.methods.pretrain.symile import Symile
from diptych.training.batches import Batches, Order
from diptych.training.folder import TrainingFolder
from diptych.training.recipes import SCENE, TINY, run
from diptych.training.run import Trained

SPEC = TripleSpec(replace(SCENE, colours=("black",), backgrounds=("snow",)), values=4)


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "symile",
            "model": TINY,
            "data": triples(4096, seed=0),
            "steps": 400,
            "batch": 64,
            "rate": 1e-3,
            "settings": {"recipe.crop": 1.0},
            "out": "runs/symile-tiny",
        }
    return {
        "system": "symile",
        "model": "ViT-B-16",
        "epochs": 32,
        "batch": 256,
        "rate": 5e-4,
        "settings": {"symile.negatives": "shuffled", "recipe.weight_decay": 0.01},
        "out": "runs/symile",
    }


def triples(count: int, seed: int) -> Pairs:
    """A linear tower cannot hear a note at a chance phase; in the spectrum it can."""
    found = Triples(SPEC, count, seed).pairs()

    def get(index: int) -> Pair:
        pair = found[index]
        spectrum = np.abs(np.fft.rfft(pair.extra["sound"]))[:50]
        return replace(pair, extra={"spectrum": spectrum.astype(np.float32)})

    return replace(found, get=get)


@torch.inference_mode()
def score(made: Trained) -> float:
    """Held-out triples: the share whose text and sound find, among all their pictures, one of the right shape."""
    held, clip = triples(400, seed=1), made.clip
    shapes = torch.tensor([triple.classes[0] for triple in Triples(SPEC, 400, seed=1)])
    objective, kept = Symile(), TrainingFolder(made.folder, {}).last()
    objective.prepare(clip, held, 0)
    assert kept is not None and objective.heads is not None
    objective.heads.load_state_dict(kept.part("heads"))
    batch, _ = Batches(held, clip, objective, Order(400, 400, 0), crop=1, workers=0)[0]
    rows = {name: F.normalize(row, dim=1) for name, row in objective.embed(clip, batch).items()}
    best = multilinear_scores([rows["text"], rows["spectrum"]], rows["image"]).argmax(1)
    return float((shapes[batch.index][best] == shapes[batch.index]).float().mean())


if __name__ == "__main__":
    run(__doc__, arguments, score)
