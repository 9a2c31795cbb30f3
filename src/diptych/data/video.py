"""Frames of a video, spread evenly over it, or a `BadPicture` that says why not. Read with PyAV (extra `video`).

A video is as many equal segments as frames are wanted, one frame from each: a long file costs a seek a frame, and is
never decoded as a whole. What has no times (a bare stream) is run through once, keeping few frames at any moment.
"""

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from diptych.data.pictures import BadPicture, decode, picture_bytes
from diptych.data.records import Record
from diptych.errors import missing_extra

SUFFIXES = ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .m2v .m2ts .mts .wmv .flv .3gp .ogv .h264 .264"
VIDEOS = frozenset(SUFFIXES.split())
MOVING = frozenset({".gif", ".webp", ".apng"})  # pictures that may move, read by Pillow
FRAMES = 8
MAX_PIXELS = 2**26  # of a frame: 8192 x 8192
# A closed list: others of ffmpeg's formats are playlists, which open further files and addresses.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,h264"
RUN = 128  # frames: what lies no further ahead is reached by decoding, the rest by a seek
MOST = 1024  # frames decoded for one frame: beyond that, of a file with hardly a key frame, the nearest so far is taken
BARE = 100_000  # frames of a stream without times that are looked at
WHOLE, CHUNKS, CHUNK = 2**26, 64, 2**20  # bytes: a larger file is known by so many pieces of it

T = TypeVar("T")


def read_frames(
    what: Record | Path | str,
    count: int,
    look: Callable[[Image.Image], T],
    *,
    rng: np.random.Generator | None = None,
    view: tuple[int, int] = (0, 1),
    whole: bool = False,
) -> list[T]:
    """`look` at one upright RGB frame of each of `count` equal segments, in their order.

    The middle of a segment; with a generator, a moment of it at random (training); view (k, n): number k of n moments
    spread evenly over a segment (several views of one video). A segment whose pictures cannot be decoded is told by the
    nearest frame before; with `whole`, that is an error. A picture that stands still is a video of one frame.
    Raises BadPicture: no frame, audio alone, corrupt, truncated, larger than MAX_PIXELS, of an unknown kind.
    """
    within = np.full(count, (view[0] + 0.5) / view[1]) if rng is None else rng.random(count)
    shares = ((np.arange(count) + within) / count).tolist()
    if is_moving_picture(what):
        return _of_picture(what, shares, look)
    av = _pyav()
    try:
        try:
            with _open(what) as container:
                found = _by_time(container, _stream(container), shares, look, whole)
        except av.PermissionError:  # no seeking: a bare stream, or one whose index is missing
            found = []
        if found:
            return found
        with _open(what) as container:
            return _in_passing(container, _stream(container), shares, look, whole)
    except BadPicture:
        raise
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise BadPicture(_reason(what, error)) from error


def is_moving_picture(what: Record | Path | str) -> bool:
    """Whether Pillow reads it: not one of the kinds of video."""
    path = what.path if isinstance(what, Record) else Path(what)
    return path is not None and path.suffix.lower() not in VIDEOS


