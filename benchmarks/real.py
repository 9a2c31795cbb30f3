"""REAL on a pool whose frequencies are planted: what `curate real` estimates, and what its two adapters gain by it.

    python benchmarks/real.py                     3 seeds; a table
    python benchmarks/real.py --write             and docs/results/real.json
    python benchmarks/real.py --seeds 1 --out runs/real    where models are kept, so that a stopped run goes on
    python benchmarks/real.py --counting [--write]         counting names instead, beside SQLite's full-text index

Twenty-four classes, each a thing of one colour on one background, have three made-up names each. How often a class is
named in the pool follows Zipf's law, the last four rarer still, and so do its names; fourteen are given by their rarest
name, the last four among them. Four names mean something else too, in captions planted beside them. Other captions name
no class: they say the colour and the background, all alike often. A tiny CLIP (`pretrain_worlds/parts.py`) is trained
on the pool, half-way and further, and never told what is rare. Everything after that is done by the systems themselves.
"""

import argparse
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from pretrain_worlds.parts import EASY, tiny_clip
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.data.concepts import read_concepts, tail
from diptych.data.pairs import Pair
from diptych.data.records import Record, Records
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.support import Support
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.adapt import real_linear, real_prompt, zero_shot
from diptych.methods.adapt.parts.adapter import Adapter, configure, fit_path, last
from diptych.methods.curate import real
from diptych.methods.curate.parts import relevance
from diptych.methods.curate.parts.pipeline import Place, Stage
from diptych.training.run import train

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "real.json"
SPEC = SceneSpec(**EASY)
PAIRS, PLAIN = 2400, 4000
FREQUENT, RARER = 20, 0.2  # classes after the first twenty are still rarer than by Zipf's law
STEPS, BATCH = (240, 360), 64  # half-taught, and taught: of the first the rare classes have little
SHARES = (0.02, 0.18, 0.80)  # of a class's captions that say each of its names
OTHER, FACTOR = SceneSpec(**{**EASY, "backgrounds": ("brick",), "colours": ("brown",), "shapes": ("arrow",)}), 3
SENSES = (5, 10, 15, 20)  # by frequency: the classes whose most frequent name means something else too
EPOCHS = 100  # of real_linear: 3,000 steps; the 10 of the release are 31,250 for ImageNet, and 300 for these few
TEST = 50  # pictures a class
N = 50  # pictures a class that are asked for
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "here is a {}.")
SAID = ("a photo of a {}", "a picture of a {}", "here is a {}", "look at a {}")
SHARES_SAID = ("{} shares rise on the stock market", "buy {} shares now", "stock market : {} shares fall")
SENSE = "shares of a company on the stock market"
WORDS = tuple(f"{SENSE} now rise fall buy a look thing".split())


@dataclass(frozen=True)
class Class:
    """names: the most frequent one last; own: the one that the task gives it."""

    colour: str
    background: str
    names: tuple[str, ...]
    own: str

    @property
    def look(self) -> str:
        return f"{self.colour} thing on {self.background}"

    @property
    def spec(self) -> SceneSpec:
        return replace(SPEC, colours=(self.colour,), backgrounds=(self.background,))


@dataclass(frozen=True)
class World:
    """classes: from frequent to rare; captions: of each pair, its class (-1: of none) and what is said."""

    classes: tuple[Class, ...]
    groups: tuple[int, ...]
    texts: tuple[str, ...]
    pictures: tuple[bytes, ...]

    @property
    def planted(self) -> list[int]:
        return [self.groups.count(c) for c in range(len(self.classes))]


def made_up(rng: random.Random, count: int) -> list[str]:
    letters = [[a + b for a in "bdfgklmnprstvz" for b in "aeiou"] for _ in range(3)]
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(part) for part in letters)] = None
    return list(found)


