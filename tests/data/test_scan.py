"""What is seen of the pictures, what is set aside, and what is remembered."""

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.data import scan as scanning
from diptych.data.read import read_records
from diptych.data.records import Record, Records
from diptych.data.scan import scan

from .conftest import encoded, scene

Photos = Callable[..., Path]


def test_sound_pictures_and_others(photos: Photos) -> None:
    root = photos({"cat": 2, "dog": 2})
    (root / "cat/empty.jpg").write_bytes(b"")
    (root / "cat/half.jpg").write_bytes(encoded(scene(1, 300), "JPEG")[:2000])
    (root / "dog/film.png").write_bytes(b"\x00\x00\x00\x18ftypisom" + b"\0" * 99)
    (root / "dog/drawing.svg").write_bytes(b"<svg/>")
    seen: list[tuple[int, int]] = []
    sound, scanned, aside = scan(read_records(root), lambda done, total: seen.append((done, total)))
    assert sound.ids == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert {item.id for item in aside} == {"cat/empty.jpg", "cat/half.jpg", "dog/film.png", "dog/drawing.svg"}
    assert all(item.reason for item in aside)
    assert set(scanned) == set(sound.ids)
    one = scanned["cat/0.png"]
    assert one.digest == hashlib.sha256((root / "cat/0.png").read_bytes()).hexdigest()
    assert (one.width, one.height) == (64, 64)
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_is_decoded_twice(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    records = read_records(photos({"cat": 3, "dog": 3}))
    _, first, _ = scan(records)
    decoded: list[int] = []
    decode = scanning.decode
    monkeypatch.setattr(scanning, "decode", lambda data, at_least: decoded.append(1) or decode(data, at_least))
    assert scan(records)[1] == first
    assert not decoded
    path = records[0].path
    assert path is not None
    scene(99).save(path)
    os.utime(path, ns=(1, 1))
    changed = scan(records)[1]
    assert len(decoded) == 1
    assert changed[records[0].id].digest != first[records[0].id].digest


def test_damaged_cache_is_replaced(photos: Photos, cache: Path) -> None:
    records = read_records(photos({"cat": 2, "dog": 2}))
    (cache / "scans.sqlite").write_bytes(b"this is no data base" * 100)
    sound, first, _ = scan(records)
    assert any("was damaged" in warning for warning in sound.warnings)
    sound, second, _ = scan(records)
    assert sound.warnings == ()
    assert first == second
    with sqlite3.connect(cache / "scans.sqlite") as base:
        assert base.execute("select count(*) from scans").fetchone() == (4,)


def test_damage_within_the_cache(photos: Photos, cache: Path) -> None:
    records = read_records(photos({"cat": 20, "dog": 20}))
    _, first, _ = scan(records)
    data = bytearray((cache / "scans.sqlite").read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    (cache / "scans.sqlite").write_bytes(bytes(data))
    sound, again, _ = scan(records)
    assert again == first
    assert any("was damaged" in warning for warning in sound.warnings)


def test_no_place_for_a_cache(photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file/below"))
    sound, scanned, _ = scan(read_records(photos({"cat": 2, "dog": 2})))
    assert len(scanned) == 4
    assert any("cannot be used" in warning for warning in sound.warnings)


def test_two_processes_at_once(photos: Photos, cache: Path) -> None:
    root = photos({"cat": 150, "dog": 150})
    code = (
        "import sys; from diptych.data.read import read_records; from diptych.data.scan import scan\n"
        "r, s, a = scan(read_records(sys.argv[1])); assert len(s) == 300 and not r.warnings, r.warnings"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(root)]) for _ in range(3)]
    assert [process.wait() for process in both] == [0, 0, 0]


def test_pictures_without_files() -> None:
    items = tuple(Record(str(i), None, "a", read=lambda i=i: encoded(scene(i))) for i in range(3))
    _, scanned, _ = scan(Records(items, "memory"))
    assert len({seen.digest for seen in scanned.values()}) == 3


def test_speed_on_real_pictures(test_data: Path) -> None:
    records = read_records(test_data / "pacs/photo")
    start = time.perf_counter()
    scan(records)
    first = time.perf_counter() - start
    start = time.perf_counter()
    scan(records)
    again = time.perf_counter() - start
    assert first < 10  # 0.4 s on two idle cores
    assert again < 0.5  # 0.01 s there
