"""Pictures and what web pages say of them, out of archives: WAT (links as JSON) and WARC (the pages themselves).

Of a page: each picture with a text, its address made absolute by that of the page or the <base> it declares. LAION-5B
(arXiv 2210.08402) takes the attribute alt out of WAT; MetaCLIP (arXiv 2309.16671) alt, title and data-image-title out
of HTML. Pages are strangers' and often broken: what cannot be read is passed over, the rest of the archive is read, and
every size is bounded, and with it the time spent on a page.
"""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pyarrow as pa

from diptych.errors import DiptychError, missing_extra
from diptych.methods.curate.parts.pipeline import Source

ROWS = 1000  # of a batch
MOST_PAGE = 1 << 20  # bytes of HTML; Common Crawl cuts there
MOST_JSON = 1 << 24
MOST_LINKS = 10_000  # pictures of one page
MOST_TEXT, MOST_URL = 10_000, 8192  # characters; what is longer is cut, and refused later
LONG_TAG = re.compile(rb"<[^<>]{32768,}>?")  # attributes cost the parser the square of their number
ATTRIBUTES = ("alt", "title", "data-image-title")
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("text", pa.string()),
        pa.field("texts", pa.list_(pa.string())),
        pa.field("url", pa.string()),
        pa.field("page_url", pa.string()),
        pa.field("cc_filename", pa.string()),
    ]
)


@dataclass(frozen=True)
class Link:
    """A picture of a page: texts, of which the first is the alt where there is one, and its absolute address."""

    url: str
    texts: tuple[str, ...]