def digest(what: Record) -> str:
    """SHA-256, hex: of all bytes; of a file beyond 64 MB, of its size and 64 pieces spread evenly over it."""
    if what.read is not None or what.path is None:
        return hashlib.sha256(picture_bytes(what)).hexdigest()
    try:
        with open(what.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()
            found = hashlib.sha256(str(size).encode())
            for i in range(CHUNKS):
                file.seek(i * (size - CHUNK) // (CHUNKS - 1))
                found.update(file.read(CHUNK))
            return found.hexdigest()
    except OSError as error:
        raise BadPicture((error.strerror or str(error)).lower()) from error


def crops(image: Image.Image, count: int) -> list[Image.Image]:
    """`count` squares of the short side, spread evenly along the long side; one is the middle."""
    side, long = min(image.size), max(image.size)
    starts = [round((long - side) * (i / (count - 1) if count > 1 else 0.5)) for i in range(count)]
    wide = image.width >= image.height
    corners = [(s, 0) if wide else (0, s) for s in starts]
    return [image.crop((left, top, left + side, top + side)) for left, top in corners]


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise missing_extra("av", "video", "reading videos") from error
    return av


def _open(what: Record | Path | str) -> Any:
    path = what.path if isinstance(what, Record) else Path(what)
    if (isinstance(what, Record) and what.read is not None) or path is None:
        source: Any = io.BytesIO(picture_bytes(what))
    elif not path.exists():
        raise BadPicture("no such file or directory")
    elif not path.stat().st_size:
        raise BadPicture("the file is empty")
    else:
        source = os.path.abspath(path)  # not an address, whatever it is called
    allowed = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    return _pyav().open(source, options=allowed, metadata_errors="ignore")


def _reason(what: Record | Path | str, error: Exception) -> str:
    words = str(getattr(error, "strerror", None) or error).lower()
    head = b""
    path = what.path if isinstance(what, Record) else Path(what)
    if path is not None and path.exists():
        with open(path, "rb") as file:
            head = file.read(64)
    if head.lstrip().lower().startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: run git lfs pull"
    return f"corrupt, truncated, or not a video of a known kind ({words})"


# -- a video ---------------------------------------------------------------------------------------------------------


def _stream(container: Any) -> Any:
    streams = container.streams.video
    if not streams:
        raise BadPicture("audio alone, no pictures" if container.streams.audio else "holds no video, or is truncated")
    if streams[0].codec_context is None:
        raise BadPicture("truncated, or in a code that this PyAV cannot read")
    _check_size(streams[0].codec_context.width, streams[0].codec_context.height)
    return streams[0]


def _span(container: Any, stream: Any) -> tuple[float, float]:
    """Start and length of the pictures in seconds; length 0 where the file does not say."""
    tick = float(stream.time_base or 0)
    start = stream.start_time * tick if stream.start_time is not None else 0.0
    if stream.duration:
        return start, stream.duration * tick
    return start, (container.duration or 0) / 1e6


def _by_time(
    container: Any, stream: Any, shares: Sequence[float], look: Callable[[Image.Image], T], whole: bool
) -> list[T]:
    """What is shown at each of the ascending shares of the length; empty where no times are known."""
    start, seconds = _span(container, stream)
    times = [start + seconds * share for share in shares] if seconds else []
    found: list[T] = []
    rate = float(stream.average_rate or 25)
    frames: Iterator[Any] | None = None
    shown, ahead, seen = None, None, None  # the frame that is on, the one after it, and the one looked at last
    for time in times:
        here = ahead or shown
        if frames is None or here is None or (time - here.time) * rate > RUN:
            container.seek(max(0, int(time / stream.time_base)), stream=stream, backward=True)
            frames, shown, ahead = _decoded(container, stream), None, None
        for _ in range(MOST):
            if ahead is not None and ahead.time > time:
                break
            shown, ahead = ahead or shown, next(frames, None)
            if ahead is None:
                break
            if ahead.pts is None:
                return []
        on = shown or ahead or seen  # a first frame may begin after the time that is asked for
        if on is None:
            break
        if whole and ahead is None and _end(on, rate) + 0.05 * times[-1] < time:
            raise BadPicture(f"truncated: its pictures end at {_end(on, rate):.1f} s, before {time:.1f} s")
        found.append(look(_upright(on)) if on is not seen else found[-1])
        seen = on
    return found + found[-1:] * (len(times) - len(found)) if found else []


def _end(frame: Any, rate: float) -> float:
    return frame.time + (float(frame.duration * frame.time_base) if frame.duration else 1 / rate)


def _in_passing(
    container: Any, stream: Any, shares: Sequence[float], look: Callable[[Image.Image], T], whole: bool
) -> list[T]:
    """Evenly spread frames of a stream that cannot be sought in: every n-th, n doubling as they grow many."""
    _, seconds = _span(container, stream)
    kept: list[T] = []
    every, last = 1, None
    for number, frame in enumerate(itertools.islice(_decoded(container, stream), BARE)):
        last = frame
        if number % every == 0:
            kept.append(look(_upright(frame)))
        if len(kept) == 8 * len(shares):
            kept, every = kept[::2], 2 * every
    if last is None:
        raise BadPicture("holds no frame that can be decoded")
    if whole and seconds and last.pts is not None and _end(last, 25) < 0.9 * seconds:
        raise BadPicture(f"truncated: its pictures end at {_end(last, 25):.1f} s of {seconds:.1f} s")
    return [kept[int(share * len(kept))] for share in shares]


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in their order, up to the first that cannot be had."""
    try:
        yield from container.decode(stream)
    except _pyav().FFmpegError:
        return


def _upright(frame: Any) -> Image.Image:
    _check_size(frame.width, frame.height)  # it may change on the way
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPicture(f"frames of {width} x {height} pixels, more than the limit of {MAX_PIXELS // 10**6} million")


# -- a picture that moves, or not ------------------------------------------------------------------------------------


def _of_picture(what: Record | Path | str, shares: Sequence[float], look: Callable[[Image.Image], T]) -> list[T]:
    data = picture_bytes(what)
    first, _ = decode(data)  # checks kind and size
    with Image.open(io.BytesIO(data)) as image:
        count = getattr(image, "n_frames", 1)
        if count == 1:
            return [look(first)] * len(shares)
        found: list[T] = []
        try:
            for number in (int(share * count) for share in shares):
                image.seek(number)
                found.append(look(image.convert("RGB")))
        except (OSError, EOFError, ValueError, SyntaxError) as error:
            raise BadPicture(f"truncated or corrupt ({error})") from error
        return found
