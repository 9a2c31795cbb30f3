"""`diptych compare`: every fitting method on these pictures -> one report, and the winner as one file."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.comparison.cell import run_cell
from diptych.comparison.folder import Probabilities, RunFolder, hash_of
from diptych.comparison.plan import (
    Cell,
    Plan,
    Shots,
    Speed,
    augmented,
    choose_shots,
    choose_systems,
    drawn,
    families_for,
    make_plan,
    measure_speed,
)
from diptych.comparison.summary import Summary, Winner
from diptych.comparison.winner import Choice, choose, refit
from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.device import choose_device
from diptych.data.pictures import open_picture, thumbnail_jpeg
from diptych.data.support import CROP
from diptych.data.task import Task
from diptych.data.video import read_frames
from diptych.engine.isolate import Message, Outcome, peak_mb, run_forked, run_here
from diptych.engine.provenance import provenance
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError
from diptych.methods.adapt.parts.adapter import Adapter, config_hash

if TYPE_CHECKING:
    from rich.console import Console

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """What `compare` gives: the rows, the winner, and the folder with the report, the results and the winner's file."""

    summary: Summary
    winner: Classifier
    folder: Path
    clip: CLIP = field(repr=False)

    @property
    def rows(self) -> Sequence[Any]:
        return self.summary.rows

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def predict(self, pictures: Sequence[str | Path] | str | Path, **options: Any):
        """The winner on new pictures: see `diptych.predict`."""
        from diptych.comparison.predict import predict

        return predict(self.winner, pictures, clip=self.clip, **options)

    def __str__(self) -> str:
        from rich.console import Console

        from diptych.comparison.table import render_table

        console = Console(width=120)
        with console.capture() as text:
            console.print(render_table(self.summary, console))
        return text.get()


class Stage:
    """Progress on the terminal; refreshed by hand, since a thread would not survive the forks."""

    def __init__(self, console: "Console | None") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = console or Console(quiet=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        live = self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, auto_refresh=False, transient=True, disable=not live)
        self.bar = None

    def begin(self, what: str, total: int) -> None:
        if self.bar is not None:
            self.progress.remove_task(self.bar)
        self.bar = self.progress.add_task(what, total=total)
        self.progress.refresh()
        if not self.console.is_terminal:  # a log has no bars
            self.console.print(f"{what} ({total})", markup=False, highlight=False)

    def at(self, done: int, what: str | None = None) -> None:
        if self.bar is not None:
            self.progress.update(self.bar, completed=done, description=what)

    def tell(self, message: dict[str, Any]) -> None:
        if "done" in message and self.bar is not None:
            self.progress.update(self.bar, completed=message["done"], total=message["total"])

    def idle(self) -> None:
        self.progress.refresh()


