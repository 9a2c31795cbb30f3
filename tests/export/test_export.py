"""Export: every head and every edit as ONNX, beside the classifier; the script alone; what is refused."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import COLOURS, ColourTower, WordTokenizer, WordTower, colour_clip, colour_folder
from PIL import Image
from torch import nn
from torch.nn import functional as F

from diptych.comparison.predict import predict
from diptych.core import export as module
from diptych.core.classifier import Base, Classifier
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, LowRank, TowerEdits
from diptych.core.export import TOLERANCE, export
from diptych.core.heads import Cache, Gaussian, Head, Linear, Neighbours, TextRows
from diptych.core.preprocess import Preprocess
from diptych.core.text import TextRecipe, class_rows
from diptych.core.tower import Prompt, Tower
from diptych.data.pictures import open_picture
from diptych.errors import DiptychError

onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnxscript", reason="the onnx extra is not installed")

CLASSES = tuple(COLOURS)
FILES = {"README.md", "labels.json", "model.onnx", "predict.py", "preprocessing.json"}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def heads(width: int) -> dict[str, Head]:
    count = len(CLASSES)
    labels = torch.arange(40) % count
    rows, keys = unit(count, width), unit(40, width, seed=1)
    spread = torch.randn(width, width, generator=torch.Generator().manual_seed(2))
    gaussian = Gaussian(rows, unit(count, width, seed=3), spread @ spread.T, rows[:, 0], keys, 30.0, 0.5)
    return {
        "TextRows": TextRows(rows, 40.0),
        "Linear": Linear(5 * rows, rows[:, 0]),
        "Gaussian": gaussian,
        "Cache": Cache(rows, keys, labels, 30.0, 2.0, 4.0),
        "Neighbours": Neighbours(keys, labels, count, 7),
    }


def classifier_of(clip: CLIP, head: Head, **options: Any) -> Classifier:
    return Classifier("made up", {}, CLASSES, CLASSES, head, Base.of(clip), **{"temperature": 1.7, **options})


def colours(clip: CLIP, **options: Any) -> Classifier:
    return classifier_of(clip, TextRows(class_rows(clip, CLASSES, TextRecipe()), 20.0), **options)


def with_tower(image: Tower, size: int) -> CLIP:
    """A CLIP with this picture tower; the text tower plays no part."""
    return CLIP("tiny", image, WordTower(), WordTokenizer(), Preprocess(size, (0.5,) * 3, (0.25,) * 3))


def shaken(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval().requires_grad_(False)


def open_clip_vit() -> Tower:
    import open_clip

    from diptych.core.towers.open_clip import ViTImage

    vision = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
    text = {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1}
    return ViTImage(shaken(open_clip.CLIP(16, vision, text).visual))  # type: ignore[arg-type]


def timm_stages(name: str, **options: Any) -> Tower:
    import timm

    from diptych.core.towers.timm import image_tower

    trunk = shaken(timm.create_model(name, num_classes=0, **options))
    return image_tower(trunk, nn.Linear(trunk.num_features, 16), 16)


def run(folder: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    probabilities, embedding = session.run(["probabilities", "embedding"], {"pixels": pixels.numpy()})
    return torch.from_numpy(probabilities), torch.from_numpy(embedding)


def check(classifier: Classifier, clip: CLIP, folder: Path, *batches: int) -> None:
    """The written graph against the classifier, on pixels that the export did not see, in batches of several sizes."""
    report = export(classifier, folder, clip=clip)
    assert {p.name for p in folder.iterdir()} == FILES == set(report.files)
    assert 0 <= report.probability_difference < TOLERANCE and 0 <= report.embedding_difference < TOLERANCE
    size = clip.preprocess.size
    for batch in (1, 2, 7, *batches):
        pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(9))
        embedding = classifier.clip(clip).encode_image(pixels)
        probabilities, written = run(folder, pixels)
        torch.testing.assert_close(probabilities, classifier.probabilities(embedding), rtol=0, atol=1e-5)
        torch.testing.assert_close(written, embedding, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of `colours` with a threshold, written once."""
    clip = colour_clip()
    folder = tmp_path_factory.mktemp("exported") / "out"
    path = colours(clip, threshold=0.3).save(folder.parent / "winner.safetensors")
    return export(path, folder, clip=clip).folder


