"""`curate`: a system's stages over an input, to shards and a report: one result, however it was run."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from diptych import __version__
from diptych.curation.engines import ENGINES, Engine, run_all
from diptych.curation.inputs import PLACE, Input, State, first_rows, open_input, states_of, with_rows_of_csv
from diptych.curation.output import Shards, clear_left_overs, schema_of, write_removed, write_shard
from diptych.curation.piece import INPUT, Segment, load_counts, run_piece, save_counts
from diptych.errors import DiptychError, nearest
from diptych.files import write_atomically
from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Progress, Source, Stage, configure
from diptych.methods.discover import find
from diptych.report import Report

HASHED = 1 << 28  # bytes of a file that is read to know it again
MERGED = 16  # counts of pieces that are in memory at a time


@dataclass(frozen=True)
class Line:
    """One step: the rows that reached it, those it kept, why it removed others, seconds of all processes together."""

    name: str
    about: str
    rows: int
    kept: int
    seconds: float
    why: Mapping[str, int]
    tallies: Mapping[str, int]


@dataclass(frozen=True)
class Curated:
    """What `curate` did. out: None for a dry run."""

    out: Path | None
    recipe: str
    lines: tuple[Line, ...]
    rows_in: int
    rows_out: int
    seconds: float
    report: Report

    def summary(self) -> dict[str, Any]:
        about = {"recipe": self.recipe, "rows_in": self.rows_in, "rows_out": self.rows_out, "seconds": self.seconds}
        return {**about, "out": str(self.out) if self.out else None, "stages": [asdict(line) for line in self.lines]}


def curate(
    recipe: str | Pipeline,
    source: str | Path,
    out: str | Path | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    stages: Sequence[str] = (),
    dry_run: bool = False,
    rows: int | None = None,
    workers: int = 1,
    engine: Engine = "local",
    seed: int = 0,
    text: Sequence[str] = (),
    image: str | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Curated:
    """Run a recipe over `source` (see `open_input`) and write what is left to `out`.

    recipe: a system of the family, or a Pipeline. settings: {"<recipe>.<field>": value}. stages: only those. rows: only
    the first so many. dry_run: everything but the shards, in a temporary folder that is gone afterwards. The same call
    goes on with what was stopped. Raises DiptychError before anything is written for columns that are missing and for
    an `out` that holds another run.
    """
    begun = time.perf_counter()
    pipeline = recipe if isinstance(recipe, Pipeline) else configure(find("curate", recipe), own(recipe, settings))
    if engine not in ENGINES:
        raise DiptychError(f'no engine "{engine}"{nearest(engine, ENGINES)}')
    opened = open_input(str(source), text=text, image=image)
    steps = chosen(list(pipeline.stages(opened.columns, seed)), stages)
    check_needs(steps, opened)
    identity = identity_of(pipeline, opened, steps, rows, seed)
    with ExitStack() as stack:
        if dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="diptych-curate-")))
        else:
            if out is None:
                raise DiptychError("say where to put it: an OUT folder, or --dry-run")
            folder = Path(out).expanduser().absolute()
            open_out(folder, identity, opened.files)
            if (finished := finished_run(folder, pipeline)) is not None:
                return finished
        work = folder / ".work"
        for step in steps:
            if isinstance(step, Stage):
                step.prepare(folder, progress)
        opened = with_rows_of_csv(opened, work)
        if rows is not None:
            opened = first_rows(opened, rows)
        segments = segments_of(steps, opened, work, seed)
        for segment in segments:
            label = " > ".join(step.name for step in steps_of(segment)) or "read"
            run_segment(segment, opened, engine, workers, partial(progress, label))
        lines, examples = collected(segments, len(opened.pieces))
        rows_out = lines[-1].kept
        if not dry_run:
            write_shards(folder, segments, opened, engine, workers, progress)
        from diptych.curation.pages import report_of

        counts = {one.stages[0].name: load_counts(one.counts_file()) for one in segments[1:]}
        seconds = time.perf_counter() - begun
        report = report_of(pipeline, steps, lines, examples, counts, identity, seconds)
        done = Curated(None if dry_run else folder, pipeline.system(), lines, lines[0].rows, rows_out, seconds, report)
        if not dry_run:
            for step in steps:
                if isinstance(step, Stage):
                    for name, data in step.files(counts.get(step.name, {})).items():
                        write_atomically(folder / name, data)
            finish(folder, done)
        return done


def own(recipe: str, settings: Mapping[str, str] | None) -> dict[str, str]:
    """`{"metaclip.t": "20"}` -> `{"t": "20"}`. Raises DiptychError for another system's."""
    found = {}
    for name, value in (settings or {}).items():
        system, _, field = name.rpartition(".")
        if system not in ("", recipe):
            raise DiptychError(f"{name} is no setting of {recipe}")
        found[field] = value
    return found


# -- the plan ----------------------------------------------------------------------------------------------------------


