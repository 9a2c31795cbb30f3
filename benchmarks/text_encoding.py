"""Texts through our text tower against open_clip's `encode_text`: processor time, wall time, and the difference.

    OMP_NUM_THREADS=1 python benchmarks/text_encoding.py [--write] [--classes 100] [--captions COCO_CAPTIONS.json]

One thread, ViT-B-32's text tower with random weights, tokenizing included on both sides. The work is cut into pieces
and the two sides take turns on each, so that a busy machine is busy for both; the figures are medians over pieces.
"prompts": ImageNet names under seven templates. "classifier": the rows of a zero-shot classifier, each class under
open_clip's 80 templates; open_clip's side is its own `build_zero_shot_classifier`. "captions": sentences of people.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn import functional as F

from diptych.core.build import build_open_clip, clip_of_open_clip, preprocess_of_open_clip, tokenizer_of_open_clip
from diptych.core.clip import CLIP
from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.engine.provenance import provenance
from diptych.files import write_atomically

MODEL = "ViT-B-32"
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "text_encoding.json"
LEAST, TOLERANCE = 5.0, 1e-5


def both() -> tuple[Any, Any, CLIP]:
    """open_clip's model and tokenizer, and our CLIP on the same random weights."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(MODEL)
    model = build_open_clip(config, MODEL).eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(MODEL)
    look = preprocess_of_open_clip({"mean": [0.5] * 3, "std": [0.5] * 3}, 224, MODEL)
    return model, tokenizer, clip_of_open_clip(
        model, config, tokenizer_of_open_clip(tokenizer, 77), look, name=MODEL, source=MODEL
    )  # fmt: skip


def timed(work: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        found = work()
    return time.process_time() - cpu, time.perf_counter() - wall, found


def measure(
    name: str, pieces: list[Any], theirs: Callable[[Any], Tensor], ours: Callable[[Any], Tensor]
) -> dict[str, Any]:
    """Both sides in turn on every piece -> processor and wall seconds, their ratios, the largest difference."""
    theirs(pieces[0][:1]), ours(pieces[0][:1])
    rows = []
    for i, piece in enumerate(pieces):
        sides = [("open_clip", theirs), ("diptych", ours)]
        found = {side: timed(lambda work=work, piece=piece: work(piece)) for side, work in sides[:: 1 if i % 2 else -1]}
        (cpu, wall, expected), (our_cpu, our_wall, got) = found["open_clip"], found["diptych"]
        difference = float((expected - got).abs().max())
        rows.append((cpu, wall, our_cpu, our_wall, difference))
        print(f"{name} {i + 1}/{len(pieces)}: {cpu / our_cpu:.2f} times less, {difference:.1e}", file=sys.stderr)
    cpu, wall, our_cpu, our_wall, differences = zip(*rows, strict=True)
    return {
        "what": name,
        "pieces": len(rows),
        "cpu_seconds": {"open_clip": round(sum(cpu), 3), "diptych": round(sum(our_cpu), 3)},
        "cpu_ratio": {
            "median": round(statistics.median(a / b for a, b in zip(cpu, our_cpu, strict=True)), 2),
            "least": round(min(a / b for a, b in zip(cpu, our_cpu, strict=True)), 2),
            "all": round(sum(cpu) / sum(our_cpu), 2),
        },
        "wall_ratio": round(statistics.median(a / b for a, b in zip(wall, our_wall, strict=True)), 2),
        "max_difference": max(differences),
    }


def cut(items: list[Any], count: int) -> list[list[Any]]:
    return [items[i::count] for i in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/results/text_encoding.json")
    parser.add_argument("--classes", type=int, default=100, help="of the classifier (80 templates each)")
    parser.add_argument("--prompts", type=int, default=350)
    parser.add_argument("--pieces", type=int, default=5)
    parser.add_argument("--captions", type=Path, help="a captions file of COCO")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, clip = both()

    names = random.Random(0).sample(IMAGENET_CLASSNAMES, max(options.classes, options.prompts // len(ENSEMBLE)))
    prompts = [t.replace("{}", name) for name in names for t in ENSEMBLE][: options.prompts]
    sets: dict[str, list[str]] = {"prompts": prompts}
    if options.captions:
        found = json.loads(options.captions.read_text())["annotations"]
        sets["captions"] = list(dict.fromkeys(row["caption"] for row in found))

    def encode(texts: list[str]) -> Tensor:
        return torch.cat([model.encode_text(tokenizer(texts[i : i + 128])) for i in range(0, len(texts), 128)])

    rows = []
    for name, texts in sets.items():
        row = measure(name, cut(texts, options.pieces), encode, clip.encode_text)
        tokens = [clip.tokenizer.length(t) for t in texts]
        rows.append(row | {"texts": len(texts), "mean_tokens": round(statistics.mean(tokens), 1), "most": max(tokens)})

    recipe = TextRecipe(tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES))
    row = measure(
        "classifier",
        cut(names[: options.classes], min(2 * options.pieces, options.classes)),
        lambda part: (
            open_clip.build_zero_shot_classifier(
                model, tokenizer, part, OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=2
            ).T
        ),
        lambda part: F.normalize(class_rows(clip, part, recipe), dim=-1),
    )
    rows.append(row | {"classes": options.classes, "templates": len(recipe.templates)})

    for row in rows:
        row["reached"] = row["cpu_ratio"]["median"] >= LEAST and row["max_difference"] <= TOLERANCE
    result = {"model": MODEL, "asked": {"cpu_ratio": LEAST, "max_difference": TOLERANCE}, "rows": rows}
    result["provenance"] = provenance() | {"threads": 1}
    text = json.dumps(result, indent=1)
    print(text)
    if options.write:
        write_atomically(RESULTS, text.encode())
    return 0 if all(row["reached"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
