"""A CLIP in another form, checked: written, opened again by the library it is for, and compared before it is kept."""

import copy
import json
import runpy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP, EditedCLIP
from diptych.core.doctor import TEXTS, library_of, made_up_pictures, silence
from diptych.core.export import SCRIPT, merged, write_text
from diptych.core.forms import NAMES, refuse
from diptych.core.huggingface_layout import transformers_tokenizer
from diptych.core.load import load
from diptych.core.onnx_graph import check_folder, need_onnx, write_onnx
from diptych.core.save import LAYOUTS, new_folder, write
from diptych.core.tower import Tokens, Tower
from diptych.errors import DiptychError
from diptych.files import atomic_folder

TOLERANCE = {"onnx": 1e-4, **dict.fromkeys(LAYOUTS, 1e-5)}  # of a component of a unit embedding
FORMAT = "diptych clip 1"
EMBED = Path(__file__).with_name("standalone_clip.py")
FILES = ("README.md", "clip.json", "embed.py", "image.onnx", "image.onnx.data", "pictures.py", "text.onnx",
         "text.onnx.data", "tokenizer.json")  # fmt: skip
# open_clip mends HTML entities before its tokenizer, which no file of a tokenizer can say
PLAIN = [text for text in TEXTS if "&" not in text]
README = """# {name} as ONNX

Written by `diptych export`. To try it:

    python -m pip install numpy pillow tokenizers onnxruntime
    python embed.py photo.jpg --texts "a photo of a cat" "a photo of a dog"

- `image.onnx`: `pixels` [N, 3, {size}, {size}] float32 -> `embedding` [N, {width}] of unit length, any N.
- `text.onnx`: `tokens` [N, {length}] int64 -> `embedding` [N, {width}] of unit length, any N.
- `tokenizer.json`: texts to tokens, cut and padded, for the library tokenizers.{mended}
- `clip.json`: how a picture becomes `pixels` (`pictures.py` does it), and the multiplier of the cosine.

Largest difference to the model it was made from: {pictures:.1e} of a picture's embedding, {texts:.1e} of a text's.
"""


@dataclass(frozen=True)
class Conversion:
    """What was written. pictures, texts: the largest difference of a component of unit embeddings to those of the CLIP
    it was made from, as `library` computes them on `compared` generated pictures and texts; read_back: as
    `diptych.load` does (none for ONNX)."""

    folder: Path
    form: str
    library: str
    files: tuple[str, ...]
    bytes: int
    pictures: float
    texts: float
    read_back: float | None
    compared: tuple[int, int]

    def __str__(self) -> str:
        pictures, texts = self.compared
        lines = [
            f"{self.folder}: {NAMES[self.form]}, {', '.join(self.files)} ({self.bytes / 1e6:.1f} MB)",
            f"{self.library} gives the same embeddings: {pictures} pictures within {self.pictures:.1e}, "
            f"{texts} texts within {self.texts:.1e} of unit length",
        ]
        if self.read_back is not None and self.form != "diptych":
            lines.append(f"and so does diptych, within {self.read_back:.1e}")
        return "\n".join(lines)


def convert(clip: CLIP, folder: str | Path, to: str) -> Conversion:
    """Write a CLIP as `to` ("open_clip", "huggingface", "onnx", "diptych") into `folder`, edits merged, and check it.

    Raises Unsupported with the reason where the CLIP cannot become it (`core.forms`), DiptychError where what was
    written gives other embeddings; nothing is left behind then.
    """
    refuse(clip, to)
    place = Path(folder)
    if clip.device.type != "cpu":  # an accelerator's arithmetic is not the one to compare with
        clip = copy.deepcopy(clip).cpu()
    if to == "onnx":
        need_onnx()
        check_place(place)
    opened: AbstractContextManager[Path] = atomic_folder(place) if to == "onnx" else new_folder(place)
    with opened as temporary, silence(), torch.no_grad():
        if to == "onnx":
            write_graphs(clip, temporary)
        else:
            write(clip, temporary, to)  # type: ignore[arg-type]
        library, encode, back = readers(temporary, to)
        images = made_up_pictures()
        pixels = torch.stack([clip.preprocess(image) for image in images])
        ours = unit(clip.encode_image(pixels)), unit(clip.encode_text(PLAIN))
        differences = [largest(x, y) for x, y in zip(ours, encode(pixels, PLAIN), strict=True)]
        read_back = None
        if back is not None:
            again = unit(back.encode_image(pixels)), unit(back.encode_text(PLAIN))
            read_back = max(largest(x, y) for x, y in zip(ours, again, strict=True))
            differences.append(max(read_back, abs(float(back.log_scale - clip.log_scale))))
        names = ("pictures", "texts", "what diptych reads back")
        for name, difference in zip(names, differences, strict=False):
            if not difference <= TOLERANCE[to]:  # not `>`: NaN must fail
                raise DiptychError(
                    f"{NAMES[to]}: {library} differs by {difference:.1e} in {name}, more than {TOLERANCE[to]:g}"
                )
        if to == "onnx":
            check_pictures(clip, images, temporary)
            write_readme(clip, temporary, differences[0], differences[1])
        files = sorted(path for path in temporary.iterdir() if path.is_file())
        size, listed = sum(path.stat().st_size for path in files), tuple(path.name for path in files)
    counts = (len(images), len(PLAIN))
    return Conversion(place, to, library, listed, size, differences[0], differences[1], read_back, counts)


def unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)


def largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")


Encode = Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]  # pixels, texts -> unit embeddings


