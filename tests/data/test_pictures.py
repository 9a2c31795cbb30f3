"""Every kind of picture is read rightly or refused with its reason."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from diptych.data import pictures
from diptych.data.pictures import BadPicture, decode, open_picture, thumbnail_jpeg
from diptych.data.records import Record
from diptych.errors import DiptychError

from .conftest import encoded, scene


def pixels(data: bytes) -> np.ndarray:
    image, _ = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_reads_paths_and_records(tmp_path: Path) -> None:
    scene(1).save(tmp_path / "a.png")
    by_path = open_picture(tmp_path / "a.png")
    by_bytes = open_picture(Record("x", None, "cat", read=lambda: encoded(scene(1))))
    assert np.array_equal(np.asarray(by_path), np.asarray(by_bytes))
    assert np.array_equal(np.asarray(by_path), np.asarray(scene(1)))


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadPicture, match="no such file"):
        open_picture(tmp_path / "none.png")
    assert issubclass(BadPicture, DiptychError)


def test_empty() -> None:
    with pytest.raises(BadPicture, match="empty"):
        decode(b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated(format: str) -> None:
    data = encoded(scene(2, 200), format)
    decode(data)
    with pytest.raises(BadPicture, match=r"truncated|corrupt"):
        decode(data[: len(data) // 2])


def test_corrupt_png() -> None:
    data = bytearray(encoded(scene(2)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadPicture, match="corrupt"):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00" * 400, "not a picture"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs"),
        (b"\x00\x00\x00\x18ftypisom" + b"\x00" * 99, "film"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
)
def test_other_things_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        decode(data)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60000, 60000), (20000, 9000)])
def test_bomb_is_refused_before_decoding(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(self: object) -> None:
        raise AssertionError("decoded a bomb")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(BadPicture, match="million"):
        decode(bomb(*size))


def test_large_photos_of_phones_pass_the_limit() -> None:
    assert pictures.MAX_PIXELS > 12000 * 9000


def test_cmyk() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encoded(red, "JPEG", quality=100)) - [255, 0, 0]).max() <= 3


def test_16_bit_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.abs(pixels(encoded(Image.fromarray(ramp)))[..., 0] - np.arange(256).reshape(16, 16)).max() <= 1
    twelve = (ramp >> 4).astype(np.uint16)  # 12 bits in a file of 16
    assert np.abs(pixels(encoded(Image.fromarray(twelve), "TIFF"))[..., 0] - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 37.5])
def test_float_tiff(scale: float) -> None:
    ramp = (np.linspace(0, 1, 256) * scale).astype(np.float32).reshape(16, 16)
    assert np.abs(pixels(encoded(Image.fromarray(ramp), "TIFF"))[..., 0] - np.arange(256).reshape(16, 16)).max() <= 1


def test_palette_with_transparency_is_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((0, 0), 1)
    got = pixels(encoded(image, transparency=0))
    assert got[0, 0].tolist() == [200, 0, 0]
    assert got[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_on_white(mode: str) -> None:
    image = Image.new(mode, (4, 4), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert (pixels(encoded(image)) == 255).all()


def test_transparent_colour_of_rgb_png() -> None:
    data = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert (pixels(data) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes(mode: str) -> None:
    format = "JPEG" if mode == "YCbCr" else "PNG"
    assert pixels(encoded(scene(3).convert(mode), format)).shape == (64, 64, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_animations(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(data) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    image = scene(4, 64).resize((64, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    want = pictures.TRANSPOSE.get(orientation)
    upright = image.transpose(want) if want is not None else image
    got, size = decode(data)
    assert np.array_equal(np.asarray(got), np.asarray(upright))
    assert size == upright.size
    from PIL import ImageOps

    assert np.array_equal(np.asarray(ImageOps.exif_transpose(image_with(data))), np.asarray(got))


def image_with(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data))


def test_broken_exif_does_not_matter() -> None:
    assert pixels(encoded(scene(5), "JPEG", exif=b"Exif\0\0MM\0*garbage")).shape == (64, 64, 3)


def test_draft_keeps_the_true_size() -> None:
    small, size = decode(encoded(scene(6, 800), "JPEG"), at_least=100)
    assert size == (800, 800)
    assert small.size == (100, 100)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif() -> None:
    assert np.abs(pixels(encoded(scene(7), "AVIF", quality=95)) - np.asarray(scene(7))).mean() < 6


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    assert np.abs(pixels(encoded(scene(7), "HEIF", quality=95)) - np.asarray(scene(7))).mean() < 6


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_formats", lambda: list(pictures.FORMATS))
    with pytest.raises(BadPicture, match=r"diptych\[heif\]"):
        decode(b"\x00\x00\x00\x18ftypheic" + b"\x00" * 99)


def test_thumbnail_is_small_and_bare() -> None:
    exif = Image.Exif()
    exif[0x010F] = "SECRET CAMERA"
    image = image_with(encoded(scene(8, 300), "JPEG", exif=exif, comment=b"SECRET COMMENT"))
    data = thumbnail_jpeg(image, 96)
    assert b"SECRET" not in data
    assert max(image_with(data).size) == 96
    assert image.size == (300, 300)
