"""The explorer under load: how long a text query takes over HTTP among 200,000 rows, alone and with 50 users.

    python benchmarks/captions.py WORK/captions                      half an hour, once
    python benchmarks/explorer.py WORK/captions [--users 50] [--seconds 60] [--repeat 3]

The rows are the captions' embeddings by `mini`, with their texts, scores and sizes, and a drawing each (of 400 drawings
that take turns). The server is `diptych serve` in a process of its own, as a user starts it: safe mode and folding on.
Every query is a caption that is not among the rows and was not asked before, so that no cache answers it. "alone": one
user, one query after the other. "users": each asks once a second, at a time of its own within the second, and after
each answer fetches some of the thumbnails. Measured from the first byte sent to the last received, by a plain client
on asyncio in this process, on the same cores. "floor" is the least that a query must do: the model on one text, and
numpy's product with all rows, in this process, before the server starts.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from captions import captions
from PIL import Image, ImageDraw

from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.search.encoder import Encoder
from diptych.search.index import Index
from diptych.search.web.server import leave_cores

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "explorer.json"
ASKED = {"alone_p95_ms": 150.0, "users_p95_ms": 1000.0, "errors": 0}
DRAWINGS, THUMBS, ALONE = 400, 4, 100


def drawings(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.jpg" for i in range(DRAWINGS)]
    for i, path in enumerate(paths):
        if path.is_file():
            continue
        rng = np.random.default_rng(i)
        image = Image.new("RGB", (800, 600), tuple(rng.integers(150, 255, 3).tolist()))
        pen = ImageDraw.Draw(image)
        for _ in range(30):
            x, y, r = rng.integers(0, 800), rng.integers(0, 600), rng.integers(20, 160)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 255, 3).tolist()))
        image.save(path, quality=90)
    return paths


def build(work: Path, made_by: Encoder) -> Path:
    """The index of all captions; kept where it is whole."""
    where = work.with_name(f"{work.name}_explorer.lance")
    vectors = np.load(work.with_suffix(".npy"), mmap_mode="r")
    if Index.exists(where) and len(Index.open(where)) == len(vectors):
        return where
    shutil.rmtree(where, ignore_errors=True)
    pictures = drawings(work.with_name(f"{work.name}_drawings"))
    index = Index.create(where, made_by.model, made_by.dim)
    with open(work.with_suffix(".jsonl"), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for start in range(0, len(rows), 20_000):
        some = [
            row | {"path": str(pictures[(start + i) % DRAWINGS]), "size": (start + i) % DRAWINGS, "mtime": 0}
            for i, row in enumerate(rows[start : start + 20_000])
        ]
        part = vectors[start : start + 20_000]
        index.add(some, np.pad(part, ((0, 0), (0, made_by.dim - part.shape[1]))))  # mini's texts end in zeros
    index.tidy()
    return where


def new_texts(work: Path, count: int) -> list[str]:
    with open(work.with_suffix(".jsonl"), encoding="utf-8") as file:
        known = {json.loads(line)["text"] for line in file}
    return [text for text in dict.fromkeys(captions(2 * count, seed=7)) if text not in known][:count]


# -- a client that costs little --------------------------------------------------------------------------------------


class Client:
    """One connection that is kept."""

    def __init__(self, address: str) -> None:
        self.host = urlsplit(address).netloc
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, float]:
        """-> status, body, milliseconds."""
        if self.streams is None:
            host, _, port = self.host.partition(":")
            self.streams = await asyncio.open_connection(host, int(port), limit=1 << 22)
        reader, writer = self.streams
        started = time.perf_counter()
        kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\n{kind}\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        data = await reader.readexactly(int(length[1])) if length else b""
        return int(head.split(None, 2)[1]), data, (time.perf_counter() - started) * 1000

    async def search(self, text: str) -> tuple[int, dict[str, Any], float]:
        status, data, taken = await self.ask("POST", "/api/search", json.dumps({"text": text}).encode())
        return status, json.loads(data), taken


async def alone(address: str, texts: Sequence[str]) -> dict[str, Any]:
    client, times, server = Client(address), [], []
    for text in texts:
        status, answer, taken = await client.search(text)
        assert status == 200 and len(answer["results"]) == 60, answer
        times.append(taken)
        server.append(answer["milliseconds"])
    return percentiles(times) | {"server_p50_ms": round(statistics.median(server), 1)}


async def crowd(address: str, texts: Sequence[str], users: int, seconds: int) -> dict[str, Any]:
    times: list[float] = []
    thumbs: list[float] = []
    errors: list[str] = []
    rng = np.random.default_rng(0)
    began = time.perf_counter() + 0.5

    async def user(number: int) -> None:
        client, offset = Client(address), float(rng.random())
        for second in range(seconds):
            await asyncio.sleep(max(0.0, began + second + offset - time.perf_counter()))
            try:
                status, answer, taken = await client.search(texts[number * seconds + second])
                times.append(taken)
                if status != 200:
                    errors.append(f"search {status}")
                    continue
                for one in answer["results"][:THUMBS]:
                    where = urlencode({"id": one["id"], "side": 320, "v": one["version"]})
                    status, _, taken = await client.ask("GET", f"/thumb?{where}")
                    thumbs.append(taken)
                    if status != 200:
                        errors.append(f"thumb {status}")
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                errors.append(repr(error))
                client.streams = None

    await asyncio.gather(*map(user, range(users)))
    wall = time.perf_counter() - began
    return percentiles(times) | {
        "queries": len(times), "queries_a_second": round(len(times) / wall, 1), "errors": len(errors),
        "errors_said": errors[:5], "thumbs": percentiles(thumbs),
    }  # fmt: skip


def percentiles(times: Sequence[float]) -> dict[str, float]:
    found = np.percentile(times, [50, 95, 99, 100]).round(1).tolist()
    return dict(zip(("p50_ms", "p95_ms", "p99_ms", "max_ms"), found, strict=True))


# -- the run ---------------------------------------------------------------------------------------------------------


def floor(made_by: Encoder, where: Path, texts: Sequence[str]) -> dict[str, float]:
    matrix = Index.open(where).memory.refresh().pictures.matrix
    model, product = [], []
    for text in texts:
        start = time.perf_counter()
        query = made_by.texts([text])[0]
        middle = time.perf_counter()
        np.argpartition(matrix @ query, -60)
        model.append((middle - start) * 1000)
        product.append((time.perf_counter() - middle) * 1000)
    return {"model_p50_ms": round(statistics.median(model), 1), "product_p50_ms": round(statistics.median(product), 1)}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(where: Path) -> tuple[subprocess.Popen[str], str, float]:
    began = time.perf_counter()
    words = [sys.executable, "-m", "diptych", "serve", str(where), "--port", "0", "--no-open"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, f"the server did not start: {line}"
    return server, found[0], time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="of captions.py: WORK/captions of WORK/captions.npy and .jsonl")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into docs/results")
    given = parser.parse_args()
    made_by = Encoder.open("mini", "cpu")
    where = build(given.work, made_by)
    texts = new_texts(given.work, given.repeat * (ALONE + given.users * given.seconds) + 40)
    leave_cores()  # as the server does
    least = floor(made_by, where, texts[:20])
    print("floor", least, flush=True)
    server, address, seconds = start(where)
    runs = []
    try:
        asyncio.run(alone(address, texts[20:40]))  # warm
        at = 40
        for _ in range(given.repeat):
            run: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 1), "nice": os.nice(0)}
            run["alone"] = asyncio.run(alone(address, texts[at : at + ALONE]))
            at += ALONE
            before, own = cpu_seconds(server.pid), time.process_time()
            run["users"] = asyncio.run(crowd(address, texts[at:], given.users, given.seconds))
            at += given.users * given.seconds
            run["server_cores"] = round((cpu_seconds(server.pid) - before) / given.seconds, 2)
            run["client_cores"] = round((time.process_time() - own) / given.seconds, 2)
            memory = Path(f"/proc/{server.pid}/status").read_text()
            run["server_peak_mb"] = int(re.search(r"VmHWM:\s+(\d+)", memory)[1]) // 1024  # type: ignore[index]
            print(json.dumps(run), flush=True)
            runs.append(run)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    alone_p95, users_p95 = (statistics.median(run[name]["p95_ms"] for run in runs) for name in ("alone", "users"))
    errors = sum(run["users"]["errors"] for run in runs)
    report = {
        "rows": len(Index.open(where)), "dim": made_by.dim, "users": given.users, "seconds": given.seconds,
        "floor": least, "start_seconds": round(seconds, 1), "runs": runs, "asked": ASKED,
        "reached": {
            "alone_p95_ms": [alone_p95, alone_p95 <= ASKED["alone_p95_ms"]],
            "users_p95_ms": [users_p95, users_p95 <= ASKED["users_p95_ms"]],
            "errors": [errors, errors == 0],
        },
        "provenance": provenance(),
    }  # fmt: skip
    print(json.dumps(report["reached"]))
    if given.write:
        write_atomically(RESULTS, json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