def readers(folder: Path, form: str) -> tuple[str, Encode, CLIP | None]:
    """The library that a form is for, what it makes of pixels and texts, and what `load` reads back."""
    if form == "onnx":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}", lambda pixels, texts: run_graphs(folder, pixels, texts), None
    back = load(str(folder), "cpu")
    if form == "diptych":
        return "diptych", lambda pixels, texts: (unit(back.encode_image(pixels)), unit(back.encode_text(texts))), back
    library = library_of(back)

    def encode(pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        return unit(library.encode_image(pixels)), unit(library.encode_text(texts))

    return library.name, encode, back


# -- ONNX --------------------------------------------------------------------------------------------------------------


class Pictures(nn.Module):
    """pixels [N, 3, H, W] -> unit embeddings [N, D]."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.tower(pixels).embedding, dim=-1)


class Texts(nn.Module):
    """tokens [N, L], padded with `pad_id` -> unit embeddings [N, D]."""

    def __init__(self, tower: Tower, pad_id: int) -> None:
        super().__init__()
        self.tower, self.pad_id = tower, pad_id

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != self.pad_id
        return F.normalize(self.tower(Tokens(tokens, mask, mask.sum(1) - 1)).embedding, dim=-1)


def write_graphs(clip: CLIP, place: Path) -> None:
    """image.onnx, text.onnx, tokenizer.json, clip.json and the scripts."""
    base = clip.base[0] if isinstance(clip, EditedCLIP) else clip
    changed: dict[str, dict[str, Tensor]] = {"image": {}, "text": {}}
    if isinstance(clip, EditedCLIP):
        changed |= {name: edit.parameters(base.towers[name]) for name, edit in clip.edits.towers.items()}  # type: ignore[arg-type]
    towers = {name: merged(base.towers[name], changed[name]) for name in changed}  # type: ignore[arg-type]
    size, pad_id = base.preprocess.size, getattr(base.tokenizer, "pad_id", 0)
    pixels = torch.zeros(2, 3, size, size)
    write_onnx(Pictures(towers["image"]), "pixels", pixels, ["embedding"], place / "image.onnx", what=base.image.kind)
    length = length_of(base)
    tokens = torch.full((2, length), pad_id)
    some = base.tokenizer(PLAIN[:2]).ids
    tokens[:, : some.shape[1]] = some
    write_onnx(Texts(towers["text"], pad_id), "tokens", tokens, ["embedding"], place / "text.onnx", what=base.text.kind)
    backend = transformers_tokenizer(base.tokenizer).backend_tokenizer
    backend.enable_truncation(length)
    backend.enable_padding(length=length, pad_id=pad_id, pad_token=backend.id_to_token(pad_id))
    backend.save(str(place / "tokenizer.json"))
    about = {
        "format": FORMAT,
        "name": base.name,
        "logit_scale": float(base.logit_scale.detach()),
        "logit_bias": None if base.logit_bias is None else float(base.logit_bias.detach()),
        "preprocessing": asdict(base.preprocess),
    }
    write_text(place / "clip.json", json.dumps(about, ensure_ascii=False, indent=1))
    source = SCRIPT.read_text("utf-8")
    functions = source[source.index("FORMATS = ") : source.index("def main")]
    header = '"""From a picture file to pixels."""\n\nimport numpy as np\nfrom PIL import Image, ImageOps, features\n\n'
    write_text(place / "pictures.py", header + functions.rstrip())
    write_text(place / "embed.py", EMBED.read_text("utf-8"))


def length_of(clip: CLIP) -> int:
    """Tokens of a text in the graph: all that the tower reads."""
    return min(clip.tokenizer.context_length, clip.text.pads_to or clip.tokenizer.context_length)


def run_graphs(folder: Path, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """What onnxruntime makes of pixels and texts, one alone and then the others."""
    import onnxruntime
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    tokens = np.array([one.ids for one in encoded], np.int64)
    found = []
    for name, kind, rows in (("image.onnx", "pixels", pixels.numpy()), ("text.onnx", "tokens", tokens)):
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        parts = [session.run(["embedding"], {kind: part})[0] for part in (rows[:1], rows[1:])]
        found.append(torch.from_numpy(np.concatenate(parts)))  # type: ignore[arg-type]
    return found[0], found[1]


def check_pictures(clip: CLIP, images: list[Any], folder: Path) -> None:
    """pictures.py prepares pictures as the CLIP does."""
    script = runpy.run_path(str(folder / "pictures.py"))
    settings = json.loads((folder / "clip.json").read_text("utf-8"))["preprocessing"]
    for image in images:
        if not np.array_equal(script["preprocess"](image, **settings), clip.preprocess(image).numpy()):
            raise DiptychError(f"pictures.py prepares a picture of {image.size} pixels differently: {settings}")


def write_readme(clip: CLIP, place: Path, pictures: float, texts: float) -> None:
    mends = getattr(clip.tokenizer, "clean", "")
    mended = " It does not mend HTML entities and broken Unicode, as open_clip does first." if mends else ""
    about = README.format(
        name=clip.name,
        size=clip.preprocess.size,
        width=clip.embed_dim,
        length=length_of(clip),
        mended=mended,
        pictures=pictures,
        texts=texts,
    )
    write_text(place / "README.md", about)


def check_place(place: Path) -> None:
    """Raise unless `place` is new, empty, or holds an earlier export of a CLIP and nothing else."""
    check_folder(place, "clip.json", FORMAT, FILES)
