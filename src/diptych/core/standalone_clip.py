"""Pictures and texts -> how well they fit, with numpy, Pillow, tokenizers and onnxruntime alone (by `diptych export`).

    python embed.py photo.jpg more.png --texts "a photo of a cat" "a photo of a dog"

One line a picture: path, and the probability of each text among those given, with tabs between.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from pictures import open_picture, preprocess
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
ABOUT = json.loads((HERE / "clip.json").read_text("utf-8"))


def session(name):
    return onnxruntime.InferenceSession(HERE / name, providers=["CPUExecutionProvider"])


def embed_pictures(paths):
    """Unit embeddings [N, D]."""
    pixels = np.stack([preprocess(open_picture(path), **ABOUT["preprocessing"]) for path in paths])
    return np.asarray(session("image.onnx").run(["embedding"], {"pixels": pixels})[0])


def embed_texts(texts):
    """Unit embeddings [N, D]. The tokenizer cuts and pads by itself."""
    encoded = Tokenizer.from_file(str(HERE / "tokenizer.json")).encode_batch(list(texts))
    tokens = np.array([one.ids for one in encoded], np.int64)
    return np.asarray(session("text.onnx").run(["embedding"], {"tokens": tokens})[0])


def main():
    parser = argparse.ArgumentParser(description="How well texts fit pictures.")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--texts", nargs="+", required=True)
    asked = parser.parse_args()
    logits = ABOUT["logit_scale"] * embed_pictures(asked.pictures) @ embed_texts(asked.texts).T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    for path, row in zip(asked.pictures, odds / odds.sum(axis=1, keepdims=True), strict=True):
        print(path, *(f"{value:.4f}" for value in row), sep="\t")


if __name__ == "__main__":
    main()
