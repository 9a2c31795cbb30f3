"""One file from an address that a stranger wrote, or the reason why not.

The address may be anything, and so may what answers. Only http and https are spoken. A host's name is looked up once
and the connection goes to the very address that was looked at, so that a name cannot change its meaning in between
(DNS rebinding); addresses that are not of the public internet are refused, at every redirect again, unless their host
is allowed by name. Time, size and number of redirects are bounded. Certificates are verified. Proxies are not used: who
connects through one cannot know where to.
"""

import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException, HTTPResponse
from urllib.parse import quote, urljoin, urlsplit

from diptych.methods.curate.parts.web_rules import address_fault

DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")  # their colon names no agent
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
KNOWN = (401, 403, 404, 410, 429)  # named in the report; other codes by their hundred, so that there are few
CHUNK = 1 << 16
SAFE = "%/:=&?~+!$,;'@()*[]"  # of an address that is quoted already, or should have been
# IPv6 whose last four bytes are an IPv4 address.
EMBEDDING = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))


@dataclass(frozen=True)
class Manners:
    """How to ask. timeout: seconds for each answer, and a third of what the whole may take; most_bytes: of a file;
    allowed: hosts ("localhost", "127.0.0.1:8000") that may lie in a private network."""

    user_agent: str = "diptych"
    token: str = ""  # our name in X-Robots-Tag
    refused: tuple[str, ...] = DIRECTIVES  # directives that we obey
    timeout: float = 10.0
    most_bytes: int = 1 << 25
    allowed: tuple[str, ...] = ()


class NoFile(Exception):
    """why: the kind of the failure, one of few; the message says more."""

    def __init__(self, why: str, more: str = "") -> None:
        super().__init__(f"{why}: {more}" if more else why)
        self.why = why


def fetch(url: str, manners: Manners) -> bytes:
    """The file. Raises NoFile."""
    deadline = time.monotonic() + 3 * manners.timeout
    for _ in range(MOST_REDIRECTS + 1):
        if fault := address_fault(url):
            raise NoFile("refused address", fault)
        try:
            found = answer(url, manners, deadline)
        except TimeoutError as error:
            raise NoFile("timeout") from error
        except ssl.SSLError as error:
            raise NoFile("connection failed", f"TLS, {error.reason or error}") from error
        except (OSError, HTTPException, UnicodeError, ValueError) as error:
            raise NoFile("connection failed", str(error) or type(error).__name__) from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, quote(found.encode("latin-1"), safe=SAFE + "#"))
    raise NoFile("too many redirects")


def answer(url: str, manners: Manners, deadline: float) -> bytes | str:
    """The file, or where it has moved to."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    host = parts.hostname.rstrip(".")
    name = host if ":" in host or host.isascii() else host.encode("idna").decode()
    shown = f"[{name}]" if ":" in name else name
    free = bool({host, name, f"{shown}:{port}"} & set(manners.allowed))
    with connect(addresses(name, port, free), port, manners.timeout) as plain:
        secure = parts.scheme.lower() == "https"
        with context().wrap_socket(plain, server_hostname=name) if secure else plain as connection:
            path = quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")
            head = {
                "Host": shown if port == (443 if secure else 80) else f"{shown}:{port}",
                "User-Agent": manners.user_agent,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
                "Connection": "close",
            }
            lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
            connection.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
            response = HTTPResponse(Timed(connection, manners.timeout, deadline), method="GET")  # type: ignore[arg-type]
            response.begin()
            return taken(response, manners)


def taken(response: HTTPResponse, manners: Manners) -> bytes | str:
    """What an answer amounts to, read no further than need be."""
    if response.status in REDIRECTS and (target := response.getheader("Location")):
        return target
    if response.status != 200:
        raise NoFile(f"HTTP {response.status}" if response.status in KNOWN else f"HTTP {response.status // 100}xx")
    if refusal := refused_by(response.headers.get_all("X-Robots-Tag", []), manners.token, manners.refused):
        raise NoFile("refused by X-Robots-Tag", refusal)
    if response.length is not None and response.length > manners.most_bytes:
        raise NoFile("too large", f"{response.length} bytes")
    data = bytearray()
    while block := response.read(CHUNK):
        data += block
        if len(data) > manners.most_bytes:
            raise NoFile("too large", f"more than {manners.most_bytes} bytes")
    if response.length:
        raise NoFile("cut off", f"{response.length} bytes are missing")
    return bytes(data)


def refused_by(values: Sequence[str], token: str, refused: Collection[str]) -> str:
    """The directive of X-Robots-Tag headers that forbids the use, to everybody or to `token`; "" where none does.

    `noai`, `noindex, nofollow`, `somebot: noai`: a name holds for what follows it in the same header.
    """
    for value in values:
        agent = ""
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in VALUED:
                agent, part = name.strip(), rest
            if part.strip() in refused and agent in ("", "*", token.lower()):
                return part.strip()
    return ""


# -- where a connection may lead ---------------------------------------------------------------------------------------


def addresses(host: str, port: int, allowed: bool) -> list[str]:
    """The IP addresses of a host that we may connect to. Raises NoFile where there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NoFile("unknown host", host) from error
    every = list(dict.fromkeys(str(one[4][0]) for one in found))
    public = [one for one in every if allowed or is_public(one)]
    if not public:
        raise NoFile("private address", f"{host} is {', '.join(every)}")
    return public


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, and so is any that it stands for."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return all(one.is_global and not one.is_multicast for one in (ip, *inner(ip)))


def inner(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 address leads to: mapped, compatible, NAT64, 6to4, Teredo."""
    if isinstance(ip, ipaddress.IPv4Address):
        return
    if ip.ipv4_mapped:
        yield ip.ipv4_mapped
    if ip.sixtofour:
        yield ip.sixtofour
    if ip.teredo:
        yield from ip.teredo
    if any(ip in network for network in EMBEDDING):
        yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)


def connect(found: Sequence[str], port: int, timeout: float) -> socket.socket:
    """To the first of these addresses that answers."""
    for address in found[:-1]:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError:  # the next may do
            continue
    return socket.create_connection((found[-1], port), timeout)


@cache
def context() -> ssl.SSLContext:
    return ssl.create_default_context()


class Timed(io.RawIOBase):
    """A connection as the file that HTTPResponse reads; no wait reaches beyond the deadline."""

    def __init__(self, connection: socket.socket, timeout: float, deadline: float) -> None:
        self.connection, self.timeout, self.deadline = connection, timeout, deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(min(self.timeout, left))
        return self.connection.recv_into(buffer)
