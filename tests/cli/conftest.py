"""A command line in this process, with a CLIP of a few numbers in place of the real ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import colour_clip, colour_folder

from diptych.cli.main import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` gives the fake for "mini" and for "colours"; all other names are the real loader's."""
    import diptych.core.load as loading

    real = loading.load

    def load(name: str = "mini", device: str | None = None):
        return colour_clip() if name in ("mini", "colours") else real(name, device)

    monkeypatch.setattr(loading, "load", load)


@pytest.fixture
def diptych(
    fake: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """diptych("compare", folder, "--shots", 1) -> exit code, stdout, stderr; runs in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("DIPTYCH_DEBUG", raising=False)

    def run(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four classes of twelve noisy colours."""
    return colour_folder(tmp_path / "photos")
