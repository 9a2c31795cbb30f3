"""Between open_clip's and transformers' names for one and the same CLIP: a ViT and a causal text transformer.

Both libraries hold the same numbers; they differ in names, in one fused weight for query, key and value or three, in
which side a projection is stored on, and in how the end of a text is found.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.clip import CLIP
from diptych.core.preprocess import RESAMPLING, Preprocess
from diptych.core.tokenizer import FastTokenizer, SimpleTokenizer
from diptych.errors import missing_extra

VIT, TEXT = "open_clip.VisionTransformer", "open_clip.TextTransformer"
HF_VIT, HF_TEXT = "huggingface.CLIPVisionModel", "huggingface.CLIPTextModel"
OLD_END = 2  # transformers reads a text at its highest id where eos_token_id says this
EPS = 1e-5  # of both libraries' layer norms, unless said otherwise
BLOCK = {  # open_clip -> transformers, the same in both towers
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
IMAGE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
WORDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


# -- what stands in the way --------------------------------------------------------------------------------------------


def no_huggingface(clip: CLIP) -> str:
    """Why transformers' CLIPModel cannot hold this CLIP of two towers; "" where it can."""
    kinds = (clip.image.kind, clip.text.kind)
    if clip.logit_bias is not None:
        return "its logits have a bias, for which transformers' CLIPModel has no place"
    if kinds == (HF_VIT, HF_TEXT):
        return no_tokenizer(clip)
    if kinds[0] != VIT:
        return f"its picture tower is {kinds[0]}, and transformers' CLIPModel holds a ViT alone"
    if kinds[1] != TEXT:
        return f"its text tower is {kinds[1]}, and transformers' CLIPModel holds CLIP's own text transformer alone"
    visual: Any = clip.image.visual
    text: Any = clip.text
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its pictures are not read at the class token, as transformers' CLIPModel does"
    if not isinstance(visual.ln_pre, nn.LayerNorm):
        return "it has no norm before the first block, which transformers' CLIPModel has"
    if text.pool_type not in ("argmax", "eos") or text.cls_emb is not None:
        return "its texts are not read at their end token, as transformers' CLIPModel does"
    if not text.looks_back or text.masks_padding:
        return "its text tower is not plainly causal, as that of transformers' CLIPModel is"
    if text.pool_type == "eos" and text.eos_id == OLD_END:
        return f"its texts end with id {OLD_END}, which transformers takes for a mark of older models"
    projection = text.text_projection
    if projection is None or getattr(projection, "bias", None) is not None:
        return "its text projection is not one matrix without bias, as in transformers' CLIPModel"
    for blocks in (visual.transformer.resblocks, text.resblocks):
        if reason := other_blocks(blocks):
            return reason
    if clip.preprocess.resize == "longest":
        return "its preprocessing pads pictures, which CLIP's image processor of transformers does not"
    return no_tokenizer(clip)


def other_blocks(blocks: nn.ModuleList) -> str:
    """Why blocks are not CLIP's plain ones; "" where they are."""
    for block in blocks:
        plain = isinstance(block.attn, nn.MultiheadAttention) and not hasattr(block, "ln_attn")
        layers = list(block.mlp.children())  # type: ignore[union-attr]
        if not plain or len(layers) != 3 or not isinstance(block.ls_1, nn.Identity):
            return "its blocks are not CLIP's plain ones, which are all that transformers' CLIPModel has"
        if activation(layers[1]) is None:
            return f"its activation {type(layers[1]).__name__} is none that transformers' CLIPModel is given here"
    return ""


def activation(layer: nn.Module) -> str | None:
    """transformers' word for an activation."""
    if isinstance(layer, nn.GELU):
        return "gelu" if layer.approximate == "none" else "gelu_pytorch_tanh"
    return "quick_gelu" if type(layer).__name__ == "QuickGELU" else None


def no_tokenizer(clip: CLIP) -> str:
    """Why transformers cannot read texts as this CLIP's tokenizer does; "" where it can."""
    tokenizer = clip.tokenizer
    if isinstance(tokenizer, SimpleTokenizer):
        known = "" if tokenizer.clean == "lower" else f'"{tokenizer.clean}"'
        return known and f"its tokenizer cleans texts by open_clip's {known}, which transformers' does not"
    if not isinstance(tokenizer, FastTokenizer):
        return f"its tokenizer is a {type(tokenizer).__name__}, which is not known to transformers"
    if tokenizer.clean == "canonicalize" or tokenizer.drop_id is not None:
        return "its tokenizer takes marks out of texts, which transformers' does not"
    return ""


# -- open_clip -> transformers -----------------------------------------------------------------------------------------


