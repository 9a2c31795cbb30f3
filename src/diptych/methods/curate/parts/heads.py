"""Heads: from the embedding of a picture to one number, by what LAION published, by what you trained, or by prompts.

A head belongs to the model whose embeddings it was fitted on. On those of another it gives numbers that mean nothing,
so it refuses them, saying which model it needs.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.classifier import Base, Classifier
from diptych.errors import DiptychError, nearest
from diptych.methods.curate.parts.vectors import opened, text_vectors

SCALE = 100.0  # of the cosines to prompts: the temperature that OpenAI's models have
ENCODED = 1.0  # a variance that no coordinate of unit vectors has

# what pictures ordinarily show, against which prompts for the rest are weighed
ORDINARY = (
    "a photo of a person", "a portrait of a child", "a family, friends, people at work", "an animal", "food",
    "a landscape, a building", "a product, clothes, furniture", "a drawing, a painting, a cartoon",
    "a logo, an advertisement, a text", "a diagram, a map, a screenshot", "a vehicle, a machine", "sport, dance, music",
    "a doctor, a hospital, an x-ray", "a beach, swimwear",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a score says. classes: what the class of a trained head may be called; yes, no: prompts to do without."""

    column: str
    classes: tuple[str, ...] = ()
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()


UNSAFE = Task(
    "punsafe",
    ("unsafe", "nsfw"),
    ("pornography", "a naked person, explicit nudity", "a sexual act", "gore, a mutilated body"),
    ORDINARY,
)
WATERMARK = Task(
    "pwatermark",
    ("watermark", "watermarked"),
    ("a picture with a watermark over it", "a stock photo with the name of an agency written across it"),
    ("a clean photo without any text", "a picture"),
)
TOXIC = Task(
    "toxicity",
    ("toxic", "inappropriate", "violent"),
    ("violence, blood, injury", "a weapon pointed at a person", "hateful symbols", "a disturbing, inappropriate scene"),
    ORDINARY,
)
AESTHETIC = Task(
    "aesthetic",
    ("beautiful", "aesthetic"),
    ("a beautiful, aesthetic picture", "a masterpiece"),
    ("an ugly, blurred, badly lit picture", "a screenshot"),
)


@dataclass(frozen=True)
class Head:
    """`score` takes unit embeddings, float32 [N, D], to numbers [N]."""

    where: str
    wants: str  # the model it belongs to, in words
    fits: Callable[[Base], bool]
    score: Callable[[np.ndarray], np.ndarray]
    width: int = 0  # D; 0 where the model alone says it


def open_head(head: str, task: Task, maker: Base) -> Head:
    """A head for the embeddings of `maker`: "prompts", a published file, or a classifier that `diptych compare` wrote,
    `winner.safetensors` or `winner.safetensors:class`.

    Raises DiptychError where there is none, where it cannot be read, and where it belongs to another model.
    """
    if head == "prompts":
        return prompt_head(task, maker)
    found = read_head(head, task)
    if not found.fits(maker):
        named = f'"{maker.name}"' + (f" ({maker.fingerprint[:12]})" if maker.fingerprint else "")
        raise DiptychError(
            f"{found.where} belongs to the embeddings of {found.wants}, and these were made by {named}: embed with the "
            f"model it belongs to, or train a head of your own on a few labels: diptych compare LABELS --model "
            f"{maker.source} --methods linear_probe,gda"
        )
    return found


@cache
def read_head(head: str, task: Task) -> Head:
    path, name = Path(head).expanduser(), ""
    if not path.is_file() and ":" in head:
        before, _, name = head.rpartition(":")
        path = Path(before).expanduser()
    if not path.is_file():
        raise DiptychError(
            f'no head at {head}: "prompts", a published head (sa_0_4_vit_l_14_linear.pth, nsfw_vit_b_32.npz) or '
            "winner.safetensors of diptych compare would serve"
        )
    readers = {".pth": torch_head, ".npz": safety_head, ".npy": prompts_head}
    if path.suffix == ".safetensors":
        return trained_head(path, name, task)
    if path.suffix not in readers:
        raise DiptychError(f"{path} is no head{nearest(path.suffix, [*readers, '.safetensors'])}")
    return readers[path.suffix](path)


# -- published by LAION ------------------------------------------------------------------------------------------------

