"""Does a model agree with the library it comes from? Both side by side: preprocessing, tokens, embeddings, speed."""

import contextlib
import importlib.metadata
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import DiptychError

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from rich.table import Table

    from diptych.core.clip import CLIP

TOLERANCE = 1e-4
SIZES = ((224, 224), (640, 479), (333, 500), (31, 57), (1001, 90), (229, 300))
TEXTS: tuple[str, ...] = (
    "a photo of a cat.",
    "A close-up photo of the large black-capped chickadee, on a branch.",
    "two dogs",
    "a tree. red & green &amp; blue!",
    "ça coûte 12,50 €: naïve façade",
    "an emoji 🦊, a word of Chinese 猫",
    "a very long sentence about a house on a hill near the sea " * 12,
)


@dataclass(frozen=True)
class Row:
    """One comparison; difference: the largest between ours and the library's (tokens: how many ids differ)."""

    part: str
    ours: str
    library: str
    difference: float
    ok: bool


@dataclass(frozen=True)
class DoctorReport:
    """model; library: name and version of the source; rows; speeds: items a second, ours and the library's."""

    model: str
    library: str
    rows: tuple[Row, ...]
    speeds: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every part agrees to 1e-4, and all token ids are the same."""
        return all(row.ok for row in self.rows)

    def table(self) -> "Table":
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        for heading in (self.model, "diptych", self.library, "max difference", ""):
            table.add_column(heading, justify="right" if heading == "max difference" else "left")
        for row in self.rows:
            said = f"{row.difference:.0f} ids" if row.part == "tokens" else f"{row.difference:.1e}"
            table.add_row(row.part, row.ours, row.library, said, "agrees" if row.ok else "DIFFERS")
        for part, (ours, theirs) in self.speeds.items():
            table.add_row(f"{part} a second", f"{ours:.1f}", f"{theirs:.1f}", f"x {ours / theirs:.2f}", "")
        return table

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "tolerance": TOLERANCE}

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip()


@dataclass(frozen=True)
class Library:
    """A model as its own library runs it. Embeddings are not normalised; ids [B, L] are padded as the library does."""

    name: str
    image: str
    text: str
    preprocess: "Callable[[Image.Image], torch.Tensor]"
    encode_image: "Callable[[torch.Tensor], torch.Tensor]"
    ids: "Callable[[list[str]], torch.Tensor]"
    encode_text: "Callable[[list[str]], torch.Tensor]"
    logit_scale: float


def doctor(model: str = "mini") -> DoctorReport:
    """Load a model and its library side by side on the CPU, and compare them part by part.

    model: what `diptych.load` opens. Raises DiptychError as `load` does, and where the library cannot open it.
    """
    from diptych.core.load import load

    clip = load(model, "cpu")
    with silence():
        library = library_of(clip)
        return compare(clip, library)


def compare(clip: "CLIP", library: Library) -> DoctorReport:
    """Ours and the library's on the same generated pictures and texts."""
    import torch
    from torch.nn import functional as F

    rows = []
    pictures = made_up_pictures()
    with torch.no_grad():
        theirs = torch.stack([library.preprocess(p) for p in pictures])
        ours = torch.stack([clip.preprocess(p) for p in pictures])
        shape = " x ".join(str(n) for n in ours.shape[1:])
        rows.append(row("preprocessing", shape, " x ".join(str(n) for n in theirs.shape[1:]), ours, theirs))

        texts: list[str] = list(TEXTS)
        ids, mask = clip.tokenizer(texts).ids, clip.tokenizer(texts).mask
        expected = library.ids(texts)[:, : ids.shape[1]]
        wrong = int((ids != expected)[mask].sum()) if expected.shape == ids.shape else ids.numel()
        rows.append(Row("tokens", f"{int(mask.sum())} ids", library.text, wrong, wrong == 0))

        image, text = clip.encode_image(theirs), clip.encode_text(texts)
        expected_image, expected_text = library.encode_image(theirs), library.encode_text(texts)
        unit = [F.normalize(x, dim=-1) for x in (image, expected_image, text, expected_text)]
        rows.append(row("picture embeddings", clip.image.kind, library.image, unit[0], unit[1]))
        rows.append(row("text embeddings", clip.text.kind, library.text, unit[2], unit[3]))
        scale = float(clip.logit_scale)
        difference = abs(scale - library.logit_scale) / library.logit_scale
        close = difference <= TOLERANCE
        rows.append(Row("temperature", f"x {scale:.4g}", f"x {library.logit_scale:.4g}", difference, close))

        batch = theirs[torch.arange(8) % len(theirs)]
        prompts = [f"a photo of a {name}." for name in ("cat", "sea otter", "house", "train", "red apple", "dog")] * 3
        prompts = [f"{prompt[:-1]} {i}." for i, prompt in enumerate(prompts)]
        speeds = {
            "pictures": speed(len(batch), lambda: clip.encode_image(batch), lambda: library.encode_image(batch)),
            "texts": speed(len(prompts), lambda: clip.encode_text(prompts), lambda: library.encode_text(prompts)),
        }
    return DoctorReport(clip.name, library.name, tuple(rows), speeds)


def row(part: str, ours_is: str, library_is: str, ours: "torch.Tensor", theirs: "torch.Tensor") -> Row:
    if ours.shape != theirs.shape:
        return Row(part, ours_is, library_is, float("inf"), False)
    difference = float((ours - theirs).abs().max())
    return Row(part, ours_is, library_is, difference, difference <= TOLERANCE)


