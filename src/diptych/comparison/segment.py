"""`diptych segment`: which pixel of a picture is what, by any list of names; and a segmenter fitted to masks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diptych.comparison.predict import find_pictures
from diptych.data.pictures import BadPicture, open_picture
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import find, systems

if TYPE_CHECKING:
    from diptych.core.clip import CLIP
    from diptych.data.segments import SegmentRecords
    from diptych.methods.dense.parts.segmenter import Segmentation, Segmenter
    from diptych.report import Report

MOST = 2_000_000  # pixels of a picture that are told apart; larger ones are segmented smaller
FITTED = "fc_clip"  # what `fit_segmenter` fits unless told otherwise
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Area:
    """A class in a picture. share: of its pixels; score: mean over them of the class's share of the evidence."""

    name: str
    share: float
    score: float


@dataclass(frozen=True)
class Counted:
    """A segment of the panoptic map. id: its number there; share: of the picture's pixels; thing: counted by itself."""

    id: int
    name: str
    share: float
    score: float
    thing: bool


@dataclass(frozen=True)
class Segmented:
    """One picture. labels [H, W]: for each pixel the number of its name; areas: the classes in it, largest first;
    segments [H, W]: numbers of `counted`, 0 for none. error: why the picture could not be read; the rest is empty then.
    """

    path: Path
    names: tuple[str, ...]
    labels: NDArray[np.uint16]
    segments: NDArray[np.uint16]
    areas: tuple[Area, ...] = ()
    counted: tuple[Counted, ...] = ()
    error: str | None = None


def segment(
    pictures: str | Path | Sequence[str | Path],
    labels: Sequence[str] | str | None = None,
    *,
    things: Sequence[str] | str = (),
    fitted: "Segmenter | str | Path | None" = None,
    method: str | None = None,
    clip: "CLIP | None" = None,
    model: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Segmented]:
    """What every picture shows where, in the order given; a folder's pictures by name, each once.

    labels: the names to tell apart ("road, car|van": commas between names, lines between synonyms); by default those
    that `fitted` was fitted on. things: the names among them that are counted one by one. fitted: what `fit_segmenter`
    wrote; else a method that needs no fit, on `clip` or what `model` names ("mini"). A picture that cannot be read has
    an error. Raises DiptychError for names and paths that are not right, and when no picture could be read.
    """
    segmenter = opened(fitted, method, clip, model, settings, device)
    return list(segment_each(segmenter, find_pictures(pictures), labels, things, progress))


def segment_each(
    segmenter: "Segmenter",
    paths: Sequence[Path],
    labels: Sequence[str] | str | None,
    things: Sequence[str] | str = (),
    progress: Progress | None = None,
) -> Iterator[Segmented]:
    """`segment` of one picture after the other, so that of many none need be kept."""
    names, counted = chosen_names(labels, things, segmenter.names)
    wrong = []
    for done, one in enumerate(segmentations(segmenter, paths, names, counted), 1):
        wrong += [f"{one.path}: {one.error}"] if one.error else []
        if len(wrong) == len(paths):
            many = "the picture" if len(wrong) == 1 else f"any of the {len(wrong)} pictures"
            raise DiptychError(f"cannot read {many}: {'; '.join(wrong[:3])}{'; ...' if len(wrong) > 3 else ''}")
        yield one
        if progress:
            progress(done, len(paths))


