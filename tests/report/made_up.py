"""Made-up comparisons: an everyday one, and one of everything that class and file names can be."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from diptych.comparison.summary import Summary, Winner

# method: accuracy at 1, 4, 16 shots; fit seconds; trainable; can name new classes
METHODS = {
    "zero_shot": ((0.78, 0.78, 0.78), 0.02, 0, True),
    "knn": ((0.61, 0.74, 0.83), 0.05, 0, False),
    "linear_probe": ((0.60, 0.79, 0.88), 0.8, 3591, False),
    "gda": ((0.80, 0.85, 0.90), 0.3, 0, False),
    "tip_adapter": ((0.79, 0.83, 0.87), 0.1, 0, False),
    "tip_adapter_f": ((0.80, 0.85, 0.895), 6.5, 57344, False),
    "dclip": ((0.79, 0.79, 0.79), 1.2, 0, True),
    "coop": ((0.77, 0.84, 0.89), 48.0, 8192, True),
}
CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
STRANGE = [
    "<script>alert('x')</script>", "🐈 cat", "犬", "كلب", "$\\frac{1}{2}$", 'a "quoted" & <b>bold</b> name', "x" * 200,
    "tab\tand\nline", "C:\\fries/../etc", "\u202eright to left", "naïve café", "a_b", "A_b", "👩‍👩‍👧‍👦 family",
    "\x00nul\x1b[31m", "half \udce9 surrogate", "**bold**", "[red]rich[/red]", "], {",
    "日本語のとても長いクラス名前です" * 4,
]  # fmt: skip


def everyday(seed: int = 0) -> Summary:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(168) % 7)
    summary = _made(rng, truth, CLASSES, {m: f[0] for m, f in METHODS.items()}, (1, 4, 16))
    why = "deep prompts need a transformer; mini's image tower is an EfficientNet. Try --model ViT-B-16:openai"
    skipped = [{"method": "maple", "shots": s, "seed": i, "skipped": why} for s in (1, 4, 16) for i in range(3)]
    rows = [*summary.rows, *skipped]
    return Summary(**{**vars_of(summary), "rows": rows})


def extreme(classes: int = 120, seed: int = 1) -> Summary:
    rng = np.random.default_rng(seed)
    names = [*STRANGE, *(f"class number {i}" for i in range(len(STRANGE), classes))][:classes]
    truth = rng.permutation(np.arange(classes * 4) % (classes - 1))  # the last class has no test picture
    made = {m: tuple(a * 0.7 for a in f[0]) for m, f in METHODS.items()}
    summary = _made(rng, truth, names, made, (1, "all"))
    ids = [f"{names[t]}/<img src=x onerror=alert(1)> {i}.jpg" for i, t in enumerate(truth)]
    notes = {
        "set_aside": [(f"<i>broken</i>/{i}.jpg", "truncated after 12 & bytes") for i in range(300)],
        "warnings": [
            "The names of 3 classes say nothing (class_3): zero-shot cannot work with them. <b>Use --names.</b>"
        ],
    }
    return Summary(**{**vars_of(summary), "test_ids": ids, **notes})


def vars_of(summary: Summary) -> dict[str, Any]:
    return {name: getattr(summary, name) for name in summary.__dataclass_fields__}


def _made(rng: np.random.Generator, truth: Any, names: list[str], accuracies: Any, shots: tuple) -> Summary:
    count, classes = len(truth), len(names)
    hard = rng.random(count)  # a picture is hard for all methods alike
    like = (truth + 1 + (rng.random(count) < 0.3)) % classes  # what it is mistaken for
    rows, probabilities = [], {}
    for method, (_, fit, trainable, new) in METHODS.items():
        for place, s in enumerate(shots):
            shift = rng.random(count)
            for seed in range(3):
                noise = 0.7 * hard + 0.2 * shift + 0.1 * rng.random(count)
                a = accuracies[method][place] + (0 if method in ("zero_shot", "dclip") else rng.normal(0, 0.008))
                right = noise <= np.quantile(noise, a)
                guess = np.where(right, truth, like)
                sure = 1 / classes + (1 - 1 / classes) * (1 - 0.75 * rng.random(count) * (0.35 + noise))
                p = np.full((count, classes), ((1 - sure) / (classes - 1))[:, None])
                p[np.arange(count), guess] = sure
                probabilities[method, s, seed] = p.astype(np.float32)
                times = 3 if s == "all" else 1 + s / 16
                after = 0.74 + {"coop": -0.09, "dclip": 0.02}.get(method, 0)
                rows.append(
                    {
                        "method": method,
                        "config": {"alpha": 1.5},
                        "config_hash": "1a2b3c4d",
                        "shots": s,
                        "seed": seed,
                        "accuracy": float(right.mean()),
                        "macro_recall": float(right.mean()) - 0.01,
                        "ece": 0.04 + 0.02 * rng.random(),
                        "validation": None if s == 1 else a + 0.01 + rng.normal(0, 0.006),
                        "encode_seconds": 9.4,
                        "fit_seconds": fit * times,
                        "ms_per_image": 21.0 + rng.random(),
                        "peak_mb": 900 + 300 * (trainable > 0),
                        "trainable": trainable,
                        "new_class_before": 0.74 if new else None,
                        "new_class_after": after if new else None,
                    }
                )
    return Summary(
        rows=rows,
        probabilities=probabilities,
        truth=truth,
        test_ids=[f"{names[t]}/{i:03}.jpg" for i, t in enumerate(truth)],
        class_names=names,
        winner=Winner(
            method="gda",
            shots=shots[-1],
            chosen="best out-of-fold accuracy inside the shots, mean of 3 seeds",
            config={"alpha": 1.5},
            refit_on=420,
            file="out/winner.safetensors",
        ),
        thumbnail=lambda i: thumbnail(int(truth[i]), i),
        set_aside=[("horse/empty.jpg", "the file is empty"), ("dog/half.jpg", "truncated")],
        duplicates=[(("dog/1.jpg", "dog/1 copy.jpg"), "exact"), (("house/3.jpg", "house/4.jpg"), "near")],
        provenance={
            "diptych": "0.1.0",
            "command": "diptych compare ./photos --shots 1,4,16",
            "versions": {"python": "3.11.7", "torch": "2.6.0"},
            "git": {"commit": "07f8735", "dirty": False},
            "seeds": [0, 1, 2],
            "note": None,
        },
        estimated_seconds=160.0,
        seconds=143.0,
    )


def thumbnail(label: int, index: int) -> bytes:
    """A JPEG with EXIF (a place and a camera) that must not reach the report."""
    image = Image.new("RGB", (96, 72 + index % 30), (40 * label % 255, 90 + 20 * label % 150, 200 - 15 * label % 200))
    ImageDraw.Draw(image).ellipse((20, 10, 70, 60), fill=(250, 230, 200 - index % 100))
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment=b"SecretComment")
    return buffer.getvalue()
