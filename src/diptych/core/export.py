"""A classifier as a folder that runs without diptych and torch: model.onnx, its labels, and a short script.

Tower edits are merged into the weights, prompts become constants, and every head becomes part of the graph. What was
written is then run beside the classifier; where they differ, nothing is left behind.
"""

import copy
import json
import runpy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.forms import NAMES, refusal
from diptych.core.heads import Cache, Gaussian, Head, Linear, Neighbours, TextRows
from diptych.core.onnx_graph import SINGLE_FILE, check_folder, need_onnx, write_onnx
from diptych.core.tower import Tower
from diptych.errors import DiptychError, Unsupported
from diptych.files import atomic_folder

if TYPE_CHECKING:
    from diptych.core.convert import Conversion

TOLERANCE = 1e-4
SCRIPT = Path(__file__).with_name("standalone.py")
FORMAT = "diptych export 1"
FILES = ("README.md", "labels.json", "model.onnx", "model.onnx.data", "predict.py", "preprocessing.json")
OUTPUTS = ("probabilities", "embedding")

README = """# {classes} classes, recognised by {system} on {base}

Written by `diptych export`. To use it:

    python -m pip install numpy pillow onnxruntime
    python predict.py photo.jpg more.png folder/

- `model.onnx`: input `pixels` [N, 3, {size}, {size}] float32, any N. Outputs `probabilities` [N, {classes}],
  calibrated, in the order of `labels.json`, and `embedding` [N, {width}], not normalised.
- `labels.json`: the classes, and the threshold: a top probability below it means "none of these"{none}.
- `preprocessing.json`: how a picture becomes `pixels`; `predict.py` does it.
- `predict.py`: a script to run, read and take over.

Largest difference to the model it was made from: {probabilities:.1e} in probabilities, {embedding:.1e} of an
embedding's length.
"""


@dataclass(frozen=True)
class ExportReport:
    """What was written, how far it is from the classifier, and what else the model can become.

    probability_difference: the largest over all pictures and classes; embedding_difference: the largest of a
    component, as a share of the embedding's length. can, cannot: form -> how, or why not.
    """

    folder: Path
    files: tuple[str, ...]
    bytes: int
    probability_difference: float
    embedding_difference: float
    compared: int
    can: dict[str, str]
    cannot: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {', '.join(self.files)} ({self.bytes / 1e6:.1f} MB)",
            f"equal on {self.compared} pictures: probabilities within {self.probability_difference:.1e}, "
            f"embeddings within {self.embedding_difference:.1e} of their length",
            *(f"can be {form}: {how}" for form, how in self.can.items()),
            *(f"cannot be {form}: {why}" for form, why in self.cannot.items()),
        ]
        return "\n".join(lines)


def export(
    model_or_classifier: Classifier | CLIP | str | Path,
    folder: str | Path,
    *,
    to: str = "onnx",
    clip: CLIP | None = None,
    model: str | None = None,
) -> "ExportReport | Conversion":
    """Write a CLIP or a classifier in another form into `folder`, and check it against what it was made from.

    A CLIP, or what `load` opens, becomes `to`: "open_clip", "huggingface", "onnx" or "diptych" (`core.convert`). A
    classifier, or its file, becomes "onnx": model.onnx, labels.json, preprocessing.json, predict.py and README.md.
    clip: its base model, or `model`, what `load` opens; by default what it names. An earlier export in `folder`
    is replaced as a whole. Raises Unsupported for a form that cannot be, DiptychError for another base model, a folder
    that holds anything else, a missing package, and results that differ; nothing is left behind then.
    """
    given = model_or_classifier
    if isinstance(given, CLIP) or not (isinstance(given, Classifier) or Path(given).is_file()):
        from diptych.core.convert import convert
        from diptych.core.load import load

        return convert(given if isinstance(given, CLIP) else load(str(given), "cpu"), folder, to)
    if to != "onnx":
        raise Unsupported(f"a classifier becomes onnx, not {to}: its head is no part of a CLIP")
    return export_classifier(given, folder, clip=clip, model=model)


