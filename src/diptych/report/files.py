"""Files that are whole or not there at all."""

import contextlib
import os
from pathlib import Path

from diptych.errors import DiptychError


def write_atomically(path: Path | str, data: bytes) -> Path:
    """Write beside `path`, then move over it; on failure (full disk, no permission) nothing is left behind."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DiptychError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the move; or its folder never was
            temporary.unlink()
    return path
