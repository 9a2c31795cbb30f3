"""Who may ask, how much they may send, and what a browser may do with the answer.

The server listens on loopback, where every page that the user has open can reach it. So it answers only to its own
name (a stranger's domain that resolves to 127.0.0.1 is refused), and not to other sites' pages, forms and pictures.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

MAX_BODY = 24 << 20  # bytes; a picture of a phone has 3 to 12 MB
BODY_TYPES = ("application/json", "application/octet-stream", "image/")  # none that a form of another site can send
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::", "")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "x-robots-tag": "noindex, noimageai",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str) -> frozenset[str]:
    """The names a server that listens on `host` answers to. Elsewhere than on loopback all numeric addresses, too:
    a name that was rebound is not one of them."""
    if is_loopback(host):
        return frozenset({*LOOPBACK, host})
    own = socket.gethostname().lower()
    chosen = () if host in ANYWHERE else (host.lower(),)
    return frozenset({*LOOPBACK, *chosen, own, f"{own.partition('.')[0]}.local", "0.0.0.0/0"})


class Guard:
    """Around the application. names: what the Host header may say; "0.0.0.0/0" among them: any numeric address."""

    def __init__(self, app: Any, names: Iterable[str], max_body: int = MAX_BODY) -> None:
        self.app, self.names, self.max_body = app, frozenset(names), max_body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # a websocket: there are none here
            return await send({"type": "websocket.close", "code": 1008})

        async def protected(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if found := self.refusal(scope):
            status, why = found
            return await JSONResponse({"error": why}, status)(scope, receive, protected)
        return await self.app(scope, self.limited(receive), protected)

    def refusal(self, scope: Any) -> tuple[int, str] | None:
        headers, method = Headers(scope=scope), scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            return 421, "this server does not go by that name"
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{hosts[0]}":
            return 403, "not for pages of other sites"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            a_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (a_link and method == "GET" and scope["path"] == "/"):
                return 403, "not for pages of other sites"
        if method not in ("GET", "HEAD"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if not kind.startswith(BODY_TYPES):
                return 415, "send application/json, or a picture as image/... or application/octet-stream"
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "content-length is no number"
        if int(length) > self.max_body:
            return 413, self.too_much()
        return None

    def is_own(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name, closed, rest = name[1:].partition("]")
            if not closed:
                return False
        else:
            name, colon, port = name.partition(":")
            rest = colon + port
        if rest and not (rest[0] == ":" and rest[1:].isdigit()):
            return False
        if name in self.names:
            return True
        try:
            return "0.0.0.0/0" in self.names and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def too_much(self) -> str:
        return f"more than {self.max_body >> 20} MB"

    def limited(self, receive: Any) -> Any:
        """A body sent in chunks does not say how long it is: counted as it comes."""
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body:
                raise HTTPException(413, self.too_much())
            return message

        return counted