def compare(
    clip: CLIP,
    task: Task,
    *,
    methods: Sequence[str] | None = None,
    shots: Sequence[Shots] | None = None,
    seeds: int = 3,
    settings: dict[str, str] | None = None,
    budget: float | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    isolate: bool = False,
    console: "Console | None" = None,
) -> Comparison:
    """Compare methods on a task, choose the winner by validation inside the shots, refit it on everything labelled.

    methods: names, ["all"], or None for those that work on features. shots: numbers and "all". settings:
    {"gda.alpha": "0.1,1"}. budget: seconds; what would not fit is left out with the reason. out: the run's folder;
    a folder of the same run is continued, of another refused. device: None for the best there is. isolate: each cell
    in a forked process of its own, with its own peak memory (the command line does; a process that already used torch
    on several threads must not).
    Raises DiptychError for anything a user can mend.
    """
    start = time.perf_counter()
    adapters = choose_systems(methods, settings or {}, families_for(task))
    if shots is None and task.shots is not None:
        shots = (task.shots,)
    shots = choose_shots(task, shots)
    if seeds < 1:
        raise DiptychError(f"--seeds takes a whole number from 1; not {seeds}")
    folder = RunFolder(*place(clip, task, adapters, shots, seeds, out))
    folder.open()
    stage = Stage(console)
    store = store_of(task)
    launch = launcher(clip, choose_device(device), stage, isolate)

    everything = [Cell(a, s, seed) for a in adapters for s in shots for seed in range(1 if s == "all" else seeds)]
    if all(folder.finished(cell.name) for cell in everything) and (folder.path / "winner.safetensors").exists():
        stage.console.print(f"{folder.path} is finished; nothing to compute", style="dim", markup=False)
        plan = Plan(tuple(everything), 0.0, 0.0, ())
    else:
        speed = Speed(**value_of(launch(lambda tell: asdict(measure_speed(clip, task, store)))))
        plan = make_plan(clip, task, store, adapters, shots, seeds, speed)
        announce(stage.console, task, plan, folder, budget)
        with showing(stage):
            encode(clip, task, store, adapters, shots, seeds, launch, stage)
            run_cells(plan, clip, task, store, folder, launch, stage, start, budget)
    ordered = sorted(plan.cells, key=lambda c: (c.adapter.system(), shots.index(c.shots), c.seed))
    rows = [row_of(cell, folder, task, clip, budget) for cell in ordered]
    choice = choose(rows)
    winner = crown(choice, rows, adapters, clip, task, store, folder, launch, stage)
    summary = summarise(rows, choice, winner, task, clip, folder, plan, time.perf_counter() - start)
    publish(summary, folder)
    return Comparison(summary, winner, folder.path, clip)


def store_of(task: Task, tell: Message | None = None) -> FeatureStore:
    progress = tell and (lambda done, total: tell({"done": done, "total": total}))
    return FeatureStore(task.digests, frames=task.frames, progress=progress)


def launcher(clip: CLIP, device: str, stage: Stage, isolate: bool) -> Callable[..., Outcome]:
    """How work is run: in a fork, which moves its own copy of the model to the device, or right here."""
    if not isolate:
        clip.to(device)
        return partial(run_here, tell=stage.tell)

    def launch(work: Callable[[Message], Any]) -> Outcome:
        def there(tell: Message) -> Any:
            clip.to(device)
            return work(tell)

        return run_forked(there, stage.tell, stage.idle)

    return launch


def place(
    clip: CLIP, task: Task, adapters: Sequence[Adapter], shots: Sequence[Shots], seeds: int, out: str | Path | None
) -> tuple[Path, dict[str, Any]]:
    """The run's folder and identity."""
    identity = {
        "format": 1,
        "data": task.data_hash,
        "model": clip.fingerprint,
        "names": list(task.names),
        "templates": task.templates and list(task.templates),
        "methods": {a.system(): config_hash(a.config) for a in adapters},
        "shots": list(shots),
        "seeds": seeds,
    } | ({"frames": task.frames} if task.frames else {})
    short = hash_of(identity)[:8]
    name = "".join(c if c.isalnum() else "-" for c in task.name).strip("-")[:40] or "pictures"
    return Path(out) if out else Path("diptych-runs") / f"{name}-{short}", identity


def value_of(outcome: Outcome) -> Any:
    if outcome.error:
        raise DiptychError(outcome.error + (f"\n{outcome.trace}" if outcome.trace else ""))
    return outcome.value


