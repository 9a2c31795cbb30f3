"""How good and how fast `mini` is: zero-shot, retrieval, few-shot, start, speed, memory.

    python benchmarks/mini.py [DATA] [--write]

DATA (default: DIPTYCH_TEST_DATA): cifar10/{train,test}/<class>, pacs/{photo,sketch}/<class>, coco-mini. Classes are
named by their folders under "a photo of a {}."; captions stand as they are. `variants` shows what each part of the
closed form is worth. Few-shot: 16 pictures a class, mean and deviation over 5 draws, the settings fixed beforehand
(nearest 10 neighbours; logistic regression with C = 10); tested on the test pictures of CIFAR-10 and on 24 others a
class of PACS. Takes about 5 minutes on 2 idle cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from diptych.core import mini as source
from diptych.core.clip import CLIP
from diptych.core.device import keep_freed_memory
from diptych.core.heads import Neighbours
from diptych.core.mini import ClosedForm, Constants, PictureHead
from diptych.core.text import ENSEMBLE, PHOTO, TextRecipe, class_rows
from diptych.data.pictures import open_picture
from diptych.engine.provenance import provenance
from diptych.files import write_atomically

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "mini.json"
SETS = ("cifar10/test", "cifar10/train", "pacs/photo", "pacs/sketch")
SHOTS, DRAWS, OTHERS, K, C = 16, 5, 24, 10, 10.0
CHILD = """
import resource, sys, time
start = time.perf_counter()
import torch
if sys.argv[1] == "mini":
    from diptych.core.mini import mini
    clip = mini()
    wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    clip.encode_image(torch.zeros(64, 3, 224, 224))
    clip.encode_text(["a photo of a cat."])
else:
    wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
status = open("/proc/self/status").read().split()  # of this program alone: getrusage's peak is handed down
print(wall, usage.ru_utime + usage.ru_stime, int(status[status.index("VmHWM:") + 1]) / 1024)
"""


def features_of(clip: CLIP, paths: list[Path]) -> Tensor:
    """Pooled features [N, 1280] before the head."""
    rows = []
    with torch.no_grad():
        for i in range(0, len(paths), 32):
            pixels = torch.stack([clip.preprocess(open_picture(path)) for path in paths[i : i + 32]])
            tokens = clip.image(pixels, tokens=True).tokens
            assert tokens is not None
            rows.append(tokens.mean(1))
    return torch.cat(rows)


def percent(share: Tensor | float) -> float:
    return round(100 * float(share), 1)


def head_of(clip: CLIP) -> PictureHead:
    head = clip.image.head
    assert isinstance(head, PictureHead)
    return head


class Data:
    """Features, truth and class names of every set, and the photos with their captions."""

    def __init__(self, clip: CLIP, root: Path) -> None:
        self.sets: dict[str, tuple[Tensor, Tensor, list[str]]] = {}
        for name in SETS:
            names = sorted(folder.name for folder in (root / name).iterdir())
            files = [sorted((root / name / each).iterdir()) for each in names]
            truth = torch.tensor([i for i, group in enumerate(files) for _ in group])
            self.sets[name] = features_of(clip, [path for group in files for path in group]), truth, names
        about = json.loads((root / "coco-mini" / "annotations" / "captions_train2017.json").read_text())
        self.photo_files = [root / "coco-mini" / "train2017" / image["file_name"] for image in about["images"]]
        self.photos = features_of(clip, self.photo_files)
        place = {image["id"]: i for i, image in enumerate(about["images"])}
        self.captions = [row["caption"].strip() for row in about["annotations"]]
        self.owner = torch.tensor([place[row["image_id"]] for row in about["annotations"]])


def zero_shot(clip: CLIP, head: PictureHead, data: Data, recipe: TextRecipe, centre: Tensor | None = None) -> dict:
    """Accuracy on every set and recall of captions and photos, in percent. centre: another mean of the texts."""
    own: Tensor = clip.text.head.centre  # type: ignore[assignment, union-attr]

    def texts(rows: Tensor) -> Tensor:
        return rows if centre is None else rows + F.pad(own - centre, (0, rows.shape[1] - len(own)))

    found: dict[str, float] = {}
    for name, (features, truth, names) in data.sets.items():
        rows = class_rows(clip, names, recipe, lambda t: texts(clip.encode_text(t)))
        found[name] = percent((clip.score(head(features), rows).argmax(1) == truth).float().mean())
    scores = clip.score(head(data.photos), texts(clip.encode_text(data.captions))).T  # [captions, photos]
    rank = (scores > scores[torch.arange(len(scores)), data.owner, None]).sum(1)
    for k in (1, 5, 10):
        found[f"text_to_photo@{k}"] = percent((rank < k).float().mean())
        best = data.owner[scores.T.topk(k).indices] == torch.arange(len(data.photos))[:, None]
        found[f"photo_to_text@{k}"] = percent(best.any(1).float().mean())
    return found


def variants(clip: CLIP, data: Data) -> dict[str, dict[str, float]]:
    """The closed form with one thing changed each."""
    head, full = head_of(clip), Constants()
    weight, bias = head.weight, head.bias
    encode = lambda texts: clip.encode_text(texts)[:, : -full.detail] + clip.text.head.centre  # noqa: E731
    groups = source.class_texts()
    rows = source.class_rows(groups, encode)
    names = source.class_rows([group[:1] for group in groups], encode)
    cases = {
        "as published": (rows, full),
        "texts: names only": (names, full),
        "no whitening": (rows, replace(full, shrink=1e9)),
        "class probabilities only": (rows, replace(full, ridge_weight=0.0)),
        "least squares only": (rows, replace(full, ridge_weight=1e9)),
        "temperature 1": (rows, replace(full, temperature=1.0)),
        "temperature 2": (rows, replace(full, temperature=2.0)),
        "shrink 0.5": (rows, replace(full, shrink=0.5)),
        "shrink 2": (rows, replace(full, shrink=2.0)),
        "ridge 3": (rows, replace(full, ridge=3.0)),
        "ridge 30": (rows, replace(full, ridge=30.0)),
    }
    found = {}
    for name, (texts, constants) in cases.items():
        form: ClosedForm = source.closed_form(weight, texts, constants)
        changed = PictureHead(weight, bias, form, constants, b"")
        found[name] = zero_shot(clip, changed, data, TextRecipe(PHOTO), form.centre)
    return found


def few_shot(clip: CLIP, data: Data) -> dict[str, dict[str, dict[str, list[float]]]]:
    """set -> embedding -> classifier -> [mean, deviation] of the accuracy in percent."""
    head, cut = head_of(clip), Constants().detail
    spaces = {
        "mini": lambda f: F.normalize(head(f), dim=1),
        "text part alone": lambda f: head(f)[:, :-cut],
        "features of the network": lambda f: F.normalize(f, dim=1),
    }
    found: dict[str, Any] = {}
    for name in ("cifar10/test", "pacs/photo", "pacs/sketch"):
        per_space: dict[str, dict[str, list[float]]] = {space: {} for space in spaces}
        for seed in range(DRAWS):
            rng = np.random.default_rng(seed)
            x, y, test, truth = draw(data, name, rng)
            for space, embed in spaces.items():
                a, b = embed(x), embed(test)
                near = Neighbours(a, y, int(y.max()) + 1, K).logits(b).argmax(1)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # 200 steps are enough for the second digit
                    linear = LogisticRegression(C=C, max_iter=200, tol=1e-3).fit(a.numpy(), y.numpy())
                per_space[space].setdefault("neighbours", []).append(float((near == truth).float().mean()))
                per_space[space].setdefault("linear", []).append(linear.score(b.numpy(), truth.numpy()))
        found[name] = {
            space: {kind: [percent(np.mean(v)), percent(np.std(v))] for kind, v in kinds.items()}
            for space, kinds in per_space.items()
        }
    return found


def draw(data: Data, name: str, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shots and test pictures: features and classes of each."""
    features, truth, names = data.sets[name]
    order = [rng.permutation(np.flatnonzero(truth.numpy() == c)) for c in range(len(names))]
    if name == "cifar10/test":
        pool, classes, _ = data.sets["cifar10/train"]
        picks = [rng.permutation(np.flatnonzero(classes.numpy() == c))[:SHOTS] for c in range(len(names))]
        index = torch.from_numpy(np.concatenate(picks))
        return pool[index], classes[index], features, truth
    shots = torch.from_numpy(np.concatenate([o[:SHOTS] for o in order]))
    rest = torch.from_numpy(np.concatenate([o[SHOTS : SHOTS + OTHERS] for o in order]))
    return features[shots], truth[shots], features[rest], truth[rest]


