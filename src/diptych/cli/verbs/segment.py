"""Say which pixel of a picture is what, by names of your own.

PICTURE is a file or a folder, which is read with all folders below it. Without --with, nothing needs to be fitted:
each place of the picture is compared with the labels. --fit learns from pictures with masks to draw clean outlines, and
names what it never saw all the same: DATA is a folder with classes.txt, pictures and index PNGs, or COCO's
instances.json. A fit that was stopped continues with the same command. --test judges on such data.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import systems

if TYPE_CHECKING:
    from rich.console import Console

    from diptych.comparison.segment import Segmented

PLACE = 4
CONTINUES = "--fit"
EXAMPLES = """
diptych segment photo.jpg --labels "road, car|van, tree, sky" --out overlay.png
diptych segment photos/ --labels labels.txt --things car --out segmented/
diptych segment --fit camvid/ --out seg.safetensors
diptych segment photo.jpg --with seg.safetensors --labels "road, car, horse" --out overlay.png
diptych segment --test camvid/ --with seg.safetensors --out report.html
"""


def setting(word: str) -> tuple[str, str]:
    """`fc_clip.steps=500`; the field is checked later, by its Config."""
    name, equals, value = word.partition("=")
    system, dot, field = name.strip().partition(".")
    if not (equals and dot and field and value.strip()):
        raise DiptychError(f'--set takes SYSTEM.FIELD=VALUE, such as fc_clip.steps=500; not "{word}"')
    if system not in systems("dense"):
        raise DiptychError(f'--set {word}: no method "{system}"{nearest(system, systems("dense"))}')
    return f"{system}.{field}", value.strip()


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE", help="files and folders")
    add(
        "--labels", metavar="A,B", help='what there may be: "road, car|van" (| between synonyms), or a .txt, one a line'
    )
    add("--things", default="", metavar="A,B", help="labels that are counted one by one")
    add("--with", dest="fitted", metavar="FILE", help="what --fit wrote")
    add("--method", metavar="M", help="see `diptych systems`")
    add("--fit", metavar="DATA", help="learn from these pictures with masks")
    add("--test", metavar="DATA", help="mIoU, PQ and AP on these pictures with masks; --out report.html keeps them")
    add("--without", default="", metavar="A,B", help="with --fit: classes that it is not to learn")
    add("--model", metavar="M", help="mini (default), micro, open_clip's NAME:TAG, a folder; --fit needs a ConvNet")
    add("--out", type=Path, metavar="PATH", help="overlay of one picture (.png), folder for several, file of the fit")
    add("--set", action="append", type=setting, default=[], dest="settings", metavar="S.F=V", help="change a setting")
    add("--seed", type=read.whole("--seed", 0), default=0, metavar="N", help="of the fit (default 0)")
    add("--json", action="store_true", help="what was found, as JSON")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")


def run(given: argparse.Namespace) -> int:
    method = given.method
    if method and method not in systems("dense"):
        raise DiptychError(f'no method "{method}"{nearest(method, systems("dense"))}')
    if given.model:
        read.model(given.model)
    if sum(map(bool, (given.fit, given.test, given.pictures))) != 1:
        raise DiptychError("segment takes pictures, or --fit DATA, or --test DATA; see `diptych segment --help`")
    settings = {key.partition(".")[2]: value for key, value in given.settings}
    return fit(given, settings) if given.fit else test(given, settings) if given.test else show(given, settings)


def fit(given: argparse.Namespace, settings: dict[str, str]) -> int:
    if given.fitted or given.labels or given.json:
        raise DiptychError("--fit learns the names of its data; --with, --labels and --json are for pictures")
    if given.out is None:
        raise DiptychError("--fit needs --out FILE, such as --out seg.safetensors")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from diptych.comparison.segment import fit_segmenter
    from diptych.core.device import keep_freed_memory

    keep_freed_memory()
    console, errors = Console(highlight=False), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("fit", total=None)

        def progress(done: int, of: int) -> None:
            bars.update(bar, completed=done, total=of)
            if not errors.is_terminal and done % max(1, of // 20) == 0:
                print(f"{done}/{of}", file=sys.stderr, flush=True)

        without = [word.strip() for word in given.without.split(",") if word.strip()]
        made = fit_segmenter(
            given.fit, given.out, method=given.method, model=given.model, settings=settings, without=without,
            seed=given.seed, device=given.device, progress=progress,
        )  # fmt: skip
    console.print(f"{given.out}: {made.system()} on {made.clip.name}, fitted to {', '.join(made.names)}", markup=False)
    if made.set_aside:
        print(f"{len(made.set_aside)} pictures could not be read and were left out", file=sys.stderr)
    console.print(f"\nNext: diptych segment photo.jpg --with {given.out} --out overlay.png", markup=False)
    return 0


def test(given: argparse.Namespace, settings: dict[str, str]) -> int:
    if given.labels or given.json or given.things:
        raise DiptychError("--test takes the names of its data; --labels, --things and --json are for pictures")
    if given.out is not None and given.out.suffix != ".html":
        raise DiptychError(f"--out {given.out}: --test writes a report, such as report.html")
    from rich.console import Console
    from rich.progress import Progress

    from diptych.comparison.segment import judge_segmenter
    from diptych.core.device import keep_freed_memory
    from diptych.report import Facts, Table, write_html
    from diptych.report.terminal import rich_table

    keep_freed_memory()
    console, errors = Console(highlight=False), Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("test", total=None)
        report = judge_segmenter(
            given.test, fitted=given.fitted, method=given.method, model=given.model, settings=settings,
            device=given.device, progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )  # fmt: skip
    for section in report.sections:
        if isinstance(section, Table):
            console.print(rich_table(section, console.width)[0])
        elif isinstance(section, Facts):
            console.print("   ".join(f"{name} {value}" for name, value, _ in section.items), style="bold")
    if given.out is not None:
        console.print(f"\n{write_html(report, given.out)}", markup=False, soft_wrap=True)
    return 0


def show(given: argparse.Namespace, settings: dict[str, str]) -> int:
    if given.without:
        raise DiptychError("--without is for --fit")
    labels = labels_of(given.labels)
    if labels is None and not given.fitted:
        raise DiptychError('segment needs --labels, such as --labels "road, car|van, tree, sky"')
    from rich.console import Console
    from rich.progress import Progress

    from diptych.comparison import segment_pages as pages
    from diptych.comparison.predict import find_pictures
    from diptych.comparison.segment import chosen_names, opened, segment_each
    from diptych.core.device import keep_freed_memory

    paths = find_pictures(given.pictures)
    if labels is not None:
        chosen_names(labels, given.things, ())  # what is not right is said before a model is opened
    single = len(paths) == 1 and not Path(given.pictures[0]).is_dir()
    pages.check_place(given.out, single)
    keep_freed_memory()
    console, errors = Console(highlight=False), Console(stderr=True)
    segmenter = opened(given.fitted, given.method, None, given.model, settings, given.device)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("segment", total=None)

        def progress(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        each = segment_each(segmenter, paths, labels, given.things, progress)
        keeping = given.out is not None
        found = pages.write(each, paths, given.out, single) if keeping else [pages.slim(one) for one in each]
    if given.json:
        sys.stdout.write(pages.to_json(found))
    else:
        tell(found, given.out, console)
    unread = sum(1 for one in found if one.error)
    if unread:
        print(f"{unread} of {len(found)} pictures could not be read", file=sys.stderr)
    return 0


def tell(found: "list[Segmented]", out: Path | None, console: "Console") -> None:
    from diptych.comparison import segment_pages as pages

    console.print(pages.table(found))
    if out is not None:
        console.print(f"\n{out}", markup=False, soft_wrap=True)
    else:
        console.print("\n--out overlay.png draws it, --out FOLDER keeps the masks too", style="dim")


def labels_of(word: str | None) -> list[str] | str | None:
    """The names themselves, or those in a file, one a line."""
    if word is None or not word.strip().endswith(".txt"):
        return word
    path = Path(word.strip()).expanduser()
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DiptychError(f"{path} is no text in UTF-8") from error
