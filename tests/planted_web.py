"""A small web with known defects: archives of pages, a server of pictures, and the list of what is wrong with each row.

Pictures are drawn scenes of one large thing, texts say what is on them. Every defect that a stage of `laion` is for is
planted in a number of its own, so that one taken for another is seen.
"""

import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tiny import MadeUp, support_of
from web_archives import metadata, record, response, wat, write
from web_server import Answer

from diptych.core.clip import CLIP
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.methods.adapt.linear_probe import LinearProbe

SPEC = SceneSpec(
    side=256,
    counts=(1,),
    sizes=("large",),
    colours=("red", "yellow", "blue", "brown", "turquoise"),
    backgrounds=("paper", "snow", "sand", "grass", "water"),
)
LANGUAGES = {"en": "a picture of {}", "de": "{}", "fr": "{}", "it": "una immagine di {}"}
GOOD = {"en": 31, "de": 7, "fr": 6, "it": 4}
NAMES = ("a-one", "b-two", "c-three")  # of the archives: WAT, WARC, WAT
LINKS = 6  # on a page


@dataclass(frozen=True)
class Row:
    """One link. stage, why: what must remove it; "" for a good one. kind: what it was planted as."""

    kind: str
    text: str
    url: str
    stage: str = ""
    why: str = ""
    language: str = "en"
    picture: bytes = field(default=b"", repr=False)


@dataclass
class Planted:
    """rows by their keys; answers: of the server."""

    rows: dict[str, Row]
    answers: dict[str, Answer]
    archives: Path

    def left(self) -> set[str]:
        return {key for key, row in self.rows.items() if not row.stage}

    def removed(self) -> dict[str, tuple[str, str]]:
        return {key: (row.stage, row.why) for key, row in self.rows.items() if row.stage}

    def counts(self) -> dict[str, dict[str, int]]:
        """{stage: {why: rows}}"""
        found: dict[str, Counter[str]] = {}
        for stage, why in self.removed().values():
            found.setdefault(stage, Counter())[why] += 1
        return {stage: dict(why) for stage, why in found.items()}


# -- pictures ----------------------------------------------------------------------------------------------------------


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def cornered(colour: str) -> Callable[[Image.Image], Image.Image]:
    """Squares of a colour that no scene of these has, in the four corners: a toy of something that a head finds."""

    def look(image: Image.Image) -> Image.Image:
        image = image.copy()
        pen, side = ImageDraw.Draw(image), image.width * 9 // 100
        for x in (0, image.width - side):
            for y in (0, image.height - side):
                pen.rectangle((x, y, x + side, y + side), colour)
        return image

    return look


LOOKS = {"unsafe": cornered("black"), "watermark": cornered("magenta"), "toxic": cornered("#ff7800")}


