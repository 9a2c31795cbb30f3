"""Every recipe: its words promise something, its published settings are valid, its tiny variant runs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from diptych.training.plan import make_plan
from diptych.training.recipes import promised
from diptych.training.run import train

FOLDER = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
PLANNED = ("system", "steps", "epochs", "batch", "rate", "settings")


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory):
    """A folder to run in, where clip's tiny variant has been: lit goes on from it."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("recipes"))
    train(**recipe("clip").arguments(True) | {"steps": 1, "evaluate": None})
    yield
    patch.undo()


@pytest.mark.parametrize("name", NAMES)
def test_tiny_runs_for_a_few_steps(name: str, tmp_path: Path):
    made = train(**recipe(name).arguments(True) | {"steps": 3, "evaluate": None, "out": tmp_path / "run"})
    assert len(made.rows) == 3 and all(row["loss"] == row["loss"] for row in made.rows)
    assert (made.folder / "model").is_dir()


@pytest.mark.parametrize("name", NAMES)
def test_published_settings_are_valid(name: str):
    module = recipe(name)
    given = module.arguments(False)
    asked = {"steps": None, "epochs": None, "batch": None, "rate": None, "settings": {}}
    asked |= {k: v for k, v in given.items() if k in PLANNED}
    plan = make_plan(asked.pop("system"), 100_000_000, asked.pop("settings"), seed=0, save_every=None, eval_every=None,
                     **asked)  # fmt: skip
    assert plan.recipe.batch == given["batch"] and plan.recipe.rate == given["rate"] and plan.steps > 1000


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_commands_times_and_scores(name: str):
    words = recipe(name).__doc__ or ""
    assert f"python recipes/{name}.py --tiny" in words
    for tiny in (False, True):
        time, _, score = promised(words, tiny).partition("; ")
        assert time and any(c.isdigit() for c in score), f"{name}: time; score"


def test_what_came_out_is_printed_beside_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["clip.py", "--tiny", "--steps", "2", "--out", str(tmp_path / "run"), "--seed", "3"]
    monkeypatch.setattr(sys, "argv", words)
    module = recipe("clip")
    module.run(module.__doc__, module.arguments)
    *_, promise, here = capsys.readouterr().out.splitlines()
    assert promise == f"promised: {promised(module.__doc__ or '', True)}"
    assert here.startswith("here: ") and here.endswith("%")
