"""The protocol of the `dense` family: `fit` where a system trains, `segment` a picture by any list of names.

Shapes: Q masks of a picture, K classes, H x W pixels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.classifier import Base
from diptych.core.clip import CLIP
from diptych.errors import DiptychError, Unsupported, nearest
from diptych.files import atomic
from diptych.methods.settings import changed

FORMAT = 1
FEW = 5000  # pictures: below, the published schedules would see each of them thousands of times


class SegmentsLike(Protocol):
    """The truth of one picture: masks [N, H, W] bool, labels [N] int (numbers of names), ignored [H, W] bool."""

    @property
    def masks(self) -> Any: ...
    @property
    def labels(self) -> Any: ...
    @property
    def ignored(self) -> Any: ...


class SegmentRecordLike(Protocol):
    @property
    def id(self) -> str: ...
    def picture(self) -> Image.Image: ...
    def segments(self) -> SegmentsLike: ...


class SegmentRecordsLike(Protocol):
    """Pictures with their truth, by number. names: the classes ("cat|kitten" has synonyms); things: which are counted.

    `data.segments.SegmentRecords` is one.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def things(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> SegmentRecordLike: ...


@dataclass(frozen=True)
class Segment:
    """One area of a panoptic segmentation: its number in the map, its class, its score, whether it is a thing."""

    id: int
    label: int
    score: float
    thing: bool


@dataclass(frozen=True)
class Segmentation:
    """What a picture shows where.

    masks [Q, H, W] float in 0..1; scores [Q, K]: probability of each class for each mask, and what a row lacks to 1 is
    "nothing"; names: the K classes, each by its first synonym; things [K]: which classes are counted one by one.
    """

    masks: Tensor
    scores: Tensor
    names: tuple[str, ...]
    things: tuple[bool, ...]

    def evidence(self) -> Tensor:
        """[K, H, W]: for each class and pixel, the sum over masks of score times mask."""
        return torch.einsum("qk,qhw->khw", self.scores, self.masks)

    def semantic(self) -> Tensor:
        """[H, W] int64: the class of each pixel, never "nothing"."""
        return self.evidence().argmax(0)

    def panoptic(self, least: float = 0.0, overlap: float = 0.8) -> tuple[Tensor, list[Segment]]:
        """[H, W] int64 of segment numbers, 0 where there is none, and the segments (Cheng et al. 2022, section 3.3).

        A pixel belongs to the mask with the largest score times mask. least: masks whose best class scores no more are
        left out, as are those that are most likely nothing; overlap: a mask that keeps less of its own area is left
        out. Segments of a class that is no thing are one.
        """
        best, labels = self.scores.max(1)
        kept = ((best > least) & (best > 1 - self.scores.sum(1))).nonzero().flatten()
        ids = torch.zeros(self.masks.shape[1:], dtype=torch.int64, device=self.masks.device)
        if not len(kept):
            return ids, []
        masks = self.masks[kept]
        owner = (best[kept, None, None] * masks).argmax(0)
        found: list[Segment] = []
        stuff: dict[int, int] = {}  # class -> segment
        for q, (label, score) in enumerate(zip(labels[kept].tolist(), best[kept].tolist(), strict=True)):
            own = masks[q] >= 0.5
            area = own & (owner == q)
            whole, seen = int(own.sum()), int(area.sum())
            if not seen or int((owner == q).sum()) < overlap * whole:
                continue
            if not self.things[label] and label in stuff:
                ids[area] = stuff[label]
                continue
            found.append(Segment(len(found) + 1, label, score, self.things[label]))
            stuff.setdefault(label, len(found))
            ids[area] = len(found)
        return ids, found

    def instances(self, top: int = 100) -> tuple[Tensor, Tensor, Tensor]:
        """Masks [T, H, W] bool, classes [T] int64 and scores [T], best first: the `top` pairs of mask and class.

        Of things alone. A score is the class's times the mean of the mask where it is above 0.5.
        """
        counted = torch.tensor(self.things, device=self.scores.device).nonzero().flatten()
        scores = self.scores[:, counted]
        order = scores.flatten().topk(min(top, scores.numel())).indices
        query, label = order // max(1, len(counted)), order % max(1, len(counted))
        masks = self.masks > 0.5
        sure = (self.masks * masks).flatten(1).sum(1) / masks.flatten(1).sum(1).clamp_min(1)
        found = scores.flatten()[order] * sure[query]
        rank = found.argsort(descending=True, stable=True)
        return masks[query[rank]], counted[label[rank]], found[rank]


def synonyms(name: str) -> tuple[str, ...]:
    """ "cat|cats" -> ("cat", "cats"). Raises DiptychError for a name of nothing."""
    words = tuple(dict.fromkeys(" ".join(word.split()) for word in name.split("|") if word.strip()))
    if not words:
        raise DiptychError(f'a class has a name, and its synonyms beside it ("cat|kitten"); not "{name}"')
    return words


class Segmenter:
    """One system. A subclass in `methods/dense/<system>.py`, named by its file, with a frozen Config.

    needs: in words, what `fit` asks for; trains: what it trains; `module` holds that, None before `fit` and where
    nothing is trained. small: settings for hundreds of pictures and one machine, in place of the published ones;
    at_test: settings that may change after the fit.
    names: the classes it was fitted on; set_aside: pictures of the fit that cannot be read, with the reason.
    """

    Config: ClassVar[type]
    needs: ClassVar[str] = "pictures with masks"
    trains: ClassVar[tuple[str, ...]] = ()
    small: ClassVar[dict[str, Any]] = {}
    at_test: ClassVar[tuple[str, ...]] = ()

    clip: CLIP
    module: nn.Module | None = None
    names: tuple[str, ...] = ()

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self.set_aside: dict[str, str] = {}

    @classmethod
    def system(cls) -> str:
        """Its name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        """What the tables of systems show."""
        trains = ", ".join(cls.trains) or "nothing"
        return {"needs": cls.needs, "trains": trains, "cost": "picture tower", "names_new_classes": True}

    def suited(self, pictures: int) -> "Segmenter":
        """Itself for so many pictures to learn from: few take what is `small`, unless it was set."""
        default = self.Config()
        unset = {k: v for k, v in self.small.items() if getattr(self.config, k) == getattr(default, k)}
        return type(self)(replace(self.config, **unset)) if pictures < FEW else self

    def fit(
        self,
        clip: CLIP,
        records: SegmentRecordsLike | None = None,
        *,
        seed: int = 0,
        keep: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Segmenter":
        """Ready to segment with this CLIP, which stays as it is; -> itself.

        records: what it learns from, where it trains (`trains`). keep: a file where work that was stopped is taken up
        again. Raises Unsupported for a CLIP that it cannot use.
        """
        if self.trains:
            raise NotImplementedError
        self.clip = clip
        return self

    def segment(self, image: Image.Image, names: Sequence[str], things: Sequence[str] | None = None) -> Segmentation:
        """An RGB picture by the classes in `names` ("cat|kitten" has synonyms), masks at the picture's size.

        things: the names that are counted one by one; None: all.
        """
        raise NotImplementedError

    def changed(self, settings: Mapping[str, str]) -> "Segmenter":
        """Itself with other settings; once fitted, of those in `at_test`. Raises DiptychError naming the valid ones."""
        late = [name for name in settings if self.module is not None and name not in self.at_test]
        if late:
            known = nearest(late[0], self.at_test)
            raise DiptychError(f'{self.system()} has no setting "{late[0]}" after the fit{known}')
        self.config = changed(self.config, settings, self.system())
        return self

    def restore(self, clip: CLIP, names: tuple[str, ...]) -> nn.Module:
        """The trained module for `load` to fill, as `fit` on these classes makes it."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write what was trained as one safetensors file. Raises DiptychError where it cannot be written."""
        from safetensors.torch import save_file

        if self.module is None:
            raise Unsupported(f"{self.system()} has nothing to save: it trains nothing, or was not fitted")
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in self.module.state_dict().items()}
        about = {"format": FORMAT, "system": self.system(), "config": asdict(self.config), "names": self.names}
        about["base"] = asdict(Base.of(self.clip))
        path = Path(path)
        with atomic(path) as temporary:
            save_file(tensors, temporary, {"diptych_segmenter": json.dumps(about)})
        return path


