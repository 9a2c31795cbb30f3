"""An index in object storage: moto's S3 server, on loopback."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fakes import COLOURS, colour_clip, colour_folder
from PIL import Image
from web_world import served

from diptych.errors import DiptychError
from diptych.search import run, storage
from diptych.search.encoder import Encoder
from diptych.search.found import Model
from diptych.search.index import Index

moto = pytest.importorskip("moto.server", reason="moto is not installed: python -m pip install 'moto[server]'")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with the bucket `pictures`; the environment says where it is."""
    logging.getLogger("werkzeug").setLevel("WARNING")
    made = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    address = "http://{}:{}".format(*made.get_host_and_port())
    words = {"ENDPOINT_URL": address, "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    words |= {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, word in words.items():
            patch.setenv(f"AWS_{name}", word)
        httpx.put(f"{address}/pictures").raise_for_status()
        yield address
    made.stop()


@pytest.fixture
def encoder(monkeypatch):
    made = Encoder(colour_clip())
    monkeypatch.setattr(run.Encoder, "open", lambda *_: made)
    monkeypatch.setattr(run.Encoder, "of", lambda *_: made)
    return made


def test_indexed_updated_searched_and_served(server, encoder, tmp_path):
    photos, db = colour_folder(tmp_path / "photos", each=5), "s3://pictures/walk.lance"
    for path in photos.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"a {path.parent.name} thing, number {path.stem}")
    with pytest.raises(DiptychError, match="holds no index"):
        Index.open(db)
    index, done = run.index(photos, db)
    assert (done[str(photos)].new, len(index)) == (20, 20) and index.info.measured
    assert run.index(photos, db)[1][str(photos)].same == 20
    (photos / "red" / "1.png").unlink()
    Image.new("RGB", (30, 20), COLOURS["blue"]).save(photos / "red" / "new.png")
    outcome = run.index(photos, db)[1][str(photos)]
    assert (outcome.new, outcome.gone, outcome.same) == (1, 1, 19)
    hits = run.search(db, "blue", where="width > 20")
    assert [hit.id for hit in hits] == ["red/new.png"]
    assert "yellow" in {hit.row["label"] for hit in run.search(db, "blue", words="yellow", k=4)}
    assert run.index(photos, db, captions=True)[1][str(photos)].captions == 19
    said = run.search(db, "green", space="captions", k=100)
    assert [hit.row["label"] for hit in said[:5]] == ["green"] * 5 and len(said) == 19
    with pytest.raises(DiptychError, match='by the model "colours"'):
        Index.open(db).check(Model("other", "b" * 32))
    with served(tmp_path, Index.open(db), encoder) as address, httpx.Client(base_url=address) as client:
        answer = client.post("/api/search", json={"text": "blue", "fold": False, "limit": 6}).json()
        assert answer["matching"] == 20 and answer["results"][0]["row"]["label"] in ("blue", "red")
        ready = client.post("/api/export", json={"format": "csv", "question": {"text": "blue"}, "most": 6}).json()
        assert ready["rows"] >= 1 and len(client.get(f"/api/export/{ready['token']}").content) == ready["bytes"]
        run.index(colour_folder(tmp_path / "more", each=1), db)
        time.sleep(1.1)
        assert client.post("/api/search", json={"text": "blue"}).json()["matching"] == 24, "it sees what was added"


WRITER = """
import sys
import numpy as np
from diptych.search.index import Index
index, rng, refused = Index.open(sys.argv[1]), np.random.default_rng(1), 0
print("ready", flush=True)
sys.stdin.readline()
for batch in range(int(sys.argv[3])):
    rows = [{"id": f"{batch}/{i}", "source": sys.argv[2], "text": "x" * 2000} for i in range(50)]
    refused += len(index.add(rows, rng.standard_normal((50, 8))))
    print(batch, flush=True)
print(refused)
"""