def huggingface_config(clip: CLIP) -> dict[str, Any]:
    """config.json of a CLIPModel for a CLIP that `no_huggingface` has nothing against."""
    origin = clip.origin or {}
    if origin.get("library") == "huggingface":
        return deepcopy(origin["config"]) | {"architectures": ["CLIPModel"]}
    visual: Any = clip.image.visual
    text: Any = clip.text
    first = int(clip.tokenizer(["a"]).ids[0, 0])
    sizes = {
        "vision_config": tower_sizes(visual.transformer.resblocks, visual.ln_post, clip.embed_dim)
        | {"model_type": "clip_vision_model", "image_size": clip.preprocess.size, "patch_size": visual.conv1.stride[0]},
        "text_config": tower_sizes(text.resblocks, text.ln_final, clip.embed_dim)
        | {
            "model_type": "clip_text_model",
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": text.context_length,
            "bos_token_id": first,
            "eos_token_id": end_id(clip),
            "pad_token_id": getattr(clip.tokenizer, "pad_id", 0),
        },
    }
    about = {"model_type": "clip", "architectures": ["CLIPModel"], "dtype": "float32", "projection_dim": clip.embed_dim}
    return about | {"logit_scale_init_value": float(clip.log_scale.detach())} | sizes


def tower_sizes(blocks: Any, norm: Any, out: int) -> dict[str, Any]:
    block: Any = blocks[0]
    layers = list(block.mlp.children())
    return {
        "hidden_size": block.attn.embed_dim,
        "intermediate_size": layers[0].out_features,
        "num_attention_heads": block.attn.num_heads,
        "num_hidden_layers": len(blocks),
        "hidden_act": activation(layers[1]),
        "layer_norm_eps": norm.eps,
        "projection_dim": out,
    }


def end_id(clip: CLIP) -> int:
    """The id where transformers reads a text: the end token where it is the highest id, or the rule of older models."""
    text: Any = clip.text
    if text.pool_type == "eos":
        return text.eos_id
    end = getattr(clip.tokenizer, "end_id", -1)
    return end if end == text.token_embedding.num_embeddings - 1 else OLD_END


def huggingface_tensors(clip: CLIP, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's tensors under transformers' names."""
    if clip.image.kind == HF_VIT:
        places = {
            "towers.image.model.": "vision_model.", "towers.image.projection.": "visual_projection.",
            "towers.text.model.": "text_model.", "towers.text.projection.": "text_projection.",
            "log_scale": "logit_scale",
        }  # fmt: skip
        return {renamed(name, places): tensor for name, tensor in tensors.items()}
    found = {"logit_scale": tensors["log_scale"]}
    found["visual_projection.weight"] = tensors["towers.image.visual.proj"].T
    bare = "towers.text.text_projection"
    found["text_projection.weight"] = tensors[bare].T if bare in tensors else tensors[f"{bare}.weight"]
    for ours, theirs in IMAGE.items():
        found[theirs] = tensors[f"towers.image.{ours}"]
    for ours, theirs in WORDS.items():
        found[theirs] = tensors[f"towers.text.{ours}"]
    places = (("towers.image.visual.transformer.", "vision_model."), ("towers.text.", "text_model."))
    for prefix, half in places:
        depth = clip.image.depth if half == "vision_model." else clip.text.depth
        for i in range(depth):
            block, layer = f"{prefix}resblocks.{i}.", f"{half}encoder.layers.{i}."
            for kind in ("weight", "bias"):
                parts = tensors[f"{block}attn.in_proj_{kind}"].chunk(3)
                for role, part in zip("qkv", parts, strict=True):
                    found[f"{layer}self_attn.{role}_proj.{kind}"] = part
                for ours, theirs in BLOCK.items():
                    found[f"{layer}{theirs}.{kind}"] = tensors[f"{block}{ours}.{kind}"]
    return found


def renamed(name: str, places: dict[str, str]) -> str:
    prefix = next(prefix for prefix in places if name.startswith(prefix))
    return places[prefix] + name.removeprefix(prefix)


def image_processor(look: Preprocess) -> dict[str, Any]:
    """preprocessor_config.json. Where an odd number of pixels is cut off, transformers cuts one more on the far side
    than open_clip does."""
    side = {"height": look.size, "width": look.size}
    shortest = look.resize == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": look.size} if shortest else side,
        "resample": int(RESAMPLING[look.interpolation]),
        "do_center_crop": shortest,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(look.mean),
        "image_std": list(look.std),
    }


def write_huggingface(clip: CLIP, tensors: dict[str, Tensor], place: Path) -> None:
    """config.json, model.safetensors, the tokenizer's files and preprocessor_config.json."""
    from diptych.core.save import write_tensors

    (place / "config.json").write_text(json.dumps(huggingface_config(clip), indent=2))
    (place / "preprocessor_config.json").write_text(json.dumps(image_processor(clip.preprocess), indent=2))
    transformers_tokenizer(clip.tokenizer).save_pretrained(place)
    write_tensors(huggingface_tensors(clip, tensors), place / "model.safetensors")


def transformers_tokenizer(tokenizer: Any, cleaning: bool = True) -> Any:
    """transformers' tokenizer for one of ours: the same ids for texts without HTML entities and broken Unicode, which
    open_clip mends first. cleaning: what is done to a text before is part of it."""
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "huggingface", "writing the tokenizer") from error
    if isinstance(tokenizer, SimpleTokenizer):
        source = tokenizer.tokenizer
        words = list(source.encoder)
        words[source.sot_token_id], words[source.eot_token_id] = "<|startoftext|>", "<|endoftext|>"
        vocabulary = {word: i for i, word in enumerate(words)}
        return transformers.CLIPTokenizer(
            vocab=vocabulary, merges=list(source.bpe_ranks), model_max_length=tokenizer.context_length
        )
    from tokenizers import Regex, Tokenizer, normalizers

    backend = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    backend.no_truncation()
    if cleaning and tokenizer.clean:
        steps: list[Any] = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        steps += [normalizers.Lowercase()] if tokenizer.clean == "lower" else []
        steps += [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    special = {"pad_token": backend.id_to_token(tokenizer.pad_id)}
    if tokenizer.end_id >= 0:
        special["eos_token"] = backend.id_to_token(tokenizer.end_id)
    if tokenizer.drop_id is not None:
        special["sep_token"] = backend.id_to_token(tokenizer.drop_id)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=tokenizer.context_length, **special
    )


