"""Find pictures in an index: by text, by picture, by both, by what they are not.

--where filters by the columns of the index, such as "width > 500 and (label in ('cat', 'dog') or text like '%beach%')";
--columns lists them. --words demands nothing but ranks rows whose text holds those words higher (reciprocal rank fusion
of both rankings). The score is the cosine.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from diptych.search.found import Hit
    from diptych.search.index import Index

PLACE = 7.4
EXAMPLES = """
diptych search my.lance "a dog on the beach"
diptych search my.lance "a dog on the beach" --where "width > 500 and punsafe < 0.5" --k 20
diptych search my.lance --like photo.jpg --not "people"
diptych search my.lance "at night" --like photo.jpg --out sheet.png
diptych search my.lance "a harbour" --words "Hamburg" --json
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("db", metavar="DB", help="what `diptych index` wrote")
    add("text", nargs="?", metavar="TEXT", help="what to find")
    add("--like", action="append", default=[], metavar="PICTURE", help="find what is like it; a file, or an id")
    add("--not", action="append", default=[], dest="unwanted", metavar="TEXT", help="what not to find")
    add("--where", metavar="COND", help='such as "width > 500 and punsafe < 0.5"')
    add("--words", metavar="WORDS", help="rank rows higher whose text holds these words")
    add("--k", type=read.whole("--k"), default=20, metavar="N", help="how many (default 20)")
    add("--out", type=Path, metavar="FILE", help="a contact sheet, .png or .jpg")
    add("--json", action="store_true", help="as JSON, with all columns")
    add("--columns", action="store_true", help="list the columns of the index, and stop")
    add("--model", metavar="M", help="where the model is, if not where it was")
    add("--device", type=read.device, metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")


def run(given: argparse.Namespace) -> int:
    if given.out and given.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DiptychError(f"--out takes a .png or .jpg; not {given.out}")
    from diptych.search.index import Index

    index = Index.open(given.db)
    if given.columns:
        print("\n".join(f"{name:<20} {kind}" for name, kind in index.columns.items()))
        return 0
    if not given.text and not given.like:
        raise DiptychError("search for what? give a TEXT, or --like PICTURE; --not alone says only what not to find")
    where = index.filter(given.where)  # a condition that does not read is said before a model is opened
    hits = found(index, given, where)
    if given.json:
        sys.stdout.write(as_json(hits))
    else:
        table(hits)
    if given.out:
        from diptych.search.sheet import sheet

        print(f"{sheet(hits, given.out, given.text or '')}", file=sys.stderr)
    return 0


def found(index: "Index", given: argparse.Namespace, where: Any) -> "list[Hit]":
    from diptych.search.encoder import Encoder, combined
    from diptych.search.sources import file_bytes

    encoder = None
    files = [Path(one).expanduser() for one in given.like if Path(one).expanduser().is_file()]
    ids = [one for one in given.like if not Path(one).expanduser().is_file()]
    wanted = list(index.vectors(ids))
    unwanted = []
    if given.text or given.unwanted or files:
        encoder = Encoder.of(index.model, given.device, given.model)
        index.check(encoder.model)
        wanted += [encoder.picture(file_bytes(path)) for path in files]
        wanted += list(encoder.texts([given.text])) if given.text else []
        unwanted = list(encoder.texts(given.unwanted)) if given.unwanted else []
    query = combined(wanted, unwanted)
    return index.search(query, given.k, where=where, text=given.words)


def as_json(hits: "list[Hit]") -> str:
    import json

    rows = [{"id": hit.id, "score": round(hit.score, 6), **hit.row} for hit in hits]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def table(hits: "list[Hit]") -> None:
    if not hits:
        print("nothing found", file=sys.stderr)
    for i, hit in enumerate(hits, 1):
        size = f"{hit.row['width']}x{hit.row['height']}" if hit.row["width"] else ""
        print(f"{i:>3}  {hit.score:.3f}  {hit.id:<40}  {size:<10} {' '.join((hit.row['text'] or '').split())[:80]}")
