"""One picture from bytes to upright RGB pixels, or a `BadPicture` that says why not."""

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from diptych.data.records import Record
from diptych.errors import DiptychError

MAX_PIXELS = 178_956_970  # twice Pillow's warning limit: 500 MB as RGB; larger than that is a bomb
READABLE = (
    ".jpg .jpeg .jpe .jfif .png .apng .gif .bmp .dib .tif .tiff .webp .avif .heic .heif .hif "
    ".ppm .pgm .pbm .pnm .jp2 .j2k .mpo"
)
UNREADABLE = ".svg .psd .jxl .cr2 .cr3 .nef .arw .dng .orf .raf"  # set aside with a reason, not passed over in silence
EXTENSIONS = frozenset(f"{READABLE} {UNREADABLE}".split())
# A closed list (JPEG includes MPO): Pillow's others run programs (EPS), or take any bytes for a picture (TGA).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000")
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112  # the EXIF tag

# Pillow warns about files that it reads all the same. The limit that counts is ours, checked before decoding.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadPicture(DiptychError):
    """A picture that cannot be used; the message is the reason."""


def open_picture(what: Record | Path | str) -> Image.Image:
    """The picture as RGB: upright by its EXIF, transparency on white, 16 bits scaled to 8, first frame.

    Raises BadPicture: empty, truncated, corrupt, larger than MAX_PIXELS, or of an unreadable kind.
    """
    return decode(picture_bytes(what))[0]


def picture_bytes(what: Record | Path | str) -> bytes:
    """The undecoded bytes. Raises BadPicture when they cannot be read."""
    if isinstance(what, Record) and what.read is not None:
        return what.read()
    path = what.path if isinstance(what, Record) else Path(what)
    assert path is not None, "a Record has a path or a reader"
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadPicture((error.strerror or str(error)).lower()) from error


def decode(data: bytes, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """(RGB picture, its true upright width and height).

    With `at_least` a JPEG may come smaller, by a factor of 2, 4 or 8, its sides not below that: much faster.
    """
    image = opened(data)
    width, height = image.size
    try:
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        image.load()
    except Exception as error:
        raise _broken(error) from error
    turn = _orientation(image)
    image = _to_rgb(image)
    if turn in TRANSPOSE:
        image = image.transpose(TRANSPOSE[turn])
        width, height = (height, width) if turn >= 5 else (width, height)
    image.info = {}  # EXIF, comments and profiles end here
    return image, (width, height)


def opened(data: bytes) -> Image.Image:
    """The head of a picture file is read, and no pixel of it. Raises BadPicture as `decode` does."""
    if not data:
        raise BadPicture("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        width, height = image.size
    except UnidentifiedImageError as error:
        raise BadPicture(_what_is_it(data)) from error
    except Exception as error:  # a decoder fed with foreign bytes raises anything at all
        raise _broken(error) from error
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS // 10**6} million")
    return image


def _broken(error: Exception) -> BadPicture:
    if isinstance(error, Image.DecompressionBombError):
        return BadPicture(f"more pixels than the limit of {MAX_PIXELS // 10**6} million")
    reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
    return BadPicture(f"{reason} ({error})")


def thumbnail_jpeg(image: Image.Image, side: int = 96) -> bytes:
    """A JPEG no larger than `side` each way, without EXIF, comment or profile."""
    small = image.convert("RGB") if image.mode != "RGB" else image.copy()
    small.thumbnail((side, side))
    small.info = {}
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return out.getvalue()


@cache
def _formats() -> list[str]:
    formats: list[str] = list(FORMATS)
    if features.check("avif"):
        formats.append("AVIF")
    try:
        import pillow_heif
    except ImportError:
        return formats
    pillow_heif.register_heif_opener()
    return [*formats, "HEIF"]


def _what_is_it(data: bytes) -> str:
    """Why Pillow did not know the file, from its first bytes."""
    head = data[:512].lstrip().lower()
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"avif", b"avis"):
            return "AVIF, which this Pillow cannot read: python -m pip install -U pillow"
        if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
            if "HEIF" in _formats():
                return "corrupt HEIC"
            return 'HEIC, which needs pillow-heif: python -m pip install "diptych[heif]"'
        return "a film, not a picture"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a picture"
    if head.startswith((b"<svg", b"<?xml")):
        return "an SVG drawing: convert it to PNG"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: run git lfs pull"
    if head.startswith(b"8bps"):
        return "a Photoshop file: convert it to PNG"
    return "not a picture of a known kind, or corrupt from its first bytes"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken metadata does not make a broken picture
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits [H, W] to uint8, by the range they are in; nothing is clipped.

    Whole numbers are taken to fill 8, 10, 12, 14 or 16 bits, the fewest that hold them (scanners and cameras
    put 12 bits into files of 16); 0 to 1 is taken as it is; all else is stretched from its least to its most.
    """
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    whole = bool((values == np.round(values)).all())
    if low < 0 or high >= 65536 or (high > 1 and not whole):
        bottom, top = low, high
    elif high <= 1:
        bottom, top = 0.0, 1.0
    else:
        bottom, top = 0.0, next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    return np.round((values - bottom) * (255 / max(top - bottom, 1e-12))).astype(np.uint8)
