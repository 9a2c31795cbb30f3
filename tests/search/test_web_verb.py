"""`diptych serve`: where it listens, what it says, what it refuses; the wheel has the page."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import colour_clip
from web_world import make_index

from diptych.cli.main import main
from diptych.search.web import server
from diptych.search.web.app import page_files


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import diptych.core.load as loading

    monkeypatch.setattr(loading, "load", lambda name="mini", device=None: colour_clip())
    make_index(tmp_path, 1)
    return tmp_path / "my.lance"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["serve", *words])
    return code, *capsys.readouterr()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Instead of running: the address that is listened on, and what the browser is shown."""
    seen: list[tuple[str, str | None]] = []

    def run(app: Any, at: socket.socket, ready: Any) -> None:
        seen.append((at.getsockname()[0], None))
        ready()

    monkeypatch.setattr(server, "run", run)
    monkeypatch.setattr(server.webbrowser, "open", lambda url: seen.append(("browser", url)))
    return seen


def test_it_listens_on_this_machine_alone(index: Path, started: list[Any], capsys: pytest.CaptureFixture[str]):
    code, out, err = said(capsys, str(index), "--port", "0")
    assert code == 0 and started == [("127.0.0.1", None)] and not err
    assert re.search(r"4 pictures at http://127\.0\.0\.1:\d+", out)


def test_elsewhere_it_says_so_loudly(index: Path, started: list[Any], capsys: pytest.CaptureFixture[str]):
    code, _, err = said(capsys, str(index), "--port", "0", "--host", "0.0.0.0", "--open")
    assert code == 0 and started[0][0] == "0.0.0.0" and "WARNING" in err and "without a password" in err
    while len(started) < 2:
        time.sleep(0.01)
    assert started[1][0] == "browser" and re.fullmatch(r"http://127\.0\.0\.1:\d+", started[1][1])


def test_what_cannot_be_is_said(index: Path, started: list[Any], capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = said(capsys, str(index), "--port", str(port))
        assert code == 2 and f"--port {port + 1}" in err and "in use" in err
    for words, why in (
        (("--port", "70000"), "65535"), (("--port", "x"), "whole number"),
        (("--host", "no.such.host.invalid"), "cannot listen"),
        (("--prot", "1"), 'did you mean "--port"'), (("--model", "nothing"), "no model"),
    ):  # fmt: skip
        code, _, err = said(capsys, str(index), *words)
        assert code == 2 and why in err, err
    code, _, err = said(capsys, str(index.with_name("other.lance")))
    assert code == 2 and 'did you mean "my.lance"' in err
    assert not started


def test_it_answers_and_stops(index: Path, monkeypatch: pytest.MonkeyPatch):
    """The loop that the verb runs, with a browser that is asked to open what answers."""
    import uvicorn

    shown, servers = [], []
    monkeypatch.setattr(
        server.webbrowser, "open", lambda url: shown.append(httpx.get(f"{url}/", trust_env=False).status_code)
    )
    real = uvicorn.Server.startup

    async def startup(self: uvicorn.Server, sockets: Any = None) -> None:
        await real(self, sockets)
        servers.append(self)

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    lines: list[str] = []
    work = threading.Thread(
        target=server.serve, args=(index,), kwargs={"port": 0, "open_browser": True, "say": lines.append}
    )
    work.start()
    while not lines:
        assert work.is_alive()
        time.sleep(0.01)
    address = lines[0].split(" at ")[1].split()[0]
    while not servers or not shown:
        assert work.is_alive()
        time.sleep(0.01)
    answer = httpx.get(address)
    assert answer.status_code == 200 and "server" not in answer.headers and shown == [200]
    servers[0].should_exit = True
    work.join(10)
    assert not work.is_alive()


def test_ctrl_c_ends_the_process_cleanly(index: Path):
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from fakes import colour_clip; import diptych.core.load as loading\n"
        "loading.load = lambda name='mini', device=None: colour_clip()\n"
        "from diptych.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "serve", str(index), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().split(" at ")[1].split()[0]
    assert httpx.get(f"{address}/api/about").status_code == 200
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (0, 130) and "Traceback" not in err


def test_the_page_is_part_of_the_package():
    names = set(page_files())
    assert {"index.html", "style.css", "app.js", "docs.html", "icon.svg"} <= names
    folder = Path(server.__file__).parent / "static"
    assert names == {path.name for path in folder.iterdir()}
    html = (folder / "index.html").read_text("utf-8") + (folder / "docs.html").read_text("utf-8")
    code = "".join(path.read_text("utf-8") for path in folder.glob("*.js"))
    for wanted in [*re.findall(r'(?:href|src)="/([\w.]+\.\w+)"', html), *re.findall(r'from "\./([\w.]+)"', code)]:
        assert wanted in names | {"openapi.json"}, wanted
