"""Heads and the CLIP filter on what was planted: watermarks, unsafe classes, spoilt pictures, wrong texts.

    OMP_NUM_THREADS=1 python benchmarks/heads.py [--only photos,filter] [--seeds 0,1,2] [--write]

- photos: mini on photos and sketches of PACS (DIPTYCH_TEST_DATA). A head is trained as `diptych compare` does it
  (settings and calibration out of fold, inside the labels) on 10 or 40 labelled pictures a class, and judged by the
  area under the ROC on pictures it has not seen, and by what its cut removes; which are labelled is the seed's. Of
  what: "watermark", letters and lines over half of the photos; "person" and "sketch", as what must not be there;
  "spoilt", blurred, noisy, saved as JPEG of quality 8. Beside it the built-in prompts, which need no label.
- filter: how well similarity tells texts that belong from those of another picture: mini on COCO photos with their
  captions, micro on drawn scenes; and what a share of 0.5 keeps of each.
- pool: half of 4,000 drawn scenes have the text of another. A small CLIP trained on what the filter keeps, beside one
  trained on as many drawn at random, and one on as many right pairs: recall@5 of 500 held-out texts by picture.
- prompts: what the built-in prompts and the screen remove of 123 ordinary photos (PACS, COCO), with mini.
- published: LAION's heads against the check values that came with them.
"""

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.classifier import Base
from diptych.data.records import Record, Records
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.support import Support
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.losses.contrastive import softmax_contrastive
from diptych.methods.adapt.gda import GDA
from diptych.methods.adapt.gda import Config as GaussianConfig
from diptych.methods.adapt.linear_probe import LinearProbe
from diptych.methods.adapt.parts.adapter import select
from diptych.methods.curate.parts import heads
from diptych.methods.curate.parts.clip_filter import ClipShare, Screen
from diptych.methods.curate.parts.embed import Embed
from diptych.methods.curate.parts.pipeline import Place
from diptych.methods.curate.parts.scores import Toxic, Unsafe, Watermark
from diptych.methods.curate.parts.vectors import model_of, vectors_of
from diptych.metrics.ood import auroc
from diptych.metrics.retrieval import recall_at

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "heads.json"
HERE = Place(0, 0)
LABELS = (10, 40)  # a class
POOL, WRONG = 4000, 0.5


def data() -> Path:
    return Path(os.environ["DIPTYCH_TEST_DATA"])


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=quality)
    return out.getvalue()


