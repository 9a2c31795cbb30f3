"""What a hostile page, file or question gets from the explorer, over a real server: nothing."""

import http.client
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import ImageFile
from web_world import EVIL, make_index, picture, served

from diptych.errors import DiptychError
from diptych.search.web import guard as guarding
from diptych.search.web.explorer import Explorer
from diptych.search.web.guard import Guard, is_loopback, names_of

SECRET = "the secret of this machine"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, httpx.Client, Path]]:
    root = tmp_path_factory.mktemp("hostile")
    (root / "secret.txt").write_text(SECRET)
    index, encoder = make_index(root, 3, {0: {"text": EVIL}, 1: {"path": str(root / "secret.txt")}})
    with served(root, index, encoder) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield address, client, root


@pytest.fixture
def client(world) -> httpx.Client:
    return world[1]


def raw(address: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    """A request as it is written, which httpx would not send."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.putrequest(method, path, skip_host="host" in {name.lower() for name in headers})
    for name, value in headers.items():
        connection.putheader(name, value)
    if body and "transfer-encoding" not in {name.lower() for name in headers}:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    return answer.status, answer.read()


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/..%2f..%2fsecret.txt", "/static/../../secret.txt", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
     "/app.js/../../app.py", "/..\\..\\app.py", "/app.py", "/explorer.py", "/__init__.py", "/style.css%00.html"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(world, path: str):
    status, body = raw(world[0], "GET", path, {})
    assert status in (400, 404, 421) and SECRET.encode() not in body and b"import" not in body and b"root:" not in body


@pytest.mark.parametrize("where", ["/thumb", "/original"])
@pytest.mark.parametrize(
    "id", ["../secret.txt", "/etc/passwd", "pictures/../secret.txt", "secret.txt", "' or 1=1 --", "\0"]
)
def test_only_rows_of_the_index_have_pictures(world, where: str, id: str):
    _, client, root = world
    for one in (id, str(root / "secret.txt")):
        done = client.get(where, params={"id": one})
        assert done.status_code == 404 and SECRET not in done.text


def test_a_row_that_names_no_picture_is_not_sent(client: httpx.Client):
    """Its path leads to a text, as a forged index's might."""
    for where in ("/thumb", "/original"):
        done = client.get(where, params={"id": "pictures/001.jpg"})
        assert done.status_code == 422 and SECRET not in done.text
    ready = client.post("/api/export", json={"format": "webdataset", "ids": ["pictures/001.jpg"]}).json()
    assert sum(ready["failed"].values()) == 1
    assert SECRET.encode() not in client.get(f"/api/export/{ready['token']}").content


@pytest.mark.parametrize("token", ["..%2f..%2fsecret.txt", "../secret.txt", "x", "%00", "a" * 200])
def test_a_subset_is_found_by_its_token_alone(client: httpx.Client, token: str):
    done = client.get(f"/api/export/{token}")
    assert done.status_code in (404, 410, 422) and SECRET not in done.text


# -- uploads ---------------------------------------------------------------------------------------------------------


def hand_in(client: httpx.Client, data: Any, kind: str = "image/png") -> httpx.Response:
    return client.post("/api/picture", content=data, headers={"content-type": kind})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"), (b"hello", "not a picture"), (b"<html><script>alert(1)</script>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "SVG"),
        (picture((9, 9, 9))[:200], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not a picture|corrupt"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture"),
    ],
)  # fmt: skip
def test_a_malformed_upload_is_named_and_refused(client: httpx.Client, data: bytes, said: str):
    import re

    done = hand_in(client, data)
    assert done.status_code == 422 and re.search(said, done.json()["error"])


