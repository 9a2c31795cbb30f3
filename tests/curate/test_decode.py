"""From bytes to a picture of one size: every fault by its name, and img2dataset's ways to resize."""

import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diptych.data.pictures import decode
from diptych.errors import DiptychError
from diptych.methods.curate.parts.decode import Decode, Digest
from diptych.methods.curate.parts.pipeline import Place, Verdict
from diptych.methods.curate.parts.resize import MODES, resized


def noise(width: int, height: int, form: str = "JPEG", **more) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **more)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    inside = zlib.compress(bytes(9000)) + bytes(6000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", inside) + chunk(b"IEND", b"")


def judged(stage: Decode | Digest, files: list[bytes | None], **columns) -> Verdict:
    names = {"key": [str(n) for n in range(len(files))], "picture": pa.array(files, pa.binary()), **columns}
    return stage.select(pa.RecordBatch.from_pydict(names), Place(0, 0), {})


FAULTS = {
    "fewer than 5120 bytes": [noise(8, 8), b"", None],
    "a decompression bomb": [bomb(50_000, 50_000), bomb(20_000, 10_000)],
    "truncated": [noise(200, 200)[:9000]],
    "not a picture": [b"<html>" + b"x" * 6000, bytes(6000)],
    "a side of fewer than 32 pixels": [noise(31, 400, quality=100)],
    "more than 90000 pixels": [noise(400, 300)],
    "longer than 3 times its width": [noise(400, 100, quality=100)],
}


@pytest.mark.parametrize("why", FAULTS)
def test_faults_have_names(why: str):
    stage = Decode(min_side=32, max_area=90_000, max_aspect=3)
    verdict = judged(stage, [*FAULTS[why], noise(250, 200)])
    assert list(verdict.why) == [why] * len(FAULTS[why]) + [""]
    assert verdict.keep.tolist() == [False] * len(FAULTS[why]) + [True]
    assert verdict.batch.column("status").to_pylist() == ["failed_to_resize"] * len(FAULTS[why]) + ["success"]


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch):
    files = [bomb(50_000, 50_000), noise(200, 200)]
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert list(judged(Decode(min_bytes=0, max_area=10_000), files).why) == [
        "a decompression bomb",
        "more than 10000 pixels",
    ]


SIZES = {  # mode: of 400 x 200 and 60 x 100 brought to 100, if bigger and always
    "no": [(400, 200), (60, 100), (400, 200), (60, 100)],
    "border": [(100, 100), (60, 100), (100, 100), (100, 100)],
    "keep_ratio": [(200, 100), (60, 100), (200, 100), (100, 167)],
    "keep_ratio_largest": [(100, 50), (60, 100), (100, 50), (60, 100)],
    "center_crop": [(100, 100), (60, 100), (100, 100), (100, 100)],
}


@pytest.mark.parametrize("mode", MODES)
def test_sizes(mode: str):
    found = []
    for only_if_bigger in (True, False):
        stage = Decode(min_bytes=0, mode=mode, size=100, only_if_bigger=only_if_bigger)
        batch = judged(stage, [noise(400, 200), noise(60, 100)]).batch.to_pydict()
        assert batch["original_width"] == [400, 60] and batch["original_height"] == [200, 100]
        found += list(zip(batch["width"], batch["height"], strict=True))
        assert [Image.open(io.BytesIO(one)).size for one in batch["picture"]] == found[-2:]
    assert found == SIZES[mode]


def test_pixels_of_the_ways():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    halved = pixels.reshape(20, 2, 40, 2, 3).mean((1, 3))  # the mean over areas
    small = np.asarray(resized(image, 20, "keep_ratio", True)).astype(float)
    assert np.abs(small - halved).max() <= 1.01  # two passes, each rounded
    crop = np.asarray(resized(image, 20, "center_crop", True)).astype(float)
    assert np.abs(crop - halved[:, 10:30]).max() <= 1.01
    border = np.asarray(resized(image, 40, "border", True)).astype(float)
    assert (border[:10] == 255).all() and (border[30:] == 255).all()
    assert np.abs(border[10:30] - halved).max() <= 1.01


def test_a_large_jpeg_decoded_small_looks_the_same():
    y, x = np.mgrid[:1600, :1600] / 1600
    smooth = np.stack([255 * x, 255 * y, 127 + 120 * np.sin(9 * x)], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(smooth).save(out, "JPEG", quality=95)
    batch = judged(Decode(min_bytes=0, size=100), [out.getvalue()]).batch
    small = np.asarray(decode(batch.column("picture")[0].as_py())[0]).astype(float)
    expected = smooth.reshape(100, 16, 100, 16, 3).mean((1, 3))
    assert np.abs(small - expected).mean() < 2
    assert batch.column("original_width")[0].as_py() == 1600


def test_what_is_not_resized_stays_to_the_byte():
    jpeg, png = noise(90, 80), noise(90, 80, "PNG")
    kept = judged(Decode(min_bytes=0), [jpeg, png]).batch.column("picture").to_pylist()
    assert kept[0] == jpeg
    assert kept[1][:3] == b"\xff\xd8\xff"  # a shard holds JPEG
    again = judged(Decode(min_bytes=0, skip_reencode=False), [jpeg]).batch.column("picture")[0].as_py()
    assert again != jpeg and Image.open(io.BytesIO(again)).size == (90, 80)


def test_exif_is_kept_and_pictures_stand_upright():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker\0"
    batch = judged(Decode(min_bytes=0, size=50), [noise(200, 100, exif=exif)]).batch
    assert json.loads(batch.column("exif")[0].as_py()) == {"Orientation": "6", "Make": "Maker"}
    assert (batch.column("original_width")[0].as_py(), batch.column("width")[0].as_py()) == (100, 50)
    assert Image.open(io.BytesIO(batch.column("picture")[0].as_py())).size == (50, 100)
    assert judged(Decode(min_bytes=0, exif=False), [noise(9, 9)]).batch.column("exif")[0].as_py() is None


def test_hashes_are_of_the_bytes_as_they_came():
    files: list[bytes | None] = [b"one", b"two"]
    for kind in ("sha256", "md5"):
        found = judged(Digest(kind), files).batch.column(kind).to_pylist()
        assert found == [hashlib.new(kind, b"one").hexdigest(), hashlib.new(kind, b"two").hexdigest()]
    verdict = judged(
        Digest("md5", verify=True),
        [b"one", b"changed", b"three"],
        md5=[hashlib.md5(b"one").hexdigest().upper(), hashlib.md5(b"two").hexdigest(), None],
    )
    assert list(verdict.why) == ["", "another hash", ""]
    assert verdict.batch.column("md5")[1].as_py() == hashlib.md5(b"changed").hexdigest()


def test_unknown_words_are_said():
    with pytest.raises(DiptychError, match='did you mean "keep_ratio"'):
        Decode(mode="keep_ration")
    with pytest.raises(DiptychError, match="sha256 or md5"):
        Digest("sha1")
