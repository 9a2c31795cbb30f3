"""What an adapter gives back: data that predicts, saves to one file, and needs only `core` to be used."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.edits import Edits, pack, unpack
from diptych.core.heads import Head, unpack_head
from diptych.core.text import TextRecipe, class_rows
from diptych.errors import DiptychError, Unsupported
from diptych.files import atomic

FORMAT = 1


@dataclass(frozen=True)
class Base:
    """The CLIP a classifier was fitted on: what people call it, what `load` opens, and its hash."""

    name: str
    source: str
    fingerprint: str

    @classmethod
    def of(cls, clip: CLIP) -> "Base":
        return cls(clip.name, clip.source, clip.fingerprint)


@dataclass(frozen=True)
class Classifier:
    """Tower edits and a head, with class names, calibration and the hash of the base model.

    classes: the user's own words for the classes; names: the words the text tower was given.
    temperature: probabilities are softmax(logits / temperature). threshold: below this top probability the
    answer is "none of these"; None where nothing was left to choose it on.
    recipe: how text rows are made for new names; None where the head has none. trainable: fitted parameters.
    frames: how many of each video it was fitted on; 0 where it judges pictures.
    """

    system: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    head: Head
    base: Base
    edits: Edits = field(default_factory=Edits)
    recipe: TextRecipe | None = None
    temperature: float = 1.0
    threshold: float | None = None
    trainable: int = 0
    frames: int = 0

    @property
    def on_base_features(self) -> bool:
        """Whether it judges the base model's embeddings (so that cached features serve it)."""
        return not self.edits.of("image")

    def clip(self, base: CLIP) -> CLIP:
        """The base model with this classifier's edits. Raises DiptychError for another base model."""
        if base.fingerprint != self.base.fingerprint:
            same = base.source == self.base.source
            raise DiptychError(
                f'this classifier belongs to the model "{self.base.name}" ({self.base.fingerprint[:12]}), but was '
                f'opened with "{base.name}" ({base.fingerprint[:12]}); '
                + ("that model has changed since: fit again" if same else f"use --model {self.base.source}")
            )
        return base.edited(self.edits.to(base.device))

    def base_clip(self, clip: CLIP | None = None, model: str | None = None) -> CLIP:
        """The base model: `clip`, or what `model` names, or what the classifier names itself.

        Raises DiptychError for another base model, and for one that cannot be opened.
        """
        if clip is None:
            from diptych.core.load import load

            try:
                clip = load(model or self.base.source)
            except DiptychError as error:
                if model:
                    raise
                raise DiptychError(
                    f'this classifier needs the model "{self.base.name}", which could not be opened: {error}; '
                    "say where it is with --model"
                ) from error
        self.clip(clip)
        return clip

    def logits(self, embeddings: Tensor) -> Tensor:
        """Image embeddings [N, D] of the edited model -> logits [N, C]."""
        return self.head.to(embeddings.device).logits(F.normalize(embeddings.float(), dim=-1))

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Image embeddings [N, D] of the edited model -> calibrated probabilities [N, C]."""
        return (self.logits(embeddings) / self.temperature).softmax(dim=-1)

    def with_names(self, base: CLIP, names: Sequence[str], classes: Sequence[str] | None = None) -> "Classifier":
        """The same adaptation for other classes. Raises Unsupported where the kind does not allow it."""
        if self.recipe is None:
            raise Unsupported(f"{self.system} knows only the classes it was fitted on")
        if any(p.tokens.dim() == 3 for p in self.edits.of("text").prompts):
            raise Unsupported(f"{self.system} learned one context a class, which says nothing about other classes")
        rows = class_rows(self.clip(base), names, self.recipe).cpu()
        classes = tuple(classes or names)
        return replace(self, classes=classes, names=tuple(names), head=self.head.renamed(rows), threshold=None)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file. Raises DiptychError where it cannot be written."""
        from safetensors.torch import save_file

        edits, edit_tensors = pack(self.edits)
        head, head_tensors = self.head.pack()
        tensors = {f"edits.{k}": v for k, v in edit_tensors.items()}
        tensors |= {f"head.{k}": v for k, v in head_tensors.items()}
        about = {
            "format": FORMAT,
            **{k: getattr(self, k) for k in ("system", "config", "classes", "names", "temperature", "threshold")},
            "trainable": self.trainable,
            "frames": self.frames,
            "base": asdict(self.base),
            "recipe": None if self.recipe is None else asdict(self.recipe),
            "edits": edits,
            "head": head,
        }
        path = Path(path)
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        with atomic(path) as temporary:
            save_file(tensors, temporary, {"diptych": json.dumps(about)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """Read what `save` wrote. Raises DiptychError for anything else; nothing is unpickled."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise DiptychError(f"no classifier at {path}; `diptych compare` writes one as winner.safetensors")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["diptych"])
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise DiptychError(f"{path} is not a classifier saved by diptych, or is damaged ({error})") from error
        if about.get("format") != FORMAT:
            raise DiptychError(f"{path} has format {about.get('format')}; this diptych reads {FORMAT}")
        try:
            part = {
                p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("edits.", "head.")
            }
            recipe = about["recipe"]
            return cls(
                system=about["system"],
                config=about["config"],
                classes=tuple(about["classes"]),
                names=tuple(about["names"]),
                head=unpack_head(about["head"], part["head."]),
                base=Base(**about["base"]),
                edits=unpack(about["edits"], part["edits."]),
                recipe=recipe
                and TextRecipe(
                    tuple(recipe["templates"]),
                    {k: tuple(v) for k, v in recipe["sentences"].items()},
                    recipe["renormalise"],
                ),
                temperature=float(about["temperature"]),
                threshold=about["threshold"],
                trainable=about["trainable"],
                frames=about.get("frames", 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DiptychError(f"{path} is damaged: {type(error).__name__} {error}") from error


def temperature_of(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).

    smoothing: share of the labels spread over all classes. Without it, logits that are right everywhere have no best
    temperature, and the smallest is given. The loss is convex in 1/T and its derivative, mean(E_p[logit] - logit of the
    truth), is bisected, between a thousandth and a thousand times the spread of the logits.
    """
    logits = logits.double()
    own = (1 - smoothing) * logits.gather(1, labels[:, None]).mean() + smoothing * logits.mean()
    spread = float(logits.std(dim=-1).mean().clamp_min(1e-6))
    low, high = -math.log(1e3 * spread), -math.log(1e-3 * spread)  # of log(1/T)
    for _ in range(30):
        middle = (low + high) / 2
        expected = ((logits * math.exp(middle)).softmax(-1) * logits).sum(-1).mean()
        low, high = (low, middle) if expected > own else (middle, high)
    return math.exp(-(low + high) / 2)


def threshold_of(probabilities: Tensor, labels: Tensor, keep: float = 0.95) -> float | None:
    """The top probability above which `keep` of the rightly recognised pictures lie; None without any."""
    top, guess = probabilities.max(dim=-1)
    right = top[guess == labels]
    return float(right.quantile(1 - keep)) if len(right) else None
