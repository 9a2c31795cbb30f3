"""A stand-in for an OpenAI-compatible server: it answers as a test says, and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any, dict[str, str]]  # status, body (an object, or bytes as they are), headers


def completion(text: str) -> Answer:
    return 200, {"choices": [{"text": text}]}, {}


def chat(text: str) -> Answer:
    return 200, {"choices": [{"message": {"content": text}}]}, {}


@dataclass
class StandIn:
    """respond(path, body) -> what is answered; seen: (path, body, headers) of every request; most: at once."""

    respond: Callable[[str, dict[str, Any]], Answer]
    seconds: float = 0.0
    seen: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    address: str = ""
    now: int = 0
    most: int = 0

    @property
    def prompts(self) -> list[str]:
        return [body["prompt"] for _, body, _ in self.seen if "prompt" in body]


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stand_in.seen.append((self.path, body, dict(self.headers)))
                stand_in.now += 1
                stand_in.most = max(stand_in.most, stand_in.now)
                status, answer, headers = stand_in.respond(self.path, body)
            time.sleep(stand_in.seconds)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            with lock:
                stand_in.now -= 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    stand_in.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
