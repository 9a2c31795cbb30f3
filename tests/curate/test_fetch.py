"""Fetching from addresses of strangers: what is refused, and that nothing holds it up."""

import socket
import time

import pytest
from web_server import Answer, Web, serving

from diptych.methods.curate.parts import fetch as fetching
from diptych.methods.curate.parts.fetch import Manners, NoFile, fetch, is_public, refused_by

FILE = b"a file" * 1000
OURS = Manners(user_agent="tester", token="tester", timeout=0.5, most_bytes=50_000, allowed=("127.0.0.1",))
ANSWERS = {
    "/file": Answer(FILE),
    "/file%20a?q=1": Answer(b"quoted"),
    "/chunked": Answer(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    "/missing": Answer(b"", 404),
    "/teapot": Answer(b"", 418),
    "/error": Answer(b"", 503),
    "/slow": Answer(FILE, wait=3),
    "/drip": Answer(FILE, drip=0.1),
    "/drip-head": Answer(raw=b"HTTP/1.1 200 OK\r\nA: "),
    "/said-large": Answer(b"x", length=10_000_000),
    "/endless": Answer(endless=True),
    "/short": Answer(b"half", length=100),
    "/noai": Answer(FILE, headers=(("X-Robots-Tag", "noai"),)),
    "/for-us": Answer(FILE, headers=(("X-Robots-Tag", "otherbot: nofollow"), ("X-Robots-Tag", "Tester: noindex"))),
    "/for-others": Answer(FILE, headers=(("X-Robots-Tag", "otherbot: noai, noindex"),)),
    "/moved": Answer(status=302, headers=(("Location", "/file"),)),
    "/moved-away": Answer(status=301, headers=(("Location", "//elsewhere.example/x"),)),
    "/loop": Answer(status=302, headers=(("Location", "/loop"),)),
    "/to-file": Answer(status=302, headers=(("Location", "file:///etc/passwd"),)),
    "/to-metadata": Answer(status=307, headers=(("Location", "http://169.254.169.254/latest/meta-data/"),)),
    "/to-localhost": Answer(status=308, headers=(("Location", "http://localhost:1/x"),)),
    "/nonsense": Answer(raw=b"\x00\x01\x02 no HTTP at all\r\n\r\n"),
    "/many-headers": Answer(raw=b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n"),
}


@pytest.fixture(scope="module")
def web():
    with serving(ANSWERS) as web:
        yield web


def test_a_file_comes_as_it_is(web: Web):
    assert fetch(f"{web.root}/file", OURS) == FILE
    assert fetch(f"{web.root}/chunked", OURS) == b"abcde"
    assert fetch(f"{web.root}/file%20a?q=1#part", OURS) == b"quoted"
    assert web.heads["/file"]["User-Agent"] == "tester"
    assert web.heads["/file"]["Host"] == f"127.0.0.1:{web.port}"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/missing", "HTTP 404"),
        ("/teapot", "HTTP 4xx"),
        ("/error", "HTTP 5xx"),
        ("/slow", "timeout"),
        ("/drip", "timeout"),
        ("/said-large", "too large"),
        ("/endless", "too large"),
        ("/short", "cut off"),
        ("/noai", "refused by X-Robots-Tag"),
        ("/for-us", "refused by X-Robots-Tag"),
        ("/loop", "too many redirects"),
        ("/to-file", "refused address"),
        ("/to-metadata", "private address"),
        ("/to-localhost", "private address"),
        ("/nonsense", "connection failed"),
        ("/many-headers", "connection failed"),
    ],
)
def test_what_does_not_come_says_why(web: Web, path: str, why: str):
    start = time.monotonic()
    with pytest.raises(NoFile) as error:
        fetch(web.root + path, OURS)
    assert error.value.why == why
    assert time.monotonic() - start < 2.5  # the whole of it, however slowly the bytes come


def test_redirects_are_followed(web: Web):
    assert fetch(f"{web.root}/moved", OURS) == FILE
    assert fetch(f"{web.root}/for-others", OURS) == FILE


def test_this_machine_is_not_asked_unless_allowed(web: Web):
    before = web.asked.total()
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]"):
        with pytest.raises(NoFile) as error:
            fetch(f"http://{host}:{web.port}/file", Manners(timeout=0.5))
        assert error.value.why in ("private address", "unknown host"), host
    assert web.asked.total() == before
    with pytest.raises(NoFile, match="private"):
        fetch(f"{web.root}/file", Manners(timeout=0.5, allowed=("127.0.0.1:1", "localhost")))
    assert fetch(f"{web.root}/file", Manners(allowed=(f"127.0.0.1:{web.port}",))) == FILE


def test_a_name_is_looked_up_once_and_that_address_is_asked(web: Web, monkeypatch: pytest.MonkeyPatch):
    """A name that is public when it is looked at and private when it is connected to gets nowhere."""
    looked, real = [], socket.getaddrinfo

    def turning(host, port, *more, **others):
        if host != "turning.example":
            return real(host, port, *more, **others)
        looked.append(host)
        return real("93.184.215.14" if len(looked) == 1 else "127.0.0.1", port, *more, **others)

    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(fetching.socket, "getaddrinfo", turning)
    monkeypatch.setattr(fetching.socket, "create_connection", connect)
    with pytest.raises(NoFile, match="no network here"):
        fetch(f"http://turning.example:{web.port}/file", Manners())
    assert asked == [("93.184.215.14", web.port)] and looked == ["turning.example"]


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a.example/x", "gopher://x", "data:,x", "", "http://", "http://[::1", "//a.example/x",
     "http://a.example:99999/", "http://a b.example/", "http://a.example/\r\nX: y", "http://" + "a" * 5000],
)  # fmt: skip
def test_only_addresses_of_the_web(url: str):
    with pytest.raises(NoFile, match="refused address"):
        fetch(url, OURS)


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".example", "ü" * 80, "\udcff"])
def test_odd_names_of_hosts(host: str):
    with pytest.raises(NoFile):
        fetch(f"http://{host}/", OURS)


PRIVATE = """127.0.0.1 127.8.9.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 0.1.2.3 224.0.0.1
    239.1.1.1 255.255.255.255 240.0.0.1 192.0.2.1 198.18.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::10.0.0.1 2002:7f00:1:: 2002:a00:1::
    2001:0:7f00:1:: 2001:db8::1"""


def test_private_addresses_are_known():
    assert [one for one in PRIVATE.split() if is_public(one)] == []
    assert all(map(is_public, ("93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8")))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["noai"], "noai"),
        (["NoIndex , nofollow"], "noindex"),
        (["nofollow"], ""),
        (["unavailable_after: 25 Jun 2027 15:00:00 PST, noimageai"], "noimageai"),
        (["max-snippet: 5"], ""),
        (["googlebot: noai"], ""),
        (["googlebot: noai, noindex"], ""),
        (["googlebot: noai, me: nofollow, noimageindex"], "noimageindex"),
        (["googlebot: noai", "noindex"], "noindex"),
        (["*: noai"], "noai"),
        (["ME:noai"], "noai"),
        ([], ""),
    ],
)
def test_robots_headers(values: list[str], found: str):
    assert refused_by(values, "me", fetching.DIRECTIVES) == found
    assert refused_by(values, "me", ()) == ""


def test_certificates_are_verified(tmp_path):
    assert fetching.context().verify_mode == fetching.ssl.CERT_REQUIRED and fetching.context().check_hostname