def load_segmenter(
    path: str | Path, clip: CLIP | None = None, model: str | None = None, device: str | None = None
) -> Segmenter:
    """Read what `Segmenter.save` wrote. clip: the base model, or `model`, what `load` opens; else what the file names.

    Raises DiptychError for another file, a damaged one, and another base model. Nothing is unpickled.
    """
    from safetensors import SafetensorError, safe_open

    from diptych.core.load import load
    from diptych.methods.discover import find

    path = Path(path)
    if not path.is_file():
        raise DiptychError(f"no segmenter at {path}; `diptych segment --fit DATA --out {path}` makes one")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["diptych_segmenter"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["format"] != FORMAT:
            raise DiptychError(f"{path} has format {about['format']}; this diptych reads {FORMAT}")
        base, names, config = Base(**about["base"]), tuple(about["names"]), about["config"]
        declared = find("dense", about["system"])
        segmenter: Segmenter = declared(declared.Config(**config))
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise DiptychError(f"{path} is not a segmenter saved by diptych, or is damaged ({error})") from error
    clip = clip if clip is not None else load(model or base.source, device)
    if clip.fingerprint != base.fingerprint:
        same = clip.source == base.source
        raise DiptychError(
            f'{path} was fitted on the model "{base.name}" ({base.fingerprint[:12]}), but was opened with '
            f'"{clip.name}" ({clip.fingerprint[:12]}); '
            + ("that model has changed since: fit again" if same else f"use --model {base.source}")
        )
    segmenter.clip, segmenter.names = clip, names
    segmenter.module = module = segmenter.restore(clip, names)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise DiptychError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    return segmenter