def watermarked(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Letters and two lines, half see-through, of another word, size, place and strength each time."""
    over = Image.new("RGBA", image.size, (255, 255, 255, 0))
    pen, side = ImageDraw.Draw(over), image.width
    fill = (255, 255, 255, int(rng.integers(90, 190)))
    word = ["SAMPLE", "photo stock", "(c) agency", "PREVIEW", "picturebank"][rng.integers(5)]
    font = ImageFont.load_default(size=int(side * rng.uniform(0.08, 0.16)))
    step = int(side * rng.uniform(0.25, 0.45))
    first = int(rng.integers(0, step))
    for n, y in enumerate(range(first, image.height, step)):
        pen.text((-side // 4 + (n % 2) * side // 3, y), f"{word}   {word}   {word}", fill=fill, font=font)
    pen.line([(0, first), (side, image.height - first)], fill=fill, width=2)
    pen.line([(side, first), (0, image.height - first)], fill=fill, width=2)
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


def spoilt(image: Image.Image, rng: np.random.Generator) -> bytes:
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.5, 4))))).astype(np.float64)
    noisy = blurred * rng.uniform(0.4, 0.9) + rng.normal(0, rng.uniform(5, 25), blurred.shape)
    return jpeg(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), 8)


def embedded(model: str, pictures: Sequence[bytes], texts: Sequence[str] | None = None) -> pa.RecordBatch:
    columns = {
        "key": [str(i) for i in range(len(pictures))],
        "text": list(texts or ["a picture"] * len(pictures)),
        "picture": pa.array(pictures, pa.binary()),
    }
    verdict = Embed(model, half=False).select(pa.record_batch(columns), HERE, {})
    assert verdict.keep.all()
    return verdict.batch


# -- heads on photos ---------------------------------------------------------------------------------------------------


@cache
def photos() -> dict[str, np.ndarray]:
    """Unit embeddings by mini of each kind of picture, in one order."""
    rng = np.random.default_rng(0)
    files = sorted((data() / "pacs" / "photo").glob("*/*"))
    images = [Image.open(file).convert("RGB") for file in files]
    kinds = {
        "plain": [file.read_bytes() for file in files],
        "watermark": [jpeg(watermarked(image, rng)) for image in images],
        "spoilt": [spoilt(image, rng) for image in images],
        "sketch": [file.read_bytes() for file in sorted((data() / "pacs" / "sketch").glob("*/*"))],
    }
    found = {kind: vectors_of(embedded("mini", pictures)) for kind, pictures in kinds.items()}
    found["person"] = np.array([file.parent.name == "person" for file in files])
    return found


class Known:
    """A `FeatureSource` of rows that are known."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows_of = torch.from_numpy(rows)

    def images(self, clip: Any, records: Records, *, views: int = 0, crop: Any = None) -> Tensor:
        return self.rows_of[[int(record.id) for record in records.items]]

    def texts(self, clip: Any, texts: Sequence[str]) -> Tensor:
        return clip.encode_text(texts)

    def pixels(self, clip: Any, records: Records, **_: Any) -> Tensor:
        raise NotImplementedError


def fitted(adapter: Any, names: tuple[str, str], no: np.ndarray, yes: np.ndarray) -> Any:
    labels = [0] * len(no) + [1] * len(yes)
    items = tuple(Record(str(i), None, names[label], None, None) for i, label in enumerate(labels))
    support = Support(names, Records(items, "labels"), torch.tensor(labels), Known(np.concatenate([no, yes])),
        tuple(range(len(items))))  # fmt: skip
    return select(adapter, model_of("mini"), support).classifier


def on_photos(seed: int) -> dict[str, float]:
    kinds, rng = photos(), np.random.default_rng(seed)
    order, sketches = rng.permutation(len(kinds["plain"])), rng.permutation(len(kinds["sketch"]))
    person = kinds["person"][order]
    plain = kinds["plain"][order]
    half = len(order) // 2
    # (what is not, what is) in one chance order: labelled ones from the front, the judged from behind the first half
    sides = {
        "watermark": (plain, kinds["watermark"][order], half),
        "spoilt": (plain, kinds["spoilt"][order], half),
        "sketch": (plain, kinds["sketch"][sketches], half),
        "person": (plain[~person], plain[person], 40),
    }
    clip = model_of("mini")
    maker = Base.of(clip)
    found: dict[str, float] = {}
    for task, (no, yes, cut) in sides.items():
        tests = no[cut:], yes[cut:]
        if task == "watermark":
            prompts = heads.prompt_head(heads.WATERMARK, maker)
            found["watermark prompts auc"] = auroc(prompts.score(tests[1]), prompts.score(tests[0]))
        if task == "spoilt":
            prompts = heads.prompt_head(heads.AESTHETIC, maker)
            found["spoilt prompts auc"] = auroc(prompts.score(tests[0]), prompts.score(tests[1]))
        for count in LABELS:
            # of what can be a mark on any picture, other pictures are labelled on either side
            shots = no[:count], yes[count : 2 * count] if task in ("watermark", "spoilt") else yes[:count]
            for name, adapter in (("linear", LinearProbe()), ("gda", GDA(replace(GaussianConfig(), views=0)))):
                start = time.process_time()
                classifier = fitted(adapter, ("fine", task), *shots)
                seconds = time.process_time() - start
                scores = [classifier.probabilities(torch.from_numpy(side))[:, 1].numpy() for side in tests]
                key = f"{task} {name} {count}"
                found[f"{key} auc"] = auroc(scores[1], scores[0])
                level = 0.8 if task == "watermark" else 0.5
                found[f"{key} removed"] = float((scores[1] > level).mean())
                found[f"{key} lost"] = float((scores[0] > level).mean())
                found[f"{key} fit seconds"] = seconds
    return found


# -- the filter --------------------------------------------------------------------------------------------------------


def told_apart(model: str, pictures: Sequence[bytes], texts: Sequence[str], wrong: Sequence[str]) -> dict[str, float]:
    right, other = (embedded(model, pictures, words) for words in (texts, wrong))
    stage = ClipShare(0.5)
    counts = stage.merge([stage.count(right, HERE), stage.count(other, HERE)])
    kept = [float(stage.select(batch, HERE, counts).keep.mean()) for batch in (right, other)]
    auc = auroc(*(batch.column("similarity").to_numpy() for batch in (right, other)))
    return {"auc": auc, "right kept": kept[0], "wrong kept": kept[1]}


def on_pairs(seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    about = json.loads(next((data() / "coco-mini" / "annotations").glob("*caption*.json")).read_text())
    texts: dict[int, list[str]] = {}
    for one in about["annotations"]:
        texts.setdefault(one["image_id"], []).append(one["caption"])
    places = {one["id"]: data() / "coco-mini" / "train2017" / one["file_name"] for one in about["images"]}
    chosen = [one for one in texts if places[one].is_file()]
    captions = [texts[one][int(rng.integers(len(texts[one])))] for one in chosen]
    turned = np.roll(rng.permutation(len(chosen)), 0)
    back = {int(a): int(b) for a, b in zip(turned, np.roll(turned, 1), strict=True)}  # one cycle: none keeps its own
    coco = told_apart("mini", [places[one].read_bytes() for one in chosen], captions,
        [captions[back[i]] for i in range(len(chosen))])  # fmt: skip
    scenes = list(Scenes(SceneSpec(), 200, 100 + seed))
    said = [scene.text("short") for scene in scenes]
    drawn = told_apart("micro", [jpeg(scene.image()) for scene in scenes], said, [*said[1:], said[0]])
    return {f"coco {k}": v for k, v in coco.items()} | {f"scenes {k}": v for k, v in drawn.items()}


class Small(nn.Module):
    """Pixels [B, 3, 16, 16] and counts of words [B, V] to unit vectors of 64."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(768, 256), nn.GELU(), nn.Linear(256, 64))
        self.text = nn.Sequential(nn.Linear(words, 128), nn.GELU(), nn.Linear(128, 64))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, pixels: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image(pixels), dim=1), F.normalize(self.text(words), dim=1)


def trained(pixels: Tensor, words: Tensor, seed: int, steps: int = 1200, batch: int = 128) -> Small:
    torch.manual_seed(seed)
    model, generator = Small(words.shape[1]), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    for step in range(steps):
        rows = torch.randint(len(pixels), (batch,), generator=generator)
        image, text = model(pixels[rows], words[rows])
        loss = softmax_contrastive(image, text, model.log_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimiser.step()
    return model.eval()


def on_pool(seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    scenes = list(Scenes(SceneSpec(counts=(1, 2)), POOL + 500, 1000 + seed))
    texts = [scene.text("short") for scene in scenes]
    wrong = rng.permutation(POOL)[: int(WRONG * POOL)]
    said = texts[:POOL]
    for i, j in zip(wrong, np.roll(wrong, 1), strict=True):
        said[i] = texts[j]
    batch = embedded("micro", [jpeg(scene.image()) for scene in scenes[:POOL]], said)
    stage = ClipShare(1 - WRONG)
    keep = stage.select(batch, HERE, stage.merge([stage.count(batch, HERE)])).keep
    is_wrong = np.zeros(POOL, bool)
    is_wrong[wrong] = True
    chosen = {
        "filtered": np.flatnonzero(keep),
        "unfiltered": rng.permutation(POOL)[: keep.sum()],
        "right": rng.permutation(np.flatnonzero(~is_wrong))[: keep.sum()],
    }
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in texts for w in text.split()}))}
    words = torch.zeros(len(scenes), len(vocabulary))
    for row, text in enumerate([*said, *texts[POOL:]]):
        for word in text.split():
            words[row, vocabulary[word]] += 1
    pixels = torch.stack([torch.from_numpy(scene.picture).permute(2, 0, 1).float() / 255 - 0.5 for scene in scenes])
    pixels = F.interpolate(pixels, 16, mode="area")
    found = {"kept": float(keep.mean()), "wrong among kept": float(is_wrong[keep].mean())}
    for name, rows in chosen.items():
        model = trained(pixels[rows], words[rows], seed)
        with torch.no_grad():
            image, text = model(pixels[POOL:], words[POOL:])
        found[f"{name} recall@5"] = recall_at(text @ image.T, ks=(5,))[5]
    return found


def on_published(seed: int) -> dict[str, float]:
    folder, found = data() / "clip-heads", {}
    for name, model in (("b_32", "ViT-B-32:openai"), ("l_14", "ViT-L-14:openai")):
        path = folder / f"nsfw_vit_{name}.npz"
        with np.load(path, allow_pickle=False) as file:
            inputs, outputs = file["check_input"], file["check_output"].astype(np.float64)
        mine = heads.scores_of(heads.open_head(str(path), heads.UNSAFE, Base(model, model, "")), inputs)
        off = np.abs(np.log(mine / (1 - mine)) - np.log(outputs / (1 - outputs)))
        found |= {f"nsfw {name} most off": float(np.abs(mine - outputs).max())}
        found |= {f"nsfw {name} checks within 2e-5 of a logit": float((off < 2e-5).sum())}
    return found


def on_ordinary(seed: int) -> dict[str, float]:
    places = [file for kind in sorted((data() / "pacs" / "photo").iterdir()) for file in sorted(kind.iterdir())[:9]]
    places += sorted((data() / "coco-mini" / "train2017").iterdir())[:60]
    batch = embedded("mini", [place.read_bytes() for place in places])
    found = {"photos": float(len(places)), "screen": float((~Screen().select(batch, HERE, {}).keep).mean())}
    for kind in (Unsafe, Watermark, Toxic):
        stage = kind("prompts", kind.published)
        found[kind.task.column] = float((~stage.select(batch, HERE, {}).keep).mean())
    return found


PARTS = {"published": on_published, "prompts": on_ordinary, "filter": on_pairs, "pool": on_pool, "photos": on_photos}


def together(rows: list[dict[str, float]]) -> dict[str, Any]:
    mean = {key: round(statistics.mean(row[key] for row in rows), 4) for key in rows[0]}
    spread = {key: round(statistics.stdev(row[key] for row in rows), 4) if len(rows) > 1 else 0.0 for key in rows[0]}
    return {"mean": mean, "deviation": spread}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"parts": {}}
    if given.write and RESULTS.exists():
        result = json.loads(RESULTS.read_text())
    for name, part in PARTS.items():
        if given.only and name not in given.only.split(","):
            continue
        for seed in given.seeds.split(",")[: 1 if name in ("published", "prompts") else None]:
            start = time.process_time()
            row = {key: float(f"{value:.6g}") for key, value in part(int(seed)).items()}
            seconds = round(time.process_time() - start, 1)
            print(name, seed, row, seconds, file=sys.stderr, flush=True)
            kept = result["parts"].setdefault(name, {"seeds": {}, "cpu_seconds": {}})
            kept["seeds"][seed], kept["cpu_seconds"][seed] = row, seconds
            kept |= together(list(kept["seeds"].values()))
            result["provenance"] = provenance() | {"threads": 1}
            if given.write:
                write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