def chosen(steps: list[Source | Stage], names: Sequence[str]) -> list[Source | Stage]:
    """The steps asked for, in the recipe's order; what makes rows is always one of them."""
    known = [step.name for step in steps]
    if repeated := [name for name, count in Counter(known).items() if count > 1]:
        raise DiptychError(f"two stages are called {repeated[0]}")
    if any(isinstance(step, Source) for step in steps[1:]):
        raise DiptychError("only the first step of a recipe makes rows")
    for name in names:
        if name not in known:
            raise DiptychError(f'no stage "{name}"{nearest(name, known)}')
    return [step for step in steps if not names or step.name in names or isinstance(step, Source)]


def check_needs(steps: Sequence[Source | Stage], opened: Input) -> None:
    """Raise DiptychError where a step needs a column that neither the input has nor a step before it makes."""
    there = list(opened.columns)
    for step in steps:
        for column in step.needs:
            if column not in there:
                raise DiptychError(
                    f'{step.name} needs the column "{column}"; {opened.source} has {", ".join(opened.columns)}'
                    f"{nearest(column, there) if len(there) < 30 else ''}"
                )
        there += step.adds


def segments_of(steps: Sequence[Source | Stage], opened: Input, work: Path, seed: int) -> list[Segment]:
    """Cut at every stage that counts."""
    source = steps[0] if steps and isinstance(steps[0], Source) else None
    groups: list[list[Stage]] = [[]]
    for step in steps:
        if isinstance(step, Stage):
            if step.counts:
                groups.append([])
            groups[-1].append(step)
    pictures = opened.pictures == "bytes" or any("picture" in (*step.needs, *step.adds) for step in steps)
    return [
        Segment(
            n, work, replace(opened, pieces=()), source if n == 0 else None, tuple(group),
            groups[n + 1][0] if n + 1 < len(groups) else None, pictures, seed,
        )
        for n, group in enumerate(groups)
    ]  # fmt: skip


def steps_of(segment: Segment) -> list[Source | Stage]:
    return [step for step in (segment.source, *segment.stages, segment.waiting) if step is not None]


def identity_of(
    pipeline: Pipeline, opened: Input, steps: Sequence[Source | Stage], rows: int | None, seed: int
) -> dict[str, Any]:
    """Everything that the result depends on."""
    return json.loads(
        json.dumps(
            {
                "recipe": pipeline.system(),
                "settings": asdict(pipeline.config),
                "files": files_of(asdict(pipeline.config)),
                "stages": [step.name for step in steps],
                "seed": seed,
                "rows": rows,
                "input": opened.digest,
                "columns": opened.columns,
                "diptych": __version__,
            }
        )
    )


def files_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """What the files are that settings name: other entries are another run. Of large files and folders, which nobody
    wants to read at every start, sizes and times of change; of others the SHA-256."""
    found = {}
    for name, value in settings.items():
        word = os.path.expanduser(value) if isinstance(value, str) else ""
        path = Path(word)
        if os.path.isfile(word) and path.stat().st_size <= HASHED:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif word and os.path.exists(word):
            files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
            found[name] = hashlib.sha256(json.dumps(states_of(files) if files else {}).encode()).hexdigest()
    return found


