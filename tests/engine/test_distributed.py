import json
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMS = ("softmax", "sigmoid", "loob", "multilinear", "combinations")
Found = dict[str, dict[str, list[float]]]


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    program = Path(__file__).with_name("ranks.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def difference(row: dict[str, list[float]], other: dict[str, list[float]], names: set[str]) -> float:
    return max(abs(x - y) for name in names for x, y in zip(row[name], other[name], strict=True))


@pytest.mark.parametrize("size", ["1", "2", "4"])
@pytest.mark.parametrize("way", [*(f"{s}, {w}" for s in SYSTEMS for w in ("local", "gathered", "own gradient"))])
def test_any_number_of_processes_is_one_big_batch(found: dict[str, Found], size: str, way: str):
    right, row = found["1"][f"{way.partition(',')[0]}, gathered"], found[size][way]
    assert set(row) == set(right) >= {"loss", "log_scale", "towers.0.0.weight", "towers.1.2.bias"}
    for name, values in right.items():
        assert max(map(abs, values)) > 1e-3, f"{name} is too small for a wrong factor to show"
    assert difference(row, right, set(right)) < 1e-9


@pytest.mark.parametrize("size", ["1", "2", "4"])
@pytest.mark.parametrize("way", ["gathered", "own gradient", "local"])
def test_the_tiled_loss_is_the_whole_one(found: dict[str, Found], size: str, way: str):
    right = found["1"]["softmax, gathered"]
    assert difference(found[size][f"tiled, {way}"], right, set(right)) < 1e-9


@pytest.mark.parametrize("size", ["2", "4"])
def test_a_local_loss_with_constant_others_would_be_caught(found: dict[str, Found], size: str):
    """Its value and its temperature are right all the same, so that no curve of a run shows it."""
    right, row = found["1"]["softmax, gathered"], found[size]["softmax, wrong"]
    assert difference(row, right, {"loss", "log_scale"}) < 1e-9
    assert difference(row, right, set(right)) > 1e-3


def test_rows_come_in_the_order_of_ranks(found: dict[str, Found]):
    """Told by the last process."""
    assert found["4"]["order"]["first"] == [0, 1, 2]
    assert found["4"]["order"]["rows"] == [10 * r + i for r in range(4) for i in range(4)]