def bomb(side: int = 40_000) -> bytes:
    """A PNG that claims 1.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    inside = zlib.compress(bytes(9000)) + bytes(8000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", inside) + chunk(b"IEND", b"")


def noise(width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return jpeg(Image.fromarray(pixels), 100)


def differ(one: SceneRecord, other: SceneRecord) -> bool:
    """No word in common."""
    a, b = one.scene.things[0], other.scene.things[0]
    return one.scene.background != other.scene.background and a.colour != b.colour and a.shape != b.shape


def heads(clip: CLIP, folder: Path, each: int = 150, seed: int = 1234) -> dict[str, str]:
    """A head for each toy, trained on scenes that are nowhere else: {toy: path}."""
    found = {}
    images = [scene.image() for scene in Scenes(SPEC, each, seed)]

    def rows(look: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
        pixels = torch.stack([clip.preprocess(look(image)) for image in images])
        with torch.inference_mode():
            return torch.nn.functional.normalize(torch.cat([clip.encode_image(p) for p in pixels.split(64)]), dim=1)

    sights = {"fine": rows(lambda image: image), **{toy: rows(look) for toy, look in LOOKS.items()}}
    for toy in LOOKS:
        others = [name for name in sights if name != toy]  # what is wrong in another way is fine here
        features = torch.cat([sights[toy], *(sights[name] for name in others)])
        labels = [1] * each + [0] * each * len(others)
        probe = LinearProbe().fit(clip, support_of(MadeUp(features), labels, ("fine", toy)))
        found[toy] = str(probe.save(folder / f"{toy}.safetensors"))
    return found


# -- the plant ---------------------------------------------------------------------------------------------------------


def plant(folder: Path, root: str, seed: int = 0, times: int = 1, slow: float = 60.0) -> Planted:
    """Write three archives to `folder`; root: of the server, which must have the answers. times: as many of each."""
    port = root.rpartition(":")[2]
    scenes = iter(Scenes(SPEC, 1 << 20, seed))
    answers: dict[str, Answer] = {}

    def caption(scene: SceneRecord, language: str = "en") -> str:
        return LANGUAGES[language].format(scene.text("short" if language == "en" else f"short {language}"))

    def fresh(language: str = "en") -> SceneRecord:
        """The next scene whose text is recognised: what language is asked of is the pipeline, not the detector."""
        from diptych.methods.curate.parts.language import language_of

        return next(scene for scene in scenes if language_of(caption(scene, language)) == language)

    def serve(answer: Answer) -> str:
        path = f"/{len(answers):05d}.jpg"
        answers[path] = answer
        return root + path

    def good(language: str = "en") -> Row:
        scene = fresh(language)
        picture = jpeg(scene.image())
        return Row("good", caption(scene, language), serve(Answer(picture)), language=language, picture=picture)

    def broken(kind: str, why: str, stage: str, answer: Answer) -> Row:
        return Row(kind, caption(fresh()), serve(answer), stage, why)

    def looking(toy: str, stage: str, why: str) -> Row:
        scene = fresh()
        return Row(toy, caption(scene), serve(Answer(jpeg(LOOKS[toy](scene.image())))), stage, why)

    def unreachable(kind: str, host: str) -> Row:
        return Row(kind, caption(fresh()), f"http://{host}/{next_number()}.jpg", "download", "private address")

    def mismatched() -> Row:
        scene = fresh()
        other = next(one for one in iter(fresh, None) if differ(scene, one))
        url = serve(Answer(jpeg(scene.image())))
        return Row("mismatched", caption(other), url, "clip_filter", "similarity too low (en)")

    rows = [good(language) for language, count in GOOD.items() for _ in range(count * times)]
    picture = jpeg(fresh().image())
    moved = serve(Answer(jpeg(fresh().image())))
    away = (("Location", "http://169.254.169.254/latest/meta-data/"),)
    ai = (("X-Robots-Tag", "noindex, noai"),)
    us = (("X-Robots-Tag", "somebot: nofollow"), ("X-Robots-Tag", "diptych: noimageai"))
    makers: list[tuple[int, Callable[[], Row]]] = [
        (2, lambda: replace(good(), kind="short", text="logo", stage="text", why="fewer than 5 characters")),
        (3, lambda: Row("data", caption(fresh()), "data:image/png;base64,iV==", "address", "data: and not http")),
        (1, lambda: Row("ftp", caption(fresh()), "ftp://a.example/x.jpg", "address", "ftp: and not http")),
        (2, lambda: Row("malformed", caption(fresh()), "http://[::1/x.jpg", "address", "a malformed address")),
        (4, lambda: Row("blocked", caption(fresh()), "http://cdn.ads.example/x.jpg", "address", "a blocked host")),
        (5, lambda: replace(good(), kind="nolang", text=f"DSC{next_number():06d}.JPG", stage="language",
            why="language nolang")),
        (6, lambda: broken("missing", "HTTP 404", "download", Answer(b"gone", 404))),
        (2, lambda: broken("failing", "HTTP 5xx", "download", Answer(b"", 503))),
        (2, lambda: broken("slow", "timeout", "download", Answer(picture, wait=slow))),
        (4, lambda: broken("robots", "refused by X-Robots-Tag", "download", Answer(picture, headers=ai))),
        (3, lambda: broken("robots, us", "refused by X-Robots-Tag", "download", Answer(picture, headers=us))),
        (3, lambda: broken("redirect", "private address", "download", Answer(status=302, headers=away))),
        (1, lambda: unreachable("private", "10.1.2.3")),
        (1, lambda: unreachable("local", f"localhost:{port}")),
        (2, lambda: broken("oversize", "too large", "download", Answer(picture, length=1 << 33))),
        (1, lambda: broken("endless", "too large", "download", Answer(endless=True))),
        (2, lambda: broken("cut", "cut off", "download", Answer(picture, length=2 * len(picture)))),
        (7, lambda: broken("tiny file", "fewer than 5120 bytes", "decode", Answer(noise(9, 9, next_number())))),
        (5, lambda: broken("tiny side", "a side of fewer than 64 pixels", "decode",
            Answer(noise(40, 200, next_number())))),
        (4, lambda: broken("long", "longer than 3 times its width", "decode", Answer(noise(300, 70, next_number())))),
        (2, lambda: broken("bomb", "a decompression bomb", "decode", Answer(bomb(40_000 + next_number())))),
        (3, lambda: broken("truncated", "truncated", "decode", Answer(noise(120, 120, next_number())[:9000]))),
        (8, lambda: broken("page", "not a picture", "decode", Answer(b"<html>" + b"%d" % next_number() * 6000))),
        (11, mismatched),
        (6, lambda: looking("unsafe", "unsafe", "unsafe")),
        (7, lambda: looking("watermark", "watermark", "watermark")),
        (5, lambda: looking("toxic", "toxicity", "inappropriate")),
    ]  # fmt: skip
    numbers = iter(range(1, 1 << 20))

    def next_number() -> int:
        return next(numbers)

    for count, make in makers:
        rows += [make() for _ in range(count * times)]
    # A picture that is found by way of a redirect is as good as another.
    scene = fresh()
    answers[moved.removeprefix(root)] = Answer(jpeg(scene.image()))
    rows.append(Row("moved", caption(scene), serve(Answer(status=301, headers=(("Location", moved),)))))
    dice = random.Random(seed)
    english = [row for row in rows if row.kind == "good" and row.language == "en"]
    again = [replace(dice.choice(rows[: sum(GOOD.values()) * times]), kind="pair again", stage="pair",
        why="the same pair again") for _ in range(5 * times)]  # fmt: skip
    again += [replace(row, kind="address again", text=f"here again is {row.text}", stage="url",
        why="the same address again") for row in dice.sample(english, 4 * times)]  # fmt: skip
    again += [replace(row, kind="file again", text=f"once more, {row.text}", url=serve(Answer(row.picture)),
        stage="copies", why="the same file again") for row in dice.sample(english, 3 * times)]  # fmt: skip
    dice.shuffle(rows)
    dice.shuffle(again)
    third = len(rows) // 3
    parts = [rows[:third], rows[third : 2 * third], [*rows[2 * third :], *again]]
    # What waits for a timeout lies in the first archive: work that is done again is then not slow.
    late = [row for part in parts[1:] for row in part if row.kind == "slow"]
    parts = [[*late, *parts[0]], *([row for row in part if row.kind != "slow"] for part in parts[1:])]
    folder.mkdir(parents=True, exist_ok=True)
    keyed = as_wat(folder / f"{NAMES[0]}.warc.wat.gz", parts[0]) | as_warc(folder / f"{NAMES[1]}.warc.gz", parts[1])
    return Planted(keyed | as_wat(folder / f"{NAMES[2]}.warc.wat.gz", parts[2]), answers, folder)


# -- archives ----------------------------------------------------------------------------------------------------------


def pages_of(rows: Sequence[Row]) -> list[Sequence[Row]]:
    return [rows[start : start + LINKS] for start in range(0, len(rows), LINKS)]


def keys_of(name: str, number: int, rows: Sequence[Row]) -> dict[str, Row]:
    return {f"{name}-{number:07d}-{n:04d}": row for n, row in enumerate(rows)}


def as_wat(path: Path, rows: Sequence[Row]) -> dict[str, Row]:
    """Pages as JSON, between records that are broken, speak of other things, or of pictures without a text."""
    records = [record("warcinfo", "", "application/warc-fields", b"software: x\r\n"), metadata("http://x/", b"{broken")]
    keyed: dict[str, Row] = {}
    for page in pages_of(rows):
        links = [{"path": "IMG@/src", "url": row.url, "alt": f" {row.text}\n"} for row in page]
        links.append({"path": "A@/href", "url": "/elsewhere", "text": "a link"})
        keyed |= keys_of(path.name.partition(".")[0], len(records), page)
        records.append(metadata(f"https://pages.example/{len(records)}.html", wat(links)))
        records.append(metadata("http://x/", wat([{"path": "IMG@/src", "url": "/no-text.jpg"}])[:-3]))
        records.append(metadata("http://x/", b'{"Envelope": {"Payload-Metadata": []}}'))
    write(path, records)
    return keyed


def as_warc(path: Path, rows: Sequence[Row]) -> dict[str, Row]:
    """Pages as HTML, as broken as pages are, between records that are no pages at all."""
    records = [record("warcinfo", "", "application/warc-fields", b"software: x\r\n")]
    keyed: dict[str, Row] = {}
    for page in pages_of(rows):
        shown = [f'<div><p><img alt="{row.text}" width=9 src="{row.url}"><b>' for row in page]
        html = f"<html><base href='/there/'><img src=x.jpg><table></p>{''.join(shown)}</table><ul><li"
        keyed |= keys_of(path.name.partition(".")[0], len(records), page)
        records.append(response(f"https://pages.example/{len(records)}.html", html.encode()))
        records.append(response("http://x/", b"<img src='a.jpg' alt='never ends" + bytes(9000)))
        records.append(response("http://x/", b"\x89PNG <img src=a.jpg alt='no page'>", "image/png"))
        records.append(record("response", "http://x/", "application/http; msgtype=response", b"no HTTP"))
    write(path, records)
    return keyed
