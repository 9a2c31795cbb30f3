"""`diptych.teach`: a CLIP learns session after session, and after each all sessions are tried again.

What is held out of every session is set aside before anything is trained. A stream that was killed goes on where it
was: finished sessions are kept, the one in progress goes on from its last checkpoint, with the same result.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.comparison.folder import RunFolder
from diptych.core.clip import CLIP
from diptych.core.device import choose_device
from diptych.core.forms import YES, forms
from diptych.core.fresh import is_architecture
from diptych.core.save import save
from diptych.data.pairs import read_pairs
from diptych.errors import DiptychError, nearest
from diptych.files import is_bare
from diptych.losses.contrastive import groups_of
from diptych.methods.continual.parts.learner import Learner, Session, SessionRecipe
from diptych.methods.discover import find, systems
from diptych.methods.pretrain.parts.objective import Batch, Objective, PairsLike
from diptych.methods.settings import changed
from diptych.metrics import drift
from diptych.training.base import open_model
from diptych.training.batches import Batches, Order
from diptych.training.card import write_card
from diptych.training.folder import TrainingFolder
from diptych.training.held_out import Embedded, HeldOut, hold_out
from diptych.training.plan import Plan
from diptych.training.run import Row, Run, digest, to

Say = Callable[[str], None]
Progress = Callable[[Row, Plan], None]
Recalls = dict[str, dict[str, float]]  # direction ("image to text", "text to image", "mean") -> k -> recall
Step = dict[str, Any]  # what was measured after a session


@dataclass(frozen=True)
class SessionPlan(Plan):
    """Of one session; the warm-up is a share of it."""

    recipe: SessionRecipe

    @property
    def warmup(self) -> int:
        return self.recipe.warmup or round(self.recipe.warmup_share * self.steps)


@dataclass(frozen=True)
class Stream:
    """What all systems of one call share. steps: of each session; None: as many as the recipe's epochs are."""

    clip: CLIP
    fresh: bool
    sessions: tuple[Session, ...]
    held: tuple[HeldOut, ...]
    steps: int | None
    seed: int
    workers: int
    save_every: int | None

    @property
    def names(self) -> list[str]:
        return [session.name for session in self.sessions]


@dataclass(frozen=True)
class Course:
    """How one system did. before: recalls on each session before the first; after: what was measured after each.

    scores [K, K]: mean recall at 1 of both directions, after session i on what was held out of session j; start [K].
    """

    system: str
    keeps: str
    clip: CLIP
    before: list[Recalls]
    after: list[Step]

    @property
    def scores(self) -> Tensor:
        return torch.tensor([[on["mean"]["1"] for on in step["recalls"]] for step in self.after], dtype=torch.float64)

    @property
    def start(self) -> Tensor:
        return torch.tensor([on["mean"]["1"] for on in self.before], dtype=torch.float64)


@dataclass(frozen=True)
class Taught:
    """What a call left: its folder with report.html and results.json, and each system's course by name."""

    folder: Path
    names: list[str]
    courses: dict[str, Course]

    @property
    def clip(self) -> CLIP:
        """The model of the only system, or of the one that remembers most."""
        return max(self.courses.values(), key=lambda course: float(course.scores[-1].mean())).clip


