"""Wikipedia as plain words: the articles of its XML dumps without their markup, read as a stream.

A dump is a stranger's file. It may be broken, and it may be made to hurt: entities that multiply, tags without end,
pages without end. None of it takes more memory than a page does, and all of it ends with an error that says where.
"""

import bz2
import codecs
import gzip
import html
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from xml.parsers import expat

from diptych.errors import DiptychError

CHUNK = 1 << 20  # bytes that are read at a time
PAGE = 1 << 23  # characters of a page that are read; Wikipedia's own bound is 2 MB
DEPTH = 50  # of tags in tags, of which a dump has 4, and of links and templates in each other
Told = Callable[[int], None]  # bytes of the file, compressed as it is, that are read

# What begins and ends in a page, and what is hidden with all between.
MARKS = re.compile(r"(\{\{|\}\}|\{\||\|\}(?!\})|\[\[|\]\]|<!--|-->|<[^<>]{1,400}>)")
CLOSES = {"}}": "{{", "|}": "{|", "]]": "[[", "-->": "<!--"}
OPENS = frozenset(CLOSES.values())
INSTEAD = {"{{": "\n", "{|": "\n"}  # the words around what stands between them are no neighbours
NAME = re.compile("</?([A-Za-z]+)")
UNREAD = {"ref", "math", "chem", "gallery", "imagemap", "timeline", "graph", "score", "style", "pre", "code", "source",
          "syntaxhighlight", "templatedata"}  # fmt: skip
ADDRESS = re.compile(r"(?:https?:|ftp:)?//[^\s\]|<>{}]+")
INNER = "'’-"  # signs that a word may hold


class Breaks(dict[int, str]):
    """For str.translate: every other sign is a break."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        sign = unicodedata.category(character)[0] in "PS" and character not in INNER
        return self.setdefault(code, "\n" if sign else character)


BREAKS = Breaks()


def chunks(path: Path, told: Told) -> Iterator[bytes]:
    """The bytes of a file, unpacked where it is a .bz2 or a .gz. Raises DiptychError where it is broken."""
    size = 0
    try:
        with open(path, "rb") as raw:
            packed = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix.lower())
            file = packed(raw) if packed else raw
            while data := file.read(CHUNK):
                size += len(data)
                yield data
                told(raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        why = str(error).lower()
        raise DiptychError(f"{path} is broken or cut off, after {size:,} bytes: {why}; fetch it again") from error


def lines(path: Path, told: Told, most: int = 1 << 16) -> Iterator[str]:
    """The lines of a text; of one longer than `most` bytes, which is none of a table, stretches of it."""
    left = b""
    for data in chunks(path, told):
        *whole, left = (left + data).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
        if len(left) > most:
            yield left.decode("utf-8", "replace")
            left = b""
    if left:
        yield left.decode("utf-8", "replace")


def articles(path: Path, told: Told) -> Iterator[str]:
    """The text of every article, markup and all; of a plain text, stretches of it. Raises DiptychError."""
    parts = chunks(path, told)
    first = next(parts, b"")
    if first.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"<?xml", b"<mediawiki")):
        yield from _pages(path, first, parts)
    else:
        yield from _plain(path, first, parts)


def _plain(path: Path, first: bytes, parts: Iterator[bytes]) -> Iterator[str]:
    decode, left = codecs.getincrementaldecoder("utf-8-sig")().decode, ""
    try:
        for data in chain([first], parts):
            text = left + decode(data)
            cut = text.rfind("\n") + 1 or text.rfind(" ") + 1 or len(text)
            yield text[:cut]
            left = text[cut:]
        yield left + decode(b"", True)
    except UnicodeDecodeError as error:
        raise DiptychError(f"{path} is neither an XML dump of Wikipedia (.xml.bz2) nor UTF-8 text") from error


def _pages(path: Path, first: bytes, parts: Iterator[bytes]) -> Iterator[str]:
    pages = Pages()
    fed = 0
    try:
        for data in chain([first], parts):
            fed += len(data)
            pages.parser.Parse(data, False)
            if fed - pages.parser.CurrentByteIndex > PAGE:
                raise Hostile(f"a tag of more than {PAGE >> 20} MB")
            yield from pages.taken()
        pages.parser.Parse(b"", True)
    except (expat.ExpatError, Hostile) as error:
        raise DiptychError(f"{path} is no XML dump of Wikipedia, or is cut off: {error}; fetch it again") from error
    yield from pages.taken()


class Hostile(Exception):
    """What no dump of Wikipedia holds."""


class Pages:
    """What an XML parser's events make of a dump: the last text of every page that is an article and leads nowhere
    else."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.data
        self.depth, self.inside, self.space, self.leads_on = 0, "", "", False
        self.text: list[str] = []
        self.size = 0
        self.found: list[str] = []

    def taken(self) -> list[str]:
        found, self.found = self.found, []
        return found

    def refuse(self, *_: object) -> None:
        raise Hostile("it declares entities of its own")

    def start(self, name: str, _: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > DEPTH:
            raise Hostile(f"tags in tags, {DEPTH} deep")
        if name == "page":
            self.space, self.leads_on = "", False
        if name in ("page", "revision"):
            self.text, self.size = [], 0
        elif name == "redirect":
            self.leads_on = True
        self.inside = name

    def data(self, data: str) -> None:
        if self.inside == "text" and self.size < PAGE:
            self.text.append(data)
            self.size += len(data)
        elif self.inside == "ns":
            self.space = (self.space + data)[:9]

    def end(self, name: str) -> None:
        self.depth -= 1
        self.inside = ""
        if name == "page" and self.space == "0" and not self.leads_on:
            self.found.append("".join(self.text)[:PAGE])
            self.text = []


def without_markup(text: str) -> str:
    """The words of a page: no templates, tables, references, files or tags; of a link what is shown of it. One pass,
    whatever is left open."""
    kinds, held = [""], [[""]]  # what is open, and the text in each
    open_ones: dict[str, int] = {}
    for n, part in enumerate(MARKS.split(html.unescape(text))):
        if n % 2 == 0:
            held[-1].append(part)
            continue
        opens, closes = part if part in OPENS else "", CLOSES.get(part, "")
        if part[0] == "<" and not opens:
            held[-1].append(" ")
            name = NAME.match(part)
            if name and name[1].lower() in UNREAD and not part.endswith("/>"):
                opens, closes = ("", name[1].lower()) if part[1] == "/" else (name[1].lower(), "")
        if opens and len(kinds) < DEPTH:
            kinds.append(opens)
            held.append([])
            open_ones[opens] = open_ones.get(opens, 0) + 1
        elif closes and open_ones.get(closes):
            kind, inner = "", [""]
            while kind != closes:  # what was left open inside it ends too
                kind, inner = kinds.pop(), held.pop()
                open_ones[kind] -= 1
            held[-1].append(shown("".join(inner)) if closes == "[[" else INSTEAD.get(closes, " "))
    return ADDRESS.sub(" ", "".join(held[0]))


def shown(link: str) -> str:
    """[[target|words]] -> words; nothing of files and categories."""
    if ":" in link.partition("|")[0].lstrip(":"):
        return "\n"
    return link.rpartition("|")[2]


def runs_of_words(text: str) -> Iterator[list[str]]:
    """Words as captions have them, those between two signs or ends of lines together."""
    for run in text.translate(BREAKS).replace(" - ", "\n").split("\n"):
        if words := [bare for word in run.split() if (bare := word.strip(INNER))]:
            yield words
