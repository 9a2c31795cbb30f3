"""Symile: pictures, texts and a third modality, of which any two tell nothing of each other.

    python recipes/symile.py --data "m3/{00000..03300}.tar" --devices 8
    not published; above CLIP on pairs in all 3 experiments of the paper

    python recipes/symile.py --tiny
    TIME on an idle core; pictures from text and sound SCORE (chance 25%)

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

from diptych.data.pairs import Pair, Pairs
from diptych.data.scenes import Triples, TripleSpec
from diptych.methods.pretrain.symile import Symile, scores
from diptych.training.folder import TrainingFolder
from diptych.training.recipes import SCENE, TINY, run
from diptych.training.run import Trained

SPEC = TripleSpec(SCENE, values=4)


def arguments(tiny: bool) -> dict[str, Any]:
    """Of `diptych.train`."""
    if tiny:
        return {
            "system": "symile",
            "model": TINY,
            "data": triples(8192, seed=0),
            "steps": 200,
            "batch": 64,
            "rate": 2e-3,
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
        spectrum = np.abs(np.fft.rfft(pair.extra["sound"]))[:50] / 100
        return replace(pair, extra={"spectrum": spectrum.astype(np.float32)})

    return replace(found, get=get)


@torch.inference_mode()
def score(made: Trained) -> float:
    """Held-out triples: the share whose text and sound find, among all their pictures, one of the right shape."""
    held = triples(400, seed=1)
    shapes = torch.tensor([triple.classes[0] for triple in Triples(SPEC, 400, seed=1)])
    pairs = [held[i] for i in range(len(held))]
    found = TrainingFolder(made.folder, {}).last()
    assert found is not None
    objective = Symile()
    objective.prepare(made.clip, held, 0)
    assert objective.heads is not None
    objective.heads.load_state_dict(found.part("heads"))
    spectra = torch.from_numpy(np.stack([pair.extra["spectrum"] for pair in pairs]))
    images = made.clip.encode_image(torch.stack([made.clip.preprocess(pair.picture()) for pair in pairs]))
    texts = made.clip.encode_text([pair.texts[0] for pair in pairs])
    sounds = objective.heads["spectrum"](spectra)
    best = scores([texts, sounds], images).argmax(1)
    return float((shapes[best] == shapes).float().mean())


if __name__ == "__main__":
    run(__doc__, arguments, score)