def announce(console: "Console", task: Task, plan: Plan, folder: RunFolder, budget: float | None) -> None:
    """What will run and how long that will take, before it starts."""
    from rich.markup import escape

    open_cells = [c for c in plan.cells if not folder.finished(c.name)]
    seconds = plan.encode_seconds + sum(c.seconds for c in open_cells) + plan.refit_seconds
    items = f"videos ({task.frames} frames of each)" if task.frames else "pictures"
    console.print(
        f"[bold]{escape(task.name)}[/]: {len(task.pool)} {items} to draw shots from, {len(task.test)} to test on, "
        f"{len(task.classes)} classes"
    )
    for warning in task.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)
    if task.set_aside:
        first = task.set_aside[0]
        more = f" (and {len(task.set_aside) - 1} more: see the report)" if len(task.set_aside) > 1 else ""
        console.print(f"[yellow]![/] set aside: {escape(first.id)}: {escape(first.reason)}{more}", highlight=False)
    done = len(plan.cells) - len(open_cells)
    kept = f", {done} of {len(plan.cells)} rows are there already" if done else ""
    parts = f"{words_for(plan.encode_seconds)} to encode pictures, {words_for(plan.refit_seconds)} to fit the winner"
    console.print(f"About [bold]{words_for(seconds)}[/] ({parts}){kept}.")
    if budget is not None and seconds > budget:
        console.print(f"The budget of {words_for(budget)} will leave some rows out; quick methods run first.")
    if plan.left_out:
        names = ", ".join(f"{name} (about {words_for(s)})" for name, s in plan.left_out)
        console.print(f"[dim]Not run unless asked for: {names}; --methods all runs everything.[/]", highlight=False)
    console.print(f"[dim]Run folder: {escape(str(folder.path))}[/]", highlight=False)


@contextlib.contextmanager
def showing(stage: Stage) -> Iterator[None]:
    stage.progress.start()
    try:
        yield
    finally:
        stage.progress.stop()


def encode(
    clip: CLIP,
    task: Task,
    store: FeatureStore,
    adapters: Sequence[Adapter],
    shots: Sequence[Shots],
    seeds: int,
    launch: Callable[..., Outcome],
    stage: Stage,
) -> None:
    """Every picture and view that any cell reads, once; what is in the cache is not read again."""
    used = drawn(task, shots, seeds)
    plain = [(0, CROP, task.test, "test pictures"), (0, CROP, used, "shots")]
    views_of = augmented(clip, task, adapters, shots, seeds)
    for views, crop, records, what in [*plain, *((v, c, r, f"shots, {v} views") for v, c, r in views_of)]:
        missing = len(store.missing(clip, records, views=views, crop=crop))
        if not missing:
            continue
        stage.begin(f"encode {what}", missing)

        def fill(tell: Message, records=records, views=views, crop=crop) -> None:
            own = store_of(task, tell)
            own.fill(clip, records, views=views, crop=crop)

        value_of(launch(fill))
    store.spaces.clear()  # the children have written: read the index anew


def run_cells(
    plan: Plan,
    clip: CLIP,
    task: Task,
    store: FeatureStore,
    folder: RunFolder,
    launch: Callable[..., Outcome],
    stage: Stage,
    start: float,
    budget: float | None,
) -> None:
    """The cells that are not finished, quick systems first; each is on disk before the next begins."""
    stage.begin("compare", len(plan.cells))
    measured: dict[tuple[str, Shots], float] = {}
    for i, cell in enumerate(plan.cells):
        stage.at(i, f"{cell.adapter.system()}, {cell.shots} shots")
        system = cell.adapter.system()
        expected = measured.get((system, cell.shots), cell.seconds)
        if folder.finished(cell.name) or (budget is not None and time.perf_counter() - start + expected > budget):
            continue

        def work(tell: Message, cell: Cell = cell) -> None:
            row, probabilities = run_cell(cell, clip, task, store_of(task))
            folder.finish(cell.name, {**row, "peak_mb": round(peak_mb(), 1)}, probabilities)

        if reason := cell.adapter.refusal(clip):
            folder.finish(cell.name, {**key_of(cell), "skipped": reason}, None)
            continue
        began = time.perf_counter()
        outcome = launch(work)
        measured[system, cell.shots] = time.perf_counter() - began
        if not outcome.error:
            continue
        if not outcome.trace:
            folder.finish(cell.name, {**key_of(cell), "skipped": outcome.error}, None)
        else:  # a bug: shown, kept for a report, tried again next time
            (folder.path / f"{cell.name}.error.txt").write_text(outcome.trace or "")
            where = folder.path / f"{cell.name}.error.txt"
            stage.console.print(f"{cell.name} {outcome.error}; see {where}", style="red", markup=False)