@pytest.fixture
def ready(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`export` takes the graph of `exported`, whatever it is asked for: what it does with one is soon seen."""
    monkeypatch.setattr(module, "write_onnx", lambda *given, **_: shutil.copy(exported / "model.onnx", given[-1]))


@pytest.mark.parametrize("kind", heads(4))
def test_every_head(kind: str, tmp_path: Path) -> None:
    clip = colour_clip()
    check(classifier_of(clip, heads(12)[kind]), clip, tmp_path / "out", 1500)


def every_edit(tower: Tower) -> TowerEdits:
    deltas = [
        LowRank(p, unit(2, 32, seed=i), unit(p.stop - p.start, 2, seed=i + 50), 2.0)
        for i, p in enumerate(tower.projections())
    ]
    prompts = [Prompt(unit(3, 32)), Prompt(unit(3, 32, seed=8), block=1, replace=True)]
    prompts += [Prompt(unit(2, 32, seed=7), at="end", before_norm=False)]
    weights = {"visual.proj": 0.3 * unit(32, 16), "visual.transformer.resblocks.0.attn.in_proj_weight": unit(96, 32)}
    return TowerEdits(tuple(prompts), tuple(deltas), weights)


@pytest.mark.parametrize("kind", ["prompts", "low_rank", "weights"])
def test_every_edit_is_merged(kind: str) -> None:
    """In torch, before anything is written; the base stays as it is."""
    tower = open_clip_vit()
    clip = with_tower(tower, 32)
    before = {name: weight.clone() for name, weight in tower.state_dict().items()}
    part = TowerEdits(**{kind: getattr(every_edit(tower), kind)})
    classifier = classifier_of(clip, heads(16)["TextRows"], edits=Edits({"image": part}))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = classifier.clip(clip).encode_image(pixels)
    assert (expected - clip.encode_image(pixels)).abs().max() > 1e-2  # or merging it proves nothing
    probabilities, embedding = module.Exported(classifier, clip)(pixels)
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(probabilities, classifier.probabilities(expected), rtol=0, atol=1e-6)
    assert all(torch.equal(before[name], weight) for name, weight in tower.state_dict().items())


def test_a_transformer_with_every_edit(tmp_path: Path) -> None:
    tower = open_clip_vit()
    clip = with_tower(tower, 32)
    edits = Edits({"image": every_edit(tower)})
    check(classifier_of(clip, heads(16)["TextRows"], edits=edits), clip, tmp_path / "out")


def test_convolutions_with_batch_norm(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    clip = with_tower(timm_stages("test_efficientnet"), 64)
    check(classifier_of(clip, heads(16)["Linear"]), clip, tmp_path / "out")


def test_weights_of_gigabytes_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = colour_clip()
    monkeypatch.setattr(module, "SINGLE_FILE", 0)
    for _ in range(2):  # an earlier export of this form is replaced too
        report = export(colours(clip), tmp_path / "out", clip=clip)
        assert set(report.files) == FILES | {"model.onnx.data"}


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The written script with torch and diptych out of its reach, from another folder."""
    code = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'diptych'])); "
        f"sys.argv = ['predict.py', *{list(arguments)!r}]; "
        f"runpy.run_path({str(folder / 'predict.py')!r}, None, '__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parent, check=False)


