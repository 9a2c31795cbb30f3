"""See how far a CLIP can be trusted, and where fine-tuning went.

`diptych probe robustness MODEL [MODEL ...] DATA` looks at factors of the pictures, calibration, pictures of nothing the
model knows, the gap between pictures and texts, and changed pictures (noise, blur, fog, a moved camera).
`diptych probe weight_space A B DATA` goes from one model's weights to another's. `diptych probe mixing RUN ... DATA`
says which source, or mixture of sources, makes models robust. A MODEL is what --model takes elsewhere, a folder of
`diptych train`, or a classifier that compare saved; DATA is a folder of class folders, a table, or scenes:500. You get
report.html and results.json. A probe that was stopped continues where it was.
"""

import argparse
from pathlib import Path

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import systems

PLACE = 8
CONTINUES = True
EXAMPLES = """
diptych probe robustness mini ./photos
diptych probe robustness mini winner.safetensors ./photos --ood ./others --shifted ./sketches
diptych probe robustness mini list.csv --factors pose,background --set robustness.changes=fog,jpeg
diptych probe robustness A B C D ./photos --tags models.csv
diptych probe weight_space mini winner.safetensors ./photos --ood ./sketches
diptych probe mixing runs/* ./photos --shifted sketch=./sketches --shifted dark=./dark
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="robustness, weight_space or mixing; `diptych systems` lists them")
    add("words", nargs="*", metavar="MODEL ... DATA", help="one or several models, then the pictures")
    add(
        "--ood",
        metavar="DIR",
        help="pictures of none of the classes; for weight_space: the classes as they come elsewhere",
    )
    add("--shifted", metavar="DIR", action="append", default=[],
        help="pictures of the same classes as they come elsewhere; for mixing several, each as NAME=DIR")  # fmt: skip
    add("--captions", metavar="DATA", help="pictures with texts, as `diptych train` takes them")
    add("--with", action="append", default=[], metavar="ROLE=DATA", dest="others", help="other data that a probe takes")
    add("--factors", metavar="A,B", help="columns of the table that say what is special about a picture")
    add("--tags", metavar="CSV", help='a table of what is known of the models: "model" and a column each')
    add("--names", metavar="FILE", help="the words for each class: a CSV, TSV or JSON, such as n01440764,tench")
    add("--templates", action="append", metavar="T", help='a file with one a line, or one such as "a photo of a {}."')
    add("--image", metavar="COLUMN", help="the column of pictures, where DATA is a table")
    add("--label", metavar="COLUMN", help="the column of labels")
    add("--set", type=setting, action="append", default=[], metavar="S.F=V", dest="settings",
        help="a setting of the probe: robustness.severities=1,2,3,4,5")  # fmt: skip
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add("--out", type=read.run_folder, metavar="DIR", help="the folder; one of the same probe is continued")
    add("--json", action="store_true", help="print results.json and nothing else")


def setting(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (equals and "." in name and value.strip()):
        raise DiptychError(f'--set takes SYSTEM.FIELD=VALUE, such as robustness.bins=10; not "{word}"')
    return name.strip(), value.strip()


def named(words: list[str]) -> str | dict[str, str]:
    """`--shifted DIR`, or sets by their names: those given, or of the folders."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or Path(word).expanduser().exists():
            name, source = Path(word).stem, word
        if not (name.strip() and source) or name.strip() in found:
            raise DiptychError(f'--shifted takes NAME=DIR, each name once, such as sketch=./sketches; not "{word}"')
        found[name.strip()] = source
    return words[0] if words[0] in found.values() and len(words) == 1 else found


def run(given: argparse.Namespace) -> int:
    known = systems("probe")
    if given.system not in known:
        raise DiptychError(f'no probe "{given.system}"{nearest(given.system, known)}')
    if len(given.words) < 2:
        raise DiptychError(
            f"give a model, or several, and then the pictures: diptych probe {given.system} mini ./photos"
        )
    *models, data = given.words
    for word in models:
        path = Path(word).expanduser()
        if path.suffix != ".safetensors" and not (path / "winner.safetensors").is_file():
            read.model(word)
    others = {role: getattr(given, role) for role in ("ood", "captions") if getattr(given, role)}
    if given.shifted:
        others["shifted"] = named(given.shifted)
    for word in given.others:
        role, equals, source = word.partition("=")
        if not (equals and source):
            raise DiptychError(f'--with takes ROLE=DATA, such as conflict=cues.csv; not "{word}"')
        others[role.strip()] = source.strip()
    from diptych.data.names import read_templates
    from diptych.methods.probe.parts.run import probe

    templates = given.templates
    if templates:
        templates = read_templates(templates[0] if len(templates) == 1 else templates)
    from rich.console import Console

    begun = Console(stderr=True, highlight=False)
    done = probe(
        given.system,
        models,
        data,
        others=others,
        names=given.names,
        templates=templates,
        factors=read.split(given.factors, "--factors", "names of columns") if given.factors else (),
        image=given.image,
        label=given.label,
        tags=given.tags,
        settings=dict(given.settings),
        device=given.device,
        out=given.out,
        progress=lambda piece: begun.print(f"{piece} ...", style="dim", markup=False),
    )
    assert done.folder is not None
    if given.json:
        print((done.folder / "results.json").read_text("utf-8"), end="")
        return 0
    from diptych.report import Table, Text
    from diptych.report.terminal import rich_table

    console = Console(highlight=False)
    for section in done.report.sections:
        if isinstance(section, Table):
            if section.title:
                console.print(f"\n{section.title}", style="bold", markup=False)
            table, _ = rich_table(section, console.width)
            console.print(table)
        elif isinstance(section, Text) and isinstance(section.body, str):
            console.print(f"{section.title}: {section.body}" if section.title else section.body, markup=False)
    console.print(f"\n{done.folder / 'report.html'}", style="bold", markup=False, soft_wrap=True)
    return 0
