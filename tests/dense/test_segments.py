"""Readers of segments: against COCO's own tools, on drawn files with a known answer, and on input that is wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.masks import check_shape, decode_mask
from diptych.data.scenes import Scenes, SceneSpec
from diptych.data.segments import coco_instances, index_folder, scene_segments
from diptych.errors import DiptychError


def test_masks_are_those_of_cocos_own_tools_bit_for_bit() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for trial in range(300):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        polygons = []
        for _ in range(rng.integers(1, 4)):  # some reach outside; some corners coincide; some lie on whole pixels
            points = rng.uniform(-0.3, 1.3, (rng.integers(3, 9), 2)) * (width, height)
            if trial % 3 == 0:
                points = points.round()
            polygons.append(np.repeat(points, rng.integers(1, 3), 0).ravel().tolist())
        check_shape(polygons, height, width, "here")
        packed = tools.merge(tools.frPyObjects(polygons, height, width))
        wanted = tools.decode(packed).astype(bool)
        assert np.array_equal(decode_mask(polygons, height, width), wanted)
        text = {"size": [height, width], "counts": packed["counts"].decode()}
        check_shape(text, height, width, "here")
        assert np.array_equal(decode_mask(text, height, width), wanted)
        ends = np.flatnonzero(np.diff(wanted.T.ravel(), prepend=False)).tolist()
        counts = np.diff([0, *ends, height * width]).tolist()
        assert np.array_equal(decode_mask({"size": [height, width], "counts": counts}, height, width), wanted)


def test_cocos_photos_are_those_of_cocos_own_tools(data: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    file = data / "coco-mini" / "annotations" / "instances_train2017.json"
    records = coco_instances(file, data / "coco-mini" / "train2017")
    tools = coco.COCO(str(file))
    assert len(records) == 80 and len(records.names) == 80 and all(records.things)
    seen = 0
    for record, number in zip(records, [image["id"] for image in tools.dataset["images"]], strict=True):
        segments = record.segments()
        marks = tools.imgToAnns[number]
        single = [tools.annToMask(mark).astype(bool) for mark in marks if not mark["iscrowd"]]
        assert len(single) == len(segments.masks)
        assert all(np.array_equal(a, b) for a, b in zip(single, segments.masks, strict=True))
        crowds = [tools.annToMask(mark).astype(bool) for mark in marks if mark["iscrowd"]]
        assert len(crowds) == len(segments.crowds)
        assert not segments.ignored[segments.masks.any(0)].any()
        seen += len(marks)
    assert seen == 739
    assert records[0].picture().size == records[0].segments().ignored.shape[::-1]


@pytest.fixture
def street(tmp_path: Path) -> Callable[..., tuple[Path, Path, Path]]:
    """A picture with its index picture, and three classes of which the last is to be ignored."""

    def make(values: Any, size: tuple[int, int] = (4, 3)) -> tuple[Path, Path, Path]:
        places = tmp_path / "pictures", tmp_path / "indices", tmp_path / "classes.txt"
        places[0].mkdir()
        places[1].mkdir()
        Image.new("RGB", size).save(places[0] / "a.jpg")
        index = values if isinstance(values, Image.Image) else Image.fromarray(np.array(values, np.uint8))
        index.save(places[1] / "a.png")
        places[2].write_text("road\nunknown (ignore)\ncar\n")
        return places

    return make


def test_index_pictures(street: Callable[..., tuple[Path, Path, Path]]) -> None:
    records = index_folder(*street([[0, 0, 2, 2], [0, 0, 2, 255], [1, 1, 0, 0]]))
    assert records.names == ("road", "car") and records.things == (False, False)
    segments = records[0].segments()
    assert segments.labels == (0, 1)
    assert segments.semantic().tolist() == [[0, 0, 1, 1], [0, 0, 1, -1], [-1, -1, 0, 0]]
    assert segments.ignored.tolist() == (segments.semantic() < 0).tolist()

    roads = records.without(["car"])
    assert roads.names == ("road",) and roads[:1][0].segments().labels == (0,)
    assert roads[0].segments().ignored.sum() == 3 + 3, "what nobody tells of is ignored"
    with pytest.raises(DiptychError, match='did you mean "car"'):
        records.without(["cars"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([[0, 0, 3, 0]] * 3, "a.png holds the class number 3, but .*classes.txt names 3"),
        ([[0, 0, 0]] * 3, "a.png has 3 x 3 pixels, its picture .*a.jpg 4 x 3"),
        (Image.new("RGB", (4, 3)), "a.png is a picture of mode RGB"),
    ],
)
def test_bad_index_pictures(street: Callable[..., tuple[Path, Path, Path]], values: Any, says: str) -> None:
    records = index_folder(*street(values))
    with pytest.raises(DiptychError, match=says):
        records[0].segments()


def test_bad_index_folders(street: Callable[..., tuple[Path, Path, Path]], tmp_path: Path) -> None:
    pictures, indices, classes = street([[0] * 4] * 3)
    (indices / "a.png").write_bytes(b"GIF89a no PNG")
    with pytest.raises(DiptychError, match=r"a.png cannot be read as a PNG"):
        index_folder(pictures, indices, classes)[0].segments()
    (indices / "a.png").unlink()
    with pytest.raises(DiptychError, match=r"a.jpg has no index picture: .*a.png"):
        index_folder(pictures, indices, classes)
    with pytest.raises(DiptychError, match=r"missing is no folder"):
        index_folder(tmp_path / "missing", indices, classes)
    for text in ("", "road\nroad\n", "road (ignore)\n"):
        classes.write_text(text)
        with pytest.raises(DiptychError, match=r"classes.txt"):
            index_folder(pictures, indices, classes)
    with pytest.raises(DiptychError, match="cannot be read as a list"):
        index_folder(pictures, indices, tmp_path / "none.txt")


def test_camvid(data: Path) -> None:
    root = data / "camvid"
    records = index_folder(root / "test", root / "testannot", root / "classes.txt")
    assert len(records) == 20 and len(records.names) == 11 and records.names[0] == "sky"
    number = np.array(Image.open(root / "testannot" / records[0].id)).astype(int)
    semantic = records[0].segments().semantic()
    assert np.array_equal(semantic, np.where(number == 11, -1, number))


PLAIN: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 8, "height": 6}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 0},
        {
            "id": 2,
            "image_id": 7,
            "category_id": 9,
            "segmentation": {"size": [6, 8], "counts": [36, 12]},
            "iscrowd": 1,
        },
        {"id": 3, "image_id": 7, "category_id": 3, "segmentation": [[5, 5, 5, 5, 5, 5]]},
    ],
    "categories": [{"id": 9, "name": "bird"}, {"id": 3, "name": "cow"}],
}


def coco(tmp_path: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    said = json.loads(json.dumps(PLAIN))
    if change is not None:
        change(said)
    (tmp_path / "said.json").write_text(json.dumps(said))
    return tmp_path / "said.json"


def test_coco(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    records = coco_instances(coco(tmp_path), tmp_path)
    segments = records[0].segments()
    assert records.names == ("bird", "cow") and segments.labels == (1,) and segments.crowd_labels == (0,)
    assert segments.masks[0].sum() == 16 and segments.masks[0, :4, :4].all()
    assert segments.ignored.sum() == 12 and segments.ignored[:, 6:].all()
    assert records[0].picture().size == (8, 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["images"][0].update(file_name="../../etc/passwd"), r"images\[0\]: file_name .* below the folder"),
        (lambda d: d["images"][0].update(file_name="/etc/passwd"), r"file_name .* below the folder"),
        (lambda d: d["images"][0].update(width=10**6, height=10**6), r"images\[0\]: 1000000 x 1000000 pixels"),
        (lambda d: d["images"][0].update(width="8"), r"images\[0\]: width is '8'; it must be of type int"),
        (lambda d: d["images"].append(d["images"][0]), r"images\[1\]: id 7 stands twice"),
        (lambda d: d["categories"].append({"id": 3, "name": "x"}), r"categories\[2\]: id 3 stands twice"),
        (lambda d: d["annotations"][0].update(image_id=8), r"annotations\[0\]: image_id 8 is of no image"),
        (lambda d: d["annotations"][0].update(category_id=1), r"annotations\[0\]: category_id 1 is of no category"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3]]), r"annotations\[0\]: segmentation: a polygon"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, 0, 1e9, 0, 4, 4]]), r"segmentation: .* far outside"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, 0, float("nan"), 0, 4, 4]]), r"far outside"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, 0, "x", 0, 4, 4]]), r"no number"),
        (lambda d: d["annotations"][0].update(segmentation=[]), r"annotations\[0\]: segmentation must be"),
        (lambda d: d["annotations"][1]["segmentation"].update(size=[8, 6]), r"annotations\[1\]: segmentation.size"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts=[40, 12]), r"counts must .* add up to 48"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts=[50, -2]), r"counts must"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts="~~~"), r"counts is no text"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts="P"), r"counts ends in the middle"),
        (lambda d: d.pop("categories"), r"said.json: categories must be a list"),
    ],
)
def test_bad_coco(tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    with pytest.raises(DiptychError, match=says):
        coco_instances(coco(tmp_path, change), tmp_path)


def test_pictures_of_another_size_or_missing(tmp_path: Path) -> None:
    records = coco_instances(coco(tmp_path), tmp_path)
    with pytest.raises(DiptychError, match=r"a.png: no such file"):
        records[0].picture()
    Image.new("RGB", (6, 8)).save(tmp_path / "a.png")
    with pytest.raises(DiptychError, match=r"a.png has 6 x 8 pixels, .*said.json says 8 x 6"):
        records[0].picture()


def test_scenes() -> None:
    spec = SceneSpec(shapes=("circle", "star"), colours=("red", "blue"), backgrounds=("grass", "snow"), counts=(2,))
    records = scene_segments(Scenes(spec, 5, seed=3))
    assert records.names == ("red circle", "blue circle", "red star", "blue star", "grass", "snow")
    assert records.things == (True,) * 4 + (False,) * 2
    for record, drawn in zip(records, Scenes(spec, 5, seed=3), strict=True):
        segments = record.segments()
        assert np.array_equal(segments.masks[:-1], drawn.masks) and segments.masks.sum(0).min() == 1
        said = [f"{thing.colour} {thing.shape}" for thing in drawn.scene.things] + [drawn.scene.background]
        assert [records.names[label] for label in segments.labels] == said
        assert np.array_equal(np.asarray(record.picture()), drawn.picture)
    by_shape = scene_segments(Scenes(spec, 5, seed=3), by="shape")
    assert by_shape.names == ("circle", "star", "grass", "snow")
    held = replace(spec, held_out=0.25, combinations="unseen", counts=(1,))  # names of all combinations
    assert scene_segments(Scenes(held, 2)).names == records.names