def test_an_oversized_upload_is_refused_before_it_is_read(world):
    address, client, _ = world
    done = hand_in(client, b"\xff" * (guarding.MAX_BODY + 1))
    assert done.status_code == 413
    status, _ = raw(address, "POST", "/api/picture", {"content-type": "image/png", "content-length": str(10**15)})
    assert status == 413, "by what it says of its length"

    def drip() -> Iterator[bytes]:
        for _ in range(guarding.MAX_BODY // 2**20 + 2):
            yield b"\0" * 2**20

    assert hand_in(client, drip()).status_code == 413, "and by its length where it does not say"
    for length in ("-1", "many", "1e3"):
        status, _ = raw(address, "POST", "/api/picture", {"content-type": "image/png", "content-length": length})
        assert status == 400


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour: some hundred kilobytes that decode to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    line = b"\0" * (width // 8 + 1)
    body = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_by_its_header(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size))
    done = hand_in(client, bomb(20_000, 20_000))
    assert done.status_code == 422 and "the limit of" in done.json()["error"] and not decoded
    done = hand_in(client, bomb(8_200, 8_200))
    assert done.status_code == 422 and "67 million" in done.json()["error"] and not decoded


# -- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    ["1=1; drop table pictures", "width > 1) or (1=1", "id in (select id from pictures)", "label = 'x' union select 1",
     "sleep(10) > 1", "path like '/etc/%' --", "`id` = 'a' or `no` = 1", "(" * 60 + "width > 1" + ")" * 60,
     "width > 1) or (width > 0", "vector > 1", "label = 'x\\' or 1=1"],
)  # fmt: skip
def test_a_condition_is_no_sql(client: httpx.Client, where: str):
    done = client.post("/api/search", json={"where": where, "safe": False})
    if where.startswith("path like"):
        assert done.status_code == 400, "a comment is no condition"
    assert done.status_code == 400 and "does not read" in done.json()["error"]
    assert client.post("/api/search", json={"safe": False}).json()["matching"] == 12, "nothing was dropped"


@pytest.mark.parametrize("word", ["x' or 1=1 --", "x') or (1=1", "'", "''", "\\", "\\'", '"', "%", "`", "x\0y", "🦊"])
@pytest.mark.parametrize("how", [{}, {"text": "red"}, {"text": "thing", "space": "words"}])
def test_a_word_to_filter_by_stays_a_word(client: httpx.Client, word: str, how: dict[str, str]):
    done = client.post("/api/search", json={"filters": [{"column": "label", "among": [word]}], "safe": False, **how})
    assert done.status_code == 200 and done.json()["matching"] == 0 and done.json()["results"] == []


@pytest.mark.parametrize("column", ["width` > 0 or `width", "vector", "nothing", "", "`", "width; drop"])
def test_a_column_is_one_of_the_index(client: httpx.Client, column: str):
    done = client.post("/api/search", json={"filters": [{"column": column, "least": 0}]})
    assert done.status_code == 400


@pytest.mark.parametrize("text", ["'; drop table", "a OR b AND (", '"unclosed', "text:*", "+-!(){}[]^~*?:\\/", "*"])
def test_words_are_searched_as_words(client: httpx.Client, text: str):
    assert client.post("/api/search", json={"text": text, "space": "words"}).status_code in (200, 400)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"text": 1}', b'{"unknown": 1}', b'{"limit": 100000}', b'{"offset": -1}',
     b'{"limit": 1e400}', b'{"filters": [{"column": "width", "least": NaN}]}', b'{"picture": "../../x"}',
     b'{"text": "' + b"a" * 2000 + b'"}', b"[" * 5000, b'{"like": ' + json.dumps(["x"] * 60).encode() + b"}",
     b"\xff\xfe"],
)  # fmt: skip
def test_a_malformed_question_is_refused_in_words(client: httpx.Client, body: bytes):
    done = client.post("/api/search", content=body, headers=JSON)
    assert done.status_code in (400, 422) and done.json()["error"], done.text


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:22/", "http://169.254.169.254/latest/meta-data/", "https://example.com/cat.jpg", "HTTP://[::1]/x",
     " ftp://10.0.0.1/x", "file:///etc/passwd", "data:image/png;base64,AAAA"],
)  # fmt: skip
def test_no_address_is_ever_fetched(client: httpx.Client, monkeypatch: pytest.MonkeyPatch, address: str):
    """Private or public: the server fetches nothing, so there is nothing to reach through it."""
    import socket

    real, reached = socket.socket.connect, []
    own = str(client.base_url).rpartition(":")[2].strip("/")

    def connect(self: socket.socket, where: Any) -> None:
        if str(where[1]) != own:
            reached.append(where)
        real(self, where)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for question in ({"text": address}, {"without": address}):
        done = client.post("/api/search", json=question)
        assert done.status_code == 422 and "fetches nothing" in done.json()["error"]
    assert hand_in(client, address.encode()).status_code == 422
    assert client.post("/api/search", json={"picture": address}).status_code == 422
    assert client.post("/api/search", json={"picture_url": address}).status_code == 422
    assert not reached


