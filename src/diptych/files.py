"""Writing so that nothing half-written is left behind."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.errors import DiptychError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; becomes `path` when the block ends, vanishes when it fails.

    Raises DiptychError where the disk is full or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)
    except OSError as error:
        raise DiptychError(f"cannot write {path}: {error.strerror}; choose another place with --out") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise DiptychError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path | str, data: bytes) -> Path:
    """`atomic` for bytes that are at hand."""
    path = Path(path)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return path