@dataclass
class SessionTrainer:
    """The `Trainer` of one session of one system: the one training loop, in run folders below `place`."""

    stream: Stream
    recipe: SessionRecipe
    session: Session
    place: Path
    progress: Progress | None = None
    trained: int = 0  # times in this session

    @property
    def seed(self) -> int:
        return 1000 * self.stream.seed + self.session.number

    def plan(self, objective: Objective, pairs: PairsLike, times: float) -> SessionPlan:
        own = len(self.session.pairs)
        recipe = replace(self.recipe, batch=min(self.recipe.batch, own))
        steps = self.stream.steps or max(1, round(recipe.epochs * (own // recipe.batch)))
        steps = max(1, round(times * steps))
        save = self.stream.save_every or min(1000, max(1, steps // 10))
        return SessionPlan(objective, recipe, Order(len(pairs), recipe.batch, self.seed), steps, save, steps)

    def train(self, clip: CLIP, objective: Objective, pairs: PairsLike, *, times: float = 1.0) -> None:
        plan = self.plan(objective, pairs, times)
        clip.__dict__.pop("fingerprint", None)  # its weights may be others than when it was asked for
        identity = plan.identity() | {"session": self.session.name, "weights": clip.fingerprint}
        folder = TrainingFolder(self.place / str(self.trained), identity)
        folder.refuse_others()
        with torch.random.fork_rng(devices=[]):
            Run(plan, clip, pairs, folder, self.stream.workers).go(self.progress)
        self.trained += 1

    def batches(self, clip: CLIP, objective: Objective, pairs: PairsLike, count: int) -> Iterator[Batch]:
        plan = self.plan(objective, pairs, 1.0)
        found = Batches(pairs, clip, objective, plan.order, plan.recipe.crop, self.stream.workers)
        for batch, _ in found.run(0, min(count, plan.order.steps_per_epoch)):
            batch = to(batch, clip.device)
            keys = (batch.index,) if batch.text_ids is None else (batch.index, batch.text_ids)
            yield replace(batch, same=groups_of(*keys) if plan.recipe.repeats else None)


class LessonFolder(TrainingFolder):
    """Of one system's stream: checkpoints/ has what there was after whole sessions, sessions/ the run of each."""

    def is_none(self) -> bool:
        """Whether no checkpoint of any session was written here: then another stream may begin."""
        if not self.path.is_dir():
            return not self.path.exists()
        there = {path.name for path in self.path.iterdir()}
        begun = any(self.path.glob("sessions/*/*/checkpoints/[0-9]*"))
        return is_bare(self.path) or ("run.json" in there and not self.steps() and not begun)

    def open(self) -> None:
        if self.is_none():
            shutil.rmtree(self.path / "sessions", ignore_errors=True)
        super().open()


@dataclass
class Lesson:
    """One system on its way through a stream, in a folder of its own."""

    stream: Stream
    learner: Learner
    recipe: SessionRecipe
    folder: LessonFolder
    before: list[Recalls]
    first: Embedded  # what is held out of the first session, by the model that the stream starts from
    progress: Progress | None = None
    say: Say | None = None
    after: list[Step] = field(default_factory=list)

    def go(self) -> Course:
        stream, learner = self.stream, self.learner
        self.folder.open()
        clip = deepcopy(stream.clip)
        learner.begin(clip, fresh=stream.fresh)
        found = self.folder.last()
        if found:
            clip.load_state_dict(found.part("clip"))
            learner.load_state(found.part("memory"), stream.sessions[: found.step])
            self.after = found.state["after"]
        known = self.first if not found else stream.held[0].embed(learner.clip(), stream.workers)
        for session in stream.sessions[len(self.after) :]:
            place = self.folder.path / "sessions" / f"{session.number + 1:02d}-{slug(session.name)}"
            trainer = SessionTrainer(stream, self.recipe, session, place, self.progress)
            start = time.perf_counter()
            learner.observe(session, trainer)
            seconds = time.perf_counter() - start
            now = [held.embed(learner.clip(), stream.workers) for held in stream.held]
            self.after.append(
                {
                    "session": session.name,
                    "pairs": len(session.pairs),
                    "seconds": round(seconds, 3),
                    "recalls": [plain(one.recalls()) for one in now],
                    "drift": drift_between(known, now[0]),
                    "drift from the start": drift_between(self.first, now[0]),
                }
            )
            known = now[0]
            self.keep(session.number + 1)
            for folder in place.glob("*/checkpoints"):
                shutil.rmtree(folder)
            if self.say:
                self.say(f"{learner.system()}, after {self.words()}")
        return self.finish()

    def keep(self, done: int) -> None:
        """The model, and what the system keeps, after so many sessions."""
        parts = {"clip": self.learner.model.state_dict(), "memory": self.learner.state()}
        tensors = {f"{part}.{name}": t.cpu() for part, held in parts.items() for name, t in held.items()}
        self.folder.save(done, tensors, {"after": self.after})

    def words(self) -> str:
        """`sketch: filled 71.2, sketch 40.3`, of the sessions so far."""
        last = self.after[-1]
        shown = zip(self.stream.names, last["recalls"][: len(self.after)], strict=False)
        return f"{last['session']}: R@1 " + ", ".join(f"{name} {100 * on['mean']['1']:.1f}" for name, on in shown)

    def finish(self) -> Course:
        clip, place = self.learner.clip(), self.folder.path / "model"
        clip.__dict__.pop("fingerprint", None)
        can = forms(clip)
        save(clip, place, layout="open_clip" if can["open_clip"] == YES else "diptych")
        write_card(place, self.learner.system(), can, ())
        return Course(self.learner.system(), self.learner.keeps, clip, self.before, self.after)


def teach(
    methods: str | Sequence[str],
    data: Sequence[str | Path | PairsLike] | Mapping[str, str | Path | PairsLike],
    *,
    model: str | CLIP,
    out: str | Path = "stream",
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    rate: float | None = None,
    held: int | None = None,
    workers: int = 2,
    device: str | None = None,
    seed: int = 0,
    save_every: int | None = None,
    image_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Taught:
    """Teach a CLIP a stream of image-text data, one session after the other, with systems of the `continual` family.

    methods: one name, or several to be compared on the same stream. data: the sessions in order, by name where it is a
    mapping; each is what `read_pairs` reads, or pairs by number. model: what `diptych.load` opens, or an architecture
    of open_clip (fresh weights). held: pictures held out of each session, before anything is trained; None is a fifth
    of them, at most 500. settings: "<system>.<field>" and "recipe.<field>" (`SessionRecipe`). steps, epochs: of each
    session. The same call on the same `out` continues. Raises DiptychError, and Diverged where training breaks.

    `out` has report.html and results.json; with one system its model/ and sessions/, with several a folder of each.
    """
    from diptych.training.stream_pages import write_results

    chosen = [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    learners = make_learners(chosen, settings or {}, epochs=epochs, batch=batch, rate=rate, steps=steps)
    if isinstance(data, (str, Path)):
        raise DiptychError(f"teach takes the sessions as a list, such as [{str(data)!r}, ...], or by name")
    sources = list(data.values()) if isinstance(data, Mapping) else list(data)
    names = list(data) if isinstance(data, Mapping) else names_of(sources)
    if not sources:
        raise DiptychError("teach needs the data of at least one session")
    every = [
        read_pairs(one, image_column=image_column, text_columns=text_columns) if isinstance(one, (str, Path)) else one
        for one in sources
    ]
    parts = [hold_out(pairs, held, seed) for pairs in every]
    sessions = tuple(Session(name, i, rest) for i, (name, (rest, _)) in enumerate(zip(names, parts, strict=True)))
    clip = open_model(model, seed).to(choose_device(device))
    fresh = isinstance(model, str) and is_architecture(model)
    stream = Stream(clip, fresh, sessions, tuple(held for _, held in parts), steps, seed, workers, save_every)
    about = {
        "model": model if isinstance(model, str) else clip.fingerprint,
        "data": [[name, digest(pairs), len(pairs)] for name, pairs in zip(names, every, strict=True)],
        "held": [len(part.pictures) for part in stream.held],
        "steps": steps,
        "seed": seed,
    }
    folders = {}
    for learner, recipe in learners:
        identity = about | {
            "system": learner.system(), "config": asdict(learner.config), "recipe": asdict(recipe)
        }  # fmt: skip
        path = Path(out) / learner.system() if len(learners) > 1 else Path(out)
        folders[learner.system()] = LessonFolder(path, identity)
    common = RunFolder(Path(out), about) if len(learners) > 1 else None
    for folder in (*([common] if common else []), *folders.values()):
        folder.refuse_others()
    now = [part.embed(clip, workers) for part in stream.held]
    before = [plain(one.recalls()) for one in now]
    if common:
        common.open()
    courses = {
        learner.system(): Lesson(
            stream, learner, recipe, folders[learner.system()], before, now[0], progress, say
        ).go()
        for learner, recipe in learners
    }  # fmt: skip
    taught = Taught(Path(out), names, courses)
    configs = {name: {k: folder.identity[k] for k in ("config", "recipe")} for name, folder in folders.items()}
    write_results(taught, about | {"systems": configs})
    return taught


def make_learners(
    chosen: Sequence[str],
    settings: Mapping[str, Any],
    *,
    epochs: float | None,
    batch: int | None,
    rate: float | None,
    steps: int | None,
) -> list[tuple[Learner, SessionRecipe]]:
    """Each system with its recipe. Raises DiptychError for a name or a setting that there is none of."""
    if not chosen:
        raise DiptychError(f"teach needs a system: {', '.join(systems('continual'))}")
    if steps is not None and epochs is not None:
        raise DiptychError("--steps and --epochs both say how long; give one")
    of: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, dot, setting = key.partition(".")
        if not dot or name not in (*chosen, "recipe"):
            known = ", ".join(f"{name}.FIELD" for name in (*chosen, "recipe"))
            raise DiptychError(f"--set {key} has no effect: this stream has {known}{nearest(name, chosen)}")
        of.setdefault(name, {})[setting] = value
    recipe = of.get("recipe", {}) | {
        k: v for k, v in (("batch", batch), ("rate", rate), ("epochs", epochs)) if v is not None
    }
    found = []
    for name in chosen:
        system = find("continual", name)
        how = changed(system.recipe, recipe, "recipe")
        if how.batch < 2:
            raise DiptychError("--batch must be at least 2: a pair is told from the others of its batch")
        found.append((system(changed(system.Config(), of.get(name, {}), name)), how))
    return found


def drift_between(before: Embedded, after: Embedded) -> dict[str, float]:
    """How both modalities moved on the same pictures and texts; angles in degrees."""
    scores = [(one.image @ one.text.T, one.text @ one.image.T) for one in (before, after)]
    flips = [drift.flipped(a, b) for a, b in zip(*scores, strict=True)]
    return {
        "rotation of pictures": drift.rotation(before.image, after.image),
        "rotation of texts": drift.rotation(before.text, after.text),
        "angles among pictures": drift.self_angle_change(before.image, after.image),
        "angles among texts": drift.self_angle_change(before.text, after.text),
        "deviation": drift.deviation(before.image, after.image, before.text, after.text),
        "flipped matches": sum(flips) / 2,
    }


def plain(recalls: dict[str, dict[int, float]]) -> Recalls:
    """As JSON has it: k in letters."""
    return {way: {str(k): value for k, value in by.items()} for way, by in recalls.items()}


def names_of(sources: Sequence[Any]) -> list[str]:
    """A short name for each session, no two alike."""
    found: list[str] = []
    for number, source in enumerate(sources):
        text = str(source) if isinstance(source, (str, Path)) else f"session{number + 1}"
        words = re.sub(r"scenes:\d+:?", "", text) if text.startswith("scenes:") else shortest(text)
        name = slug(words) or "scenes"
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", one) is not None for one in found)
        found.append(f"{name}-{same + 1}" if same else name)
    return found


def slug(words: str) -> str:
    """What is left of a name in a path."""
    return re.sub(r"[^\w.-]+", "-", words).strip("-.")


def shortest(text: str) -> str:
    """The last part of a path that is a name and no range of numbers."""
    path = Path(text)
    return path.parent.name if "{" in path.name and path.parent.name else path.stem
