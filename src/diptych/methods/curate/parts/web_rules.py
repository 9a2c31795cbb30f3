"""Rules on texts and addresses that need no model: what is too short, what is no address of the web."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from diptych.errors import DiptychError
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict

LONGEST_URL = 4096


class WebAddress(Stage):
    """Only http and https, and no host of `blocked`: a text file of host names, one a line; those below them too."""

    name = "address"
    about = "no address of the web, or one of a blocked host"
    needs = ("url",)

    def __init__(self, blocked: str = "") -> None:
        self.blocked = frozenset(read_hosts(Path(blocked)) if blocked else ())

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        return by_reason(batch, [address_fault(url, self.blocked) for url in batch.column("url").to_pylist()])


class ShortText(Stage):
    """LAION drops texts of fewer than 5 characters."""

    name = "text"
    about = "a text that is missing or too short"
    needs = ("text",)

    def __init__(self, least: int = 5) -> None:
        self.least = least

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        texts = [(text or "").strip() for text in batch.column("text").to_pylist()]
        short = f"fewer than {self.least} characters"
        return by_reason(batch, ["" if len(text) >= self.least else short if text else "no text" for text in texts])


def by_reason(batch: pa.RecordBatch, why: Sequence[str]) -> Verdict:
    """A row with a reason goes."""
    return Verdict(batch, np.array([not one for one in why], bool), why)


def address_fault(url: str | None, blocked: frozenset[str] = frozenset()) -> str:
    """Why nothing is downloaded from there; "" where it may be tried."""
    if not url:
        return "no address"
    if len(url) > LONGEST_URL:
        return f"an address of more than {LONGEST_URL} characters"
    scheme = re.match(r"([a-z][a-z0-9+.-]*):", url, re.IGNORECASE)
    if scheme is None or scheme[1].lower() not in ("http", "https"):
        return f"{scheme[1].lower()}: and not http" if scheme and scheme[1].lower() in KNOWN else "not http"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "a malformed address"
    if not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        return "a malformed address"
    names = host.rstrip(".").lower().split(".")
    if any(".".join(names[start:]) in blocked for start in range(len(names))):
        return "a blocked host"
    return ""


KNOWN = ("data", "blob", "ftp", "file", "javascript", "about")  # named in the report; another could be anything


def read_hosts(path: Path) -> list[str]:
    try:
        lines = path.expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DiptychError(f"{path}: cannot be read as a list of host names, one a line ({error})") from error
    return [line.strip().lower().rstrip(".") for line in lines if line.strip() and not line.startswith("#")]
