"""A web server for tests, on this machine: answers of every kind, and a book of what was asked."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What a path gives. wait: seconds before the answer; drip: seconds between its bytes; length: said in the head;
    endless: the body never ends."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    wait: float = 0.0
    drip: float = 0.0
    length: int | None = None
    endless: bool = False
    raw: bytes = b""  # instead of all: what goes over the wire


@dataclass
class Web:
    """port; asked: how often each path was asked for; heads: the last request's headers by path."""

    port: int
    asked: Counter[str] = field(default_factory=Counter)
    heads: dict[str, dict[str, str]] = field(default_factory=dict)
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(answers: Mapping[str, Answer], port: int = 0) -> Iterator[Web]:
    """`answers` by path may grow while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked[self.path] += 1
            web.heads[self.path] = dict(self.headers)
            try:
                self.reply(answers.get(self.path, Answer(b"nothing here", 404)))
            except OSError:  # the client has had enough
                self.close_connection = True

        def reply(self, answer: Answer) -> None:
            if answer.wait:
                web.gone.wait(answer.wait)
            if answer.raw:
                self.wfile.write(answer.raw)
                return
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            if not answer.endless:
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            self.end_headers()
            while answer.endless and not web.gone.is_set():
                self.wfile.write(bytes(1 << 16))
            for n in range(len(answer.body) if answer.drip else 0):
                self.wfile.write(answer.body[n : n + 1])
                if web.gone.wait(answer.drip):
                    return
            if not answer.drip:
                self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request, client_address) -> None: ...

    server = Quiet(("127.0.0.1", port), Handler)
    web = Web(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()
