"""What a comparison will run, in which order, and how long that will take."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from diptych.core.clip import CLIP
from diptych.data.records import Records
from diptych.data.task import Task
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError, TextCut
from diptych.methods.adapt.parts.adapter import Adapter, Work, configure
from diptych.methods.discover import find, systems

Shots = int | Literal["all"]
FAMILIES = ("adapt", "video")  # those that fit on shots; all but the first, on videos alone
SHOTS: tuple[int, ...] = (1, 4, 16)
BACKWARD = 2.0  # a pass forwards and backwards costs about so many forwards more than a forward alone


@dataclass(frozen=True)
class Cell:
    """One row to be: a system, the shots, the seed; seconds: the forecast of its fit and prediction."""

    adapter: Adapter
    shots: Shots
    seed: int
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.adapter.system()}-{self.shots}-{self.seed}"


@dataclass(frozen=True)
class Speed:
    """Measured seconds: a picture decoded and through the image tower, a text token through the text tower."""

    image: float
    token: float


@dataclass(frozen=True)
class Plan:
    """cells in the order of running; encode_seconds: for pictures not in the cache; refit_seconds: for the winner on
    everything labelled, at most; left_out: systems that run only when asked for, with the seconds they would take."""

    cells: tuple[Cell, ...]
    encode_seconds: float
    refit_seconds: float
    left_out: tuple[tuple[str, float], ...]

    @property
    def seconds(self) -> float:
        return self.encode_seconds + sum(cell.seconds for cell in self.cells) + self.refit_seconds


def families_for(task: Task) -> tuple[str, ...]:
    """The families whose systems can fit the task."""
    return FAMILIES if task.frames else FAMILIES[:1]


def adapters_of(families: Sequence[str]) -> dict[str, type[Adapter]]:
    """The systems of these families by name."""
    return {name: find(family, name) for family in families for name in systems(family)}


def choose_systems(
    methods: Sequence[str] | None, settings: dict[str, str], families: Sequence[str] = FAMILIES
) -> list[Adapter]:
    """The adapters to run. None: those that work on features; "all": every one of the families.

    settings: "system.field" -> value. Raises DiptychError for unknown systems or fields, and for settings of a
    system that does not run.
    """
    every = adapters_of(families)
    by_system: dict[str, dict[str, str]] = {}

    def known(name: str) -> type[Adapter]:
        if name not in every and name in adapters_of(FAMILIES):
            raise DiptychError(f"{name} is for videos, and these are pictures")
        return every.get(name) or find(families[0], name)

    for key, value in settings.items():
        system, dot, name = key.partition(".")
        if not dot or not name:
            raise DiptychError(f'--set takes system.field=value, such as gda.alpha=1; "{key}" has no field')
        known(system)
        by_system.setdefault(system, {})[name] = value
    if methods is None:
        chosen = [name for name in every if every[name].cost == "features" or name in by_system]
    elif list(methods) == ["all"]:
        chosen = list(every)
    else:
        chosen = list(dict.fromkeys(methods))
    for name in by_system:
        if name not in chosen:
            raise DiptychError(
                f"--set {name}.{next(iter(by_system[name]))} has no effect: {name} is not among --methods"
            )
    return [configure(known(name), by_system.get(name, {})) for name in chosen]


def choose_shots(task: Task, shots: Sequence[Shots] | None) -> tuple[Shots, ...]:
    """The shots to run: those asked for, else 1, 4 and 16 as far as the pool reaches, and all of a smaller pool."""
    if shots is not None:
        wrong = [s for s in shots if s != "all" and s < 1]
        if wrong or not shots:
            raise DiptychError(
                f'--shots takes whole numbers from 1 and "all", such as 1,4,16; not {wrong or "nothing"}'
            )
        return tuple(dict.fromkeys(shots))
    labels = task.labels(task.pool)
    most = max(labels.count(c) for c in set(labels))
    usual: tuple[Shots, ...] = tuple(s for s in SHOTS if s <= most)
    return usual if most >= SHOTS[-1] or most in usual else (*usual, "all")


def measure_speed(clip: CLIP, task: Task, store: FeatureStore) -> Speed:
    """A few pictures and texts, timed; two seconds at most."""
    sample = task.pool[list(range(min(8, len(task.pool))))]
    texts = [f"a photo of a {name}, number {i}." for i in range(16) for name in task.names[:1]]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TextCut)  # said where the texts are used
        clip.encode_image(store.pixels(clip, sample[:1]))
        start = time.perf_counter()
        clip.encode_image(store.pixels(clip, sample))
        image = (time.perf_counter() - start) / len(sample)
        clip.encode_text(texts[:1])
        start = time.perf_counter()
        clip.encode_text(texts)
        token = (time.perf_counter() - start) / int(clip.tokenize(texts).mask.sum())
    return Speed(image, token)


def seconds_of(work: Work, speed: Speed) -> float:
    images = (work.images + BACKWARD * work.images_backward) * speed.image
    return work.seconds + images + (work.tokens + BACKWARD * work.tokens_backward) * speed.token


def cell_seconds(cell: Cell, task: Task, speed: Speed) -> float:
    """Forecast of one row: a fit for each fold and value of the grid, the last fit, the prediction."""
    classes = len(task.classes)
    per_class = len(task.pool) / classes
    shots = per_class if cell.shots == "all" else min(cell.shots, per_class)
    singles = cell.adapter.suited(shots).singles()
    each = [seconds_of(single.work(classes, max(1, round(shots))), speed) for single in singles]
    fits = 1.0
    if cell.adapter.needs.labels and shots > 1:
        fits += len(each) * (min(cell.adapter.folds_of(shots), int(shots)) - 1)  # a fold is fitted on the others
    one = sum(each) / len(each)
    if cell.adapter.names_new_classes and (cell.seed == 0 or cell.adapter.cost == "features"):
        fits += 0.5
    judge = len(task.test) * speed.image if cell.adapter.cost == "both towers" else 0.0
    return fits * one + judge + 0.1


def make_plan(
    clip: CLIP,
    task: Task,
    store: FeatureStore,
    adapters: Sequence[Adapter],
    shots: Sequence[Shots],
    seeds: int,
    speed: Speed,
) -> Plan:
    """Order the cells, quick systems first, and forecast."""
    cells = [Cell(a, s, seed) for a in adapters for s in shots for seed in range(1 if s == "all" else seeds)]
    cells = [replace(c, seconds=0.0 if refused(c, clip) else cell_seconds(c, task, speed)) for c in cells]
    total = {a.system(): sum(c.seconds for c in cells if c.adapter is a) for a in adapters}
    cells.sort(key=lambda c: (total[c.adapter.system()], c.adapter.system()))  # stable: shots, then seeds
    pictures = len(store.missing(clip, task.test)) + len(store.missing(clip, task.pool))
    for views, crop, records in augmented(clip, task, adapters, shots, seeds):
        pictures += views * len(store.missing(clip, records, views=views, crop=crop))
    others = [other for name, other in adapters_of(families_for(task)).items() if name not in total]
    left_out = []
    for other in others:
        cell = Cell(other(), shots[0], 0)
        if not refused(cell, clip):
            each = [cell_seconds(Cell(cell.adapter, s, seed), task, speed) for s in shots for seed in range(seeds)]
            left_out.append((other.system(), sum(each)))
    refit = max((refit_seconds(a, task, speed) for a in adapters if a.refusal(clip) is None), default=0.0)
    return Plan(tuple(cells), pictures * speed.image, refit, tuple(left_out))


def refit_seconds(adapter: Adapter, task: Task, speed: Speed) -> float:
    """Forecast of the winner's last fit, should it be this one: with a choice again where that needs no tower."""
    if adapter.cost == "features":
        return cell_seconds(Cell(adapter, "all", 1), task, speed)
    shots = (len(task.pool) + len(task.test)) / len(task.classes)
    single = adapter.suited(shots).singles()[0]
    return seconds_of(single.work(len(task.classes), round(shots)), speed)


