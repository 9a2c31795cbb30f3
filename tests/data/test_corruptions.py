"""Changed pictures: the same every time, worse with severity, right where the answer is known, and nearer by depth."""

import re

import numpy as np
import pytest
from PIL import Image

from diptych.data.corruptions import (
    AIR,
    CHANGES,
    COMMON,
    DEEP,
    blurred,
    change,
    changed_records,
    foggy,
    moved,
    resized,
)  # fmt: skip
from diptych.data.pictures import decode, open_picture
from diptych.data.records import Record, Records
from diptych.data.scenes import Scenes, SceneSpec
from diptych.errors import DiptychError

SCENE = Scenes(SceneSpec(counts=(3,), side=96), 10, 3)[1]


def far_off(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_seeded_keeps_the_size_and_grows(kind: str) -> None:
    image, depth = SCENE.image(), SCENE.drawing.depth
    made = [change(image, kind, severity, seed=4, depth=depth) for severity in (1, 3, 5)]
    assert all(one.size == image.size and one.mode == "RGB" for one in made)
    again = change(image, kind, 3, seed=4, depth=depth)
    assert again.tobytes() == made[1].tobytes()
    distances = [far_off(image, one) for one in made]
    assert 0 < distances[0] < distances[1] < distances[2], distances


def test_depth_matters_to_those_that_see_it_and_to_no_other() -> None:
    image, depth = SCENE.image(), SCENE.drawing.depth
    for kind in CHANGES:
        same = change(image, kind, 3).tobytes() == change(image, kind, 3, depth=depth).tobytes()
        assert same == (kind in COMMON or kind == "low_light"), kind
    assert len(COMMON) >= 10 and len(DEEP) >= 8


def test_fog_is_its_formula_and_none_without_air() -> None:
    pixels = np.asarray(SCENE.image(), np.float32) / 255
    assert foggy(pixels, SCENE.drawing.depth, 0.0) is pixels
    depth = np.linspace(1, 9, pixels.shape[0] * pixels.shape[1], dtype=np.float32).reshape(pixels.shape[:2])
    made = foggy(pixels, depth, 0.3)
    for y, x in ((0, 0), (40, 7), (95, 95)):
        clear = np.exp(-0.3 * depth[y, x])
        np.testing.assert_allclose(made[y, x], pixels[y, x] * clear + AIR * (1 - clear), atol=1e-6)


def test_focus_leaves_what_it_is_set_on() -> None:
    image, depth = SCENE.image(), SCENE.drawing.depth
    wall = depth == depth.max()
    inner = blurred(wall[..., None].astype(np.float32), 3)[..., 0] > 0.999  # away from the things
    apart = {
        kind: np.abs(np.asarray(change(image, kind, 5, depth=depth), np.float32) - np.asarray(image))[inner].mean()
        for kind in ("near_focus", "far_focus")
    }
    assert apart["far_focus"] < 0.5 < apart["near_focus"]


def test_moving_is_exact_by_whole_pixels_and_blur_keeps_the_mean() -> None:
    pixels = np.random.default_rng(0).random((20, 30, 3), np.float32)
    np.testing.assert_allclose(moved(pixels, 3, 2)[:-2, :-3], pixels[2:, 3:], atol=1e-6)
    flat = np.full((20, 30, 3), 0.3, np.float32)
    np.testing.assert_allclose(blurred(flat, 2.0), flat, atol=1e-6)
    assert blurred(pixels, 0) is pixels


def test_records_change_when_they_are_read_and_are_known_again() -> None:
    records = Scenes(SceneSpec(), 4, 0).records()
    digests = {r.id: f"{i:064x}" for i, r in enumerate(records)}
    fogged, one = changed_records(records, digests, "gaussian_noise", 2)
    _, other = changed_records(records, digests, "gaussian_noise", 3)
    assert one.keys() == digests.keys() and not {*one.values()} & ({*other.values()} | {*digests.values()})
    assert [r.label for r in fogged] == [r.label for r in records]
    assert open_picture(fogged[1]).tobytes() == open_picture(fogged[1]).tobytes() != open_picture(records[1]).tobytes()
    noise = [np.asarray(open_picture(fogged[i]), np.float32) - np.asarray(open_picture(records[i])) for i in (0, 1)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2, "each picture has its own noise"
    wide = Record("wide", None, "x", read=lambda: _png(Image.new("RGB", (1200, 600), "red")))
    big, _ = changed_records(Records((wide,), ""), {"wide": "0"}, "fog", 1)
    assert decode(big[0].read())[0].size == (512, 256)  # pyright: ignore[reportOptionalCall]
    assert resized(np.ones((600, 1200), np.float32), (512, 256)).shape == (256, 512)


def test_what_is_not_known_is_refused() -> None:
    image = Image.new("RGB", (8, 8))
    for words, wrong in (
        ('no change of pictures "fogg"; did you mean "fog"?', ("fogg", 1, None)),
        ("severity is 6", ("fog", 6, None)),
        ("depth [H, W] is (4, 4)", ("fog", 1, np.ones((4, 4), np.float32))),
        ("above 0", ("fog", 1, np.zeros((8, 8), np.float32))),
    ):
        with pytest.raises(DiptychError, match=re.escape(words)):
            change(image, wrong[0], wrong[1], depth=wrong[2])


def _png(image: Image.Image) -> bytes:
    import io

    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
