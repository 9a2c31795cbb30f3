"""Where diptych keeps what it can compute again."""

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """`DIPTYCH_CACHE`, or `diptych` in the platform's cache folder of the user. Not created here."""
    if chosen := os.environ.get("DIPTYCH_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "diptych"
