"""CLIPs of a few hundred random weights, of Hugging Face's own classes, and pictures made up from features."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.preprocess import Preprocess
from diptych.core.tokenizer import FastTokenizer
from diptych.core.tower import Tower, TowerOutput
from diptych.data.records import Record, Records
from diptych.data.support import CROP, Support

NAMES = ("cat", "polar bear", "dog", "old oak tree")
WORDS = "a photo of picture cat polar bear dog old oak tree fish house . the very long name".split()  # noqa: SIM905
SIDE = 16
CONTEXT = 24


def tokenizer() -> FastTokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[START]", "[END]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", 2), ("[END]", 3)]
    )
    return FastTokenizer(made, context_length=CONTEXT, pad_id=0, end_id=3)


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that a mistake shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name.lower() and "layrnorm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval().requires_grad_(False)


def hf_clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    size = {"num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": 12}
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "vocab_size": 4 + len(WORDS),
        "max_position_embeddings": CONTEXT,
    }
    text |= {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    image = {"hidden_size": 24, "intermediate_size": 48, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=text | size, vision_config=image | size, projection_dim=12)
    return shake(CLIPModel(config))


def tiny_clip(model: nn.Module | None = None) -> CLIP:
    """Both towers transformers of 3 blocks: text width 16 (causal), picture width 24, joint size 12."""
    from diptych.core.towers.huggingface import CLIPImage, CLIPText

    source = model or hf_clip()
    image = CLIPImage(source.vision_model, source.visual_projection)
    text = CLIPText(source.text_model, source.text_projection)
    return CLIP("tiny", image, text, tokenizer(), Preprocess(SIDE, (0.5,) * 3, (0.25,) * 3), logit_scale=20.0)


def tiny_bert() -> Tower:
    """A text tower that sees both ways, mean pooling, width 16."""
    from transformers import BertConfig, BertModel

    from diptych.core.towers.huggingface import BertText

    config = BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=CONTEXT,
    )
    return BertText(shake(BertModel(config)), embed_dim=16)


class Blocks(Tower):
    """A picture tower without attention: pixels [B, 3, 16, 16] -> [B, D] through one convolution."""

    modality, kind, transformer = "image", "tiny.convolution", False
    depth = 1

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = self.width = embed_dim
        self.stem = nn.Conv2d(3, embed_dim, 8, 8)
        shake(self.stem, 1)

    def forward(self, inputs, *, prompts=(), taps=(), tokens=False) -> TowerOutput:
        return TowerOutput(self.stem(inputs).relu().mean((2, 3)))


def bert_clip() -> CLIP:
    text = tiny_bert()
    return CLIP("bert", Blocks(16), text, tokenizer(), Preprocess(SIDE, (0.5,) * 3, (0.25,) * 3), logit_scale=20.0)


class MadeUp:
    """Features and pixels by record: what a `FeatureStore` would give, without pictures.

    features [N, D] by record number; views are the features with noise; pixels [N, 3, 16, 16].
    """

    def __init__(self, features: Tensor, noise: float = 0.0, pixels: Tensor | None = None) -> None:
        self.features, self.noise, self.made = F.normalize(features, dim=-1), noise, pixels

    def rows(self, records: Records) -> Tensor:
        return torch.tensor([int(r.id) for r in records.items])

    def images(self, clip, records: Records, *, views: int = 0, crop=CROP) -> Tensor:
        rows = self.rows(records)
        if not views:
            return self.features[rows]
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(len(self.features), views, self.features.shape[1], generator=generator) * self.noise
        return F.normalize(self.features[rows, None] + noise[rows], dim=-1)

    def texts(self, clip, texts: Sequence[str]) -> Tensor:
        return clip.encode_text(texts)

    def pixels(self, clip, records: Records, *, rng: np.random.Generator | None = None, crop=CROP) -> Tensor:
        assert self.made is not None
        pixels = self.made[self.rows(records)]
        flips = torch.from_numpy(rng.random(len(pixels)) < 0.5) if rng else torch.zeros(len(pixels), dtype=torch.bool)
        return torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)


def support_of(
    source: MadeUp, labels: Sequence[int], names: Sequence[str] = NAMES, seed: int = 0, first: int = 0
) -> Support:
    """Shots numbered from `first`."""
    items = tuple(Record(str(first + i), None, names[label], None, None) for i, label in enumerate(labels))
    return Support(
        names=tuple(names),
        records=Records(items, "made up"),
        labels=torch.tensor(labels),
        source=source,
        groups=tuple(range(len(items))),
        seed=seed,
    )


def picture_task(shots: int, test: int, names: Sequence[str] = NAMES, seed: int = 0) -> tuple[MadeUp, list[int]]:
    """Pixels of one random pattern a class plus noise: [classes * (shots + test)], and their labels, shots first."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(len(names), 3, SIDE, SIDE, generator=generator)
    labels = [c for _ in range(shots + test) for c in range(len(names))]
    pixels = patterns[labels] + 0.5 * torch.randn(len(labels), 3, SIDE, SIDE, generator=generator)
    return MadeUp(torch.zeros(len(labels), 1), pixels=pixels), labels


def snapshot(clip: CLIP) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in clip.state_dict().items()}


def unchanged(clip: CLIP, before: dict[str, Tensor]) -> bool:
    same = all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())
    return same and all(p.grad is None for p in clip.parameters())