def fit_segmenter(
    data: "str | Path | SegmentRecords",
    out: str | Path,
    *,
    method: str | None = None,
    clip: "CLIP | None" = None,
    model: str | None = None,
    settings: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> "Segmenter":
    """Fit a segmenter to pictures with masks (`data.segment_sets` says where they may lie) and write it to `out`.

    Of few pictures the settings are the method's own for few; `settings` change them ({"steps": "500"}). without:
    classes that are as if nobody had told of them. Work that was stopped is taken up again from `<out>.partial`. Raises
    DiptychError, and Unsupported for a model that the method cannot use.
    """
    from diptych.core.device import choose_device
    from diptych.core.load import load
    from diptych.data.segment_sets import read_segments

    method, out = method or FITTED, Path(out)
    declared = find("dense", method)
    if not declared.trains:
        raise DiptychError(f'"{method}" has nothing to fit; valid: {", ".join(named(trains=True))}')
    if out.is_dir() or out.suffix != ".safetensors":
        raise DiptychError(f"--out {out}: a fitted segmenter is one file, such as seg.safetensors")
    records = read_segments(data) if isinstance(data, str | Path) else data
    records = records.without(without) if without else records
    segmenter = declared().changed(settings or {}).suited(len(records))
    clip = clip if clip is not None else load(model or "mini", choose_device(device))
    keep = out.with_name(out.name + ".partial")
    keep.parent.mkdir(parents=True, exist_ok=True)
    segmenter.fit(clip, records, seed=seed, keep=keep, progress=progress)
    segmenter.save(out)
    keep.unlink(missing_ok=True)
    return segmenter


def judge_segmenter(
    data: "str | Path | SegmentRecords",
    *,
    fitted: "Segmenter | str | Path | None" = None,
    method: str | None = None,
    clip: "CLIP | None" = None,
    model: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> "Report":
    """mIoU, panoptic quality and average precision on pictures with masks (of the split "test", if there are several).

    By the names of the data, whatever `fitted` was fitted on. Raises DiptychError for what cannot be read.
    """
    from diptych.data.segment_sets import read_segments
    from diptych.engine.provenance import provenance
    from diptych.methods.dense.parts.evaluate import evaluate

    records = read_segments(data, "test") if isinstance(data, str | Path) else data
    segmenter = opened(fitted, method, clip, model, settings, device)
    about = {"method": segmenter.system(), "model": segmenter.clip.name, "data": records.source} | provenance()
    found = evaluate(segmenter, records, progress=progress)
    return found.report(f"{segmenter.system()} on {records.source}", about)


def named(trains: bool) -> list[str]:
    """The dense systems that are fitted, or that need no fit."""
    return [name for name in systems("dense") if bool(find("dense", name).trains) == trains]


def opened(
    fitted: "Segmenter | str | Path | None",
    method: str | None,
    clip: "CLIP | None" = None,
    model: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str | None = None,
) -> "Segmenter":
    """A segmenter that is ready: read from its file, or of a method that needs no fit (the first by name)."""
    from diptych.core.device import choose_device
    from diptych.core.load import load
    from diptych.methods.dense.parts.segmenter import Segmenter, load_segmenter

    if fitted is not None:
        if method:
            raise DiptychError("a fitted segmenter has its method: give one or the other")
        found = fitted if isinstance(fitted, Segmenter) else load_segmenter(fitted, clip, model, choose_device(device))
        return found.changed(settings or {})
    ready = named(trains=False)
    method = method or ready[0]
    declared = find("dense", method)
    if declared.trains:
        raise DiptychError(
            f'"{method}" is to be fitted first: diptych segment --fit DATA --out seg.safetensors; '
            f"without a fit: {', '.join(ready)}"
        )
    clip = clip if clip is not None else load(model or "mini", choose_device(device))
    return declared().changed(settings or {}).fit(clip)


def chosen_names(
    labels: Sequence[str] | str | None, things: Sequence[str] | str, known: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The names to tell apart, and those of them that are counted. Raises DiptychError for what is not right."""
    from diptych.methods.dense.parts.segmenter import synonyms

    names = [word.strip() for word in labels.split(",") if word.strip()] if isinstance(labels, str) else labels
    names = list(known if names is None else names)
    firsts = [synonyms(name)[0] for name in names]
    twice = sorted({name for name in firsts if firsts.count(name) > 1})
    if twice:
        raise DiptychError(f'"{twice[0]}" stands twice among the labels')
    if len(names) < 2:
        raise DiptychError(
            "segment takes two labels or more: each pixel is called by the likeliest, so name what else there is, "
            'such as --labels "car, road, trees|bushes, sky"'
        )
    counted = [word.strip() for word in things.split(",") if word.strip()] if isinstance(things, str) else list(things)
    found = []
    for thing in counted:
        if thing not in firsts and thing not in names:
            raise DiptychError(f"--things {thing}: no such label{nearest(thing, firsts)}")
        found.append(names[firsts.index(thing)] if thing in firsts else thing)
    return names, found


def segmentations(
    segmenter: "Segmenter", paths: Sequence[Path], names: Sequence[str], things: Sequence[str]
) -> Iterator[Segmented]:
    """One a path, in order."""
    from diptych.methods.dense.parts.segmenter import synonyms

    shown = tuple(synonyms(name)[0] for name in names)
    nothing = np.zeros((0, 0), np.uint16)
    for path in paths:
        try:
            image = open_picture(path)
        except BadPicture as error:
            yield Segmented(path, shown, nothing, nothing, error=str(error))
            continue
        true, pixels = image.size, image.width * image.height
        if pixels > MOST:
            scale = (MOST / pixels) ** 0.5
            image = image.resize((max(1, round(true[0] * scale)), max(1, round(true[1] * scale))))
        yield summed_up(path, segmenter.segment(image, names, things), (true[1], true[0]))


def summed_up(path: Path, found: "Segmentation", size: tuple[int, int]) -> Segmented:
    """The classes, their shares and scores, and the maps at the picture's own size (height, width)."""
    evidence = found.evidence()
    labels = evidence.argmax(0)
    sure = evidence.amax(0) / evidence.sum(0).clamp_min(1e-12)
    areas = []
    for k, name in enumerate(found.names):
        mask = labels == k
        if bool(mask.any()):
            areas.append(Area(name, float(mask.float().mean()), float(sure[mask].mean())))
    ids, segments = found.panoptic()
    counted = [
        Counted(s.id, found.names[s.label], float((ids == s.id).float().mean()), s.score, s.thing) for s in segments
    ]
    areas.sort(key=lambda area: -area.share)
    whole, parts = (enlarged(part.cpu().numpy().astype(np.uint16), size) for part in (labels, ids))
    return Segmented(path, found.names, whole, parts, tuple(areas), tuple(counted))


def enlarged(labels: NDArray[np.uint16], size: tuple[int, int]) -> NDArray[np.uint16]:
    """[h, w] -> [H, W], each pixel that of the nearest."""
    rows, columns = ((np.arange(n) + 0.5) * old // n for n, old in zip(size, labels.shape, strict=True))
    return labels if labels.shape == size else labels[rows.astype(int)][:, columns.astype(int)]