def writer(uri: str, source: str, batches: int) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(run.__file__).parents[2]), *sys.path])
    words = [sys.executable, "-c", WRITER, uri, source, str(batches)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(words, text=True, env=os.environ | {"PYTHONPATH": path}, **pipes)  # type: ignore[call-overload]


def test_two_writers_of_the_same_ids_lose_nothing(server):
    made = Index.create("s3://pictures/two.lance", Model("fake", "a" * 32), 8)
    both = [writer(made.uri, source, 4) for source in "ab"]
    for one in both:
        one.stdout.readline()
    for one in both:
        one.stdin.write("go\n")
        one.stdin.flush()
    refused = [int(one.communicate()[0].split()[-1]) for one in both]
    rows = made.select(None, ["id", "source"]).to_pylist()
    assert len(rows) == len({row["id"] for row in rows}) == 200
    for source, count in zip("ab", refused, strict=True):
        assert [row["source"] for row in rows].count(source) == 200 - count


def test_kill_9_during_an_add_leaves_whole_batches(server):
    made = Index.create("s3://pictures/killed.lance", Model("fake", "a" * 32), 8)
    one = writer(made.uri, "a", 10_000)
    assert one.stdin and one.stdout
    one.stdin.write("go\n")
    one.stdin.flush()
    for _ in range(4):
        one.stdout.readline()
    time.sleep(0.02)  # somewhere within the next
    os.kill(one.pid, signal.SIGKILL)
    finished = 3 + len(one.stdout.read().split())
    one.wait()
    index = Index.open(made.uri)
    ids = set(index.select(None, ["id"])["id"].to_pylist())
    assert {f"{batch}/{i}" for batch in range(finished) for i in range(50)} <= ids and len(ids) % 50 == 0
    index.add([{"id": "after"}], np.ones((1, 8)))
    assert len(index.search(np.ones(8), 10_000)) == len(ids) + 1


# -- what is wrong is said, soon -------------------------------------------------------------------------------------


def said(uri: str) -> str:
    start = time.monotonic()
    with pytest.raises(DiptychError) as caught:
        Index.open(uri)
    assert time.monotonic() - start < 8
    assert uri in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


def test_no_such_bucket(server):
    assert said("s3://none/x.lance").endswith("The specified bucket does not exist (NoSuchBucket)")


def test_wrong_credentials(server):
    httpx.post(f"{server}/moto-api/reset-auth", content=b"0").raise_for_status()  # it knows no keys
    try:
        assert "does not exist in our records (InvalidAccessKeyId)" in said("s3://pictures/walk.lance")
    finally:
        httpx.post(f"{server}/moto-api/reset-auth", content=b"inf").raise_for_status()


def test_nobody_there(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert said("s3://pictures/x.lance").endswith("no server answers at http://127.0.0.1:9")


def test_http_that_is_not_allowed(server, monkeypatch):
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    assert said("s3://pictures/x.lance").endswith("an http:// endpoint needs AWS_ALLOW_HTTP=true")


def test_a_server_that_takes_the_call_and_says_nothing(server, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert said("s3://pictures/x.lance").endswith("no answer within 0.5 seconds")


def test_no_such_kind_of_storage():
    assert "No object store provider found for scheme: 'ftp'" in said("ftp://pictures/x.lance")


def test_a_server_that_goes_away_while_it_is_served(server, encoder, tmp_path):
    index = Index.create("s3://pictures/gone.lance", encoder.model, encoder.dim)
    index.add([{"id": "a", "text": "red"}], encoder.texts(["red"]))
    with served(tmp_path, index, encoder) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert client.post("/api/search", json={"text": "red"}).json()["matching"] == 1
        httpx.post(f"{server}/moto-api/reset-auth", content=b"0").raise_for_status()
        try:
            time.sleep(1.1)
            answer = client.post("/api/search", json={"text": "red"})
            assert answer.status_code == 503 and "InvalidAccessKeyId" in answer.json()["error"]
        finally:
            httpx.post(f"{server}/moto-api/reset-auth", content=b"inf").raise_for_status()
        assert client.post("/api/search", json={"text": "red"}).json()["matching"] == 1
