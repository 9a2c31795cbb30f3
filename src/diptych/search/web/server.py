"""From an index's folder to a server that runs: `diptych.serve`."""

import os
import socket as sockets
import threading
import webbrowser
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from diptych.errors import DiptychError
from diptych.search.encoder import Encoder
from diptych.search.index import Index
from diptych.search.web.guard import ANYWHERE, is_loopback

MOST = 512  # requests at a time; more are told to come again


def serve(
    db: str | Path,
    host: str = "127.0.0.1",
    port: int = 8642,
    *,
    safe: bool = False,
    open_browser: bool = False,
    model: str | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
) -> None:
    """The explorer of an index, until it is stopped. host: other than loopback, everyone who can reach this machine
    sees the pictures, and `warn` says so. safe: show and export nothing that is not known to be safe. model: where the
    index's model is, if not where it was. Raises DiptychError."""
    from diptych.search.web.app import create_app

    index = Index.open(db)
    leave_cores()
    with listen(host, port) as socket:  # a port that is taken is said before the model is opened
        app = create_app(index, Encoder.of(index.model, device, model), host=host, safe=safe)
        address = address_of(host, socket)
        if not is_loopback(host):
            warn(
                f"WARNING: listening on {host}: everyone who can reach this machine sees these pictures and their "
                "captions, without a password"
            )

        def ready() -> None:
            say(f"{db}: {len(index)} pictures at {address}   (Ctrl-C stops)")
            if open_browser:  # some browsers of a terminal come back only when they are left
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        run(app, socket, ready)


def leave_cores() -> None:
    """Half of the cores for the model and the products, the others for answering and for pictures: threads that wait
    for each other on cores that are busy take ten times as long."""
    import threadpoolctl
    import torch

    half = max(1, (os.cpu_count() or 1) // 2)
    torch.set_num_threads(half)
    threadpoolctl.threadpool_limits(half)


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


def run(app: Any, socket: sockets.socket, ready: Callable[[], None]) -> None:
    """Until it is stopped; ready: called when it answers."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app, log_level="warning", server_header=False, limit_concurrency=MOST, timeout_graceful_shutdown=3
    )
    Server(config).run([socket])
