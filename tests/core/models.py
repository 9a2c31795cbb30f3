"""Small random models of every kind of backbone, with the source library's own embedding beside each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.tower import Tokens, Tower

VISION = {"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 4, "layers": 3}
END = 99


@dataclass(frozen=True)
class Kind:
    """tower; source: inputs -> the library's embedding; model: the library's object."""

    tower: Tower
    source: Callable[[Any], Tensor]
    model: nn.Module


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """Random weights far from any special value, batch statistics included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and bool(tensor.isfinite().all()):
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.abs_().add_(0.5)
    return model.eval().requires_grad_(False)


def clip(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, custom: bool = False) -> Any:
    import open_clip

    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return shaken(kind(16, VISION | (vision or {}), TEXT | (text or {})))  # type: ignore[arg-type]


def vit(**options: Any) -> Kind:
    from diptych.core.towers.open_clip import ViTImage

    visual = clip(vision=options).visual
    source = (lambda x: visual(x)[0]) if options.get("output_tokens") else visual
    return Kind(ViTImage(visual), source, visual)


def resnet() -> Kind:
    from diptych.core.towers.open_clip import ResNetImage

    visual = clip(vision={"layers": (1, 1, 1, 1), "width": 8, "head_width": 8}).visual
    return Kind(ResNetImage(visual), visual, visual)


def timm_model(name: str, options: dict[str, Any], pool: str, proj: str) -> Kind:
    """open_clip's TimmModel around a small timm model."""
    import timm
    from open_clip.timm_model import TimmModel

    from diptych.core.towers.timm import image_tower

    class Small(TimmModel):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            classes = 16 if proj == "" else 0
            self.trunk = timm.create_model(name, num_classes=classes, global_pool=pool, **options)
            self.head = nn.Linear(self.trunk.num_features, 16) if proj else nn.Identity()

    model = shaken(Small())
    return Kind(image_tower(model.trunk, model.head, 16), model, model)


VIT = {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 32, "patch_size": 8}


def text(custom: bool = False, **options: Any) -> Kind:
    from diptych.core.towers.open_clip import TransformerText

    model = clip(text=options, custom=custom)
    tower = TransformerText(model.text if custom else model)
    return Kind(tower, lambda tokens: model.encode_text(full(tokens, 16)), model)


def bare_text(**options: Any) -> Kind:
    """open_clip's TextTransformer with options that its configs do not reach."""
    from open_clip.transformer import TextTransformer

    from diptych.core.towers.open_clip import TransformerText

    model = shaken(TextTransformer(**TEXT, output_dim=16, **options))
    return Kind(TransformerText(model), lambda tokens: model(full(tokens, 16)), model)


def bert(kind: str, pooling: str = "mean") -> Kind:
    import transformers

    from diptych.core.towers.huggingface import BertText

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(vocab_size=100, max_position_embeddings=20, pad_token_id=0, **sizes)
    model = shaken(getattr(transformers, f"{kind}Model")(config))

    def source(tokens: Tokens) -> Tensor:
        out = model(input_ids=tokens.ids, attention_mask=tokens.mask.long())
        mask = tokens.mask[..., None].float()
        if pooling == "cls_pooler":
            return out.pooler_output
        if pooling == "cls":
            return out.last_hidden_state[:, 0]
        return (out.last_hidden_state * mask).sum(1) / mask.sum(1)

    return Kind(BertText(model, pooling=pooling), source, model)  # type: ignore[arg-type]


def other_text() -> Kind:
    import transformers

    from diptych.core.towers.huggingface import text_tower

    config = transformers.MPNetConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, pad_token_id=0
    )
    model = shaken(transformers.MPNetModel(config))

    def source(tokens: Tokens) -> Tensor:
        mask = tokens.mask[..., None].float()
        hidden = model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        return (hidden * mask).sum(1) / mask.sum(1)

    return Kind(text_tower(model, pooling="mean", head=nn.Identity(), embed_dim=32, pad_id=0), source, model)