def test_the_script_alone(exported: Path, tmp_path: Path) -> None:
    photos = colour_folder(tmp_path / "photos", each=2, noise=10)
    (photos / "blue" / "bad.png").write_bytes(b"\x89PNG")
    done = script(exported, str(photos), "--top", "2")
    assert done.returncode == 1 and "bad.png" in done.stderr
    winner = exported.parent / "winner.safetensors"
    ours = [p for p in predict(winner, photos, clip=colour_clip(), top=2) if not p.error]
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(p.path) for p in ours]
    for line, prediction in zip(lines, ours, strict=True):
        assert line[1] == line[3] == prediction.label
        assert float(line[2]) == float(line[4]) == pytest.approx(prediction.probability, abs=1e-4)
        assert line[5] == prediction.top[1][0] and float(line[6]) == pytest.approx(prediction.top[1][1], abs=1e-4)
    one = script(exported, str(photos / "red" / "0.png"), "--threshold", "1")
    assert one.returncode == 0 and one.stdout.split("\t")[1] == "none of these"


def test_nothing_tells_of_the_machine_that_wrote_it(exported: Path) -> None:
    assert str(Path(module.__file__).parents[3]) not in (exported / "model.onnx").read_text("latin-1")


def odd_pictures() -> dict[str, bytes]:
    """Kinds of picture that a naive script reads differently."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 255, (50, 30, 3), np.uint8))
    clear = Image.fromarray(random.integers(0, 255, (20, 40, 4), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "plain": (colours, "PNG", {}),
        "turned": (colours, "JPEG", {"exif": turned, "quality": 95}),
        "clear": (clear, "PNG", {}),
        "palette": (clear.convert("RGB").quantize(8), "PNG", {"transparency": 3}),
        "grey": (colours.convert("L"), "PNG", {}),
        "grey and clear": (clear.convert("LA"), "PNG", {}),
        "ink": (colours.convert("CMYK"), "JPEG", {}),
        "16 bits": (Image.fromarray(random.integers(0, 65535, (9, 9), np.uint16)), "PNG", {}),
        "12 bits": (Image.fromarray(random.integers(0, 4095, (9, 9), np.uint16)), "TIFF", {}),
        "floats": (Image.fromarray(random.random((9, 9), np.float32)), "TIFF", {}),
        "bits": (colours.convert("1"), "PNG", {}),
        "film": (colours, "GIF", {"save_all": True, "append_images": [colours.transpose(0)]}),
        "wide": (colours.resize((400, 3)), "WEBP", {"lossless": True}),
        "a line": (colours.resize((1, 9000)), "PNG", {}),
    }
    out = {}
    for name, (image, form, options) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        out[name] = buffer.getvalue()
    return out


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("name", odd_pictures())
def test_the_script_reads_pictures_as_we_do(name: str, resize: Any, tmp_path: Path) -> None:
    import runpy
    from dataclasses import asdict

    alone = runpy.run_path(str(module.SCRIPT), run_name="script")
    path = tmp_path / "picture"
    path.write_bytes(odd_pictures()[name])
    assert np.array_equal(np.asarray(alone["open_picture"](path)), np.asarray(open_picture(path)))
    for i, interpolation in enumerate(("bicubic", "bilinear", "lanczos", "nearest")):
        ours = Preprocess(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation, resize, fill=7, floor=i % 2 == 0)
        theirs = alone["preprocess"](alone["open_picture"](path), **json.loads(json.dumps(asdict(ours))))
        assert np.array_equal(theirs, ours(open_picture(path)).numpy())


@pytest.mark.usefixtures("ready")
def test_labels_and_settings_beside_the_model(tmp_path: Path) -> None:
    clip = colour_clip()
    classifier = replace(colours(clip, threshold=0.25), classes=("rouge", "vert «été»", "bleu", "黄"))
    report = export(classifier, tmp_path / "a" / "out", clip=clip)
    labels = json.loads((report.folder / "labels.json").read_text("utf-8"))
    assert labels["classes"] == list(classifier.classes) and labels["threshold"] == 0.25
    assert labels["base"] == {"name": "colours", "source": "colours", "fingerprint": clip.fingerprint}
    settings = json.loads((report.folder / "preprocessing.json").read_text("utf-8"))
    assert settings["size"] == 16 and settings["mean"] == [0.5, 0.5, 0.5]
    about = (report.folder / "README.md").read_text("utf-8")
    assert "predict.py" in about and "{" not in about
    assert "黄" in (report.folder / "labels.json").read_text("utf-8")


@pytest.mark.usefixtures("ready")
def test_what_it_can_become(tmp_path: Path) -> None:
    clip = colour_clip()
    report = export(colours(clip), tmp_path / "out", clip=clip)
    assert {"ONNX", "one matrix"} <= set(report.can)
    assert "not known" in report.cannot["open_clip"]
    assert "ONNX" in str(report) and "cannot" in str(report)
    _, cannot = module.forms(classifier_of(clip, heads(12)["Neighbours"]), clip)
    assert "stored" in cannot["one matrix"]


@pytest.mark.usefixtures("ready")
def test_a_folder_is_replaced_only_when_it_is_an_export(tmp_path: Path) -> None:
    clip, out = colour_clip(), tmp_path / "out"
    out.mkdir()
    export(colours(clip), out, clip=clip)
    export(colours(clip, threshold=0.5), out, clip=clip)
    assert json.loads((out / "labels.json").read_text())["threshold"] == 0.5
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DiptychError, match=r"out holds notes\.txt"):
        export(colours(clip), out, clip=clip)
    other = tmp_path / "other"
    other.mkdir()
    (other / "labels.json").write_text("[]")
    with pytest.raises(DiptychError, match=r"holds labels\.json"):
        export(colours(clip), other, clip=clip)
    with pytest.raises(DiptychError, match="is a file"):
        export(colours(clip), other / "labels.json", clip=clip)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.usefixtures("ready")
def test_a_difference_fails_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that computes something else, or NaN, and a script that prepares pictures otherwise."""
    clip, out = colour_clip(), tmp_path / "out"
    export(colours(clip), out, clip=clip)
    before = (out / "labels.json").read_bytes()
    warmer = replace(colours(clip), temperature=1.71)
    for place in (out, tmp_path / "new"):
        with pytest.raises(DiptychError, match=r"differs by .* in probabilities"):
            export(warmer, place, clip=clip)
    broken = classifier_of(clip, Linear(torch.full((4, 12), torch.nan), torch.zeros(4)))
    with pytest.raises(DiptychError, match="differs by nan"):
        export(broken, out, clip=clip)
    wrong = tmp_path / "wrong.py"
    wrong.write_text(module.SCRIPT.read_text().replace("/ 255\n", "/ 256\n"))
    monkeypatch.setattr(module, "SCRIPT", wrong)
    with pytest.raises(DiptychError, match=r"predict\.py prepares"):
        export(colours(clip), out, clip=clip)
    assert (out / "labels.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "wrong.py"]


def test_a_tower_that_cannot_be_traced(tmp_path: Path) -> None:
    class Untraceable(ColourTower):
        def forward(self, inputs, **options):
            return super().forward(inputs * float(np.asarray(inputs.mean().item() > 0)), **options)

    clip = with_tower(Untraceable(), 16)
    with pytest.raises(DiptychError, match=r"cannot write fake\.colours as ONNX"):
        export(classifier_of(clip, heads(12)["TextRows"]), tmp_path / "out", clip=clip)
    assert list(tmp_path.iterdir()) == []


def test_another_base_model_and_a_damaged_file(tmp_path: Path) -> None:
    clip, other = colour_clip(), colour_clip("other")
    with torch.no_grad():
        other.image.get_parameter("scale").mul_(2)
    path = colours(clip).save(tmp_path / "winner.safetensors")
    with pytest.raises(DiptychError, match=r'"colours".*opened with "other"'):
        export(path, tmp_path / "out", clip=other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DiptychError, match="damaged"):
        export(path, tmp_path / "out", clip=clip)
    assert [p.name for p in tmp_path.iterdir()] == ["winner.safetensors"]


def test_the_extra_is_named_when_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = colour_clip()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DiptychError, match=r"diptych\[onnx\]"):
        export(colours(clip), tmp_path / "out", clip=clip)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    clip = colour_clip()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiptychError, match="cannot write"):
        export(colours(clip), tmp_path / "file" / "out", clip=clip)
