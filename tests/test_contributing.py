"""CONTRIBUTING.md's example is a working one: two files put into a copy of the project, and nothing else changed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_example_of_contributing_works(tmp_path: Path):
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    files = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(files) == 2
    for part in ("src", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    for path, content in files.items():
        assert not (ROOT / path).exists()
        (tmp_path / path).write_text(content, "utf-8")

    def python(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        call = [sys.executable, "-m", *words]
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "Prototypical Networks" in python("diptych", "systems", "nearest_mean")
    passed = python("pytest", "tests/adapt", "tests/test_house.py", "-k", "nearest_mean", "-p", "no:cacheprovider")
    assert re.search(r"\b[5-9] passed|\b\d\d+ passed", passed), passed
