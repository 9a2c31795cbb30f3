"""The socket and the loop around the application."""

import socket as sockets
import webbrowser
from contextlib import closing
from typing import Any

from diptych.errors import DiptychError, missing_extra
from diptych.search.web.guard import ANYWHERE

MOST = 512  # requests at a time; more are told to come again


def listen(host: str, port: int) -> "closing[sockets.socket]":
    """A socket that is bound. Raises DiptychError where the port is taken or the host is not this machine's."""
    try:
        family, kind, protocol, _, where = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0]
        made = sockets.socket(family, kind, protocol)
        made.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        try:
            made.bind(where)
        except OSError:
            made.close()
            raise
    except (OSError, UnicodeError) as error:
        hint = f"; --port {port + 1 if port < 65535 else 0} or --port 0 may be free" if port else ""
        raise DiptychError(f"cannot listen on {host} port {port}: {error}{hint}") from error
    return closing(made)


def address_of(host: str, socket: sockets.socket) -> str:
    name = "127.0.0.1" if host in ANYWHERE else f"[{host}]" if ":" in host else host
    return f"http://{name}:{socket.getsockname()[1]}"


def serve(app: Any, socket: sockets.socket, show: str | None = None) -> None:
    """Until it is stopped; show: an address for the browser once it answers."""
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("uvicorn", "serve", "the explorer") from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if show:
                webbrowser.open(show)

    config = uvicorn.Config(
        app, log_level="warning", server_header=False, limit_concurrency=MOST, timeout_graceful_shutdown=3
    )
    Server(config).run([socket])
