"""What is held out of pairs before anything is trained, and how well a CLIP finds picture and text in it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.data.pairs import BadPair
from diptych.data.pictures import BadPicture
from diptych.errors import DiptychError
from diptych.methods.continual.parts.learner import Joined
from diptych.methods.pretrain.parts.objective import PairLike, PairsLike
from diptych.metrics.retrieval import recall_at

BATCH = 64
MOST, SHARE = 500, 5  # held out where nothing is said: so many pictures, but at most one in SHARE
KS = (1, 5, 10)


@dataclass(frozen=True)
class Embedded:
    """Unit embeddings of pictures [N, D] and of their texts [M, D]; own [N, M]: which text fits which picture."""

    image: Tensor
    text: Tensor
    own: Tensor

    def recalls(self) -> dict[str, dict[int, float]]:
        """Recall at 1, 5 and 10 in both directions, and their mean."""
        scores = self.image @ self.text.T
        to_text, to_image = recall_at(scores, self.own, KS), recall_at(scores.T, self.own.T, KS)
        mean = {k: (to_text[k] + to_image[k]) / 2 for k in KS}
        return {"image to text": to_text, "text to image": to_image, "mean": mean}


@dataclass(frozen=True)
class HeldOut:
    """Pictures with all of their texts; pictures: the rows of `pairs` that show each."""

    pairs: PairsLike
    pictures: tuple[tuple[int, ...], ...]

    @torch.no_grad()
    def embed(self, clip: CLIP, workers: int = 2, said: Callable[[str], str] = str) -> Embedded:
        """As the model is now, in evaluation mode. A text that several pictures have fits all of them. said: what is
        read of a text."""
        training = clip.training
        clip.eval()
        texts: dict[str, list[int]] = {}
        for number, rows in enumerate(self.pictures):
            for text in dict.fromkeys(said(text) for row in rows for text in self.pairs[row].texts):
                texts.setdefault(text, []).append(number)
        own = torch.zeros(len(self.pictures), len(texts), dtype=torch.bool)
        for column, numbers in enumerate(texts.values()):
            own[numbers, column] = True

        def load(part: Sequence[tuple[int, ...]]) -> Tensor:
            return torch.stack([clip.preprocess(self.pairs[rows[0]].picture()) for rows in part])

        parts = [self.pictures[i : i + BATCH] for i in range(0, len(self.pictures), BATCH)]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            images = torch.cat([clip.encode_image(pixels).float().cpu() for pixels in pool.map(load, parts)])
        words = clip.encode_text(list(texts)).float().cpu()
        clip.train(training)
        return Embedded(F.normalize(images, dim=1), F.normalize(words, dim=1), own)


def hold_out(pairs: PairsLike, count: int | None, seed: int) -> tuple[Joined, HeldOut]:
    """(what is left to train on, what is held out): whole pictures, with every row that shows them.

    count: pictures; None is a fifth of the pairs, at most 500. What cannot be read is not held out. Raises DiptychError
    where too little is left on either side.
    """
    wanted = min(MOST, len(pairs) // SHARE) if count is None else count
    order = np.random.default_rng([seed, 0x4E1D]).permutation(len(pairs)).tolist()
    chosen: dict[str, list[int]] = {}
    shared = False  # whether rows may name one picture
    for row, pair in readable(pairs, order):
        if len(chosen) == wanted:
            break
        shared = shared or "picture" in pair.extra
        if picture_of(pair) not in chosen:
            chosen[picture_of(pair)] = [row]
    if shared:
        for row, pair in usable(pairs, range(len(pairs))):
            if picture_of(pair) in chosen and row != chosen[picture_of(pair)][0]:
                chosen[picture_of(pair)].append(row)
    held = {row for rows in chosen.values() for row in rows}
    if len(chosen) < 2 or len(pairs) - len(held) < 2:
        raise DiptychError(
            f"{pairs.source} has {len(pairs)} pairs; with {len(chosen)} pictures held out {len(pairs) - len(held)} are "
            "left to train on, and both need two" + ("" if count is None else ": change --held")
        )
    rest = [row for row in range(len(pairs)) if row not in held]
    return Joined(pairs.source, ((pairs, rest),)), HeldOut(pairs, tuple(tuple(rows) for rows in chosen.values()))


def picture_of(pair: PairLike) -> str:
    """What tells its picture from others: the file that several rows may name, else the pair."""
    return str(pair.extra.get("picture", pair.id))


def usable(pairs: PairsLike, rows: Sequence[int]) -> Iterator[tuple[int, PairLike]]:
    """Those that have a text."""
    for row in rows:
        try:
            yield row, pairs[row]
        except BadPair:
            continue


def readable(pairs: PairsLike, rows: Sequence[int]) -> Iterator[tuple[int, PairLike]]:
    """... and a picture."""
    for row, pair in usable(pairs, rows):
        try:
            pair.picture()
        except BadPicture:
            continue
        yield row, pair