def hf_clip() -> Any:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPConfig(
        text_config={
            **sizes, "vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": END, "pad_token_id": 0
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    return shaken(transformers.CLIPModel(config))


def hf_image() -> Kind:
    from diptych.core.towers.huggingface import CLIPImage

    model = hf_clip()
    tower = CLIPImage(model.vision_model, model.visual_projection)
    return Kind(tower, lambda x: model.get_image_features(x).pooler_output, model)


def hf_text() -> Kind:
    from diptych.core.towers.huggingface import CLIPText

    model = hf_clip()
    tower = CLIPText(model.text_model, model.text_projection)

    def source(tokens: Tokens) -> Tensor:
        return model.get_text_features(tokens.ids, attention_mask=tokens.mask.long()).pooler_output

    return Kind(tower, source, model)


def full(tokens: Tokens, length: int) -> Tensor:
    """ids padded with 0, as open_clip's tokenizer gives them."""
    return nn.functional.pad(tokens.ids, (0, length - tokens.ids.shape[1]))


def some_texts(length: int = 0) -> Tokens:
    """Four texts of different lengths, names marked; padded to the longest or to `length`."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([4, 9, 6, 9])
    ids = torch.zeros(4, max(length, 9), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, n in enumerate(lengths.tolist()):
        ids[i, :n] = torch.randint(1, 98, (n,), generator=generator)
        ids[i, 0], ids[i, n - 1] = 98, END
        mask[i, :n] = True
    return Tokens(ids, mask, lengths - 1, lengths - 2)


def some_pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


IMAGES: dict[str, Callable[[], Kind]] = {
    "open_clip vit": vit,
    "open_clip vit, average, norm after": lambda: vit(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
    "open_clip vit, patch dropout, layer scale": lambda: vit(patch_dropout=0.5, ls_init_value=0.1),
    "open_clip vit, coca pool": lambda: vit(
        attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=4, output_tokens=True
    ),
    "open_clip vit, custom blocks": lambda: vit(qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True),
    "timm vit, class token": lambda: timm_model("vit_base_patch16_224", VIT, "token", "linear"),
    "timm vit, map pool": lambda: timm_model(
        "vit_base_patch16_224", VIT | {"class_token": False}, "map", "none"
    ),
    "timm vit, average": lambda: timm_model(
        "vit_base_patch16_224", VIT | {"reg_tokens": 2, "pre_norm": True, "qk_norm": True}, "avg", ""
    ),
    "hf clip": hf_image,
}  # fmt: skip
STAGED: dict[str, Callable[[], Kind]] = {
    "open_clip resnet": resnet,
    "timm convnext": lambda: timm_model(
        "convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, "avg", "linear"
    ),
}  # fmt: skip
TEXTS: dict[str, Callable[[], Kind]] = {
    "open_clip built-in": text,
    "open_clip custom": lambda: text(custom=True, ls_init_value=0.1, proj_bias=True),
    "open_clip custom, end id": lambda: text(custom=True, pool_type="eos", eos_id=END),
    "open_clip custom blocks": lambda: text(custom=True, qk_norm=True, scale_fc=True),
    "siglip": lambda: text(custom=True, no_causal_mask=True, pool_type="last", proj_bias=True),
    "two-sided, padding masked": lambda: bare_text(no_causal_mask=True, use_pad_mask=True),
    "causal, last": lambda: text(custom=True, pool_type="last"),
    "coca": lambda: bare_text(embed_cls=True),
    "coca, mask corrected": lambda: bare_text(embed_cls=True, correct_cls_mask=True),
    "bert": lambda: bert("Bert"),
    "bert, start token": lambda: bert("Bert", "cls"),
    "roberta, pooler": lambda: bert("Roberta", "cls_pooler"),
    "xlm-roberta": lambda: bert("XLMRoberta"),
    "hf clip": hf_text,
}


@cache
def image_kind(name: str) -> Kind:
    return {**IMAGES, **STAGED}[name]()


@cache
def text_kind(name: str) -> Kind:
    return TEXTS[name]()


def tokens_for(tower: Tower) -> Tokens:
    return some_texts(tower.pads_to)