def speed(clip: CLIP, paths: list[Path]) -> dict[str, float]:
    """Processor seconds a picture on one thread, the best of 8 batches: the rest is other people's work.

    As `diptych compare` runs it, with freed memory kept. By the clock too, over all batches, decoding included.
    """
    batches = [paths[i : i + 32] for i in range(0, len(paths) - 31, 32)] * 4
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    decode, forward, start = [], [], time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            a = time.process_time()
            pixels = torch.stack([clip.preprocess(open_picture(path)) for path in batch])
            b = time.process_time()
            clip.encode_image(pixels)
            decode.append((b - a) / len(batch))
            forward.append((time.process_time() - b) / len(batch))
    wall = time.perf_counter() - start
    torch.set_num_threads(threads)
    return {
        "decode_cpu_seconds": round(min(decode), 4),
        "forward_cpu_seconds": round(min(forward), 4),
        "pictures_a_second_a_core": round(1 / (min(decode) + min(forward)), 1),
        "pictures_a_second_by_the_clock": round(sum(map(len, batches)) / wall, 1),
    }


def start() -> dict[str, dict[str, float]]:
    """Seconds until `mini()` is there in a process of its own, and its peak memory after 64 pictures."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "DIPTYCH_CACHE": cache}
        for name, what in (("torch alone", "torch"), ("first use", "mini"), ("later", "mini")):
            words = [sys.executable, "-c", CHILD, what]
            out = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
            wall, cpu, peak = map(float, out.split())
            found[name] = {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "peak_mb": round(peak)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("DIPTYCH_TEST_DATA"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give the folder of pictures, or set DIPTYCH_TEST_DATA")
    keep_freed_memory()
    started = start()  # first: what goes wrong goes wrong early
    clip = source.mini()
    data = Data(clip, options.data)
    head = head_of(clip)
    result: dict[str, Any] = {
        "model": {"name": "mini", "fingerprint": clip.fingerprint},
        "pictures": {name: len(rows[1]) for name, rows in data.sets.items()}
        | {"photos": len(data.photos), "captions": len(data.captions)},
        "zero_shot": {
            "a photo of a {}.": zero_shot(clip, head, data, TextRecipe(PHOTO)),
            "7 templates": zero_shot(clip, head, data, TextRecipe(ENSEMBLE)),
            "a {}": zero_shot(clip, head, data, TextRecipe(("a {}",))),
        },
        "variants": variants(clip, data),
        "few_shot": few_shot(clip, data),
        "speed": speed(clip, data.photo_files),
        "start": started,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "provenance": provenance() | {"threads": torch.get_num_threads()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.write:
        write_atomically(RESULTS, text.encode())


if __name__ == "__main__":
    main()