def key_of(cell: Cell) -> dict[str, Any]:
    return {"method": cell.adapter.system(), "shots": cell.shots, "seed": cell.seed}


def row_of(cell: Cell, folder: RunFolder, task: Task, clip: CLIP, budget: float | None) -> dict[str, Any]:
    """The finished row, or one that says why it is not there."""
    if row := folder.finished(cell.name):
        return row
    trace = folder.path / f"{cell.name}.error.txt"
    if trace.exists():
        lines = [line for line in trace.read_text().splitlines() if line.strip()]
        return {**key_of(cell), "skipped": f"failed: {lines[-1] if lines else 'without a message'}"}
    would = f" (it would take about {words_for(cell.seconds)})" if cell.seconds else ""
    return {**key_of(cell), "skipped": f"over the budget of {words_for(budget or 0)}{would}"}


def crown(
    choice: Choice,
    rows: Rows,
    adapters: Sequence[Adapter],
    clip: CLIP,
    task: Task,
    store: FeatureStore,
    folder: RunFolder,
    launch: Callable[..., Outcome],
    stage: Stage,
) -> Classifier:
    """The winner's file: refitted on everything labelled, unless it is there."""
    path = folder.path / "winner.safetensors"
    if path.exists():
        kept = Classifier.load(path)
        if kept.system == choice.method:
            return kept
    adapter = next(a for a in adapters if a.system() == choice.method)

    def work(tell: Message) -> None:
        own = store_of(task, tell)
        refit(choice, adapter, rows, clip, task, own).save(path)

    with showing(stage):
        stage.begin(f"fit the winner, {choice.method}, on everything labelled", 1)
        value_of(launch(work))
    return Classifier.load(path)


def summarise(
    rows: Rows,
    choice: Choice,
    winner: Classifier,
    task: Task,
    clip: CLIP,
    folder: RunFolder,
    plan: Plan,
    seconds: float,
) -> Summary:
    done = {(r["method"], r["shots"], r["seed"]): f"{r['method']}-{r['shots']}-{r['seed']}" for r in rows}
    finished = {k: n for k, n in done.items() if not next(r for r in rows if key(r) == k).get("skipped")}

    def thumbnail(i: int) -> bytes:
        if task.frames:
            return read_frames(task.test[i], 1, partial(thumbnail_jpeg, side=192))[0]
        return thumbnail_jpeg(open_picture(task.test[i]), side=192)

    groups = [r.group for r in task.test if r.group is not None]
    return Summary(
        rows=rows,
        probabilities=Probabilities(folder, finished),
        truth=np.array(task.labels(task.test)),
        test_ids=task.test.ids,
        class_names=task.classes,
        winner=Winner(
            choice.method,
            choice.shots,
            choice.why,
            winner.config,
            refit_on=len(task.pool) + len(task.test),
            file="winner.safetensors",
        ),
        title=f"Which CLIP method is best for {task.name}?",
        items="videos" if task.frames else "pictures",
        thumbnail=thumbnail,
        groups=groups if len(groups) == len(task.test) else None,
        warnings=task.warnings,
        set_aside=[(item.id, item.reason) for item in task.set_aside],
        duplicates=[(item.ids, item.kind) for item in task.duplicates],
        provenance={
            **provenance(),
            "model": {"name": clip.name, "fingerprint": clip.fingerprint},
            "data": {
                "source": task.pool.source,
                "hash": task.data_hash,
                "pool": len(task.pool),
                "test": len(task.test),
                **({"frames": task.frames} if task.frames else {}),
            },
            "run": folder.identity,
        },
        estimated_seconds=plan.seconds or None,
        seconds=seconds,
    )


def key(row: dict[str, Any]) -> tuple[str, Shots, int]:
    return row["method"], row["shots"], row["seed"]


def publish(summary: Summary, folder: RunFolder) -> None:
    from diptych.comparison.pages import write_json, write_report

    write_json(summary, folder.path / "results.json")
    write_report(folder.path / "report.html", summary)


def words_for(seconds: float) -> str:
    """12 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
