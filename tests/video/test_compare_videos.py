"""`diptych compare` and `predict` on folders of videos, from the command line to the file that predicts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import colour_clip
from PIL import Image
from torch.nn import functional as F
from video_world import colour_clips, greys, write_sound, write_video

import diptych
from diptych.cli.main import main
from diptych.comparison.plan import choose_systems, families_for
from diptych.core.classifier import Classifier
from diptych.data.records import Records
from diptych.data.task import Task, make_task
from diptych.data.video import read_frames
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_clips(tmp_path_factory.mktemp("videos") / "clips", 8)


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    return make_task(folder, frames=4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def test_features_are_means_of_frames_not_normalised(task: Task, cache: None) -> None:
    clip, records = colour_clip(), task.pool[[0, 1, 2]]
    store = FeatureStore(task.digests, frames=4)
    with torch.no_grad():
        frames = [clip.encode_image(torch.stack(read_frames(r, 4, clip.preprocess))) for r in records]
    torch.testing.assert_close(store.rows(clip, records, 0), torch.stack(frames))
    expected = F.normalize(torch.stack(frames).mean(1), dim=-1)
    torch.testing.assert_close(store.images(clip, records), expected)
    assert store.pixels(clip, records).shape == (3, 4, 3, 16, 16)
    torch.testing.assert_close(F.normalize(clip.encode_image(store.pixels(clip, records)), dim=-1), expected)
    assert store.images(clip, records, views=2).shape == (3, 2, 12)


def test_more_frames_are_other_features(task: Task, cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, records = colour_clip(), task.pool[[0, 1]]
    four, two = (FeatureStore(task.digests, frames=n).images(clip, records) for n in (4, 2))
    assert not torch.equal(four, two)
    monkeypatch.setattr("diptych.engine.store.read_frames", None)  # nothing is read again
    assert torch.equal(FeatureStore(task.digests, frames=4).images(clip, records), four)


def test_a_training_view_has_one_crop_for_all_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    path = write_video(tmp_path / "still.mp4", [still] * 12)
    records = Records((task_record(path),), "one")
    store = FeatureStore({"one": "0" * 64}, frames=4)
    clip = colour_clip()
    (video,) = store.pixels(clip, records, rng=np.random.default_rng(1), crop=(0.2, 0.6))
    assert float((video - video[:1]).abs().max()) < 0.05
    (other,) = store.pixels(clip, records, rng=np.random.default_rng(2), crop=(0.2, 0.6))
    assert float((video - other).abs().max()) > 0.1


def task_record(path: Path):
    from diptych.data.records import Record

    return Record("one", path, None)


def test_every_method_works_on_videos(task: Task, tmp_path: Path, cache: None) -> None:
    quick = {"wise_ft.epochs": "1", "vifi_clip.tune": "image", "vifi_clip.epochs": "2"}
    methods = ["zero_shot", "knn", "gda", "tip_adapter", "wise_ft", "vifi_clip"]
    best = diptych.compare(
        colour_clip(), task, methods=methods, shots=(2,), seeds=1, settings=quick, out=tmp_path / "run"
    )
    rows = {row["method"]: row for row in best.rows}
    assert set(rows) == set(methods) and not any("skipped" in row for row in rows.values()), rows
    assert rows["zero_shot"]["accuracy"] > 0.6
    assert rows["vifi_clip"]["new_class_after"] is not None


def test_methods_of_videos_do_not_run_on_pictures(tmp_path: Path) -> None:
    from fakes import colour_folder

    pictures = make_task(colour_folder(tmp_path / "photos", 4))
    with pytest.raises(DiptychError, match="vifi_clip is for videos"):
        diptych.compare(colour_clip(), pictures, methods=["vifi_clip"], out=tmp_path / "run")
    assert "vifi_clip" in {a.system() for a in choose_systems(["all"], {})}
    assert "vifi_clip" not in {a.system() for a in choose_systems(["all"], {}, families_for(pictures))}


def test_from_folder_to_prediction(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: None
) -> None:
    import diptych.core.load as loading

    monkeypatch.setattr(loading, "load", lambda name="mini", device=None: colour_clip())
    mine = shutil.copytree(folder, tmp_path / "clips")
    (mine / "red" / "torn.mp4").write_bytes(b"nothing of the kind")
    write_sound(mine / "blue" / "sound.mp4")
    words = ["compare", mine, "--methods", "zero_shot,knn", "--shots", "2", "--seeds", "1", "--frames", "3"]
    words = [str(word) for word in [*words, "--out", tmp_path / "run"]]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "videos (3 frames of each)" in told and "set aside: blue/sound.mp4: audio alone" in told.replace("\n", " ")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["provenance"]["data"]["frames"] == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "test videos that no method was fitted on" in page and "<img" in page  # the gallery's frames

    assert main(words) == 0
    assert "nothing to compute" in capsys.readouterr().out
    words[words.index("3")] = "5"
    assert main(words) == 2 and "another run" in capsys.readouterr().err  # other frames are another run

    winner = tmp_path / "run" / "winner.safetensors"
    assert Classifier.load(winner).frames == 3
    new = write_video(tmp_path / "new.mp4", [np.full((32, 32, 3), (220, 30, 30), np.uint8)] * 6)
    assert main(["predict", str(winner), str(new), str(mine / "red" / "torn.mp4"), "--json", "--threshold", "0"]) == 0
    good, bad = json.loads(capsys.readouterr().out)
    assert good["label"] == "red" and good["error"] is None
    assert bad["label"] is None and "not a video" in bad["error"]
    assert main(["predict", str(winner), str(new), "--views", "2x3", "--json", "--threshold", "0"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["label"] == "red"
    assert main(["predict", str(winner), str(new), "--views", "many"]) == 2
    assert main(["export", str(winner), "--onnx", str(tmp_path / "onnx")]) == 2
    assert "reads single pictures" in capsys.readouterr().err


def test_views_are_averaged_as_probabilities(task: Task, tmp_path: Path, cache: None) -> None:
    clip = colour_clip()
    best = diptych.compare(clip, task, methods=["zero_shot"], shots=(2,), seeds=1, out=tmp_path / "run")
    path = write_video(tmp_path / "wide.mp4", [np.concatenate([g, g[:, ::-1] // 2], 1) for g in greys(24, (32, 32))])
    (found,) = diptych.predict(best.winner, path, clip=clip, views=(2, 3), top=4, threshold=0)
    from diptych.data.video import crops

    shares = []
    for k in range(2):
        frames = read_frames(path, 4, lambda image: image, view=(k, 2))
        for place in range(3):
            pixels = torch.stack([clip.preprocess(crops(frame, 3)[place]) for frame in frames])
            shares.append(best.winner.probabilities(clip.encode_image(pixels).mean(0, keepdim=True))[0])
    expected = torch.stack(shares).mean(0)
    for name, probability in found.top:
        assert probability == pytest.approx(float(expected[best.winner.classes.index(name)]), abs=1e-5)


def test_a_picture_is_no_video_for_a_classifier_of_pictures(task: Task, tmp_path: Path, folder: Path) -> None:
    from fakes import colour_folder

    clip = colour_clip()
    pictures = make_task(colour_folder(tmp_path / "photos", 4))
    best = diptych.compare(clip, pictures, methods=["zero_shot"], shots=(1,), seeds=1, out=tmp_path / "run")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 20), (220, 30, 30)).save(photo)
    good, bad = diptych.predict(best.winner, [photo, folder / "red" / "0.mp4"], clip=clip, threshold=0)
    assert good.label == "red" and bad.error == "a film, not a picture"
    with pytest.raises(DiptychError, match="several views are of videos"):
        diptych.predict(best.winner, photo, clip=clip, views=(4, 3))
