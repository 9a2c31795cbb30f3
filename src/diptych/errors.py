"""The one error that reaches a user: what was wrong, where, and what would be right."""

import difflib
from collections.abc import Iterable


class DiptychError(Exception):
    """A mistake in what we were given. The command line prints it without a traceback."""


class TextCut(UserWarning):
    """A text is longer than a model reads: its end was left out."""


class Unsupported(DiptychError):
    """This model or this data cannot have what was asked; the message says why and what can."""


def nearest(word: str, options: Iterable[str]) -> str:
    """A hint such as `; did you mean "gda"?`, or the list of valid words where none is close."""
    words = sorted(options)
    close = difflib.get_close_matches(word.lower(), [w.lower() for w in words], n=1, cutoff=0.6)
    if close:
        return next(f'; did you mean "{w}"?' for w in words if w.lower() == close[0])
    return "; valid: " + ", ".join(words[:30])


def missing_extra(package: str, extra: str, purpose: str) -> DiptychError:
    """The error for an optional package that is not installed."""
    return DiptychError(f'{purpose} needs {package}: python -m pip install "diptych[{extra}]"')
