"""Writing a CLIP to a folder: in open_clip's layout, so that open_clip reads it, or in our own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from diptych.core.clip import CLIP, EditedCLIP
from diptych.core.load import FORMAT, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, OUR_WEIGHTS, OURS
from diptych.core.tokenizer import FastTokenizer
from diptych.errors import DiptychError, Unsupported
from diptych.files import atomic_folder

MARKS = (OURS, OPEN_CLIP_CONFIG)  # a folder with one of these is a model, and may be overwritten by one


def save(clip: CLIP, folder: str | Path, layout: Literal["open_clip", "diptych"] = "open_clip") -> Path:
    """Write a CLIP as a folder that `diptych.load` (and, in its layout, open_clip) opens again.

    Edits that change weights are merged in. Raises Unsupported for what a layout cannot hold, DiptychError for a
    place that cannot be written or holds something else; nothing half-written is left behind.
    """
    if layout not in ("open_clip", "diptych"):
        raise DiptychError(f'no layout is called "{layout}"; valid: open_clip, diptych')
    base, tensors = merged(clip)
    origin = base.origin
    if origin is None:
        raise Unsupported(f"{clip.name} was not made by `load`: what it was built from is not known")
    if layout == "open_clip":
        refuse_open_clip(base, origin)
    with new_folder(Path(folder)) as place:
        if layout == "open_clip":
            write_open_clip(base, origin, tensors, place)
        else:
            about = {"format": FORMAT, "name": base.name, "origin": origin, "preprocess": asdict(base.preprocess)}
            (place / OURS).write_text(json.dumps(about, indent=2))
            base.tokenizer.save(place)
            write_tensors(tensors, place / OUR_WEIGHTS)
    return Path(folder)


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


def refuse_open_clip(clip: CLIP, origin: dict[str, Any]) -> None:
    """Raise for what open_clip's layout cannot hold."""
    if origin["library"] == "mini":
        raise Unsupported(
            "open_clip has no model like mini (a classifier's logits and a sentence encoder, joined in closed form), "
            'so it cannot be written in its layout; use layout="diptych"'
        )
    if origin["library"] != "open_clip":
        raise Unsupported(f'{clip.name} is a CLIP of {origin["library"]}; use layout="diptych"')
    if "multimodal_cfg" in origin["model_cfg"]:
        raise Unsupported(f'{clip.name} is a CoCa, whose decoder is no part of a CLIP; use layout="diptych"')


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
    config = {"model_cfg": origin["model_cfg"], "preprocess_cfg": preprocess}
    (place / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2))
    write_tensors(open_clip_names(clip, origin, tensors), place / OPEN_CLIP_WEIGHTS[0])
    if isinstance(clip.tokenizer, FastTokenizer):
        save_for_transformers(clip.tokenizer, place)


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


def save_for_transformers(tokenizer: FastTokenizer, place: Path) -> None:
    """The tokenizer as the files that open_clip reads through transformers."""
    import transformers
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    backend.no_truncation()
    special = {"pad_token": backend.id_to_token(tokenizer.pad_id)}
    if tokenizer.end_id >= 0:
        special["eos_token"] = backend.id_to_token(tokenizer.end_id)
    if tokenizer.drop_id is not None:
        special["sep_token"] = backend.id_to_token(tokenizer.drop_id)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(place)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    # tied tensors are written once each: safetensors holds no shared memory
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, path)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """`atomic_folder` where nothing is, or a model that may be replaced."""
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not any((folder / m).is_file() for m in MARKS))
    ):
        raise DiptychError(f"{folder} exists and is no model folder; choose another place")
    with atomic_folder(folder) as place:
        yield place
