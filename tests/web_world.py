"""A small index to explore: plain colours with captions, scores and classes, and a model that knows the colours."""

import contextlib
import hashlib
import io
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fakes import COLOURS, colour_clip
from PIL import Image

from diptych.search.embed import Outcome, update_captions
from diptych.search.encoder import Encoder
from diptych.search.index import Index
from diptych.search.web.app import create_app
from diptych.search.web.thumbs import Thumbs

NAMES = tuple(COLOURS)
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48), seed: int = 0, kind: str = "JPEG") -> bytes:
    """A noisy colour."""
    noise = np.random.default_rng(seed).integers(-30, 31, size=(size[1], size[0], 3))
    out = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(out, kind)
    return out.getvalue()


def make_index(
    root: Path, each: int = 10, changes: Mapping[int, Mapping[str, Any]] = {}, captions: bool = False
) -> tuple[Index, Encoder]:
    """`each` pictures of each colour; row i is NAMES[i % 4]; changes: of row i. Every fifth is unsafe. captions: with
    their embeddings."""
    encoder = Encoder(colour_clip())
    index = Index.create(root / "my.lance", encoder.model, encoder.dim)
    rows, vectors = [], []
    for i in range(each * len(NAMES)):
        name = NAMES[i % 4]
        tint = np.random.default_rng(i).normal(size=3) * 30
        colour = tuple(int(c) for c in (np.array(COLOURS[name]) + tint).clip(0, 255))
        size = (64, 48) if i % 3 else (48, 72)
        data = picture(colour, size, i)  # type: ignore[arg-type]
        path = root / f"{i:03d}.jpg"
        path.write_bytes(data)
        state = path.stat()
        rows.append({
            "id": f"pictures/{i:03d}.jpg", "path": str(path), "source": str(root), "width": size[0], "height": size[1],
            "text": f"a {name} thing, number {i}", "label": name, "language": "en" if i % 2 else "de",
            "punsafe": 0.9 if i % 5 == 4 else 0.1, "aesthetic": float(i % 7), "size": state.st_size,
            "mtime": state.st_mtime_ns, "digest": hashlib.sha256(data).hexdigest(), **changes.get(i, {}),
        })  # fmt: skip
        vectors.append(encoder.picture(data))
    index.add(rows, np.stack(vectors))
    if captions:
        index.hold_captions()
        update_captions(index, encoder, Outcome())
    return index, encoder


@contextlib.contextmanager
def served(root: Path, index: Index, encoder: Encoder, **options: Any) -> Iterator[str]:
    """The address of a real server."""
    app = create_app(index, encoder, thumbs=Thumbs(root / "thumbs"), **options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
