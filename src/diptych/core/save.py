"""Writing a CLIP to a folder: in open_clip's layout, in Hugging Face's, or in our own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from diptych.core.clip import CLIP, EditedCLIP
from diptych.core.forms import refuse
from diptych.core.huggingface_layout import (
    HF_VIT,
    open_clip_config,
    open_clip_tensors,
    transformers_tokenizer,
    write_huggingface,
)
from diptych.core.load import FORMAT, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, OUR_WEIGHTS, OURS
from diptych.core.tokenizer import FastTokenizer
from diptych.errors import DiptychError, Unsupported, nearest
from diptych.files import atomic_folder

Layout = Literal["open_clip", "huggingface", "diptych"]
LAYOUTS = ("open_clip", "huggingface", "diptych")
MARKS = (OURS, OPEN_CLIP_CONFIG, "preprocessor_config.json")  # a folder with one of these is a model: may be replaced


def save(clip: CLIP, folder: str | Path, layout: Layout = "open_clip") -> Path:
    """Write a CLIP as a folder that `diptych.load` (and, in their layouts, open_clip and transformers) opens again.

    Edits that change weights are merged in. `diptych.export` writes the same and checks it against the library. Raises
    Unsupported for what a layout cannot hold (`core.forms`), DiptychError for a place that cannot be written or holds
    something else; nothing half-written is left behind.
    """
    if layout not in LAYOUTS:
        raise DiptychError(f'no layout is called "{layout}"{nearest(layout, LAYOUTS)}')
    refuse(clip, layout)
    with new_folder(Path(folder)) as place:
        write(clip, place, layout)
    return Path(folder)


def write(clip: CLIP, place: Path, layout: Layout) -> None:
    """The files of a layout, which the CLIP is known to fit."""
    base, tensors = merged(clip)
    origin = base.origin
    assert origin is not None
    if layout == "open_clip":
        write_open_clip(base, origin, tensors, place)
    elif layout == "huggingface":
        write_huggingface(base, tensors, place)
    else:
        about = {"format": FORMAT, "name": base.name, "origin": origin, "preprocess": asdict(base.preprocess)}
        (place / OURS).write_text(json.dumps(about, indent=2))
        base.tokenizer.save(place)
        write_tensors(tensors, place / OUR_WEIGHTS)


def merged(clip: CLIP) -> tuple[CLIP, dict[str, Tensor]]:
    """The CLIP under the edits, and its tensors with the edits merged in."""
    if not isinstance(clip, EditedCLIP):
        return clip, clip.state_dict()
    base = clip.base[0]
    tensors = dict(base.state_dict())
    for name, edit in clip.edits.towers.items():
        if edit.prompts:
            raise Unsupported("prompts are arguments of a call, not weights: save the classifier, not the model")
        for parameter, value in edit.parameters(base.towers[name]).items():  # type: ignore[arg-type]
            tensors[f"towers.{name}.{parameter}"] = value.detach()
    return base, tensors


def write_open_clip(clip: CLIP, origin: dict[str, Any], tensors: dict[str, Tensor], place: Path) -> None:
    look = clip.preprocess
    preprocess = {
        "size": look.size,
        "mode": "RGB",
        "mean": look.mean,
        "std": look.std,
        "interpolation": look.interpolation,
        "resize_mode": look.resize,
        "fill_color": look.fill,
    }
    if clip.image.kind == HF_VIT:
        model, bias = open_clip_config(origin["config"]), tensors.get("logit_bias")
        tensors = open_clip_tensors(tensors, (clip.image.depth, clip.text.depth))
        if bias is not None:
            model["init_logit_bias"], tensors["logit_bias"] = float(bias), bias
    else:
        model, tensors = deepcopy(origin["model_cfg"]), open_clip_names(clip, origin, tensors)
    if isinstance(clip.tokenizer, FastTokenizer):
        text = model["text_cfg"]
        text.setdefault("hf_tokenizer_name", clip.name)  # open_clip reads the files in the folder, whatever it says
        if clip.tokenizer.clean not in ("", "whitespace"):
            text.setdefault("tokenizer_kwargs", {})["clean"] = clip.tokenizer.clean
        transformers_tokenizer(clip.tokenizer, cleaning=False).save_pretrained(place)
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (place / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2))
    write_tensors(tensors, place / OPEN_CLIP_WEIGHTS[0])


def open_clip_names(clip: CLIP, origin: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's tensors under the names that open_clip has for them."""
    config = origin["model_cfg"]
    encoder = bool(config["text_cfg"].get("hf_model_name"))
    prefix = "text." if encoder or config.get("custom_text") else ""
    bare = clip.image.kind.startswith("timm.")
    found = {}
    for name, tensor in tensors.items():
        if name == "log_scale":
            name = "logit_scale"
        elif name.startswith("towers.image."):
            rest = name.removeprefix("towers.image.")
            name = f"visual.{rest}" if bare else rest
        elif name.startswith("towers.text."):
            rest = name.removeprefix("towers.text.")
            if encoder:
                part, _, rest = rest.partition(".")
                rest = f"{({'model': 'transformer', 'head': 'proj'})[part]}.{rest}"
            elif rest.startswith("resblocks."):
                rest = f"transformer.{rest}"
            name = prefix + rest
        found[name] = tensor
    if config.get("nonscalar_logit_scale"):
        found |= {k: v.reshape(1) for k, v in found.items() if k in ("logit_scale", "logit_bias")}
    return found


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    # tied tensors are written once each: safetensors holds no shared memory
    parts = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(parts, path, metadata={"format": "pt"})  # without which transformers refuses the file


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """`atomic_folder` where nothing is, or a model that may be replaced."""
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not any((folder / m).is_file() for m in MARKS))
    ):
        raise DiptychError(f"{folder} exists and is no model folder; choose another place")
    with atomic_folder(folder) as place:
        yield place
