"""Copies are found; pictures that only look alike are not."""

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from diptych.data import duplicates
from diptych.data.duplicates import duplicate_groups, near_pairs
from diptych.data.read import read_records
from diptych.data.records import Record, Records
from diptych.data.scan import PRINT_SIDE, fingerprint, scan

from .conftest import encoded, scene


def prints(images: list[Image.Image]) -> np.ndarray:
    data = b"".join(fingerprint(image) for image in images)
    return np.frombuffer(data, np.uint8).reshape(-1, PRINT_SIDE, PRINT_SIDE, 3)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality))).convert("RGB")


def cropped(image: Image.Image, keep: float, seed: int = 0) -> Image.Image:
    rng = random.Random(seed)
    width, height = round(image.width * keep), round(image.height * keep)
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((image.width // 2, image.height // 3)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "compressed": lambda image: compressed(image, 40),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "cropped": lambda image: cropped(image, 0.95),
    "all": lambda image: compressed(ImageEnhance.Brightness(cropped(image, 0.95)).enhance(1.1), 60),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind: str) -> None:
    images = [scene(i, 256) for i in range(20)]
    pairs = near_pairs(prints(images + [COPIES[kind](image) for image in images]))
    assert {tuple(pair) for pair in pairs.tolist()} == {(i, i + 20) for i in range(20)}


def test_drawings_on_white_are_told_apart() -> None:
    def face(mouth: int, colour: str) -> Image.Image:
        image = Image.new("RGB", (200, 200), "white")
        pen = ImageDraw.Draw(image)
        pen.ellipse((20, 20, 180, 180), fill=colour, outline="black", width=6)
        for x in (70, 130):
            pen.ellipse((x - 8, 70, x + 8, 86), fill="black")
        pen.arc((60, 90, 140, 150), *((0, 180) if mouth else (180, 360)), fill="black", width=6)
        return image

    images = [face(mouth, colour) for mouth in (0, 1) for colour in ("yellow", "orange", "red")]
    assert near_pairs(prints(images)).tolist() == []
    assert near_pairs(prints([images[0], compressed(images[0], 50)])).tolist() == [[0, 1]]


def test_plain_pictures_are_no_copies_of_others() -> None:
    shades = [Image.new("RGB", (64, 64), (shade, shade, shade)) for shade in (0, 128, 255)]
    assert near_pairs(prints(shades)).tolist() == []


def test_groups(tmp_path: Path) -> None:
    images = {"a": scene(1, 128), "b": scene(2, 128), "c": scene(3, 128)}
    files = {
        "a1": encoded(images["a"]),
        "a2": encoded(images["a"]),
        "a3": encoded(compressed(images["a"], 50)),
        "b1": encoded(images["b"]),
        "b2": encoded(images["b"]),
        "c1": encoded(images["c"]),
    }
    records = Records(tuple(Record(k, None, "x", read=lambda v=v: v) for k, v in files.items()), "memory")
    for order in (records, records[::-1]):
        groups = duplicate_groups(order, scan(order)[1])
        assert [(g.ids, g.kind) for g in groups] == [(("a1", "a2", "a3"), "near"), (("b1", "b2"), "exact")]


def test_many_pictures_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [scene(i) for i in range(1000)]
    images.append(compressed(images[7], 70))
    records = Records(
        tuple(Record(str(i), None, "x", read=lambda image=image: encoded(image)) for i, image in enumerate(images)),
        "memory",
    )
    scanned = scan(records)[1]
    groups = duplicate_groups(records, scanned)
    assert [group.ids for group in groups] == [("1000", "7")]
    monkeypatch.setattr(duplicates, "near_pairs", lambda prints: pytest.fail("compared again"))
    assert duplicate_groups(records, scanned) == groups


@pytest.mark.parametrize("folder", ["pacs/photo", "pacs/sketch", "coco-mini/train2017"])
def test_no_false_alarm_on_real_pictures(test_data: Path, folder: str) -> None:
    paths = sorted(path for path in (test_data / folder).rglob("*") if path.is_file())
    records = Records(tuple(Record(str(path), path, "x") for path in paths), folder)
    assert duplicate_groups(records, scan(records)[1]) == []


def test_cifar_has_two_known_sets_of_copies(test_data: Path) -> None:
    records = read_records(test_data / "cifar10")
    groups = duplicate_groups(records, scan(records)[1])
    assert [group.ids for group in groups] == [
        ("test/frog/0172.jpg", "test/frog/0380.jpg"),
        tuple(f"train/automobile/{n}.jpg" for n in (1773, 2120, 3974)),
    ]


@pytest.mark.parametrize(("kind", "least"), [("smaller", 1.0), ("compressed", 0.99), ("cropped", 0.95), ("all", 0.9)])
def test_copies_of_real_photos(test_data: Path, kind: str, least: float) -> None:
    paths = list(itertools.islice((test_data / "pacs/photo").rglob("*.jpg"), 0, None, 6))
    images = [Image.open(path).convert("RGB") for path in paths]
    found = near_pairs(prints(images + [COPIES[kind](image) for image in images]))
    wanted = {(i, i + len(images)) for i in range(len(images))}
    assert {tuple(pair) for pair in found.tolist()} <= wanted
    assert len(found) >= least * len(images)