def classes_of(seed: int) -> tuple[Class, ...]:
    rng = random.Random(seed)
    looks = [(c, b) for c in SPEC.colours for b in SPEC.backgrounds]
    rng.shuffle(looks)
    words = made_up(rng, 4 * len(looks))
    found = []
    for i, (colour, background) in enumerate(looks):
        rare, middle, first, second = words[4 * i : 4 * i + 4]
        names = (rare, f"{first} {second}", middle)
        found.append(Class(colour, background, names, names[0] if i % 2 or i >= FREQUENT else names[2]))
    return tuple(found)


def drawn(spec: SceneSpec, count: int, seed: int) -> list[bytes]:
    found = []
    for record in Scenes(spec, count, seed):
        buffer = io.BytesIO()
        record.image().save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def world_of(seed: int) -> World:
    rng, classes = random.Random(100 + seed), classes_of(seed)
    weights = [1 / (rank + 1) * (1 if rank < FREQUENT else RARER) for rank in range(len(classes))]
    counts = [round(PAIRS * w / sum(weights)) for w in weights]
    rows: list[tuple[int, str, bytes]] = []
    for c, (one, count) in enumerate(zip(classes, counts, strict=True)):
        said = rng.choices(one.names, SHARES, k=count)
        said[:3] = one.names  # each is said at least once
        for name, picture in zip(said, drawn(one.spec, count, 10_000 * seed + c), strict=True):
            rows.append((c, rng.choice(SAID).format(name), picture))
        if c in SENSES:
            for picture in drawn(OTHER, (FACTOR - 1) * count, 10_000 * seed + 500 + c):
                rows.append((-1, rng.choice(SHARES_SAID).format(one.names[2]), picture))
    for record, picture in zip(
        Scenes(SPEC, PLAIN, 10_000 * seed + 900), drawn(SPEC, PLAIN, 10_000 * seed + 900), strict=True
    ):
        look = f"{record.labels['colour']} thing on {record.labels['background']}"
        rows.append((-1, rng.choice(SAID).format(look), picture))
    rng.shuffle(rows)
    groups, texts, pictures = zip(*rows, strict=True)
    return World(classes, groups, texts, pictures)


@dataclass(frozen=True)
class Pool:
    """The world's pairs, with pictures decoded once."""

    source: str
    items: list[Pair]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Pair:
        return self.items[index]


