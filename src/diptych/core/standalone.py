"""Pictures -> class and probability, with numpy, Pillow and onnxruntime alone (written by `diptych export`).

    python predict.py photo.jpg more.png folder/

One line a picture: path, class (or "none of these"), the most likely class's probability; with --top N the N most
likely classes and their probabilities follow. Tabs between them. Exit status 1 when a picture could not be read.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, features

HERE = Path(__file__).resolve().parent
FORMATS = ["JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000"]
FORMATS += ["AVIF"] if features.check("avif") else []
SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".avif", ".heic"}
RESAMPLING = {name.lower(): Image.Resampling[name] for name in ("BICUBIC", "BILINEAR", "LANCZOS", "NEAREST")}


def open_picture(path):
    """The first frame as RGB: upright by its EXIF, transparency on white, more than 8 bits scaled to 8."""
    image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(to_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_bytes(values):
    """Grey values to 0..255: whole numbers by the bits that hold them, 0..1 as it is, all else stretched."""
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    if low < 0 or high >= 65536 or (high > 1 and (values != np.round(values)).any()):
        bottom, top = low, high
    else:
        bottom, top = 0.0, 1.0 if high <= 1 else next(2**b - 1 for b in (8, 10, 12, 14, 16) if high < 2**b)
    return np.round((values - bottom) * (255 / max(top - bottom, 1e-12))).astype(np.uint8)


def preprocess(image, size, mean, std, interpolation, resize, fill, floor=False):
    """RGB picture -> [3, size, size] float32."""
    width, height = image.size
    resampling = RESAMPLING[interpolation]
    if resize == "squash":
        image = image.resize((size, size), resampling)
    elif resize == "shortest":
        most = 100 * min(width, height)  # longer pictures are cut first
        if max(width, height) > most:
            left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
            image = image.crop((left, top, min(width, left + most), min(height, top + most)))
            width, height = image.size
        wide = width > height
        to = (int(size * width / height), size) if wide else (size, int(size * height / width))
        image = image.resize(to, resampling) if image.size != to else image
        whole = int if floor else round
        left, top = whole((image.width - size) / 2), whole((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    else:
        scale = size / max(width, height)
        small = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resampling)
        image = Image.new("RGB", (size, size), (fill,) * 3)
        image.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    array = np.asarray(image, dtype=np.float32) / 255
    array = (array - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def main():
    parser = argparse.ArgumentParser(description="Which class each picture shows.")
    parser.add_argument("pictures", nargs="+", help="files and folders")
    parser.add_argument("--top", type=int, default=1, help="also print the N most likely classes")
    parser.add_argument("--threshold", type=float, help='below this probability: "none of these" (0: never)')
    asked = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore  # class names that a terminal cannot show
    labels = json.loads((HERE / "labels.json").read_text("utf-8"))
    settings = json.loads((HERE / "preprocessing.json").read_text("utf-8"))
    threshold = labels["threshold"] if asked.threshold is None else asked.threshold
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])

    failed = False
    for given in map(Path, asked.pictures):
        inside = [p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        for path in sorted(inside) if given.is_dir() else [given]:
            try:
                pixels = preprocess(open_picture(path), **settings)
            except Exception as error:  # a decoder fed with foreign bytes raises anything at all
                print(f"{path}: {error}", file=sys.stderr)
                failed = True
                continue
            probabilities = np.asarray(session.run(["probabilities"], {"pixels": pixels[None]})[0])[0]
            best = np.argsort(-probabilities)[: max(1, asked.top)]
            known = threshold is None or probabilities[best[0]] >= threshold
            words = [labels["classes"][best[0]] if known else "none of these", f"{probabilities[best[0]]:.4f}"]
            for i in best if asked.top > 1 else []:
                words += [labels["classes"][i], f"{probabilities[i]:.4f}"]
            print(path, *words, sep="\t")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
