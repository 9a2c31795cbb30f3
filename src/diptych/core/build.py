"""From the source libraries' models, configs and tokenizers to a CLIP of ours."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from diptych.core.clip import CLIP
from diptych.core.preprocess import RESAMPLING, Preprocess
from diptych.core.tokenizer import FastTokenizer, SimpleTokenizer, cleaning_name
from diptych.core.tower import Tower
from diptych.errors import DiptychError, Unsupported

POOLINGS = {
    "MeanPooler": "mean",
    "ClsPooler": "cls_pooler",
    "ClsLastHiddenStatePooler": "cls",
}


def build_open_clip(model_cfg: dict[str, Any], where: str) -> Any:
    """open_clip's model for its `model_cfg`, with random weights and nothing downloaded but a text encoder's config.

    Raises DiptychError for a config that open_clip does not know; `where` names its place.
    """
    import open_clip
    from open_clip.coca_model import CoCa

    config = deepcopy(model_cfg)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise DiptychError(f"{where} is no model config of open_clip: it lacks {', '.join(missing)}")
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or bool(text.get("hf_model_name"))
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        return (CoCa if custom and "multimodal_cfg" in config else kind)(**config)
    except OSError as error:  # transformers, which asks the hub for the config of the text encoder
        raise DiptychError(
            f"{where}: its text encoder {text.get('hf_model_name')!r} is not on this machine and cannot be fetched; "
            "hf_model_name may also be a local folder with its config.json"
        ) from error
    except (TypeError, AssertionError, RuntimeError, ValueError, KeyError) as error:
        raise DiptychError(f"{where} is no model config that open_clip knows: {first_line(error)}") from error


def image_tower(visual: Any, embed_dim: int) -> Tower:
    """The tower for open_clip's `model.visual`. Raises Unsupported for an unknown class."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    from diptych.core.towers import open_clip, timm

    if isinstance(visual, VisionTransformer):
        return open_clip.ViTImage(visual)
    if isinstance(visual, ModifiedResNet):
        return open_clip.ResNetImage(visual)
    if isinstance(visual, TimmModel):
        return timm.image_tower(visual.trunk, visual.head, embed_dim)
    raise Unsupported(f"picture towers of class {type(visual).__name__} are not known here")


def text_tower(model: Any, embed_dim: int) -> Tower:
    """The tower for the texts of an open_clip model. Raises Unsupported for an unknown class."""
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

    from diptych.core.towers import huggingface
    from diptych.core.towers.open_clip import TransformerText

    text = getattr(model, "text", None)
    if text is None or isinstance(text, TextTransformer):
        return TransformerText(model if text is None else text)
    if not isinstance(text, HFTextEncoder):
        raise Unsupported(f"text towers of class {type(text).__name__} are not known here")
    config: Any = text.config
    pooling: Any = POOLINGS.get(type(text.pooler).__name__)
    if pooling is None:
        raise Unsupported(f"text pooling {type(text.pooler).__name__} of open_clip is not known here")
    if pooling == "cls_pooler" and getattr(text.transformer, "pooler", None) is None:
        pooling = "cls"
    return huggingface.text_tower(
        text.transformer, pooling=pooling, head=text.proj, embed_dim=embed_dim, pad_id=config.pad_token_id
    )


def clip_of_open_clip(
    model: Any, model_cfg: dict[str, Any], tokenizer: Any, preprocess: Preprocess, *, name: str, source: str
) -> CLIP:
    """A CLIP around an open_clip model and our tokenizer for it, sharing the model's weights."""
    image = image_tower(model.visual, model_cfg["embed_dim"])
    text = text_tower(model, model_cfg["embed_dim"])
    bias = getattr(model, "logit_bias", None)
    clip = CLIP(
        name, image, text, tokenizer, preprocess, logit_bias=None if bias is None else float(bias), source=source
    )
    clip.log_scale.data = model.logit_scale.detach().float().reshape(())
    clip.origin = {"library": "open_clip", "model_cfg": deepcopy(model_cfg)}
    return clip.float()


def clip_of_huggingface(model: Any, tokenizer: Any, preprocess: Preprocess, *, name: str, source: str) -> CLIP:
    """A CLIP around transformers' CLIPModel, sharing its weights."""
    from diptych.core.towers.huggingface import CLIPImage, CLIPText

    image = CLIPImage(model.vision_model, model.visual_projection)
    text = CLIPText(model.text_model, model.text_projection)
    clip = CLIP(name, image, text, tokenizer, preprocess, source=source)
    clip.log_scale.data = model.logit_scale.detach().float().reshape(())
    clip.origin = {"library": "huggingface", "config": model.config.to_dict()}
    return clip.float()