def export_classifier(
    classifier: Classifier | str | Path, folder: str | Path, *, clip: CLIP | None, model: str | None
) -> ExportReport:
    need_onnx()
    if not isinstance(classifier, Classifier):
        classifier = Classifier.load(classifier)
    if classifier.frames:
        raise Unsupported(
            "a classifier of videos has no exported form: the model that is written reads single pictures"
        )
    base: CLIP = classifier.base_clip(clip, model)
    place = Path(folder)
    check_place(place)
    if base.device.type != "cpu":  # an accelerator's arithmetic is not the one to compare with
        base = copy.deepcopy(base).cpu()
    with atomic_folder(place) as temporary:
        program = Exported(classifier, base).eval()
        pixels = torch.zeros(2, 3, base.preprocess.size, base.preprocess.size)
        path, what = temporary / "model.onnx", base.image.kind
        write_onnx(program, "pixels", pixels, OUTPUTS, path, what=what, single_file=SINGLE_FILE)
        labels = {
            "format": FORMAT,
            "system": classifier.system,
            "classes": classifier.classes,
            "threshold": classifier.threshold,
            "temperature": classifier.temperature,
            "base": asdict(classifier.base),
        }
        write_text(temporary / "labels.json", json.dumps(labels, ensure_ascii=False, indent=1))
        write_text(temporary / "preprocessing.json", json.dumps(asdict(base.preprocess), indent=1))
        write_text(temporary / "predict.py", SCRIPT.read_text("utf-8"))
        probabilities, embedding, compared = measure(classifier, base, temporary)
        about = README.format(
            classes=len(classifier.classes),
            system=classifier.system,
            base=classifier.base.name,
            size=base.preprocess.size,
            width=base.embed_dim,
            none="" if classifier.threshold is not None else " (here: none)",
            probabilities=probabilities,
            embedding=embedding,
        )
        write_text(temporary / "README.md", about)
        files = sorted(temporary.iterdir())
        can, cannot = forms(classifier, base)
        size = sum(f.stat().st_size for f in files)
        names = tuple(f.name for f in files)
    return ExportReport(place, names, size, probabilities, embedding, compared, can, cannot)


class Exported(nn.Module):
    """pixels [N, 3, H, W] -> calibrated probabilities [N, C] and embedding [N, D]: the graph that is written."""

    def __init__(self, classifier: Classifier, clip: CLIP) -> None:
        super().__init__()
        edits = classifier.edits.of("image")
        self.tower: Tower = merged(clip.image, edits.parameters(clip.image))
        self.prompts = edits.prompts
        self.head, self.temperature = as_matrix(classifier.head), classifier.temperature
        _, tensors = self.head.pack()
        self.of_head = list(tensors)
        for i, prompt in enumerate(self.prompts):
            self.register_buffer(f"prompt_{i}", prompt.tokens.float().cpu())
        for name, tensor in tensors.items():
            self.register_buffer(
                f"head_{name}", tensor.float().cpu() if tensor.is_floating_point() else tensor.long().cpu()
            )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        prompts = [replace(p, tokens=self.get_buffer(f"prompt_{i}")) for i, p in enumerate(self.prompts)]
        embedding = self.tower(pixels, prompts=prompts).embedding
        head = replace(self.head, **{name: self.get_buffer(f"head_{name}") for name in self.of_head})
        logits = logits_of(head, F.normalize(embedding, dim=-1))
        return (logits / self.temperature).softmax(dim=-1), embedding


def merged(tower: Tower, changed: dict[str, Tensor]) -> Tower:
    """A float32 copy on the CPU with the changed parameters in place."""
    tower = copy.deepcopy(tower).float().cpu().eval()
    for name, weight in changed.items():
        tower.get_parameter(name).data = weight.detach().float().cpu()
    return tower.requires_grad_(False)


def as_matrix(head: Head) -> Head:
    """The same head as one matrix and bias, where the kind is one; else the head itself."""
    if isinstance(head, TextRows):
        return Linear(head.scale * head.rows, torch.zeros(len(head.rows)))
    if isinstance(head, Gaussian):
        weight, bias = head.matrix()
        return Linear(head.scale * head.rows + head.alpha * weight, head.alpha * bias)
    return head


