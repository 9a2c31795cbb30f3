"""Writing so that nothing half-written is left behind."""

import os
import shutil
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


def is_bare(folder: Path, first: str = "run.json") -> bool:
    """Whether a folder is empty, but for what was left by a write of `first` into it that was killed."""
    return all(path.name.startswith(f".{first}.") for path in folder.iterdir())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write to; takes the place of `path`, whatever is there, when the block ends.

    Vanishes when the block fails. Raises DiptychError where the disk is full or the place cannot be written.
    """
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(prefix=f".{path.name[:80]}.", dir=path.parent))
    except OSError as error:
        raise DiptychError(f"cannot write {path}: {error.strerror}; choose another place") from error
    new, old = around / "new", around / "old"
    try:
        new.mkdir()
        yield new
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
    except OSError as error:
        raise DiptychError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if old.exists() and not path.exists():  # the second rename failed
            os.rename(old, path)
        shutil.rmtree(around, ignore_errors=True)