# -- browsers --------------------------------------------------------------------------------------------------------


def test_every_answer_has_the_headers_that_bind_a_browser(client: httpx.Client):
    paths = ["/", "/app.js", "/docs", "/api/about", "/openapi.json", "/nothing", "/thumb?id=pictures/002.jpg",
             "/original?id=pictures/002.jpg", "/thumb?id=nothing"]  # fmt: skip
    for path in paths:
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "cache-control" in headers and "access-control-allow-origin" not in headers


def test_pages_hold_no_script_or_style_of_their_own(client: httpx.Client):
    import re

    for path in ("/", "/docs"):
        html = client.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|javascript:", html)
    for name in (
        "app.js",
        "grid.js",
        "detail.js",
        "filters.js",
        "dom.js",
        "docs.js",
        "exporting.js",
        "state.js",
        "api.js",
    ):
        code = client.get(f"/{name}").text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", code)
        assert not re.search(r"https?://(?!www\.w3\.org)", code), "nothing from elsewhere"


def test_a_caption_is_sent_as_json_and_never_as_a_page(client: httpx.Client):
    done = client.post("/api/search", json={"limit": 1})
    assert done.headers["content-type"] == "application/json" and done.json()["results"][0]["row"]["text"] == EVIL
    for path in ("/thumb", "/api/export/x", "/" + EVIL):
        answer = client.get(path, params={"id": EVIL})
        assert "html" not in answer.headers["content-type"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
    "[::1", "127.0.0.1:80:80", "", "user@127.0.0.1", "10.0.0.1", "127.0.0.1,evil.example"])  # fmt: skip
def test_a_name_that_was_rebound_to_this_machine_is_refused(world, host: str):
    status, body = raw(world[0], "GET", "/api/about", {"Host": host})
    assert status in (400, 421) and b"rows" not in body


