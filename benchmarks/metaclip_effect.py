"""What training on captions that metaclip keeps gives, over as many of the raw pool, and over as many that only match.

    python benchmarks/metaclip_effect.py docs/results/metaclip_effect.json

A pool of drawn scenes, half of them with a caption that names no concept. The others name one of 36: each has a word of
its own (which concept it is says nothing of another: a rare one is learned from its own pictures or not at all), a
colour and a shape, and is as frequent as Zipf's law makes it. "curated" is what `curate metaclip` keeps; "matched" as
many of the captions that name a concept, drawn by chance; "raw" as many of the pool. The same small CLIP is trained on
each from scratch, on the same number of pairs seen. Accuracy is zero-shot over the 36 words, the mean over concepts, on
pictures of which there are equally many of each; thirds are by frequency in the pool.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.curation.run import curate
from diptych.data.scenes import Scenes, SceneSpec
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.losses.contrastive import softmax_contrastive

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black")
KINDS = list(itertools.product(COLOURS, SHAPES))
NAMED, NOISE, EXPONENT, T = 8000, 8000, 1.2, 60
FILLERS, OTHERS = 30, 400  # words beside the name, and words of captions that name nothing
TEST, SEEN, BATCH, RATE, WIDTH, EMBED = 40, 40_000, 64, 3e-3, 64, 48
GRAIN = 20.0


def pictures(kind: tuple[str, str], count: int, seed: int) -> np.ndarray:
    """[N, 3, 32, 32] of one kind, each with grain of its own."""
    spec = SceneSpec(side=32, shapes=(kind[1],), colours=(kind[0],), sizes=("small", "medium"), counts=(1,))
    found, rng = np.empty((count, 3, 32, 32), np.uint8), np.random.default_rng([seed, KINDS.index(kind)])
    for i, record in enumerate(Scenes(spec, count, seed)):
        grained = record.picture + rng.normal(0, GRAIN, record.picture.shape)
        found[i] = grained.clip(0, 255).transpose(2, 0, 1)
    return found


def world(seed: int) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """(pictures [N, ...], captions, kind that is named [N] or -1, frequency rank of each kind [36])."""
    rng = np.random.default_rng(seed)
    rank = rng.permutation(len(KINDS))
    chance = 1 / np.arange(1, len(KINDS) + 1) ** EXPONENT
    counts = np.maximum(1, np.round(NAMED * chance / chance.sum())).astype(int)[rank]
    shown = np.repeat(np.arange(len(KINDS)), counts)
    shown = np.concatenate([shown, rng.integers(0, len(KINDS), NOISE)])
    each = np.bincount(shown, minlength=len(KINDS))
    banks = [iter(pictures(kind, n, 100 + seed)) for kind, n in zip(KINDS, each, strict=True)]
    pixels = np.stack([next(banks[k]) for k in shown])
    captions = [
        " ".join([f"w{rng.integers(FILLERS)}", f"kind{k}", f"w{rng.integers(FILLERS)}"]) for k in shown[:-NOISE]
    ]
    captions += [" ".join(f"x{n}" for n in rng.integers(0, OTHERS, 3)) for _ in range(NOISE)]
    named = np.concatenate([shown[:-NOISE], np.full(NOISE, -1)])
    order = rng.permutation(len(shown))
    return pixels[order], [captions[i] for i in order], named[order], rank


def kept(captions: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that `curate metaclip` keeps, and those that name an entry."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        parquet.write_table(
            pa.table({"key": [f"{i:06d}" for i in range(len(captions))], "text": captions}), folder / "p.parquet"
        )
        (folder / "entries.txt").write_text("\n".join(f"kind{k}" for k in range(len(KINDS))))
        rows = []
        for t in (str(T), "inf"):
            settings = {"metaclip.metadata": str(folder / "entries.txt"), "metaclip.t": t}
            curate("metaclip", folder / "p.parquet", folder / f"out{t}", settings=settings, seed=seed)
            left = parquet.read_table(folder / f"out{t}" / "00000.parquet", columns=["key"])["key"].to_pylist()
            rows.append(np.array([int(key) for key in left]))
    return rows[0], rows[1]


class Tiny(nn.Module):
    """The smallest CLIP that tells kinds: patches and their mean and largest; a mean of word vectors."""

    def __init__(self, words: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches, self.mix = nn.Conv2d(3, WIDTH, 4, 4), nn.Conv2d(WIDTH, WIDTH, 1)
        self.out, self.words = nn.Linear(2 * WIDTH, EMBED), nn.Embedding(words, EMBED)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def images(self, pixels: Tensor) -> Tensor:
        x = F.gelu(self.patches((pixels.float() / 255 - 0.5) / 0.25))
        x = F.gelu(self.mix(x)).flatten(2)
        return F.normalize(self.out(torch.cat([x.mean(2), x.amax(2)], 1)), dim=1)

    def texts(self, words: Tensor) -> Tensor:
        return F.normalize(self.words(words).mean(1), dim=1)


def train(pixels: Tensor, words: Tensor, vocabulary: int, seed: int) -> Tiny:
    """SEEN pairs, however many there are."""
    model, drawn = Tiny(vocabulary, seed), torch.Generator().manual_seed(seed)
    optimiser, steps = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1), SEEN // BATCH
    order = torch.cat([torch.randperm(len(pixels), generator=drawn) for _ in range(SEEN // len(pixels) + 1)])
    for step in range(steps):
        rows = order[step * BATCH :][:BATCH]
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 10) * 0.5 * (1 + np.cos(np.pi * step / steps))
        loss = softmax_contrastive(model.images(pixels[rows]), model.texts(words[rows]), model.log_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def one(seed: int) -> dict[str, object]:
    pixels, captions, named, rank = world(seed)
    curated, matching = kept(captions, seed)
    assert set(matching) == set(np.flatnonzero(named >= 0))
    rng = np.random.default_rng([seed, 1])
    sets = {
        "curated": curated,
        "matched": rng.choice(matching, len(curated), replace=False),
        "raw": rng.choice(len(captions), len(curated), replace=False),
    }
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in captions for w in text.split()}))}
    words = torch.tensor([[vocabulary[w] for w in text.split()] for text in captions])
    images = torch.from_numpy(pixels)
    test = torch.from_numpy(np.concatenate([pictures(kind, TEST, 900) for kind in KINDS]))
    truth = np.repeat(np.arange(len(KINDS)), TEST)
    found: dict[str, object] = {"pairs": len(curated), "pool": len(captions), "named": len(matching)}
    for name, rows in sets.items():
        index = torch.from_numpy(np.sort(rows))
        model = train(images[index], words[index], len(vocabulary), seed)
        classes = model.texts(torch.tensor([[vocabulary[f"kind{k}"]] for k in range(len(KINDS))]))
        right = (model.images(test) @ classes.T).argmax(1).numpy() == truth
        each = np.array([right[truth == k].mean() for k in range(len(KINDS))])
        third = len(KINDS) // 3
        counts = np.bincount(named[rows][named[rows] >= 0], minlength=len(KINDS))
        found[name] = {
            "all": 100 * each.mean(),
            "common third": 100 * each[rank < third].mean(),
            "rare third": 100 * each[rank >= 2 * third].mean(),
            "most pairs of a concept, by the median": float(counts.max() / max(np.median(counts), 1)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun, found = time.process_time(), {}
    for seed in given.seeds:
        found[str(seed)] = one(seed)
        print(seed, json.dumps(found[str(seed)], indent=1), flush=True)
    settings = {"named": NAMED, "noise": NOISE, "exponent": EXPONENT, "t": T, "seen": SEEN, "concepts": len(KINDS)}
    about = {"command": ["metaclip_effect.py", *sys.argv[1:]], "cpu_seconds": time.process_time() - begun}
    result = {"settings": settings, "seeds": found, "provenance": provenance() | about}
    write_atomically(given.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