def speed(count: int, ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Items a second of both, taking turns: medians of three after one of each for warmth."""
    found: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(4):
        for i, work in enumerate((ours, theirs)):
            start = time.perf_counter()
            work()
            found[i].append(time.perf_counter() - start)
    return count / statistics.median(found[0][1:]), count / statistics.median(found[1][1:])


def made_up_pictures() -> "list[Image.Image]":
    """Pictures of odd sizes with edges, ramps and noise, the same every time."""
    from PIL import Image

    pictures = []
    for i, (width, height) in enumerate(SIZES):
        rng = np.random.default_rng(i)
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / (5 + 3 * c + i)) + np.cos(y / (7 + 2 * c)) for c in range(3)]
        array = 127 + 50 * np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3))
        array[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        pictures.append(Image.fromarray(array.clip(0, 255).astype(np.uint8)))
    return pictures


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without the libraries' warnings and log lines: what matters is compared."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def library_of(clip: "CLIP") -> Library:
    """The library's own model for a CLIP that `load` gave."""
    if clip.image.kind == "mini.image":
        from diptych.core.doctor_mini import mini_library

        return mini_library()
    origin = clip.origin or {}
    if "shapes" in origin:
        raise DiptychError(f"{clip.name} was cut unevenly: no other library has such a model to compare with")
    if clip.source == "micro":
        return micro_library(clip, origin)
    if origin.get("library") == "open_clip":
        return open_clip_library(clip, origin)
    if origin.get("library") == "huggingface":
        return huggingface_library(clip, origin)
    raise DiptychError(f"{clip.name} comes from no library that is known here")


def micro_library(clip: "CLIP", origin: dict[str, Any]) -> Library:
    """micro written in open_clip's layout and read by open_clip, which repairs texts first; micro does not."""
    import tempfile

    from diptych.core.load import need_open_clip
    from diptych.core.save import save

    need_open_clip("the library that micro is compared with")
    with tempfile.TemporaryDirectory() as folder:
        return open_clip_library(clip, origin, str(save(clip, Path(folder, "micro"))), repairs=False)


def open_clip_library(clip: "CLIP", origin: dict[str, Any], source: str = "", repairs: bool = True) -> Library:
    """open_clip reading the source itself; from our own layout, its model filled with the same weights.

    repairs: whether a tokenizer of Hugging Face gets texts with their encoding and spaces repaired.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from diptych.core.build import build_open_clip, copy_weights
    from diptych.core.load import OURS
    from diptych.core.save import open_clip_names

    config, source = origin["model_cfg"], source or clip.source
    model: Any
    if Path(source, OURS).is_file():
        model = build_open_clip(config, source)
        tensors = open_clip_names(clip, origin, clip.state_dict())
        rest = {k: v for k, v in model.state_dict().items() if k.startswith("text_decoder.")}  # CoCa's, not used
        copy_weights(model, {**rest, **tensors}, source)
        look = clip.preprocess
        transform = image_transform_v2(
            PreprocessCfg(look.size, "RGB", look.mean, look.std, look.interpolation, look.resize, look.fill), False
        )
        tokenizer: Any = getattr(clip.tokenizer, "tokenizer", None)
        if not isinstance(tokenizer, open_clip.SimpleTokenizer):
            raise DiptychError(f"{source} holds no copy of open_clip's own tokenizer to compare with")
    else:
        name, _, weights = source.partition(":")
        if Path(source).is_dir():
            schema, weights = f"local-dir:{source}", None
        else:
            schema = source if source.startswith("hf-hub:") else name.replace("/", "-")
        model, _, transform = open_clip.create_model_and_transforms(
            schema,
            None if schema.startswith("hf-hub:") else weights,
            force_quick_gelu=bool(config.get("quick_gelu")),
        )
        tokenizer = open_clip.get_tokenizer(schema)
    if not repairs:
        tokenizer.clean_fn = str  # pyright: ignore[reportAttributeAccessIssue]
    model.eval()
    extra = {"normalize": False}
    return Library(
        f"open_clip {importlib.metadata.version('open_clip_torch')}",
        type(model.visual).__name__,
        type(getattr(model, "text", model)).__name__,
        transform,  # type: ignore[arg-type]
        lambda pixels: model.encode_image(pixels, **extra),
        lambda texts: tokenizer(texts, context_length=clip.tokenizer.context_length),
        lambda texts: model.encode_text(tokenizer(texts, context_length=clip.tokenizer.context_length), **extra),
        float(model.logit_scale.exp()),
    )


def huggingface_library(clip: "CLIP", origin: dict[str, Any]) -> Library:
    """transformers reading the folder itself; its Pillow image processor, as ours is Pillow."""
    import transformers

    from diptych.core.load import OURS, quiet

    if Path(clip.source, OURS).is_file():
        raise DiptychError(f"{clip.source} is in our own layout; compare the Hugging Face folder that it came from")
    folder = clip.source
    with quiet(transformers):
        model: Any = transformers.CLIPModel.from_pretrained(folder, local_files_only=True, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    limit = model.config.text_config.max_position_embeddings

    def batch(texts: Sequence[str]) -> Any:
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return {key: found[key] for key in ("input_ids", "attention_mask")}

    return Library(
        f"transformers {transformers.__version__}",
        type(model.vision_model).__name__,
        type(model.text_model).__name__,
        lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0],
        lambda pixels: model.get_image_features(pixels).pooler_output,
        lambda texts: batch(texts)["input_ids"],
        lambda texts: model.get_text_features(**batch(texts)).pooler_output,
        float(model.logit_scale.exp()),
    )
