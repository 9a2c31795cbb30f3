"""The two scores of micro's card on few scenes, written anew: the benchmark's own code is not asked."""

from dataclasses import replace
from itertools import islice

import torch

from diptych.core.clip import CLIP
from diptych.data.scenes import Scenes, SceneSpec

SPEC = SceneSpec(counts=(2, 3), held_out=0.2)  # micro was trained on the other four fifths of the combinations
SMALL = replace(SPEC, sizes=("large", "small", "small"))


def classification(clip: CLIP, scenes: int, seed: int, shift: int = 0) -> dict[str, float]:
    """Which of 140 is the one large thing among small ones? shift: look at the next scenes' pictures instead."""
    found = [
        (r, [t for t in r.scene.things if t.size == "large"]) for r in islice(Scenes(SMALL, 10**6, seed), 4 * scenes)
    ]
    chosen = [(record, large[0]) for record, large in found if len(large) == 1][:scenes]
    rows = clip.encode_text([f"a large {colour} {shape}" for colour, shape in SPEC.pairs])
    pixels = torch.stack([clip.preprocess(record.image()) for record, _ in chosen]).roll(shift, 0)
    guesses = clip.score(clip.encode_image(pixels), rows).argmax(1)
    right = [SPEC.pairs[g] == (t.colour, t.shape) for g, (_, t) in zip(guesses, chosen, strict=True)]
    never = [ok for ok, (_, t) in zip(right, chosen, strict=True) if (t.colour, t.shape) in SPEC.held_pairs]
    return {"all": sum(right) / len(right), "never": sum(never) / len(never)}


def retrieval(clip: CLIP, pool: int, seed: int, shift: int = 0) -> float:
    """How often the first picture for a caption is its own, of captions that name a combination never trained on."""
    records = (
        r for r in Scenes(SPEC, 10**6, seed) if any((p.colour, p.shape) in SPEC.held_pairs for p in r.statement.phrases)
    )
    chosen = list(islice(records, pool))
    pixels = torch.stack([clip.preprocess(record.image()) for record in chosen]).roll(shift, 0)
    scores = clip.score(clip.encode_image(pixels), clip.encode_text([record.text() for record in chosen]))
    return float((scores.argmax(0) == torch.arange(pool)).double().mean())
