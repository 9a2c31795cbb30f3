"""Pictures made alike: img2dataset's ways to bring a picture to a size, and JPEG of the result.

    no                  as it is
    border              the long side to `size`, white around to a square
    keep_ratio          the short side to `size`
    keep_ratio_largest  the long side to `size`
    center_crop         the short side to `size`, the middle square of it

Sides are made smaller by the mean over areas, and larger by Lanczos.
"""

import io
import json

from PIL import ExifTags, Image

from diptych.errors import DiptychError, nearest

MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
SHORT = ("keep_ratio", "center_crop")  # go by the short side; others by the long one


def checked_mode(mode: str) -> str:
    if mode not in MODES:
        raise DiptychError(f'no way to resize is called "{mode}"{nearest(mode, MODES)}')
    return mode


def is_touched(width: int, height: int, size: int, mode: str, only_if_bigger: bool) -> bool:
    """Whether a picture of this size is changed at all."""
    if mode == "no":
        return False
    side = min(width, height) if mode in SHORT else max(width, height)
    return side > size or not only_if_bigger


def resized(image: Image.Image, size: int, mode: str, only_if_bigger: bool) -> Image.Image:
    """An RGB picture brought to `size`."""
    if not is_touched(*image.size, size, mode, only_if_bigger):
        return image
    side = min(image.size) if mode in SHORT else max(image.size)
    if side != size:
        way = Image.Resampling.BOX if side > size else Image.Resampling.LANCZOS
        width, height = (max(1, round(one * size / side)) for one in image.size)
        image = image.resize((width, height), way)
    if mode == "center_crop":
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return image.crop((left, top, left + size, top + size))
    if mode == "border":
        square = Image.new("RGB", (size, size), "white")
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return square
    return image


def jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def exif_of(image: Image.Image) -> str | None:
    """EXIF as JSON, {name of the tag: word}; None where there is none, or none that can be read."""
    try:
        tags = dict(image.getexif())
    except Exception:  # a stranger's bytes in a parser: anything is raised, and no picture is lost by it
        return None
    named = {ExifTags.TAGS.get(tag, str(tag)): word_of(value) for tag, value in tags.items()}
    return json.dumps(named) if named else None


def word_of(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:200]