def tokenizer_of_open_clip(tokenizer: Any, context_length: int) -> FastTokenizer | SimpleTokenizer:
    """Ours for one of open_clip's: the same ids. Raises Unsupported for the modes that are not known here."""
    from open_clip.tokenizer import SigLipTokenizer
    from open_clip.tokenizer import SimpleTokenizer as Source

    if isinstance(tokenizer, Source):
        if tokenizer.reduction_fn is not None:
            raise Unsupported("a tokenizer that drops words at random (reduction_mask) is not known here")
        return SimpleTokenizer(tokenizer, context_length=context_length)
    if getattr(tokenizer, "tokenizer_mode", ""):
        raise Unsupported(f"open_clip's tokenizer mode {tokenizer.tokenizer_mode!r} is not known here")
    source = tokenizer.tokenizer
    clean = "canonicalize" if isinstance(tokenizer, SigLipTokenizer) else cleaning_name(tokenizer.clean_fn)
    drop = source.sep_token_id if getattr(tokenizer, "strip_sep_token", False) else None
    return tokenizer_of_huggingface(source, context_length, clean=clean, drop_id=drop)


def tokenizer_of_huggingface(
    source: Any, context_length: int, *, clean: str = "", drop_id: int | None = None
) -> FastTokenizer:
    """Ours for a fast tokenizer of transformers, on a copy: transformers changes its own at every call."""
    from tokenizers import Tokenizer

    backend = getattr(source, "backend_tokenizer", None)
    if backend is None or source.padding_side != "right":
        raise Unsupported(f"{type(source).__name__} is no fast tokenizer that pads on the right")
    return FastTokenizer(
        Tokenizer.from_str(backend.to_str()),
        context_length=context_length,
        pad_id=source.pad_token_id or 0,
        end_id=source.eos_token_id,
        clean=clean,
        drop_id=drop_id,
    )


def preprocess_of_open_clip(config: dict[str, Any], size: Any, where: str) -> Preprocess:
    """From open_clip's `preprocess_cfg` (mean and std are asked for; the rest has open_clip's documented defaults)."""
    mean, std = triple(config, "mean", where), triple(config, "std", where)
    interpolation = config.get("interpolation") or "bicubic"
    resize = config.get("resize_mode") or "shortest"
    fill = config.get("fill_color") or 0
    if interpolation == "random":  # of training; open_clip itself reads it as bicubic
        interpolation = "bicubic"
    known = interpolation in ("bicubic", "bilinear") and resize in ("shortest", "longest", "squash")
    if not known or not isinstance(fill, int) or config.get("mode", "RGB") != "RGB":
        raise Unsupported(
            f"{where}: preprocessing with interpolation {interpolation!r}, resize_mode {resize!r}, fill {fill!r}"
        )
    return Preprocess(square(size, where), mean, std, interpolation, resize, fill)


def preprocess_of_huggingface(config: dict[str, Any], where: str) -> Preprocess:
    """From a preprocessor_config.json of a CLIP image processor. Raises Unsupported for what it would change."""
    config = config.get("image_processor", config)  # processor_config.json holds it one level down
    for key in ("do_resize", "do_normalize", "do_rescale"):
        if config.get(key, True) is not True:
            raise Unsupported(f"{where}: {key} = {config[key]!r}; a picture tower needs it")
    factor = config.get("rescale_factor", 1 / 255)
    if abs(factor - 1 / 255) > 1e-7:
        raise Unsupported(f"{where}: rescale_factor = {factor!r}; only 1/255 is known")
    if "size" not in config:
        raise DiptychError(f"{where} lacks size; preprocessing is never guessed")
    size = config["size"]
    size = {"shortest_edge": size} if isinstance(size, int) else {k: v for k, v in size.items() if v is not None}
    crop = config.get("crop_size", size.get("shortest_edge"))
    if set(size) == {"height", "width"}:
        resize, side = "squash", square((size["height"], size["width"]), where)
        cropped = config.get("do_center_crop", False) and square(crop, where) != side
    elif set(size) == {"shortest_edge"}:
        resize, side = "shortest", int(size["shortest_edge"])
        cropped = not config.get("do_center_crop", True) or square(crop, where) != side
    else:
        raise Unsupported(f"{where}: size = {size!r}")
    if cropped:
        raise Unsupported(f"{where}: size {size!r} with crop_size {crop!r}; both must be one square")
    names = {int(value): name for name, value in RESAMPLING.items()}
    resample = config.get("resample", 3)
    if resample not in names:
        raise Unsupported(f"{where}: resample = {resample!r}")
    mean, std = triple(config, "image_mean", where), triple(config, "image_std", where)
    return Preprocess(side, mean, std, names[resample], resize, floor=True)


def triple(config: dict[str, Any], key: str, where: str) -> tuple[float, float, float]:
    value = config.get(key)
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise DiptychError(f"{where}: {key} = {value!r}; three numbers are needed, preprocessing is never guessed")
    red, green, blue = (float(v) for v in value)
    return red, green, blue


def square(size: Any, where: str) -> int:
    if isinstance(size, dict):
        size = tuple(size.get(key) for key in ("height", "width"))
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise Unsupported(f"{where}: pictures of {size!r} pixels; only squares are known")
        size = size[0]
    if not isinstance(size, int):
        raise DiptychError(f"{where}: a picture size of {size!r}")
    return size


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def copy_weights(target: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Load all of a module's tensors by name. Raises DiptychError where any is missing, left over or misshapen."""
    try:
        target.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise DiptychError(f"{where} does not hold the weights of its own config: {mismatch(error)}") from error


def mismatch(error: RuntimeError) -> str:
    """The first thing that torch complains about, short."""
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    return (lines[0] if lines else first_line(error))[:240]
