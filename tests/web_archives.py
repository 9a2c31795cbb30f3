"""Web archives made for tests: records of WARC and WAT as Common Crawl writes them."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def record(kind: str, url: str, content_type: str, body: bytes) -> bytes:
    head = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2026-01-01T00:00:00Z",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body + b"\r\n\r\n"


def response(url: str, html: bytes, content_type: str = "text/html; charset=utf-8") -> bytes:
    """A page as the server answered it."""
    answer = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode() + html
    return record("response", url, "application/http; msgtype=response", answer)


def wat(links: Sequence[Any], base: str | None = None) -> bytes:
    """The JSON of one page."""
    html: dict[str, Any] = {"Links": list(links), "Head": {"Base": base} if base else {}}
    inner = {"HTTP-Response-Metadata": {"HTML-Metadata": html}}
    return json.dumps({"Envelope": {"Payload-Metadata": inner}}).encode()


def metadata(url: str, data: bytes) -> bytes:
    return record("metadata", url, "application/json", data)


def write(path: Path, records: Sequence[bytes]) -> Path:
    """Each record a gzip member of its own."""
    path.write_bytes(b"".join(gzip.compress(one, 1, mtime=0) for one in records))
    return path