# -- transformers -> open_clip -----------------------------------------------------------------------------------------


def no_open_clip(config: dict[str, Any]) -> str:
    """Why open_clip's CLIP cannot hold a CLIPModel of this config; "" where it can."""
    vision, text = config["vision_config"], config["text_config"]
    acts = {vision["hidden_act"], text["hidden_act"]}
    if len(acts) > 1 or not acts <= {"gelu", "quick_gelu"}:
        return f"its activations are {' and '.join(sorted(acts))}, and open_clip has gelu or quick_gelu in both towers"
    for tower in (vision, text):
        width = tower["hidden_size"]
        if int(width * (tower["intermediate_size"] / width)) != tower["intermediate_size"]:
            return "its MLP is no multiple of its width that open_clip can be given"
    return ""


def open_clip_config(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's model_cfg for a CLIPModel's config. Texts keep their tokenizer, which lies beside the weights."""
    vision, text = config["vision_config"], config["text_config"]

    def tower(sizes: dict[str, Any]) -> dict[str, Any]:
        ratio = sizes["intermediate_size"] / sizes["hidden_size"]
        found = {"width": sizes["hidden_size"], "layers": sizes["num_hidden_layers"], "mlp_ratio": ratio}
        eps = sizes["layer_norm_eps"]
        return found | ({} if eps == EPS else {"norm_kwargs": {"eps": eps}})

    end = text["eos_token_id"]
    highest = end in (OLD_END, text["vocab_size"] - 1)
    found: dict[str, Any] = {
        "embed_dim": config["projection_dim"],
        "vision_cfg": tower(vision)
        | {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        },
        "text_cfg": tower(text)
        | {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
        }
        | ({} if highest else {"pool_type": "eos", "eos_id": end}),
    }
    return found | ({"quick_gelu": True} if text["hidden_act"] == "quick_gelu" else {})


def open_clip_tensors(tensors: dict[str, Tensor], depths: tuple[int, int]) -> dict[str, Tensor]:
    """Tensors of a CLIP of transformers' towers under open_clip's names. depths: blocks of pictures and texts."""
    places = {"towers.image.model.": "vision_model.", "towers.text.model.": "text_model."}
    known = {renamed(n, places): t for n, t in tensors.items() if n.startswith(tuple(places))}
    found = {"logit_scale": tensors["log_scale"]}
    found["visual.proj"] = tensors["towers.image.projection.weight"].T
    found["text_projection"] = tensors["towers.text.projection.weight"].T
    for ours, theirs in {**IMAGE, **WORDS}.items():
        found[ours] = known[theirs]
    for prefix, half, depth in (("visual.", "vision_model.", depths[0]), ("", "text_model.", depths[1])):
        for i in range(depth):
            block, layer = f"{prefix}transformer.resblocks.{i}.", f"{half}encoder.layers.{i}."
            for kind in ("weight", "bias"):
                parts = [known[f"{layer}self_attn.{role}_proj.{kind}"] for role in "qkv"]
                found[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
                for ours, theirs in BLOCK.items():
                    found[f"{block}{ours}.{kind}"] = known[f"{layer}{theirs}.{kind}"]
    return found
