"""LAION's watermark detector (LAION-AI/LAION-5B-WatermarkDetection): a network on pictures, not on embeddings.

EfficientNet-B3 with a head 1536-625-256-2, pictures squashed to 256 x 256. The first of its two classes is "watermark",
against what one would expect.
"""

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diptych.core.preprocess import Preprocess
from diptych.data.pictures import BadPicture, decode
from diptych.errors import DiptychError, missing_extra

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WATERMARK = 0  # of the softmax
BATCH = 16
PREPROCESS = Preprocess(256, MEAN, STD, interpolation="bilinear", resize="squash")


@cache
def network(path: str) -> nn.Module:
    """The published weights in their network, opened once a process. Nothing is unpickled but tensors."""
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", "mini", "the watermark detector") from error
    model: Any = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    model.classifier = nn.Sequential(
        nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
    )
    place = Path(path).expanduser()
    if not place.is_file():
        raise DiptychError(f"no watermark detector at {path}")
    try:
        state = torch.load(place, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("weights", state))
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError) as error:
        words = str(error).splitlines()[0][:200]
        raise DiptychError(f"{path} does not hold the weights of LAION's watermark detector: {words}") from error
    return model.eval()


def watermarks(path: str, pictures: list[bytes | None]) -> np.ndarray:
    """Bytes of pictures [N] -> probabilities of a watermark, float64 [N]; NaN where one cannot be read."""
    model, out = network(path), np.full(len(pictures), np.nan)
    for start in range(0, len(pictures), BATCH):
        pixels = {}
        for i, data in enumerate(pictures[start : start + BATCH], start):
            try:
                pixels[i] = PREPROCESS(decode(data or b"")[0])
            except BadPicture:
                continue  # stays NaN: no score, and the stage says so
        if pixels:
            with torch.inference_mode():
                logits = model(torch.stack([*pixels.values()])).double()
            out[[*pixels]] = logits.softmax(1)[:, WATERMARK].numpy()
    return out
