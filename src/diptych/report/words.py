"""Words of strangers (class and file names) made fit for a line of print."""

import unicodedata

from rich.cells import cell_len


def clean(text: object) -> str:
    """One line, without control characters, text-direction overrides and half surrogates."""
    line = " ".join(str(text).split())
    line = line.encode("utf-8", "replace").decode("utf-8")  # a file name that is not UTF-8 has half surrogates
    return "".join(c for c in line if unicodedata.category(c) != "Cc" and c not in _OVERRIDES)


# embeddings, overrides and isolates would turn the text after them around
_OVERRIDES = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shorten(text: object, width: int) -> str:
    """At most `width` columns of a terminal (CJK and emoji take two), the middle left out: ends tell names apart."""
    line = clean(text)
    if cell_len(line) <= width:
        return line
    tail = _fit(line[::-1], (width - 1) // 3)[::-1]
    return _fit(line, width - 1 - cell_len(tail)) + "…" + tail


def _fit(line: str, width: int) -> str:
    end = min(len(line), width)
    while end and cell_len(line[:end]) > width:
        end -= 1
    while end < len(line) and cell_len(line[: end + 1]) <= width:
        end += 1
    return line[:end]
