"""Frames of videos: which ones, what a long file costs, and every kind of file that cannot be used."""

import hashlib
import struct
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_world import colour_clips, greys, write_sound, write_video

from diptych.data import video
from diptych.data.pictures import BadPicture
from diptych.data.read import read_records
from diptych.data.records import Record
from diptych.data.scan import scan
from diptych.data.task import make_task
from diptych.data.video import crops, digest, read_frames
from diptych.errors import DiptychError


def number(image: Image.Image) -> int:
    """Which of the `greys` it is."""
    return round(float(np.asarray(image, np.float32).mean()) / 4)


@pytest.fixture
def even(tmp_path: Path) -> Path:
    """40 frames in 4 seconds."""
    return write_video(tmp_path / "even.mp4", greys(40))


def test_a_frame_from_the_middle_of_each_segment(even: Path) -> None:
    assert read_frames(even, 4, number) == [5, 15, 25, 35]
    assert read_frames(even, 8, number) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert read_frames(even, 1, number) == [20]
    many = read_frames(even, 80, number)  # more than there are: each twice
    assert many == [i // 2 for i in range(80)]


def test_a_random_frame_of_each_segment(even: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([read_frames(even, 4, number, rng=rng) for _ in range(40)])
    assert all(set(drawn[:, k] // 10) == {k} for k in range(4))
    assert all(len(set(drawn[:, k])) >= 8 for k in range(4))
    again = np.random.default_rng(0)
    assert read_frames(even, 4, number, rng=again) == drawn[0].tolist()


def test_views_share_out_the_frames_of_a_segment(even: Path) -> None:
    views = [read_frames(even, 4, number, view=(k, 5)) for k in range(5)]
    assert sorted(n for view in views for n in view) == [1 + 2 * i for i in range(20)]
    assert views[2] == read_frames(even, 4, number)


def test_crops_lie_along_the_long_side() -> None:
    wide = Image.fromarray(np.arange(60, dtype=np.uint8)[None].repeat(20, 0))
    assert [int(np.asarray(c)[0, 0]) for c in crops(wide, 3)] == [0, 20, 40]
    assert {c.size for c in crops(wide.transpose(Image.Transpose.ROTATE_90), 3)} == {(20, 20)}
    assert int(np.asarray(crops(wide, 1)[0])[0, 0]) == 20


@pytest.mark.parametrize("name", ["bare.h264", "matroska.mkv", "old.avi"])
def test_other_kinds(tmp_path: Path, name: str) -> None:
    """A bare stream has no times and cannot be sought in."""
    path = write_video(tmp_path / name, greys(40), codec="mpeg4" if name.endswith("avi") else "libx264")
    assert np.abs(np.array(read_frames(path, 4, number)) - [5, 15, 25, 35]).max() <= 1


def test_a_bare_stream_keeps_few_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.h264", greys(600, (16, 16)))
    kept: list[int] = []
    found = read_frames(path, 2, lambda image: kept.append(1))
    assert len(found) == 2 and len(kept) < 100


def test_variable_rate_goes_by_time(tmp_path: Path) -> None:
    """Ten frames in the first second, then one that stays on for nine."""
    path = write_video(tmp_path / "slides.mkv", greys(12), times=[*(i / 10 for i in range(10)), 1.0, 10.0])
    assert read_frames(path, 10, number)[1:] == [10] * 9


def test_ten_hours_cost_a_few_seeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "day.mp4", greys(7200, (16, 16)), rate=Fraction(1, 5), gop=12)
    decoded = 0
    real = video._decoded

    def counted(container, stream):
        nonlocal decoded
        for frame in real(container, stream):
            decoded += 1
            yield frame

    monkeypatch.setattr(video, "_decoded", counted)
    tracemalloc.start()
    start = time.process_time()
    found = read_frames(path, 8, number)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(450 + 900 * i) % 64 for i in range(8)]
    assert decoded <= 8 * 16 and seconds < 1 and peak < 20e6


def test_a_file_of_one_key_frame_is_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MOST", 50)
    path = write_video(tmp_path / "one-key.mp4", greys(300, (16, 16)), gop=300)
    assert len(read_frames(path, 2, number)) == 2


def test_turned_by_its_metadata(tmp_path: Path) -> None:
    """What a telephone held upright writes: the matrix of the track says a quarter turn."""
    left_white = np.zeros((32, 64, 3), np.uint8)
    left_white[:, :32] = 255
    path = write_video(tmp_path / "turned.mp4", [left_white] * 4)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # clockwise by 90 degrees
    path.write_bytes(data)
    (image,) = read_frames(path, 1, lambda image: image)
    assert image.size == (32, 64)
    pixels = np.asarray(image.convert("L"), np.float32)
    assert pixels[:24].mean() > 200 and pixels[40:].mean() < 50  # the left is now above


def test_moving_pictures(tmp_path: Path) -> None:
    pictures = [Image.fromarray(grey) for grey in greys(40)]
    for name in ("moving.gif", "moving.webp"):
        lossless = {} if name.endswith("gif") else {"lossless": True}
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100, **lossless)
        assert np.abs(np.array(read_frames(tmp_path / name, 4, number)) - [5, 15, 25, 35]).max() <= 1
    pictures[7].save(tmp_path / "still.webp", lossless=True)
    assert read_frames(tmp_path / "still.webp", 3, number) == [7, 7, 7]


BAD = {
    "empty.mp4": "empty",
    "junk.mp4": "not a video",
    "sound.m4a.mp4": "audio alone",
    "cut.mp4": "truncated",
    "early.mp4": "truncated: its pictures end at",
    "index.mkv": "truncated",
    "list.mp4": "not a video",
    "lfs.mp4": "git-lfs",
    "none.mp4": "not a video|no frame|holds no",
    "huge.mp4": "more than the limit",
}


def bad(folder: Path, name: str) -> Path:
    import av

    path = folder / name
    whole = write_video(folder / "whole.mkv", greys(200, (32, 32)), gop=10)
    match name:
        case "empty.mp4":
            path.write_bytes(b"")
        case "junk.mp4":
            path.write_bytes(np.random.default_rng(0).bytes(5000))
        case "sound.m4a.mp4":
            write_sound(path)
        case "cut.mp4":
            path.write_bytes(write_video(folder / "whole.mp4", greys(40)).read_bytes()[:-900])
        case "early.mp4":  # its index stands at the beginning, so that it opens
            start = write_video(folder / "whole.mp4", greys(60, (64, 64)), gop=5, options={"movflags": "faststart"})
            path.write_bytes(start.read_bytes()[: start.stat().st_size * 2 // 3])
        case "index.mkv":
            path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        case "list.mp4":
            path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{whole}\n#EXT-X-ENDLIST\n")
        case "lfs.mp4":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        case "none.mp4":
            with av.open(str(path), "w") as out:
                stream = out.add_stream("libx264", rate=10)
                stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
                out.start_encoding()
        case "huge.mp4":
            write_video(path, greys(2))
    whole.unlink()
    return path


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_says_why(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bad(tmp_path, name)
    if name == "huge.mp4":
        monkeypatch.setattr(video, "MAX_PIXELS", 32 * 47)
    with pytest.raises(BadPicture, match=BAD[name]) as caught:
        read_frames(path, 4, number, whole=True)
    assert "\n" not in str(caught.value)


def test_a_torn_file_still_gives_what_it_has(tmp_path: Path) -> None:
    """Unless the whole is asked for: a file that changes after it was looked at stops no run."""
    path = bad(tmp_path, "index.mkv")
    found = read_frames(path, 4, number)
    assert len(found) == 4 and found[0] < 64


def test_bad_videos_are_set_aside(tmp_path: Path) -> None:
    folder = colour_clips(tmp_path / "clips", 3, ("red", "blue"))
    for name in ("empty.mp4", "junk.mp4", "sound.m4a.mp4"):
        bad(folder / "red", name)
    sound, scanned, aside = scan(read_records(folder))
    assert len(sound) == 6 and set(scanned) == set(sound.ids)
    assert sorted(one.id for one in aside) == ["red/empty.mp4", "red/junk.mp4", "red/sound.m4a.mp4"]
    assert all(one.reason for one in aside)


def test_copies_are_found_in_all_frames(tmp_path: Path) -> None:
    folder = colour_clips(tmp_path / "clips", 4, ("red", "blue"))
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1) for _ in range(20)]
    write_video(folder / "red" / "one.mp4", frames)
    write_video(folder / "red" / "again.mkv", frames, gop=5)
    write_video(folder / "red" / "same-middle.mp4", [frames[3], *frames[1:11], *frames[:9]])
    task = make_task(folder)
    assert task.frames == 8
    assert [d.ids for d in task.duplicates] == [("red/again.mkv", "red/one.mp4")]


def test_photographs_stay_photographs(tmp_path: Path) -> None:
    """The short film that a telephone keeps beside a photo is left out, and said."""
    folder = colour_clips(tmp_path / "mixed", 1, ("red", "blue"))
    for colour in ("red", "blue"):
        for i in range(3):
            Image.fromarray(greys(9)[i + 3]).save(folder / colour / f"{i}.png")
    records = read_records(folder)
    assert not records.videos and len(records) == 6
    assert "2 videos among more pictures are left out, such as blue/0.mp4" in records.warnings[-1]


def test_pictures_among_videos_are_left_out(tmp_path: Path) -> None:
    folder = colour_clips(tmp_path / "mixed", 3, ("red", "blue"))
    Image.fromarray(greys(9)[5]).save(folder / "red" / "cover.jpg")
    Image.fromarray(greys(9)[5]).save(folder / "red" / "moving.gif")
    records = read_records(folder)
    assert records.videos and len(records) == 7 and "red/moving.gif" in records.ids
    assert "1 pictures among more videos" in records.warnings[-1]


def test_a_table_of_videos(tmp_path: Path) -> None:
    folder = colour_clips(tmp_path / "clips", 2, ("red", "blue"))
    rows = [f"clips/{p.relative_to(folder)},{p.parent.name}" for p in sorted(folder.rglob("*.mp4"))]
    (tmp_path / "list.csv").write_text("\n".join(["video,label", *rows]))
    records = read_records(tmp_path / "list.csv")
    assert records.videos and len(records) == 4


def test_frames_are_of_videos(tmp_path: Path) -> None:
    folder = colour_clips(tmp_path / "clips", 3, ("red", "blue"))
    assert make_task(folder, frames=5).frames == 5
    with pytest.raises(DiptychError, match="at least 1"):
        make_task(folder, frames=0)
    for path in folder.rglob("*.mp4"):
        Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(
            path.with_suffix(".png")
        )
        path.unlink()
    with pytest.raises(DiptychError, match="holds pictures, not videos"):
        make_task(folder, frames=5)


def test_a_long_file_is_known_by_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "WHOLE", 1000)
    monkeypatch.setattr(video, "CHUNK", 10)
    data = bytearray(np.random.default_rng(0).bytes(100_000))
    path = tmp_path / "long.mp4"
    path.write_bytes(data)
    first = digest(Record("long", path, None))
    assert first != hashlib.sha256(data).hexdigest()
    data[-1] ^= 1
    path.write_bytes(data)
    assert digest(Record("long", path, None)) != first
    path.write_bytes(data[:900])
    assert digest(Record("long", path, None)) == hashlib.sha256(data[:900]).hexdigest()


def test_without_pyav_it_names_the_extra(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DiptychError, match=r'reading videos needs av: .*"diptych\[video\]"') as caught:
        read_frames(even, 4, number)
    assert not isinstance(caught.value, BadPicture)


@pytest.mark.parametrize("name", ["example1", "video9770", "video9771"])
def test_real_videos(data: Path, name: str) -> None:
    sizes = read_frames(data / "video" / f"{name}.mp4", 8, lambda image: image.size, whole=True)
    assert len(sizes) == 8 and len(set(sizes)) == 1 and min(sizes[0]) >= 240