def opened(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def trained(world: World, seed: int, steps: int, out: Path) -> CLIP:
    images = [opened(data) for data in world.pictures]
    pairs = [
        Pair(str(i), lambda image=image: image, (text,))
        for i, (image, text) in enumerate(zip(images, world.texts, strict=True))
    ]
    names = tuple(word for one in world.classes for name in one.names for word in name.split())
    settings = {
        "recipe.rate": 2e-3, "recipe.weight_decay": 0.1, "recipe.beta2": 0.98, "recipe.eps": 1e-8,
        "recipe.warmup": 30, "recipe.crop": 1.0,
    }  # fmt: skip
    found = train(
        "clip", Pool(f"real {seed}", pairs), model=tiny_clip(seed, more=(*names, *WORDS)), out=out, settings=settings,
        steps=steps, batch=BATCH, seed=seed, workers=0, save_every=100,
        progress=lambda row, plan: row["step"] % 100 or print(f"seed {seed}: {row}", file=sys.stderr),
    )  # fmt: skip
    return found.clip.eval()


# -- curation ----------------------------------------------------------------------------------------------------------


def curate(stages: Sequence[Stage], rows: pa.Table) -> tuple[pa.Table, dict[str, bytes], list[Any]]:
    """The rows that are left, the files, the counts of each stage."""
    files: dict[str, bytes] = {}
    every = []
    for stage in stages:
        batches = rows.to_batches(max_chunksize=500)
        counts = stage.finish(stage.merge([stage.count(batch, Place(0, 0)) for batch in batches]))
        verdicts = [stage.select(batch, Place(0, 0), counts) for batch in batches]
        rows = pa.Table.from_batches([v.batch.filter(pa.array(v.keep)) for v in verdicts])
        files |= stage.files(counts)
        every.append(counts)
    return rows, files, every


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


# -- adaptation --------------------------------------------------------------------------------------------------------


class Shots:
    """The `FeatureSource` of a few labelled pictures, which these adapters do not learn from."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def images(self, clip: CLIP, records: Records, **_: Any) -> Tensor:
        return self.features[[int(record.id) for record in records]]

    def texts(self, clip: CLIP, texts: Sequence[str]) -> Tensor:
        return clip.encode_text(texts)

    def pixels(self, clip: CLIP, records: Records, **_: Any) -> Tensor:
        raise NotImplementedError


@torch.inference_mode()
def embedded(clip: CLIP, pictures: Sequence[bytes]) -> Tensor:
    parts = [pictures[i : i + 256] for i in range(0, len(pictures), 256)]
    rows = [clip.encode_image(torch.stack([clip.preprocess(opened(data)) for data in part])) for part in parts]
    return F.normalize(torch.cat(rows), dim=1)


def measure(seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Of one world and model; figures that are in the folder are not measured again."""
    start, kept = time.process_time(), folder / "figures.json"
    if kept.exists():
        return json.loads(kept.read_text())
    world = world_of(seed)
    clip = trained(world, seed, steps, folder / "model").to("cpu")
    names = [one.own for one in world.classes]
    synonyms = folder / "synonyms.json"
    known = {
        one.own: {
            "names": [*one.names],
            "definition": f"a photo of a {one.look}",
            "others": [SENSE] if c in SENSES else [],
        }
        for c, one in enumerate(world.classes)
    }
    synonyms.write_text(json.dumps(known))
    relevance.judge_of.cache_clear()  # the model is at hand, not in a folder
    relevance.clip_of = real.clip_of = lambda name: clip  # type: ignore[assignment]
    pool = pa.table({"key": [f"{i:05d}" for i in range(len(world.texts))], "text": [*world.texts],
        "picture": pa.array(world.pictures, pa.binary())})  # fmt: skip
    settings = {"synonyms": str(synonyms), "n": str(N), "model": f"tiny {seed} {steps}"}
    found: dict[str, Any] = {}

    # frequencies, without relevance and with it
    columns = pool.column_names
    plain = configure_real(settings).stages(columns, seed)[:1]
    _, files, _ = curate(plain, pool)
    (folder / "unjudged.json").write_bytes(files["concepts.json"])
    left, files, _ = curate(configure_real(settings | {"relevance": "embeddings"}).stages(columns, seed), pool)
    (folder / "curated").mkdir(exist_ok=True)
    (folder / "curated" / "concepts.json").write_bytes(files["concepts.json"])
    parquet.write_table(left, folder / "curated" / "00000.parquet")
    unjudged, judged = read_concepts(folder / "unjudged.json"), read_concepts(folder / "curated" / "concepts.json")
    planted, frequency = world.planted, [judged[name].frequency for name in names]
    matched = [unjudged[name].frequency for name in names]
    found["spearman"] = spearman(frequency, planted)
    found["spearman, not judged"] = spearman(matched, planted)
    found["over-count of names with another sense, not judged"] = statistics.mean(
        matched[c] / planted[c] for c in SENSES
    )
    found["over-count of names with another sense"] = statistics.mean(frequency[c] / planted[c] for c in SENSES)
    others = [c for c in range(len(names)) if c not in SENSES]
    found["over-count of the others, not judged"] = statistics.mean(matched[c] / planted[c] for c in others)
    found["pictures found"] = left.num_rows
    by_key = dict(zip(pool["key"].to_pylist(), world.groups, strict=True))
    right = [
        names[by_key[row["key"]]] == row["class"] if by_key[row["key"]] >= 0 else False for row in left.to_pylist()
    ]
    found["pictures found that are of their class"] = 100 * statistics.mean(right)

    # a draw of as many, in the pool's own proportions
    rng = np.random.default_rng(seed)
    of_class = [i for i, group in enumerate(world.groups) if group >= 0]
    some = sorted(rng.choice(of_class, size=left.num_rows, replace=False).tolist())
    skewed = pool.take(some).append_column("class", pa.array([names[world.groups[i]] for i in some]))
    (folder / "skewed").mkdir(exist_ok=True)
    (folder / "skewed" / "concepts.json").write_bytes(files["concepts.json"])
    parquet.write_table(skewed, folder / "skewed" / "00000.parquet")

    test = [
        (c, data)
        for c, one in enumerate(world.classes)
        for data in drawn(one.spec, TEST, 5_000_000 + 10_000 * seed + c)
    ]
    truth, features = torch.tensor([c for c, _ in test]), embedded(clip, [data for _, data in test])
    shots = [Record(str(c), None, name) for c, name in enumerate(names)]
    support = Support(
        tuple(names), Records(tuple(shots), "shots"), torch.arange(len(names)), Shots(features[::TEST]),
        tuple(range(len(names))), seed, TEMPLATES,
    )  # fmt: skip
    rare = torch.zeros(len(names), dtype=torch.bool)
    rare[tail(planted)] = True
    given = torch.tensor([one.own == one.names[0] for one in world.classes])

    def score(name: str, adapter: Adapter) -> Tensor:
        rows = last(fit_path(adapter, adapter.config, clip, support)).logits(features)
        right = (rows.argmax(1) == truth).float()
        groups = {
            "all": right,
            "tail": right[rare[truth]],
            "head": right[~rare[truth]],
            "given by the rarest name": right[given[truth]],
            "given by the most frequent": right[~given[truth]],
        }
        found.update({f"{name}: {group}": 100 * float(some.mean()) for group, some in groups.items()})
        return rows

    # the test pictures are drawn apart from the pool: none is a copy; a tiny model's embeddings are all near each other
    curated = {"retrieved": str(folder / "curated"), "copies": "2", "epochs": str(EPOCHS)}
    score("zero_shot", zero_shot.ZeroShot())
    prompt = score(
        "real_prompt", configure(real_prompt.REALPrompt, {"concepts": str(folder / "curated" / "concepts.json")})
    )
    score("real_linear", configure(real_linear.REALLinear, curated))
    score("real_linear, 10 epochs", configure(real_linear.REALLinear, curated | {"epochs": "10"}))
    score("real_linear, alpha 1", configure(real_linear.REALLinear, curated | {"alpha": "1"}))
    zero = score("real_linear, alpha 0", configure(real_linear.REALLinear, curated | {"alpha": "0", "epochs": "10"}))
    found["largest difference of alpha 0 from real_prompt"] = float((zero - prompt).abs().max())
    score("real_linear, unbalanced", configure(real_linear.REALLinear, curated | {"retrieved": str(folder / "skewed")}))
    found["renamed"] = sum(one.own != one.names[2] for one in world.classes)
    found["cpu_seconds"] = time.process_time() - start
    write_atomically(kept, json.dumps(found).encode())
    return found


def configure_real(settings: dict[str, str]) -> real.REAL:
    from diptych.methods.curate.parts.pipeline import configure as configured

    return configured(real.REAL, settings)  # type: ignore[return-value]


def counting(captions: int = 100_000, names: int = 3000, times: int = 3) -> dict[str, Any]:
    """Processor seconds to count names in captions: ours, and the release's way (FTS5, a query a name), in turns."""
    import sqlite3

    from diptych.data.concepts import tokens
    from diptych.methods.curate.parts.phrases import Phrases

    rng = random.Random(0)
    words = made_up(rng, 20_000)
    phrases = [" ".join(rng.sample(words, rng.choice((1, 1, 2, 3)))) for _ in range(names)]
    texts = [
        " ".join(rng.choices(words, k=9)) + f" {rng.choice(phrases)}" * (rng.random() < 0.3) for _ in range(captions)
    ]

    def ours() -> list[int]:
        finder, found = Phrases([tokens(phrase) for phrase in phrases]), Counter[int]()
        for text in texts:
            found.update(finder.find(tokens(text)))
        return [found[n] for n in range(names)]

    def theirs() -> list[int]:
        base = sqlite3.connect(":memory:")
        base.execute("create virtual table t using fts5(text)")
        base.executemany("insert into t(text) values (?)", ((text,) for text in texts))
        query = "select count(*) from t where t match ?"
        return [base.execute(query, (f'"{phrase}"',)).fetchone()[0] for phrase in phrases]

    seconds: dict[str, list[float]] = {"ours": [], "fts5": []}
    for _ in range(times):
        results = []
        for name, way in (("ours", ours), ("fts5", theirs)):
            start = time.process_time()
            results.append(way())
            seconds[name].append(time.process_time() - start)
        assert results[0] == results[1]
    return {"captions": captions, "names": names, "equal": True, "cpu_seconds": seconds}


def claims(found: dict[str, list[float]]) -> dict[str, bool]:
    """What the paper says, at this size; of the means over seeds, where no "every seed" is said."""
    short, long = (f"{steps} steps, " for steps in STEPS)
    mean = {name: statistics.mean(values) for name, values in found.items()}

    def gain(group: str, system: str, base: str, model: str) -> float:
        return mean[f"{model}{system}: {group}"] - mean[f"{model}{base}: {group}"]

    def every(name: str) -> list[float]:
        return [value for model in (short, long) for value in found[model + name]]

    lower = min(a - b for a, b in zip(every("real_linear: all"), every("real_prompt: all"), strict=True))
    counted = every("over-count of names with another sense, not judged")
    rare, frequent = "given by the rarest name", "given by the most frequent"
    other = "real_linear, unbalanced"
    return {
        "frequency: Spearman at least 0.95, every seed and model": min(every("spearman")) >= 0.95,
        "without relevance, other senses over-counted by the planted factor": max(abs(c - FACTOR) for c in counted)
        < 0.05,
        f"{long}real_prompt: +3 or more {rare}": gain(rare, "real_prompt", "zero_shot", long) >= 3,
        f"{long}real_prompt: within 0.5 {frequent}": abs(gain(frequent, "real_prompt", "zero_shot", long)) <= 0.5,
        f"{short}real_prompt: within 0.5 {frequent}": abs(gain(frequent, "real_prompt", "zero_shot", short)) <= 0.5,
        f"{short}real_linear: +5 or more on the tail": gain("tail", "real_linear", "real_prompt", short) >= 5,
        f"{long}real_linear: +5 or more on the tail": gain("tail", "real_linear", "real_prompt", long) >= 5,
        "real_linear: never lower by more than 0.5 overall, every seed and model": lower >= -0.5,
        "real_linear: alpha 0 is real_prompt to the bit": max(every("largest difference of alpha 0 from real_prompt"))
        == 0,
        f"{short}an unbalanced set of as many is lower on the tail": gain("tail", "real_linear", other, short) > 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", action="store_true", help="write docs/results/real.json")
    parser.add_argument("--counting", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.counting:
        found_counts = counting()
        print(found_counts)
        if given.write:
            result = json.loads(RESULTS.read_text()) | {"counting": found_counts}
            write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
        return 0
    out = given.out or Path(tempfile.mkdtemp())
    found: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        for steps in STEPS:
            folder = out / f"{seed}-{steps}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in measure(seed, steps, folder).items():
                found.setdefault(f"{steps} steps, {name}", []).append(value)
        if given.write:
            measured = {
                name: {
                    "mean": round(statistics.mean(v), 4),
                    "sd": round(statistics.stdev(v), 4) if seed else 0.0,
                    "values": v,
                }
                for name, v in found.items()
            }
            about = " ".join((__doc__ or "").split("\n\n")[2].split())
            result = {
                "about": about,
                "seeds": seed + 1,
                "pairs": PAIRS,
                "steps": list(STEPS),
                "batch": BATCH,
                "n": N,
                "test pictures a class": TEST,
            }
            result |= {"measured": measured, "claims": claims(found), "provenance": provenance() | {"threads": 1}}
            write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:65} {statistics.mean(values):8.3f} ± {spread:.2g}   {[round(v, 3) for v in values]}")
    for claim, holds in claims(found).items():
        print("yes" if holds else "NO ", claim)
    return 0


if __name__ == "__main__":
    sys.exit(main())
