"""Repeated rows: the first of each stays, however the rows are dealt and in whatever order they are counted."""

import hashlib
import random

import pyarrow as pa
import pytest

from diptych.methods.curate.parts.dedup import Repeats, SamePair, SamePicture, SameUrl
from diptych.methods.curate.parts.pipeline import Place


def batch(rows: list[tuple[str, str]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "key": [f"{n}" for n in range(len(rows))],
            "text": [text for text, _ in rows],
            "url": [url for _, url in rows],
            "sha256": [hashlib.sha256(url.encode()).hexdigest() for _, url in rows],
        }
    )


ROWS = [(f"text {random.Random(n).randrange(12)}", f"http://x/{random.Random(-n).randrange(40)}") for n in range(200)]


def first(what: list) -> list[bool]:
    seen = set()
    return [not (one in seen or seen.add(one)) for one in what]


def verdicts(stage: Repeats, pieces: list[list[int]], shuffle: int) -> list[bool]:
    """Pieces are lists of batch sizes; counted and merged in an order drawn from `shuffle`."""
    batches, start = [], 0
    for number, sizes in enumerate(pieces):
        row = 0
        for size in sizes:
            batches.append((Place(number, row), batch(ROWS[start : start + size])))
            row, start = row + size, start + size
    counted = [stage.count(rows, place) for place, rows in batches]
    random.Random(shuffle).shuffle(counted)
    half = -(-len(counted) // 2)
    counts = stage.finish(stage.merge([stage.merge(some) for some in (counted[:half], counted[half:]) if some]))
    found = [stage.select(rows, place, counts) for place, rows in batches]
    assert all(bool(why) != keep for one in found for why, keep in zip(one.why, one.keep, strict=True))
    return [bool(keep) for one in found for keep in one.keep]


@pytest.mark.parametrize("shuffle", range(3))
@pytest.mark.parametrize("pieces", [[[200]], [[50, 50], [1, 99]], [[7] * 20, [], [60]]], ids=["one", "four", "many"])
def test_the_first_stays(pieces: list[list[int]], shuffle: int):
    assert verdicts(SamePair(), pieces, shuffle) == first(ROWS)
    assert verdicts(SameUrl(), pieces, shuffle) == first([url for _, url in ROWS])
    assert verdicts(SamePicture(), pieces, shuffle) == first([url for _, url in ROWS])


def test_a_pair_is_known_by_the_md5_of_text_and_address():
    stage = SamePair()
    rows = batch([("a cat", "http://x/1"), ("a cät", "http://x/1")])
    counts = stage.finish(stage.merge([stage.count(rows, Place(0, 0))]))
    verdict = stage.select(rows, Place(0, 0), counts)
    assert verdict.batch.column("uid").to_pylist() == [
        hashlib.md5(b"a cathttp://x/1").hexdigest(),
        hashlib.md5("a cäthttp://x/1".encode()).hexdigest(),
    ]
    assert verdict.keep.all()


def test_no_rows_at_all():
    stage = SameUrl()
    counts = stage.finish(stage.merge([stage.count(batch([]), Place(0, 0))]))
    assert len(stage.select(batch([]), Place(0, 0), counts).keep) == 0