def refused(cell: Cell, clip: CLIP) -> bool:
    return cell.adapter.refusal(clip) is not None


def drawn(task: Task, shots: Sequence[Shots], seeds: int) -> Records:
    """All pictures that any cell will fit on, each once."""
    seen = {}
    for s in shots:
        for seed in range(seeds):
            for record in task.draw(None if s == "all" else s, seed):
                seen[record.id] = record
    return replace(task.pool, items=tuple(seen.values()))


def augmented(
    clip: CLIP, task: Task, adapters: Sequence[Adapter], shots: Sequence[Shots], seeds: int
) -> list[tuple[int, tuple[float, float], Records]]:
    """(views, crop, pictures): for each crop the most augmented views that any adapter reads, and of which shots."""
    wanted: dict[tuple[float, float], tuple[int, list[Shots]]] = {}
    for s in shots:
        per_class = len(task.draw(None if s == "all" else s, 0)) / len(task.classes)
        for adapter in adapters:
            if adapter.refusal(clip) is None:
                for views, crop in (single.views() for single in adapter.suited(per_class).singles()):
                    most, there = wanted.get(crop, (0, []))
                    if views:
                        wanted[crop] = max(most, views), [*there, s]
    return [(views, crop, drawn(task, there, seeds)) for crop, (views, there) in wanted.items()]
