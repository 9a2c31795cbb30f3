"""Drawn scenes as rows to curate: pictures with texts, watermarks, and what must not be there."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from diptych.core.classifier import Base
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.methods.curate.parts.pipeline import Place
from diptych.methods.curate.parts.vectors import vector_column

HERE = Place(0, 0)
ONE = SceneSpec(counts=(1,))


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def watermarked(image: Image.Image) -> Image.Image:
    """Half see-through stripes from corner to corner, as agencies draw them."""
    over = Image.new("RGBA", image.size, (255, 255, 255, 0))
    pen, side = ImageDraw.Draw(over), image.width
    for start in range(-side, 2 * side, side // 4):
        pen.line([(start, 0), (start + side, side)], fill=(255, 255, 255, 110), width=max(1, side // 24))
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


def drawn(count: int, seed: int, spec: SceneSpec = ONE) -> list[SceneRecord]:
    return list(Scenes(spec, count, seed))


def rows(
    scenes: Sequence[SceneRecord],
    text: Callable[[SceneRecord], str] = lambda scene: scene.text("short"),
    look: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "key": [f"{scene.id}" for scene in scenes],
            "text": [text(scene) for scene in scenes],
            "picture": pa.array([jpeg(look(scene.image())) for scene in scenes], pa.binary()),
        }
    )


def embedded(vectors: np.ndarray, maker: Base, valid: np.ndarray | None = None, **columns: object) -> pa.RecordBatch:
    """Rows that have embeddings [N, D] already."""
    there = np.ones(len(vectors), bool) if valid is None else valid
    field, array = vector_column("embedding", vectors, there, maker)
    keys = pa.array([str(i) for i in range(len(vectors))])
    others = {name: pa.array(values) for name, values in columns.items()}
    fields = [pa.field("key", keys.type), field, *(pa.field(name, one.type) for name, one in others.items())]
    return pa.record_batch([keys, array, *others.values()], schema=pa.schema(fields))