def test_without_a_host_or_with_two_it_does_not_answer(world):
    port = urlsplit(world[0]).port
    import socket

    for head in (b"GET /api/about HTTP/1.0\r\n\r\n",
                 b"GET /api/about HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head)
            answer = connection.recv(65536)
        assert answer.split()[1] in (b"400", b"421") and b'"rows"' not in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:5"])
def test_its_own_names_are_answered_to(world, host: str):
    assert raw(world[0], "GET", "/api/about", {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
     {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
     {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
     {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}],
)  # fmt: skip
def test_pages_of_other_sites_get_nothing(client: httpx.Client, headers: dict[str, str]):
    for path in ("/api/about", "/thumb?id=pictures/002.jpg", "/original?id=pictures/002.jpg", "/openapi.json"):
        assert client.get(path, headers=headers).status_code == 403
    assert client.post("/api/search", json={}, headers=headers).status_code == 403
    assert client.post("/api/export", json={"format": "csv"}, headers=headers).status_code == 403


def test_a_link_from_elsewhere_opens_the_page_but_no_frame_does(client: httpx.Client):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/?q=dog", headers=link).status_code == 200
    assert client.get("/", headers=link | {"sec-fetch-dest": "iframe"}).status_code == 403
    assert client.post("/", headers=link, content=b"").status_code in (403, 405)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_what_a_form_can_send_is_refused(client: httpx.Client, kind: str):
    for path, body in (("/api/search", b'{"text": "x"}'), ("/api/picture", picture((1, 2, 3))), ("/api/export", b"{}")):
        assert client.post(path, content=body, headers={"content-type": kind}).status_code == 415


def test_there_are_no_websockets(world):
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    assert raw(world[0], "GET", "/api/about", headers)[0] != 101


# -- who may see what ------------------------------------------------------------------------------------------------


def test_with_safe_nothing_unsafe_leaves(tmp_path: Path):
    index, encoder = make_index(tmp_path, 3, {0: {"punsafe": None}})
    bad = ["pictures/000.jpg", "pictures/004.jpg", "pictures/009.jpg"]
    with served(tmp_path, index, encoder, safe=True) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/api/about").json()["always_safe"]
        for question in (
            {},
            {"text": "red"},
            {"text": "thing", "space": "words"},
            {"where": "punsafe > 0.5 or width > 0"},
        ):
            answer = client.post("/api/search", json={**question, "safe": False, "fold": False}).json()
            found = [one["id"] for one in answer["results"]]
            assert answer["matching"] == 9 == len(found) and not set(found) & set(bad)
            folded = client.post("/api/search", json={**question, "safe": False}).json()["results"]
            assert not {i for one in folded for i in one["folded"]} & set(bad)
        for i in bad:
            assert client.get("/thumb", params={"id": i}).status_code == 404
            assert client.get("/original", params={"id": i}).status_code == 404
            assert client.post("/api/search", json={"like": [i]}).status_code == 410
        ready = client.post("/api/export", json={"format": "csv", "ids": [*bad, "pictures/001.jpg"]}).json()
        assert ready["rows"] == 1
        wish = {"format": "csv", "question": {"text": "red", "safe": False, "fold": False}}
        assert client.post("/api/export", json=wish).json()["rows"] == 9


def test_safe_without_scores_is_refused(tmp_path: Path):
    index, encoder = make_index(tmp_path, 1, {i: {"punsafe": None} for i in range(4)})
    with pytest.raises(DiptychError, match="--safe needs the score punsafe"):
        Explorer(index, encoder, safe=True)


def test_beyond_this_machine_nobody_is_told_where_files_lie(tmp_path: Path):
    index, encoder = make_index(tmp_path, 1)
    with served(tmp_path, index, encoder, host="0.0.0.0") as address, httpx.Client(base_url=address) as client:
        row = client.post("/api/search", json={"limit": 1}).json()["results"][0]["row"]
        assert "path" not in row and "source" not in row and str(tmp_path) not in json.dumps(row)
        token = client.post("/api/export", json={"format": "csv", "ids": ["pictures/000.jpg"]}).json()["token"]
        assert str(tmp_path) not in client.get(f"/api/export/{token}").text
        assert raw(address, "GET", "/api/about", {"Host": "192.168.1.7:8642"})[0] == 200, "a phone in the same network"
        assert raw(address, "GET", "/api/about", {"Host": "evil.example"})[0] == 421


def test_names_of_a_host():
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost") and is_loopback("127.1.2.3")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.7") and not is_loopback("photos.example")
    assert Guard(None, names_of("photos.example")).is_own("photos.example:80")
    assert not Guard(None, names_of("127.0.0.1")).is_own("192.168.1.7")


def test_a_spreadsheet_gets_no_formula(tmp_path: Path):
    index, encoder = make_index(tmp_path, 1, {0: {"text": '=HYPERLINK("http://evil.example","x")'}})
    with served(tmp_path, index, encoder) as address, httpx.Client(base_url=address) as client:
        token = client.post("/api/export", json={"format": "csv", "ids": ["pictures/000.jpg"]}).json()["token"]
        line = client.get(f"/api/export/{token}").text.splitlines()[1]
        assert "\"'=HYPERLINK" in line
    assert io.StringIO(line).read().count('"=') == 0
