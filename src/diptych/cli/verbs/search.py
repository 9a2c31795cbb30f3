"""Find pictures in an index by text, by picture and by filter.

--where filters by the columns of the index, such as "width > 500 and (label in ('cat', 'dog') or text like '%beach%')";
--columns lists them. --in captions compares with the meaning of the pictures' texts, where `index --captions` embedded
them. --words demands nothing but ranks rows whose text holds those words higher (reciprocal rank fusion of both
rankings). The score is the cosine.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError

if TYPE_CHECKING:
    from diptych.search.found import Hit

PLACE = 7.4
EXAMPLES = """
diptych search my.lance "a dog on the beach"
diptych search my.lance "a dog on the beach" --where "width > 500 and punsafe < 0.5" --k 20
diptych search my.lance --like photo.jpg --not "people"
diptych search my.lance "at night" --like photo.jpg --out sheet.png
diptych search my.lance "a harbour" --words "Hamburg" --json
diptych search my.lance "a quiet evening" --in captions
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("db", metavar="DB", help="what `diptych index` wrote")
    add("text", nargs="?", metavar="TEXT", help="what to find")
    add("--like", action="append", default=[], metavar="PICTURE", help="find what is like it; a file, or an id")
    add("--not", action="append", default=[], dest="unwanted", metavar="TEXT", help="what not to find")
    add(
        "--in",
        choices=("pictures", "captions"),
        default="pictures",
        dest="space",
        help="what is compared (default pictures)",
    )
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
    from diptych.search.run import search

    index = Index.open(given.db)
    if given.columns:
        print("\n".join(f"{name:<20} {kind}" for name, kind in index.columns.items()))
        return 0
    asked = {"like": given.like, "unwanted": given.unwanted, "where": given.where, "words": given.words}
    hits = search(index, given.text, **asked, space=given.space, k=given.k, model=given.model, device=given.device)
    if given.json:
        sys.stdout.write(as_json(hits))
    else:
        table(hits)
    if given.out:
        from diptych.search.sheet import sheet

        print(f"{sheet(hits, given.out, given.text or '')}", file=sys.stderr)
    return 0


def as_json(hits: "list[Hit]") -> str:
    import json

    rows = [{"id": hit.id, "score": round(hit.score, 6), **hit.row} for hit in hits]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def table(hits: "list[Hit]") -> None:
    from diptych.report.words import clean, shorten

    if not hits:
        print("nothing found", file=sys.stderr)
    for i, hit in enumerate(hits, 1):
        size = f"{hit.row['width']}x{hit.row['height']}" if hit.row["width"] else ""
        text = shorten(hit.row["text"] or "", 80)
        print(f"{i:>3}  {hit.score:.3f}  {clean(hit.id):<40}  {size:<10} {text}".rstrip())
