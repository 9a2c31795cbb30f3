"""micro: a small ViT-CLIP that comes with diptych, trained on drawn scenes (`recipes/micro.py`; docs/models/micro.md).

Both towers are transformers of open_clip's kind, so that everything which works on those works on it: prompts, taps,
edits, saving in open_clip's layout. Their modules are built here in plain torch, since importing open_clip takes much
longer than loading micro; the tests hold them to open_clip.
"""

from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.core.build import copy_weights
from diptych.core.clip import CLIP
from diptych.core.load import reading
from diptych.core.preprocess import Preprocess
from diptych.core.tokenizer import FastTokenizer
from diptych.core.towers.open_clip import TransformerText, ViTImage

FOLDER = Path(__file__).parent / "micro_weights"
WEIGHTS, TOKENIZER = FOLDER / "micro.safetensors", FOLDER / "tokenizer.json"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CONFIG: dict[str, Any] = {  # as open_clip's model configs
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 712,
        "hf_tokenizer_name": "micro",  # any name: open_clip then takes the tokenizer that lies in the folder
        "width": 96,
        "heads": 3,
        "layers": 3,
    },
}


def micro() -> CLIP:
    """The model with its weights, which are kept in half precision. Raises DiptychError for a damaged file."""
    text = CONFIG["text_cfg"]
    tokenizer = FastTokenizer.from_file(  # open_clip reads a text at the token with the highest number: its end
        TOKENIZER, context_length=text["context_length"], end_id=text["vocab_size"] - 1
    )
    clip = fresh_micro(tokenizer)
    with reading(WEIGHTS, clip.name):
        tensors = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
    copy_weights(clip, tensors, str(WEIGHTS))
    return clip


class Block(nn.Module):
    """A residual attention block as open_clip names its parts; the towers run it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](layers))
        self.ls_1, self.ls_2 = nn.Identity(), nn.Identity()


class Blocks(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))


class Vision(nn.Module):
    """The parts of open_clip's VisionTransformer that `ViTImage` runs: class token, pooled there."""

    attn_pool = None

    def __init__(self, size: int, patch: int, width: int, layers: int, heads: int, out: int, pool: str) -> None:
        super().__init__()
        self.pool_type = pool
        scale = width**-0.5
        self.output_dim = out
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        places = torch.cat([scale * torch.randn(1, width), waves(size // patch, width)])
        self.positional_embedding = nn.Parameter(places)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(width, layers, heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, out))

    def _pool(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.ln_post(hidden)  # [B, N, W]
        return (hidden[:, 0] if self.pool_type == "tok" else hidden[:, 1:].mean(1)), hidden[:, 1:]


def waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of the two coordinates [grid ** 2, width]: near patches start alike (arXiv 2205.01580)."""
    rates = 10_000 ** -torch.linspace(0, 1, width // 4)
    places = torch.arange(grid) - (grid - 1) / 2  # a small picture is the middle of a large one
    angles = places[:, None] * rates  # [grid, W / 4]
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, W / 2]
    rows, columns = one[:, None].expand(-1, grid, -1), one[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class Text(nn.Module):
    """The parts of open_clip's text transformer that `TransformerText` runs: causal, read at the end token."""

    pool_type, eos_id = "argmax", None

    def __init__(self, context: int, vocabulary: int, width: int, layers: int, heads: int, out: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = Blocks(width, layers, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, out))
        self.attn_mask = True  # causal
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """Fresh weights as CLIP starts them (Radford et al. 2021, the released code)."""
        width, layers = self.transformer.width, len(self.transformer.resblocks)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        deviations = {
            "attn.in_proj_weight": width**-0.5,
            "attn.out_proj.weight": width**-0.5 * (2 * layers) ** -0.5,
            "mlp.c_fc.weight": (2 * width) ** -0.5,
            "mlp.c_proj.weight": width**-0.5 * (2 * layers) ** -0.5,
        }
        for block in self.transformer.resblocks:
            for name, deviation in deviations.items():
                nn.init.normal_(block.get_parameter(name), std=deviation)


def fresh_micro(tokenizer: FastTokenizer, config: dict[str, Any] = CONFIG, seed: int = 0) -> CLIP:
    """micro before its training, a function of the seed; with a config of open_clip's names, others of its kind."""
    vision, text, out = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = vision["width"] // vision["head_width"]
        sizes = vision["image_size"], vision["patch_size"], vision["width"], vision["layers"]
        image = Vision(*sizes, heads, out, vision.get("pool_type", "tok"))
        sizes = text["context_length"], text["vocab_size"], text["width"], text["layers"]
        words = Text(*sizes, text["heads"], out)
    look = Preprocess(vision["image_size"], MEAN, STD)
    clip = CLIP("micro", ViTImage(image), TransformerText(words), tokenizer, look, logit_scale=1 / 0.07)
    clip.origin = {"library": "open_clip", "model_cfg": deepcopy(config)}
    return clip
