"""The downloading stage: rows with reasons, in their own order, by img2dataset's columns."""

import pickle
import threading

import pyarrow as pa
from web_server import Answer, serving

from diptych.methods.curate.parts.download import Download
from diptych.methods.curate.parts.pipeline import Place

PLACE = Place(0, 0)


def rows(urls: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"key": [f"k{n}" for n in range(len(urls))], "url": pa.array(urls, pa.string())})


def test_each_row_gets_its_own_file_or_its_own_reason():
    answers = {f"/{n}": Answer(b"%d" % n * 9, wait=0.02 * (n % 3)) for n in range(30)}
    with serving(answers) as web:
        urls = [f"{web.root}/{n}" if n % 5 else f"{web.root}/none/{n}" for n in range(30)]
        verdict = Download(allowed=("127.0.0.1",), threads=8).select(rows([*urls, None]), PLACE, {})
    assert verdict.keep.tolist() == [n % 5 > 0 for n in range(30)] + [False]
    assert [why for why in verdict.why if why] == ["HTTP 404"] * 6 + ["no address"]
    found = verdict.batch.to_pydict()
    assert found["picture"] == [b"%d" % n * 9 if n % 5 else None for n in range(30)] + [None]
    assert found["status"][:2] == ["failed_to_download", "success"]
    assert found["error_message"][:2] == ["HTTP 404", None]


def test_threads_ask_at_the_same_time():
    with serving({f"/{n}": Answer(b"x", wait=0.4) for n in range(16)}) as web:
        batch = rows([f"{web.root}/{n}" for n in range(16)])
        before = threading.active_count()
        verdict = Download(allowed=("127.0.0.1",), threads=16, timeout=3).select(batch, PLACE, {})
        assert max(web.asked.values()) == 1
    assert verdict.keep.all()
    assert threading.active_count() <= before + 1


def test_retries_are_as_many_as_asked_for():
    with serving({"/x": Answer(status=503)}) as web:
        for retries in (0, 2):
            web.asked.clear()
            Download(allowed=("127.0.0.1",), retries=retries).select(rows([f"{web.root}/x"]), PLACE, {})
            assert web.asked["/x"] == retries + 1


def test_it_travels_to_other_processes():
    stage = pickle.loads(pickle.dumps(Download(allowed=("a",), timeout=3)))
    assert stage.manners.allowed == ("a",) and stage.manners.timeout == 3


def test_no_rows():
    verdict = Download().select(rows([]), PLACE, {})
    assert len(verdict.keep) == 0 and verdict.batch.num_rows == 0