class Archives(Source):
    """Makes rows out of the archives named in `archive`. titles: a title serves where there is no alt, and `texts`
    holds all of them; else only pictures with an alt are taken."""

    name = "archives"
    about = "finds pictures with texts in the pages of web archives"
    needs = ("key", "archive")
    adds = ("text", "url", "page_url", "cc_filename")

    def __init__(self, titles: bool = False) -> None:
        self.titles = titles
        self.adds = (*type(self).adds, "texts") if titles else type(self).adds

    def create(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        names = SCHEMA.names if self.titles else [name for name in SCHEMA.names if name != "texts"]
        schema = pa.schema([SCHEMA.field(name) for name in names])
        for key, archive in zip(batch.column("key").to_pylist(), batch.column("archive").to_pylist(), strict=True):
            rows: list[dict[str, Any]] = []
            for row in self.rows(key, Path(archive)):
                rows.append(row)
                if len(rows) == ROWS:
                    yield pa.RecordBatch.from_pylist(rows, schema)
                    rows = []
            if rows:
                yield pa.RecordBatch.from_pylist(rows, schema)

    def rows(self, key: str, archive: Path) -> Iterator[dict[str, Any]]:
        attributes = ATTRIBUTES if self.titles else ATTRIBUTES[:1]
        for number, page, links in pages(archive, attributes):
            for n, link in enumerate(links):
                yield {
                    "key": f"{key}-{number:07d}-{n:04d}",
                    "text": link.texts[0],
                    "texts": list(link.texts),
                    "url": link.url,
                    "page_url": page,
                    "cc_filename": archive.name,
                }


def pages(archive: Path, attributes: tuple[str, ...] = ATTRIBUTES[:1]) -> Iterator[tuple[int, str, list[Link]]]:
    """(number of the record, address of the page, its pictures) for every page that has some.

    A damaged archive is read up to the damage. Raises DiptychError where the file is no archive at all.
    """
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError as error:
        raise missing_extra("fastwarc", "curate", "reading web archives") from error
    kinds = WarcRecordType.response | WarcRecordType.metadata
    read = 0
    try:
        with open(archive, "rb") as file:
            for number, record in enumerate(ArchiveIterator(file, record_types=WarcRecordType.any_type)):
                read += 1
                if not record.record_type & kinds:
                    continue
                page = (record.headers.get("WARC-Target-URI") or "")[:MOST_URL]
                if record.record_type & WarcRecordType.metadata:
                    links = wat_links(record.reader.read(MOST_JSON + 1), page, attributes)
                else:
                    links = page_links(record, page, attributes)
                if links:
                    yield number, page, links
    except OSError as error:
        if read == 0:
            raise DiptychError(f"{archive}: {error.strerror or error}; give a WAT or WARC file") from error
    if read == 0:
        raise DiptychError(f"{archive} holds no record of an archive; give a WAT or WARC file (.gz or not)")


# -- WAT ---------------------------------------------------------------------------------------------------------------


def wat_links(data: bytes, page: str, attributes: tuple[str, ...] = ATTRIBUTES[:1]) -> list[Link]:
    """The links "IMG@/src" of one record; none where the JSON is damaged, too large, or speaks of no page."""
    if len(data) > MOST_JSON:
        return []
    try:
        found: Any = json.loads(data)
        head = found["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        links = head["Links"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    declared = head.get("Head")
    base = absolute(page, declared.get("Base") if isinstance(declared, dict) else None)
    texts = (  # WAT keeps the markup's &amp; as it stands
        (link.get("url"), [html.unescape(word) for name in attributes if isinstance(word := link.get(name), str)])
        for link in (links if isinstance(links, list) else ())
        if isinstance(link, dict) and link.get("path") == "IMG@/src"
    )
    return named(texts, base)


# -- HTML --------------------------------------------------------------------------------------------------------------


def page_links(record: Any, page: str, attributes: tuple[str, ...] = ATTRIBUTES[:1]) -> list[Link]:
    """The pictures of a record that is the answer of a web server."""
    try:
        record.parse_http()
        kind = (record.http_content_type or "").lower()
        charset = record.http_charset
        body = record.reader.read(MOST_PAGE)
    except (OSError, ValueError):
        return []
    return [] if kind and "html" not in kind else html_links(body, page, charset, attributes)


def html_links(
    body: bytes, page: str, charset: str | None = None, attributes: tuple[str, ...] = ATTRIBUTES[:1]
) -> list[Link]:
    """The <img> of a page, of its first megabyte."""
    try:
        from resiliparse.parse.encoding import detect_encoding
        from resiliparse.parse.html import ElementNode, HTMLParserException, HTMLTree
    except ImportError as error:
        raise missing_extra("resiliparse", "curate", "reading web pages") from error
    body = LONG_TAG.sub(b"", body[:MOST_PAGE])
    try:
        encoding = charset or detect_encoding(body, html5_compatible=True, from_html_meta=True) or "utf-8"
        tree = HTMLTree.parse_from_bytes(body, encoding, "replace")
        # A walk: the lists that the parser gives of all elements with a name take time with the square of their length.
        found = [one for one in tree.document or () if isinstance(one, ElementNode) and one.tag in ("img", "base")]
        bases = (href for node in found if node.tag == "base" and (href := node.getattr("href")) is not None)
        base = absolute(page, next(bases, None))
        texts = (
            (node.getattr("src"), [word for name in attributes if (word := node.getattr(name)) is not None])
            for node in found
            if node.tag == "img"
        )
        return named(texts, base)
    except (HTMLParserException, LookupError, UnicodeError):
        return []


# -- both --------------------------------------------------------------------------------------------------------------


def named(pictures: Iterator[tuple[Any, list[str]]], base: str) -> list[Link]:
    """Those with an address and a text; texts without line breaks and repetitions."""
    links: list[Link] = []
    for url, texts in pictures:
        said = tuple(dict.fromkeys(word for text in texts if (word := " ".join(text[:MOST_TEXT].split()))))
        if isinstance(url, str) and url.strip() and said:
            links.append(Link(absolute(base, url), tuple(clean(word) for word in said)))
        if len(links) == MOST_LINKS:
            break
    return links


def absolute(base: str, url: Any) -> str:
    """`url` as seen from `base`, without a fragment; as it stands where it cannot be joined (and is refused later)."""
    if not isinstance(url, str) or not (url := clean(url.strip())):
        return base
    if url[:5].lower() == "data:":
        return url[:64]  # a picture within the page, of any length
    try:
        joined = urljoin(base, url[:MOST_URL])
        return urlsplit(joined)._replace(fragment="").geturl()
    except ValueError:
        return url[:MOST_URL]


def clean(text: str) -> str:
    """JSON may hold halves of characters, which no file of text can."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
