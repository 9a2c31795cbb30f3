"""Pictures and their texts out of archives: what is found, and that nothing a page holds stops the reading."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from web_archives import response, wat, write

from diptych.errors import DiptychError
from diptych.methods.curate.parts.archives import ATTRIBUTES, Archives, html_links, pages, wat_links

PAGE = "https://a.example/deep/page.html"


def links(html: str | bytes, **more: Any) -> list[tuple[str, ...]]:
    body = html.encode() if isinstance(html, str) else html
    return [(link.url, *link.texts) for link in html_links(body, PAGE, **more)]


def in_wat(found: list[dict], base: str | None = None) -> list[tuple[str, ...]]:
    return [(link.url, *link.texts) for link in wat_links(wat(found, base), PAGE)]


def test_addresses_become_absolute():
    html = """<img src="a.jpg" alt="one"><img src="/b.jpg" alt="two"><img src="//c.example/c.jpg#x" alt="three">
        <IMG ALT=four SRC=../d.jpg><img src="http://[broken" alt="five"><img src="data:image/png,A" alt="six">"""
    assert links(html) == [
        ("https://a.example/deep/a.jpg", "one"),
        ("https://a.example/b.jpg", "two"),
        ("https://c.example/c.jpg", "three"),
        ("https://a.example/d.jpg", "four"),
        ("http://[broken", "five"),
        ("data:image/png,A", "six"),
    ]
    assert links('<base href="/other/"><base href="/no/"><img src=a.jpg alt=one>') == [
        ("https://a.example/other/a.jpg", "one")
    ]
    found = [{"path": "IMG@/src", "url": "a.jpg", "alt": "one"}]
    assert in_wat(found, "http://b.example/x/") == [("http://b.example/x/a.jpg", "one")]
    assert in_wat(found, "up/") == [("https://a.example/deep/up/a.jpg", "one")]


def test_only_pictures_with_a_text():
    assert in_wat(
        [
            {"path": "IMG@/src", "url": "a.jpg", "alt": " a \n cat &amp;  dog "},
            {"path": "IMG@/src", "url": "b.jpg", "alt": "  "},
            {"path": "IMG@/src", "url": "c.jpg"},
            {"path": "A@/href", "url": "d.jpg", "alt": "a link"},
            {"path": "IMG@/src", "alt": "no address"},
            {"path": "IMG@/src", "url": "e.jpg", "alt": "half \ud800 a character"},
            {"path": "IMG@/src", "url": 7, "alt": ["x"]},
            "nothing",
        ]  # type: ignore[list-item]
    ) == [("https://a.example/deep/a.jpg", "a cat & dog"), ("https://a.example/deep/e.jpg", "half ? a character")]


def test_titles_serve_metaclip():
    html = '<img src=a alt="one" title="two"><img src=b title="only"><img src=c alt="x" data-image-title="x">'
    assert [one[1:] for one in links(html, attributes=ATTRIBUTES)] == [("one", "two"), ("only",), ("x",)]
    assert [one[1:] for one in links(html)] == [("one",), ("x",)]


def test_encodings():
    said = [("https://a.example/deep/a", "Größe")]
    page = '<img src=a alt="Größe">'
    assert links(page.encode("latin-1"), charset="iso-8859-1") == said
    assert links(b'<meta charset="windows-1252">' + page.encode("cp1252")) == said
    assert links(page, charset="no-such-thing") == said
    assert links(page) == said


BROKEN = {
    "nothing": b"",
    "zeros": bytes(2_000_000),
    "no end": b"<img alt='" + b"x" * 3_000_000,
    "deep": b"<div>" * 300_000,
    "attributes": b"<img " + b" ".join(b"a%d=1" % n for n in range(200_000)),
    "formatting": b"<b><i>" * 20_000 + b"<p>" * 3000,
    "tables": b"<table>" * 200_000,
    "pictures": b"<img src=a alt=b>" * 100_000,
    "noise": bytes(n * 7919 % 251 for n in range(200_000)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_no_page_holds_it_up(kind: str):
    start = time.process_time()
    assert len(html_links(BROKEN[kind], PAGE)) <= 10_000
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 200_000, b"null", b'{"Envelope": []}', b'{"Envelope": {"Payload-Metadata": null}}', b"\xff\xfe"],
)
def test_broken_json_is_no_page(data: bytes):
    assert wat_links(data, PAGE) == []


def test_odd_shapes_of_wat():
    def shaped(head: Any) -> bytes:
        inner = {"HTTP-Response-Metadata": {"HTML-Metadata": head}}
        return json.dumps({"Envelope": {"Payload-Metadata": inner}}).encode()

    assert wat_links(shaped({"Links": {"a": 1}}), PAGE) == []
    assert wat_links(shaped({"Links": 3, "Head": 4}), PAGE) == []
    one = [{"path": "IMG@/src", "url": "a", "alt": "b"}]
    assert len(wat_links(shaped({"Links": one, "Head": {"Base": 5}}), PAGE)) == 1


def test_an_archive_is_read_to_the_damage(tmp_path: Path):
    records = [response(f"http://p{n}.example/", f"<img src=x.jpg alt='picture {n}'>".encode()) for n in range(6)]
    whole = write(tmp_path / "whole.warc.gz", records)
    assert [page for _, page, _ in pages(whole)] == [f"http://p{n}.example/" for n in range(6)]
    data = whole.read_bytes()
    (tmp_path / "cut.warc.gz").write_bytes(data[: len(data) * 2 // 3])
    found = [page for _, page, _ in pages(tmp_path / "cut.warc.gz")]
    assert 2 <= len(found) < 6
    (tmp_path / "plain.warc").write_bytes(gzip.decompress(data))
    assert len(list(pages(tmp_path / "plain.warc"))) == 6


@pytest.mark.parametrize("data", [b"", b"no archive", gzip.compress(b"hello"), b"\x1f\x8b" + bytes(100)])
def test_what_is_no_archive_is_said(data: bytes, tmp_path: Path):
    (tmp_path / "x.warc.gz").write_bytes(data)
    with pytest.raises(DiptychError, match=r"x\.warc\.gz"):
        list(pages(tmp_path / "x.warc.gz"))


def test_rows_name_where_they_come_from(tmp_path: Path):
    html = b"<img src=a.jpg alt='a cat' title='Tom'><img src=b.jpg title='a dog'>"
    archive = write(tmp_path / "CC-1.warc.gz", [response(PAGE, b"<p>nothing"), response(PAGE, html)])
    batch = pa.RecordBatch.from_pydict({"key": ["one"], "archive": [str(archive)]})
    (rows,) = Archives(titles=True).create(batch)
    assert rows.to_pylist() == [
        {
            "key": "one-0000001-0000",
            "text": "a cat",
            "texts": ["a cat", "Tom"],
            "url": "https://a.example/deep/a.jpg",
            "page_url": PAGE,
            "cc_filename": "CC-1.warc.gz",
        },
        {
            "key": "one-0000001-0001",
            "text": "a dog",
            "texts": ["a dog"],
            "url": "https://a.example/deep/b.jpg",
            "page_url": PAGE,
            "cc_filename": "CC-1.warc.gz",
        },
    ]
    (rows,) = Archives().create(batch)
    assert rows.column_names == ["key", "text", "url", "page_url", "cc_filename"] and len(rows) == 1