def logits_of(head: Head, x: Tensor) -> Tensor:
    """`head.logits` of the whole batch at once: a graph cannot cut a batch of any size into parts."""
    if isinstance(head, Neighbours):
        return head.vote(*head.nearest(x))
    if isinstance(head, Cache):
        values = F.one_hot(head.labels, len(head.rows)).to(x.dtype)
        affinity = (-head.beta * (1 - x @ head.keys.T)).exp()
        return head.scale * x @ head.rows.T + head.alpha * affinity @ values
    return head.logits(x)


def check_place(place: Path) -> None:
    """Raise unless `place` is new, empty, or holds an earlier export and nothing else."""
    check_folder(place, "labels.json", FORMAT, FILES)


def write_text(path: Path, text: str) -> None:
    path.write_text(text + ("" if text.endswith("\n") else "\n"), "utf-8")


def measure(classifier: Classifier, clip: CLIP, folder: Path) -> tuple[float, float, int]:
    """Run what was written beside the classifier: largest difference in probabilities, in embeddings, pictures run.

    Raises DiptychError where they differ by more than TOLERANCE, or the script prepares a picture differently.
    """
    import onnxruntime

    script = runpy.run_path(str(folder / "predict.py"), run_name="predict")
    settings = json.loads((folder / "preprocessing.json").read_text("utf-8"))
    pictures = [clip.preprocess(image) for image in made_up_pictures()]
    for ours, image in zip(pictures, made_up_pictures(), strict=True):
        if not np.array_equal(script["preprocess"](image, **settings), ours.numpy()):
            raise DiptychError(f"predict.py prepares a picture of {image.size} pixels differently: {settings}")

    edited = classifier.clip(clip)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.cat(
        [torch.stack(pictures), torch.randn(3, *pictures[0].shape, generator=torch.Generator().manual_seed(0))]
    )
    differences: list[list[Tensor]] = [[], []]
    for part in (pixels[:1], pixels[1:]):  # one picture and many
        with torch.inference_mode():
            embedding = edited.encode_image(part).float().cpu()
            probabilities = classifier.probabilities(embedding)
        got = [torch.from_numpy(x) for x in session.run(list(OUTPUTS), {"pixels": part.numpy()})]
        length = embedding.norm(dim=-1, keepdim=True)
        differences[0].append((got[0] - probabilities).abs().max())
        differences[1].append(((got[1] - embedding).abs() / length).max())
    worst = [float(torch.stack(d).max()) for d in differences]
    for what, largest in zip(OUTPUTS, worst, strict=True):
        if not largest <= TOLERANCE:  # not `>`: NaN must fail
            raise DiptychError(f"the exported model differs by {largest:.1e} in {what}, more than {TOLERANCE:g}")
    return worst[0], worst[1], len(pixels)


def made_up_pictures() -> Iterator[Image.Image]:
    """Pictures of odd sizes: noise, smooth, and patches of flat colour."""
    random = np.random.default_rng(0)
    for width, height in ((37, 61), (640, 427), (300, 300), (211, 1000)):
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        smooth = np.stack([x, y, 1 - x * y], axis=-1)
        flat = random.random((4, 4, 3))[(y * 3.99).astype(int), (x * 3.99).astype(int)]
        mixed = 0.45 * smooth + 0.45 * flat + 0.1 * random.random((height, width, 3))
        yield Image.fromarray((255 * mixed).astype(np.uint8))


def forms(classifier: Classifier, clip: CLIP) -> tuple[dict[str, str], dict[str, str]]:
    """What the classifier can become, and how; what it cannot, and why."""
    can, cannot = {"ONNX": "model.onnx, which onnxruntime and its kin run anywhere"}, {}
    head = type(classifier.head).__name__
    if isinstance(as_matrix(classifier.head), Linear):
        can["one matrix"] = f"its {head} head is one weight and bias on the unit embedding"
    else:
        cannot["one matrix"] = f"its {head} head compares with stored pictures"
    edited = classifier.clip(clip)
    for form in ("open_clip", "huggingface"):
        if reason := refusal(edited, form):
            cannot[NAMES[form]] = reason
        else:
            call = f'diptych.export(classifier.clip(clip), folder, to="{form}")'
            can[NAMES[form]] = f"its towers, edits merged: {call}"
    return can, cannot