MODELS = {  # what a head's file is called by -> the names that its model goes by, the first as open_clip has it
    "vit_b_32": (
        "ViT-B-32:openai", "ViT-B-32-quickgelu:openai", "openai/clip-vit-base-patch32", "clip-vit-base-patch32",
        "timm/vit_base_patch32_clip_224.openai",
    ),
    "vit_b_16": (
        "ViT-B-16:openai", "ViT-B-16-quickgelu:openai", "openai/clip-vit-base-patch16", "clip-vit-base-patch16",
        "timm/vit_base_patch16_clip_224.openai",
    ),
    "vit_l_14": (
        "ViT-L-14:openai", "ViT-L-14-quickgelu:openai", "openai/clip-vit-large-patch14", "clip-vit-large-patch14",
        "timm/vit_large_patch14_clip_224.openai",
    ),
    "vit_h_14": (
        "ViT-H-14:laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
}  # fmt: skip


def published(path: Path, score: Callable[[np.ndarray], np.ndarray], width: int) -> Head:
    """Raises DiptychError where the file's name does not say which model it belongs to."""
    plain = re.sub(r"\W|_", "", path.name.lower())
    found = [key for key in MODELS if key.replace("_", "")[3:] in plain]
    if len(found) != 1:
        raise DiptychError(f"{path} does not say which model it belongs to: {', '.join(MODELS)} in its name")
    wants = f'"{MODELS[found[0]][0]}"'
    return Head(path.name, wants, lambda maker: is_model(maker, found[0]), score, width)


def is_model(maker: Base, key: str) -> bool:
    """Whether embeddings were made by a published model, by any of the names that go around."""
    known = {name.lower() for name in MODELS[key]}
    return any(re.sub(r"^vit-(.)/", r"vit-\1-", name.lower()) in known for name in (maker.name, maker.source))


def torch_head(path: Path) -> Head:
    """A state_dict of LAION's: the aesthetic predictors, linear and the "improved" perceptron, about 0 to 10; the
    safety classifiers as converted for PyTorch, and that for ViT-H/14."""
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        arrays = {name: value.double().numpy() for name, value in state.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as error:
        raise DiptychError(f"{path} is no head but a {type(error).__name__}: a state_dict is expected") from error
    try:
        if set(arrays) == {"weight", "bias"}:
            return perceptron_head(path, [Layer(arrays["weight"].T, arrays["bias"], False)])
        if "norm.variance" in arrays:
            count = sum(bool(re.fullmatch(r"linear_\d+\.weight", name)) for name in arrays)
            places = [f"linear_{i}" for i in range(1, count + 1)]
            layers = [Layer(arrays[f"{at}.weight"].T, arrays[f"{at}.bias"], at != places[-1]) for at in places]
            return perceptron_head(path, layers, (arrays["norm.mean"], arrays["norm.variance"]), probability=True)
        # what stands between two layers is not in a state_dict, but has a number: ReLU and dropout, or dropout alone
        numbers = sorted(int(name.split(".")[1]) for name in arrays if re.fullmatch(r"layers\.\d+\.weight", name))
        layers = [
            Layer(arrays[f"layers.{at}.weight"].T, arrays[f"layers.{at}.bias"], after - at == 3)
            for at, after in pairwise([*numbers, 0])
        ]
    except KeyError as error:
        raise DiptychError(f"{path} is no head that is known: it lacks {error}") from error
    return perceptron_head(path, layers)


def safety_head(path: Path) -> Head:
    """LAION's safety classifier (LAION-AI/CLIP-based-NSFW-Detector) as arrays: the probability of being unsafe."""
    arrays = read_arrays(path)
    try:
        count = sum(name.endswith(".kernel") for name in arrays)
        layers = [Layer(arrays[f"dense{i}.kernel"], arrays[f"dense{i}.bias"], i + 1 < count) for i in range(count)]
        norm = arrays["norm.mean"], arrays["norm.var"]
    except KeyError as error:
        raise DiptychError(f"{path} lacks {error}: norm.mean, norm.var and dense0.kernel, dense0.bias, ...") from error
    return perceptron_head(path, layers, norm, probability=True)


@dataclass(frozen=True)
class Layer:
    """x @ kernel + bias, kernel [in, out], and a ReLU or not."""

    kernel: np.ndarray
    bias: np.ndarray
    relu: bool


def perceptron_head(
    path: Path,
    layers: Sequence[Layer],
    norm: tuple[np.ndarray, np.ndarray] | None = None,
    probability: bool = False,
) -> Head:
    """norm: mean and variance [D]. Raises DiptychError for layers that do not fit each other."""
    widths = [(*layer.kernel.shape, *layer.bias.shape) for layer in layers]
    whole = bool(layers) and all(len(w) == 3 and w[1] == w[2] for w in widths) and widths[-1][1] == 1
    whole = whole and all(before[1] == after[0] for before, after in pairwise(widths))
    if not whole or (norm is not None and any(part.shape != (widths[0][0],) for part in norm)):
        raise DiptychError(f"{path} is no head from an embedding to one number: its layers are {widths}")
    wide = [Layer(layer.kernel.astype(np.float64), layer.bias.astype(np.float64), layer.relu) for layer in layers]
    mean, var = (np.zeros(1), np.ones(1)) if norm is None else (part.astype(np.float64) for part in norm)
    return published(path, lambda x: perceptron(x, mean, var, wide, probability), widths[0][0])


def perceptron(
    x: np.ndarray, mean: np.ndarray, var: np.ndarray, layers: Sequence[Layer], probability: bool
) -> np.ndarray:
    """Embeddings [N, D], standardised, through the layers -> [N]; probability: through a sigmoid at last.

    AutoKeras took a few coordinates for categories, and gave each value that it had seen a number, all others 0: their
    variances are in the thousands. The numbers were not published with the arrays, so such a coordinate is 0 here.
    """
    hidden = (np.where(var > ENCODED, 0.0, x) - mean) / np.sqrt(var)
    for layer in layers:
        hidden = hidden @ layer.kernel + layer.bias
        if layer.relu:
            hidden = np.maximum(hidden, 0.0)
    return 1 / (1 + np.exp(-hidden[:, 0].clip(-700, 700))) if probability else hidden[:, 0]


def prompts_head(path: Path) -> Head:
    """Two learned prompts (Q16, arXiv 2202.06675; LAION's violence detector): [2, D], the second is inappropriate.

    softmax(100 cosine) of the second, above 0.5 where it is the nearer.
    """
    try:
        prompts = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DiptychError(f"{path} is no array of numbers: {error}") from error
    if prompts.ndim != 2 or len(prompts) != 2 or prompts.dtype.kind != "f":
        raise DiptychError(f"{path}: two prompts are expected, [2, D] numbers, not {prompts.dtype} {prompts.shape}")
    rows = prompts.astype(np.float64)
    return published(path, lambda x: share(x, rows / np.linalg.norm(rows, axis=1, keepdims=True), 1), rows.shape[1])


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DiptychError(f"{path} is no archive of arrays: {error}") from error


def share(x: np.ndarray, prompts: np.ndarray, first: int) -> np.ndarray:
    """Of softmax(100 cosine) over unit prompts [P, D], what the prompts from `first` on have: [N]."""
    logits = SCALE * (x.astype(np.float64) @ prompts.astype(np.float64).T)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights[:, first:].sum(1) / weights.sum(1)


# -- yours -------------------------------------------------------------------------------------------------------------


def trained_head(path: Path, name: str, task: Task) -> Head:
    """A classifier of `diptych compare`, by its calibrated probability of one class."""
    classifier = Classifier.load(path)
    if classifier.frames or not classifier.on_base_features:
        raise DiptychError(
            f"{path} ({classifier.system}) changes the picture tower or judges videos, so it cannot read embeddings "
            "that are there already: fit one that does, such as linear_probe, gda or tip_adapter"
        )
    known = {c.lower(): i for i, c in enumerate(classifier.classes)}
    wanted = [name] if name else [*task.classes]
    index = next((known[word.lower()] for word in wanted if word.lower() in known), None)
    if index is None:
        asked = f'no class "{name}"' if name else f"no class called {' or '.join(wanted)}"
        raise DiptychError(
            f"{path} has {asked}; name one of its own: {', '.join(f'{path}:{c}' for c in classifier.classes[:10])}"
        )
    base = classifier.base

    def fits(maker: Base) -> bool:
        return base.fingerprint == (maker.fingerprint or opened(maker).fingerprint)

    return Head(str(path), f'"{base.name}" ({base.fingerprint[:12]})', fits, probability(classifier, index))


def probability(classifier: Classifier, index: int) -> Callable[[np.ndarray], np.ndarray]:
    def score(x: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return classifier.probabilities(torch.from_numpy(x))[:, index].double().numpy()

    return score


def prompt_head(task: Task, maker: Base) -> Head:
    """Zero-shot, where there is no head: the share of softmax(100 cosine) that the prompts of "yes" have.

    mini and micro have cosines of another scale, so theirs are multiplied by their own temperature.
    """
    prompts = text_vectors(maker, [*task.no, *task.yes]).astype(np.float64)
    scale = float(opened(maker).logit_scale) / SCALE
    return Head("prompts", "any model", lambda _: True, lambda x: share(scale * x, prompts, len(task.no)))


def scores_of(head: Head, vectors: np.ndarray) -> np.ndarray:
    """Unit embeddings [N, D] -> numbers [N], NaN where there is no embedding. Raises DiptychError for another width."""
    there: Any = ~np.isnan(vectors).any(1)
    out = np.full(len(vectors), np.nan)
    if head.width and head.width != vectors.shape[1]:
        raise DiptychError(
            f"{head.where} reads embeddings of {head.width} numbers ({head.wants}), these have {vectors.shape[1]}"
        )
    if there.any():
        out[there] = head.score(vectors[there])
    return out