def open_out(folder: Path, identity: dict[str, Any], files: Mapping[str, State]) -> None:
    """Start, or go on with the same. Raises DiptychError naming what differs."""
    about = folder / "run.json"
    if about.exists():
        try:
            found = json.loads(about.read_text("utf-8"))
        except ValueError as error:
            raise DiptychError(f"{about} is damaged; remove the folder or choose another OUT") from error
        if differs := [name for name in identity if found.get(name) != identity[name]]:
            first = differs[0]
            there, now = (json.dumps(which.get(first), ensure_ascii=False)[:80] for which in (found, identity))
            what = f"{first}: {there} there, {now} now"
            if first == "input":
                what = changes(found.get("inputs", {}), files)
            elif first == "files":
                names = [name for name, state in identity["files"].items() if found[first].get(name) != state]
                what = f"what {', '.join(names)} names has changed"
            raise DiptychError(
                f"{folder} holds another run: {', '.join(differs)} differ ({what}); "
                "choose another OUT, or ask for the same again to go on with it"
            )
        clear_left_overs(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DiptychError(f"{folder} exists and is not a run of diptych; choose another OUT")
    else:
        write_atomically(about, json.dumps({**identity, "inputs": files}, indent=1).encode())


def changes(there: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> str:
    """What became of files, the first few by name."""
    said = [f"{name} is gone" for name in there if name not in now]
    said += [f"{name} is new" for name in now if name not in there]
    changed = [name for name in now if name in there and list(there[name]) != list(now[name])]
    said += [f"{name} has changed: {state(there[name])} there, {state(now[name])} now" for name in changed]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    touched = len(said) == len(changed) and all(there[name][0] == now[name][0] for name in changed)
    hint = "; if it is a copy of the same, give it its old time again, as cp -p and rsync -t do" if touched else ""
    return ", ".join(said[:3]) + more + hint


def state(of: Sequence[int]) -> str:
    return f"{of[0]:,} bytes of {datetime.fromtimestamp(of[1] / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"


def finished_run(folder: Path, pipeline: Pipeline) -> Curated | None:
    """What a run that was finished said; None where there is still something to do."""
    try:
        found = json.loads((folder / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    shutil.rmtree(folder / ".work", ignore_errors=True)
    lines = tuple(Line(**line) for line in found["stages"])
    report = Report(f"{pipeline.system()}: done before", (), {})
    return Curated(folder, pipeline.system(), lines, found["rows_in"], found["rows_out"], found["seconds"], report)


# -- the work ----------------------------------------------------------------------------------------------------------


def run_segment(
    segment: Segment, opened: Input, engine: Engine, workers: int, progress: Callable[[int, int], None]
) -> None:
    """Every piece, then the counts of all for the stage that waits."""
    done = [segment.file(piece.number, "json").exists() for piece in opened.pieces]
    left = [piece for piece, there in zip(opened.pieces, done, strict=True) if not there]
    before = len(done) - len(left)
    progress(before, len(done))
    if left:
        segment.folder.mkdir(parents=True, exist_ok=True)
        run_all(
            partial(run_piece, segment),
            left,
            engine=engine,
            workers=workers,
            progress=lambda now, of: progress(before + now, len(done)),
        )
    target = segment.work / f"counts-{segment.number + 1}.npz"
    if segment.waiting is not None and not target.exists():
        files = [segment.file(piece.number, "npz") for piece in opened.pieces]
        merged = merge_counts(segment.waiting, [file for file in files if file.exists()])
        save_counts(target, segment.waiting.finish(merged) if merged else {})


def merge_counts(stage: Stage, files: Sequence[Path]) -> Counts:
    """In the order of the pieces, a few at a time."""
    merged: Counts = {}
    for at in range(0, len(files), MERGED):
        some = [load_counts(file) for file in files[at : at + MERGED]]
        merged = stage.merge([merged, *some] if merged else some)
    return merged


def collected(segments: Sequence[Segment], pieces: int) -> tuple[tuple[Line, ...], list[dict[str, Any]]]:
    """(a line for the input and for every step, examples of what was removed), from what the pieces left."""
    lines: list[Line] = []
    examples: list[dict[str, Any]] = []
    counting = 0.0  # of the stage that begins the segment
    for segment in segments:
        found = [json.loads(segment.file(n, "json").read_text("utf-8")) for n in range(pieces)]
        if segment.number == 0:
            aside = Counter[str]()
            for one in found:
                aside.update(one["aside"])
            rows = sum(one["in"] for one in found)
            seconds = sum(one.get("source_seconds", 0.0) for one in found)
            name = segment.source.name if segment.source else INPUT
            about = segment.source.about if segment.source else "what cannot be read"
            lines.append(Line(name, about, rows + aside.total(), rows, seconds, dict(aside.most_common()), {}))
        for stage in segment.stages:
            each = [one["stages"][stage.name] for one in found]
            why, tallies = Counter[str](), Counter[str]()
            for one in each:
                why.update(one["why"])
                tallies.update(one["tallies"])
            total = [sum(one[name] for one in each) for name in ("rows", "kept", "seconds")]
            rows, kept, seconds = total[0], total[1], total[2] + counting
            lines.append(Line(stage.name, stage.about, rows, kept, seconds, dict(why.most_common()), dict(tallies)))
            counting = 0.0
        counting = sum(one["count_seconds"] for one in found)
        examples += [example for one in found for example in one["examples"]]
    return tuple(lines), examples


def write_shards(
    out: Path, segments: Sequence[Segment], opened: Input, engine: Engine, workers: int, progress: Progress
) -> None:
    pieces, last = len(opened.pieces), segments[-1]
    rows = tuple(json.loads(last.file(n, "json").read_text("utf-8"))["rows"] for n in range(pieces))
    schema = schema_of(last, pieces)
    made = any("picture" in step.adds for segment in segments for step in steps_of(segment))
    tar = (opened.sharded or made) and bool({PLACE, "picture"} & set(schema.names))
    shards = Shards(out, last, rows, schema, tar)
    run_all(
        partial(write_shard, shards),
        list(range(shards.count)),
        engine=engine,
        workers=workers,
        progress=partial(progress, "write"),
    )
    write_removed(out, segments, pieces)


def finish(out: Path, done: Curated) -> None:
    """The report last: where report.json is, all is there."""
    from diptych.report import write_html

    write_html(done.report, out / "report.html")
    about = {**done.summary(), "provenance": done.report.provenance}
    write_atomically(out / "report.json", json.dumps(about, indent=1, ensure_ascii=False, default=str).encode())
    shutil.rmtree(out / ".work", ignore_errors=True)
