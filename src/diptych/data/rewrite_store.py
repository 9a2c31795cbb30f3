"""Rewrites of captions made once and kept: the store, the work that fills it, and stores of other makers.

A store is a file of rows, {"text", "style", "rewrite"}, as JSON lines, JSON or Parquet. While it is made, each answer
is a line at once, so that work which was stopped or killed goes on where it was and asks for nothing twice. Captions
are found by their words, not by their place.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from diptych.data.language_model import language_model, plain
from diptych.data.read import TABLES
from diptych.data.rewrites import STYLES, Rewriter, Rewrites, accepted, by_model, by_rules, first_line, refusal
from diptych.errors import DiptychError
from diptych.files import atomic

LINES, SUFFIXES = ".jsonl", (".jsonl", ".json", ".parquet")
RULES = "rules"
AT_ONCE = 8  # prompts that a server gets before it has answered
RIGHT = '{"text": ..., "style": ..., "rewrite": ...}'
OBJECT = '{"caption": ["rewrite", ...]}'


@dataclass(frozen=True)
class Row:
    """One rewrite. refused: why the answer was none; the rewrite is then the text itself, so that all captions have as
    many and none is asked for again. answer: what was refused; by: who wrote it."""

    text: str
    style: str
    rewrite: str
    refused: str = ""
    answer: str = ""
    by: str = ""


@dataclass(frozen=True)
class RewriteReport:
    """What `make_rewrites` did. rows: all of these captions; asked: how many of them now; seconds: that those took."""

    store: Path
    captions: int
    rows: tuple[Row, ...]
    asked: int
    seconds: float

    @property
    def outcomes(self) -> dict[str, int]:
        """ "kept" and the reasons of refusal -> rows, the most frequent first after the kept."""
        counts = Counter(row.refused for row in self.rows)
        return {"kept": counts.pop("", 0), **dict(counts.most_common())}

    def __str__(self) -> str:
        kept, total = self.outcomes["kept"], max(1, len(self.rows))
        why = ", ".join(f"{count} {reason}" for reason, count in self.outcomes.items() if reason != "kept")
        said = f"{self.store}: {kept} of {total} rewrites of {self.captions} captions kept"
        return f"{said} ({why})" if why else said


def make_rewrites(
    captions: str | Path | Iterable[str],
    by: str,
    store: str | Path,
    *,
    n: int = 4,
    model: str = "",
    seed: int = 0,
    text_columns: Sequence[str] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RewriteReport:
    """Write n rewrites of every caption into `store` (.jsonl, .json or .parquet), for `laclip`.

    captions: texts, a .txt with one a line, or what `read_pairs` reads (a pair's first text; no picture is opened).
    by: "rules", a .gguf file, a folder of a language model, or the address of an OpenAI-compatible server, whose key
    is read from DIPTYCH_LLM_KEY; model: the name to ask the server for. limit: only the first captions.
    progress(done, of) is called with every answer. The same call continues what was stopped.
    """
    store = Path(store).expanduser()
    check_suffix(store)
    found = language_model(by, model)
    if found is None and by != RULES:
        raise DiptychError(f'"{by}" rewrites nothing: give "{RULES}", a .gguf file, a model folder or an http address')
    if isinstance(captions, (str, Path)):
        captions = read_captions(Path(captions).expanduser(), text_columns)
    texts = list(dict.fromkeys(captions))[:limit]
    styles = styles_of(n)
    server = by.startswith(("http://", "https://"))
    start, asked = time.perf_counter(), 0

    def count(done: int, of: int) -> None:
        nonlocal asked
        asked = done
        if progress:
            progress(done, of)

    rewrite(
        texts,
        by_rules if found is None else by_model(found, seed),
        store,
        styles=styles,
        workers=AT_ONCE if server else 1,
        by=model or (plain(by) if server else Path(by).name),
        progress=count,
    )
    wanted, chosen = set(texts), set(styles)
    rows = tuple(row for row in read_rows(store) if row.text in wanted and row.style in chosen)
    return RewriteReport(store, len(texts), rows, asked, time.perf_counter() - start)


def styles_of(n: int) -> tuple[str, ...]:
    """n names: those of STYLES, then "plain 2", "short 2", ..."""
    known = tuple(STYLES)
    return tuple(known[i % len(known)] + (f" {i // len(known) + 1}" if i >= len(known) else "") for i in range(n))


def check_suffix(store: Path) -> None:
    if store.suffix.lower() not in SUFFIXES:
        raise DiptychError(f"a store of rewrites ends in {', '.join(SUFFIXES)}; {store.name} does not")


def read_captions(source: Path, text_columns: Sequence[str] | None = None) -> list[str]:
    """Captions as training reads them: lines of a .txt, a column of a table, the first texts of pairs."""
    from diptych.data.pairs import BadPair, cell_texts, need_texts, read_pairs, text_columns_of
    from diptych.data.tables import open_table

    suffix = source.suffix.lower()
    if not source.is_file() or suffix not in (*TABLES, ".txt"):
        pairs = read_pairs(source, text_columns=text_columns)
        rows: Iterable[Sequence[str]] = (texts_of(pairs, i) for i in range(len(pairs)))
    elif suffix == ".txt":
        rows = ([line] for line in source.read_text(encoding="utf-8-sig").splitlines())
    else:
        table = open_table(source)
        cells = [table.column(name) for name in text_columns_of(table, text_columns)]
        rows = ([text for column in cells for text in cell_texts(column[i])] for i in range(table.rows))
    found = []
    for row in rows:
        try:
            found.append(need_texts("", row)[0])
        except BadPair:
            continue  # training sets it aside too
    if not found:
        raise DiptychError(f"{source} holds no captions")
    return found


def texts_of(pairs: Any, index: int) -> Sequence[str]:
    """The texts of a pair by number; none where it has no usable one."""
    from diptych.data.pairs import BadPair

    try:
        return pairs[index].texts
    except BadPair:
        return ()


# -- the work ----------------------------------------------------------------------------------------------------------


def rewrite(
    captions: Iterable[str],
    rewriter: Rewriter,
    store: Path,
    *,
    styles: Sequence[str] = tuple(STYLES),
    workers: int = 1,
    by: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Rewrites:
    """Every caption in every style that `store` does not hold yet; each answer is kept as it comes.

    workers: answers that are waited for at once. progress(done, of): of those that were still to be asked for. What is
    not accepted is kept as the caption itself, so that it is not asked for again.
    """
    check_suffix(store)
    captions = list(dict.fromkeys(captions))
    log = log_of(store)
    log.parent.mkdir(parents=True, exist_ok=True)
    rows = {(row.text, row.style): row for row in [*(read_rows(store) if store.exists() else ()), *read_log(log)]}
    tasks = [(text, style) for text in captions for style in styles if (text, style) not in rows]
    with log.open("ab") as file:
        file.truncate(whole(log.read_bytes()))

        def keep(task: tuple[str, str], answer: str) -> None:
            text, style = task
            found = first_line(answer, text)
            why = refusal(found, text)
            row = Row(text, style, text if why else found, why, answer.strip()[:500] if why else "", by)
            rows[task] = row
            file.write(json.dumps(slim(row), ensure_ascii=False).encode() + b"\n")
            file.flush()

        for done, (task, answer) in enumerate(answers(tasks, rewriter, workers), 1):
            keep(task, answer)
            if progress:
                progress(done, len(tasks))
    if log != store:
        write_rows(rows.values(), store)
        log.unlink()
    return {text: {style: rows[text, style].rewrite for style in styles} for text in captions}


def answers(
    tasks: Sequence[tuple[str, str]], rewriter: Rewriter, workers: int
) -> Iterator[tuple[tuple[str, str], str]]:
    """Tasks with their answers as these come. Where one fails, those that are under way are given first."""
    failed: BaseException | None = None
    left = iter(tasks)
    waiting: dict[Future[str], tuple[str, str]] = {}
    with ThreadPoolExecutor(workers) as pool:
        while True:
            while failed is None and len(waiting) < workers and (task := next(left, None)) is not None:
                waiting[pool.submit(rewriter, *task)] = task
            if not waiting:
                break
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                task = waiting.pop(future)
                if error := future.exception():
                    failed = failed or error
                else:
                    yield task, future.result()
    if failed is not None:
        raise failed


# -- the file ----------------------------------------------------------------------------------------------------------


def log_of(store: Path) -> Path:
    """Where answers are kept as they come: JSON lines, for a line can be added without writing the rest again."""
    return store if store.suffix.lower() == LINES else Path(f"{store}{LINES}")


def slim(row: Row) -> dict[str, str]:
    return {name: value for name, value in asdict(row).items() if value or name in ("text", "style", "rewrite")}


def whole(data: bytes) -> int:
    """Bytes of the lines that were not cut off."""
    return data.rfind(b"\n") + 1


def read_log(log: Path) -> list[Row]:
    """The rows of a file of JSON lines; a last line that was cut off is passed over, and so is a file that is not."""
    data = log.read_bytes() if log.exists() else b""
    rows = []
    for number, line in enumerate(data[: whole(data)].splitlines(), 1):
        try:
            rows.append(row_of(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise DiptychError(f"{log} line {number} is no rewrite; it should be {RIGHT}") from error
    return rows


def row_of(values: dict[str, Any]) -> Row:
    known = {field.name: values.get(field.name) or "" for field in fields(Row)}
    row = Row(**known | {name: values[name] for name in ("text", "style", "rewrite")})
    if not all(isinstance(value, str) for value in asdict(row).values()):
        raise TypeError("a rewrite is text")
    return row


def write_rows(rows: Iterable[Row], store: Path) -> None:
    """All rows as .json or .parquet."""
    with atomic(store) as path:
        if store.suffix.lower() == ".json":
            listed = ",\n".join(json.dumps(slim(row), ensure_ascii=False) for row in rows)
            path.write_text(f"[\n{listed}\n]\n", encoding="utf-8")
            return
        import pyarrow as pa
        import pyarrow.parquet as parquet

        names = [field.name for field in fields(Row)]
        columns = {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in names}
        parquet.write_table(pa.table(columns), path, compression="zstd")


def read_rows(store: Path) -> list[Row]:
    """A store of ours or of other makers, by its ending.

    .jsonl: {"text", "style", "rewrite"} a line; .json: a list of such, or {"caption": ["rewrite", ...]}; .parquet,
    .csv, .tsv: columns text (or caption) and rewrite (or rewrites; a cell may hold a list), and style if there is one.
    Raises DiptychError for what is none of it.
    """
    suffix = store.suffix.lower()
    if not store.is_file():
        raise DiptychError(f"no rewrites at {store}; `diptych rewrite` makes them")
    if suffix == LINES:
        return read_log(store)
    if suffix in TABLES:
        return table_rows(store)
    try:
        found = json.loads(store.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return [row for text, value in found.items() for row in several(text, value)]
        return [row_of(values) for values in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiptychError(f"{store} holds no rewrites: it should be a list of {RIGHT}, or {OBJECT}") from error


def several(text: str, value: Any) -> list[Row]:
    """The rewrites of one caption: one, a list, or by style."""
    if isinstance(value, str):
        value = [value]
    named = value if isinstance(value, dict) else {str(i): one for i, one in enumerate(value)}
    return [row_of({"text": text, "style": style, "rewrite": one}) for style, one in named.items()]


def table_rows(store: Path) -> list[Row]:
    from diptych.data.pairs import cell_texts
    from diptych.data.tables import open_table

    table = open_table(store)
    usual = {"text": ("text", "caption"), "rewrite": ("rewrite", "rewrites")}
    cells: dict[str, list[Any]] = {}
    for field in fields(Row):
        if name := next((name for name in usual.get(field.name, (field.name,)) if name in table.names), None):
            cells[field.name] = table.column(name)
    if not {"text", "rewrite"} <= set(cells):
        raise DiptychError(f"{store} needs the columns text and rewrite (and style); it has {', '.join(table.names)}")
    rows = []
    for i in range(table.rows):
        values = {"style": f"row {i}"} | {name: column[i] or "" for name, column in cells.items()}
        many = cell_texts(values["rewrite"])
        for j, one in enumerate(many):
            style = f"{values['style']} {j}" if len(many) > 1 else str(values["style"])
            rows.append(Row(**values | {"rewrite": one, "style": style}))
    return rows


def read_rewrites(store: str | Path) -> Rewrites:
    """A store as caption -> style -> rewrite; see `read_rows`."""
    found: Rewrites = {}
    for row in read_rows(Path(store).expanduser()):
        found.setdefault(row.text, {})[row.style] = row.rewrite
    return found


def read_aligned(captions: Path, files: Sequence[Path]) -> Rewrites:
    """Rewrites of other makers: text files whose line n is a rewrite of line n of `captions`; the name is the style.

    They are taken as they are where they are rewrites at all, whatever words they lose. Raises DiptychError where the
    numbers of lines differ, for one line missing would shift all others.
    """
    texts = captions.read_text(encoding="utf-8").splitlines()
    found: Rewrites = {text: {} for text in texts}
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        if len(lines) != len(texts):
            raise DiptychError(f"{file} has {len(lines)} lines and {captions} has {len(texts)}: they must be alike")
        for text, line in zip(texts, lines, strict=True):
            if (one := accepted(line, text, least=0)) is not None:
                found[text][file.stem] = one
    return found
