"""Loading pictures and texts to train on, against open_clip's own pipeline on the same shards.

    OMP_NUM_THREADS=1 python benchmarks/loader.py SHARD.tar [--pictures 5120] [--write]       two CPU minutes

The pictures of a webdataset shard are repeated, under other names, into eight shards. Both sides read them, decode,
crop at random (0.9 to 1 of the area), resize to 224 by bicubic, normalise, tokenise, and give batches of 128: ours by
`Batches`, theirs by `open_clip_train.data.get_wds_dataset` without worker processes. They take turns, a batch each, so
that other work on the machine meets both; times are processor time of this process. "scenes" is the same loader on
drawn scenes of 64 pixels. open_clip's pipeline needs `webdataset` before version 1.

The check: of one crop both make the same pixels, within one of 255 levels, and of one text the same tokens.
"""

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset

from diptych.core.preprocess import Preprocess
from diptych.data.pairs import read_pairs
from diptych.data.scenes import Scenes
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.pretrain.clip import Clip
from diptych.training.batches import Batches, Order

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "loader.json"
SIDE, BATCH, SHARDS, ASKED = 224, 128, 8, 1.2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def repeat(source: Path, folder: Path, pictures: int) -> int:
    """Shards of the source's members again and again; -> how many pairs."""
    with tarfile.open(source) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]  # type: ignore[union-attr]
    count = len({name.partition(".")[0] for name, _ in members})
    each = -(-pictures // (count * SHARDS))
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as out:
            for copy in range(each):
                for name, data in members:
                    info = tarfile.TarInfo(f"{shard:02d}{copy:03d}{name}")
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
    return count * each * SHARDS


class Tokens:
    """What of a CLIP the loader asks for."""

    def __init__(self, size: int = SIDE) -> None:
        from diptych.core.build import tokenizer_of_open_clip

        self.preprocess = Preprocess(size, MEAN, STD)
        self.tokenize = tokenizer_of_open_clip(open_clip.SimpleTokenizer(), 77)


def ours(source: Any, count: int, size: int = SIDE) -> Iterator[Any]:
    clip: Any = Tokens(size)
    return Batches(source, clip, Clip(), Order(count, BATCH, 0), workers=0).run(0, count // BATCH)


def transform() -> Any:
    return image_transform(SIDE, is_train=True, mean=MEAN, std=STD)


def theirs(folder: Path, count: int) -> Iterator[Any]:
    """open_clip's own, as its training makes it."""
    args = SimpleNamespace(
        train_data=str(folder / f"{{00000..{SHARDS - 1:05d}}}.tar"), train_num_samples=count, batch_size=BATCH,
        dataset_resampled=False, train_data_upsampling_factors=None, seed=0, workers=0, world_size=1,
    )  # fmt: skip
    data: Any = get_wds_dataset(args, transform(), is_train=True, tokenizer=open_clip.SimpleTokenizer())
    return iter(data.dataloader)


def timed(batches: Iterator[Any]) -> tuple[float, int]:
    start = time.process_time()
    made = next(batches)
    seconds = time.process_time() - start
    return seconds, len(made[0])


def agree(source: Path) -> dict[str, float]:
    """The largest difference in levels of 255, the mean one, and whether tokens are the same."""
    from torchvision.transforms import functional as tv

    pairs, look, tokenize = read_pairs(source), Preprocess(SIDE, MEAN, STD), Tokens().tokenize
    rest = transform().transforms[1:]
    levels = []
    for pair in pairs:
        image = pair.picture()
        box = (3, 5, image.width - 7, image.height - 2)
        crop: Any = tv.resized_crop(
            image, box[1], box[0], box[3] - box[1], box[2] - box[0], [SIDE, SIDE],
            tv.InterpolationMode.BICUBIC,
        )  # fmt: skip
        for step in rest:
            crop = step(crop)
        apart = (crop - look.normalise(look.resized(image, box))) * torch.tensor(STD)[:, None, None] * 255
        levels.append(apart.abs())
    texts = [pair.texts[0] for pair in pairs]
    found, right = tokenize(texts), open_clip.SimpleTokenizer()(texts)
    same = bool((found.ids == right[:, : found.ids.shape[1]])[found.mask].all())
    every = torch.stack(levels)
    return {"largest_levels": float(every.max()), "mean_levels": float(every.mean()), "same_tokens": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", type=Path)
    parser.add_argument("--pictures", type=int, default=5120)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    check = agree(given.shard)
    assert check["largest_levels"] < 1.01 and check["same_tokens"], check
    with tempfile.TemporaryDirectory() as folder:
        count = repeat(given.shard, Path(folder), given.pictures)
        pairs = read_pairs(folder)
        sides = {"diptych": ours(pairs, count), "open_clip": theirs(Path(folder), count)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(count // BATCH):
            for name in [*sides][:: 1 if turn % 2 else -1]:
                spent, found = timed(sides[name])
                seconds[name].append(spent)
                assert found == BATCH or name == "diptych"
            print(f"{turn + 1}/{count // BATCH}  {seconds['open_clip'][-1] / seconds['diptych'][-1]:.2f}", flush=True)
    scenes = ours(Scenes(count=count).pairs(), count, 64)
    drawn = [timed(scenes)[0] for _ in range(8)]
    # the peer fills its shuffle buffer at its first batch: sums, not medians, are compared
    total = {name: sum(spent) for name, spent in seconds.items()}
    ratios = sorted(b / a for a, b in zip(seconds["diptych"], seconds["open_clip"], strict=True))
    result = {
        "pictures": count,
        "batch": BATCH,
        "pictures_per_cpu_second": {name: round(len(seconds[name]) * BATCH / total[name], 1) for name in total},
        "ratio": round(total["open_clip"] / total["diptych"], 3),
        "ratio_of_a_batch": {"tenth": ratios[len(ratios) // 10], "median": statistics.median(ratios),
                             "nine_tenths": ratios[-1 - len(ratios) // 10]},
        "asked": ASKED,
        "reached": total["open_clip"] / total["diptych"] >= ASKED,
        "agreement": check,
        "scenes_per_cpu_second": round(BATCH / statistics.median(drawn), 1),
        "provenance": provenance(),
    }  # fmt: skip
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}, indent=1))
    if given.write:
        write_atomically(RESULTS, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
