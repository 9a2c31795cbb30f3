"""Videos for tests: files written with PyAV, folders of them, and drawn clips as a `FeatureSource`."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from adapt_world import NAMES, Drawings, drawing, records_of
from fakes import COLOURS
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.data.records import Record, Records
from diptych.data.support import CROP, Support

FRAMES = 3


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: Fraction | int = 10,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    gop: int = 10,
    options: dict[str, str] | None = None,
) -> Path:
    """RGB frames [H, W, 3] uint8, sides even. times: of the frames in seconds, in place of an even rate."""
    import av

    tick = Fraction(1, 1000) if times else 1 / Fraction(rate)
    with av.open(str(path), "w", options=options or {}) as out:
        stream = out.add_stream(codec, rate=Fraction(rate))
        height, width = frames[0].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.time_base = stream.codec_context.time_base = tick
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "crf": "10"}
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(times[i] * 1000) if times else i, tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path, seconds: int = 1) -> Path:
    """A file of audio alone."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        for i in range(seconds * 16):
            sound = np.sin(np.arange(1024) / 20)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def greys(count: int, size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    """Frame i is grey of 4 * i, so that a frame tells its number (up to 60)."""
    return [np.full((*size, 3), 4 * i % 256, np.uint8) for i in range(count)]


def colour_clips(root: Path, each: int = 6, colours: Sequence[str] = tuple(COLOURS)) -> Path:
    """Class folders of small videos: noisy colours as in `colour_folder`, each frame a little different."""
    rng = np.random.default_rng(0)
    for colour in colours:
        folder = root / colour
        folder.mkdir(parents=True)
        for i in range(each):
            mean = np.array(COLOURS[colour]) + rng.normal(0, 50, 3)
            coarse = rng.normal(0, 30, (6, 4, 4, 3))
            frames = (mean + coarse.repeat(8, 1).repeat(8, 2)).clip(0, 255).astype(np.uint8)
            write_video(folder / f"{i}.mp4", list(frames), rate=5)
    return root


class DrawnClips(Drawings):
    """Clips of three drawings of one class: number n has the frames 3n, 3n + 1 and 3n + 2."""

    def pixels(
        self,
        clip: CLIP,
        records: Records,
        *,
        rng: np.random.Generator | None = None,
        crop: tuple[float, float] = CROP,
    ) -> Tensor:
        return torch.stack([self.video(clip, record, rng, crop) for record in records])

    def video(self, clip: CLIP, record: Record, rng: np.random.Generator | None, crop: tuple[float, float]) -> Tensor:
        name, _, number = record.id.partition("/")
        pictures = [drawing(name, FRAMES * int(number) + t) for t in range(FRAMES)]
        if rng is None:
            return torch.stack([clip.preprocess(p) for p in pictures])
        same = int(rng.integers(2**63))
        return torch.stack([clip.preprocess.view(p, np.random.default_rng(same), crop) for p in pictures])

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> Tensor:
        with torch.no_grad():
            if not views:
                return F.normalize(clip.encode_image(self.pixels(clip, records)), dim=-1)
            rngs = [np.random.default_rng(v) for v in range(views)]
            rows = [clip.encode_image(self.pixels(clip, records, rng=rng, crop=crop)) for rng in rngs]
        return F.normalize(torch.stack(rows, 1), dim=-1)


def clips_of(source: DrawnClips, each: int, names: Sequence[str] = NAMES, seed: int = 0, first: int = 0) -> Support:
    records = records_of(names, each, first)
    return Support(
        names=tuple(names),
        records=records,
        labels=torch.tensor([names.index(r.label) for r in records if r.label]),
        source=source,
        groups=tuple(range(len(records))),
        seed=seed,
        frames=FRAMES,
    )
